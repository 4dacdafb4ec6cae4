//! What the types share that code a few neighbours at once, as a point of a fixed table. The tables
//! are ggml's, a byte for each coordinate; `tests/data/types/make.py` tells how they were made.

/// The points of a table, as its file has them.
pub(super) const fn points<const P: usize, const N: usize, const BYTES: usize>(
    bytes: &[u8; BYTES],
) -> [[i8; P]; N] {
    assert!(P * N == BYTES, "the file has all points and nothing else");
    let mut points = [[0; P]; N];
    let mut i = 0;
    while i < BYTES {
        points[i / P][i % P] = bytes[i].cast_signed();
        i += 1;
    }
    points
}

/// The signs of `count` numbers, of which all but the last have a bit: its makes the number of
/// minus signs even.
#[inline(always)]
pub fn even_signs(bits: u32, count: usize) -> u32 {
    bits | (bits.count_ones() & 1) << (count - 1)
}

/// A bit for each number below zero.
pub fn minus_signs<T: Copy + Default + PartialOrd>(numbers: &[T]) -> u32 {
    let minus = numbers.iter().enumerate().filter(|(_, number)| **number < T::default());
    minus.fold(0, |signs, (t, _)| signs | 1 << t)
}

/// Codes of `width` bits, at most 32, that lie one after the other, the lowest bits first.
pub(super) fn codes(bytes: &[u8], width: usize) -> impl Iterator<Item = u32> {
    let mask = (1_u64 << width) - 1;
    let (mut held, mut count) = (0_u64, 0);
    let mut bytes = bytes.iter();
    std::iter::from_fn(move || {
        while count < width {
            held |= u64::from(*bytes.next()?) << count;
            count += 8;
        }
        let code = (held & mask) as u32;
        (held, count) = (held >> width, count - width);
        Some(code)
    })
}

/// A point whose coordinate `i` is turned where bit `i` is set.
#[inline(always)]
pub(super) fn signed<const P: usize>(point: &[i8; P], signs: u32) -> [i8; P] {
    std::array::from_fn(|i| if signs >> i & 1 == 0 { point[i] } else { -point[i] })
}
