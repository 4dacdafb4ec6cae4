//! What the block types share: blocks beside the values they stand for, and half-precision scales.

use super::{Int8Row, Rows, SUB};

/// The codes of some rows as blocks.
///
/// # Panics
/// If they are not whole rows.
pub(super) fn code_blocks<'a, const BYTES: usize, const LEN: usize>(
    rows: &Rows<'a>,
) -> &'a [[u8; BYTES]] {
    assert!(rows.cols.is_multiple_of(LEN), "a row of {} is not blocks of {LEN}", rows.cols);
    let expected = rows.count * (rows.cols / LEN) * BYTES;
    assert_eq!(rows.codes.len(), expected, "the codes are whole rows");
    rows.codes.as_chunks::<BYTES>().0
}

/// The blocks of some rows, each with the room for its values.
///
/// # Panics
/// If the codes or the room are not exactly the rows.
pub(super) fn decode_blocks<'a, const BYTES: usize, const LEN: usize>(
    rows: &Rows<'a>,
    out: &'a mut [f32],
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [f32; LEN])> {
    assert_eq!(out.len(), rows.count * rows.cols, "decode has room for every value");
    code_blocks::<BYTES, LEN>(rows).iter().zip(out.as_chunks_mut::<LEN>().0)
}

/// The values of some rows, one block after the other, each with the room for its code.
///
/// # Panics
/// If a row is not whole blocks, or the room is not exactly the rows.
pub(super) fn encode_blocks<'a, const BYTES: usize, const LEN: usize>(
    values: &'a [f32],
    cols: usize,
    codes: &'a mut [u8],
) -> impl Iterator<Item = (&'a [f32; LEN], &'a mut [u8; BYTES])> {
    assert!(cols.is_multiple_of(LEN), "a row of {cols} is not whole blocks of {LEN}");
    assert!(values.len().is_multiple_of(cols.max(1)), "encode takes whole rows of {cols}");
    assert_eq!(codes.len() * LEN, values.len() * BYTES, "encode fills its codes");
    values.as_chunks::<LEN>().0.iter().zip(codes.as_chunks_mut::<BYTES>().0)
}

/// The blocks of one row, each with its room in the integer form: values and scales.
///
/// # Panics
/// If the codes or the room are not exactly the row.
pub(super) fn unpack_blocks<'a, const BYTES: usize, const LEN: usize, const SUBS: usize>(
    row: &Rows<'a>,
    out: &'a mut Int8Row,
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [i8; LEN], &'a mut [f32; SUBS])> {
    const { assert!(SUBS * SUB == LEN, "a block has a scale per SUB values") }
    assert_eq!(out.values.len(), row.count * row.cols, "unpack has room for every value");
    assert_eq!(out.scales.len() * SUB, out.values.len(), "unpack has room for every scale");
    let values = out.values.as_chunks_mut::<LEN>().0;
    let scales = out.scales.as_chunks_mut::<SUBS>().0;
    let blocks = code_blocks::<BYTES, LEN>(row).iter();
    blocks.zip(values).zip(scales).map(|((block, values), scales)| (block, values, scales))
}

/// `decode` of a type whose values are exactly its small integers times their scales: what
/// `integers` makes of a block is all that there is to know about the type.
///
/// # Panics
/// If the codes or the room are not exactly the rows.
pub(super) fn decode_integers<const BYTES: usize, const LEN: usize, const SUBS: usize>(
    rows: &Rows,
    out: &mut [f32],
    integers: impl Fn(&[u8; BYTES], &mut [i8; LEN], &mut [f32; SUBS]),
) {
    const { assert!(SUBS * SUB == LEN, "a block has a scale per SUB values") }
    let (mut values, mut scales) = ([0; LEN], [0.0; SUBS]);
    for (block, out) in decode_blocks::<BYTES, LEN>(rows, out) {
        integers(block, &mut values, &mut scales);
        for (i, (out, &value)) in out.iter_mut().zip(&values).enumerate() {
            *out = scales[i / SUB] * f32::from(value);
        }
    }
}

/// `unpack` of such a type.
///
/// # Panics
/// If the codes or the room are not exactly the row.
pub(super) fn unpack_integers<const BYTES: usize, const LEN: usize, const SUBS: usize>(
    row: &Rows,
    out: &mut Int8Row,
    integers: impl Fn(&[u8; BYTES], &mut [i8; LEN], &mut [f32; SUBS]),
) {
    for (block, values, scales) in unpack_blocks::<BYTES, LEN, SUBS>(row, out) {
        integers(block, values, scales);
    }
}

/// One block's room in the integer form of a type with minimums.
pub(super) struct Int8Block<'a, const LEN: usize, const SUBS: usize> {
    pub(super) values: &'a mut [i8; LEN],
    pub(super) scales: &'a mut [f32; SUBS],
    pub(super) mins: &'a mut [f32; SUBS],
}

/// The blocks of one row, each with its room in the integer form, minimums included.
///
/// # Panics
/// If the codes or the room are not exactly the row.
pub(super) fn unpack_blocks_with_mins<
    'a,
    const BYTES: usize,
    const LEN: usize,
    const SUBS: usize,
>(
    row: &Rows<'a>,
    out: &'a mut Int8Row,
) -> impl Iterator<Item = (&'a [u8; BYTES], Int8Block<'a, LEN, SUBS>)> {
    const { assert!(SUBS * SUB == LEN, "a block has a scale and a minimum per SUB values") }
    assert_eq!(out.values.len(), row.count * row.cols, "unpack has room for every value");
    assert_eq!(out.scales.len() * SUB, out.values.len(), "unpack has room for every scale");
    assert_eq!(out.mins.len() * SUB, out.values.len(), "unpack has room for every minimum");
    let values = out.values.as_chunks_mut::<LEN>().0;
    let scales = out.scales.as_chunks_mut::<SUBS>().0;
    let mins = out.mins.as_chunks_mut::<SUBS>().0;
    let room = values.iter_mut().zip(scales).zip(mins);
    let room = room.map(|((values, scales), mins)| Int8Block { values, scales, mins });
    code_blocks::<BYTES, LEN>(row).iter().zip(room)
}

/// The blocks of one row, each with the room for its integer scales.
///
/// # Panics
/// If the codes or the room are not exactly the row.
pub(super) fn block_scales<'a, const BYTES: usize, const SUBS: usize>(
    row: &Rows<'a>,
    scales: &'a mut [i8],
) -> impl Iterator<Item = (&'a [u8; BYTES], &'a mut [i8; SUBS])> {
    assert_eq!(row.codes.len() * SUBS, scales.len() * BYTES, "room for every scale");
    row.codes.as_chunks::<BYTES>().0.iter().zip(scales.as_chunks_mut::<SUBS>().0)
}

/// The half-precision number at a place in a block.
///
/// As `half::f16::to_f32`, which looks for the instruction on every call and is not inlined; one
/// scale is read per block, so that would cost as much as the block's values.
#[inline(always)]
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let (sign, magnitude) = ((bits & 0x8000) << 16, bits & 0x7fff);
    let magnitude = match magnitude {
        // Subnormal: a multiple of the smallest half, 2^-24.
        0..0x0400 => (magnitude as f32 * f32::from_bits(0x3380_0000)).to_bits(),
        // The exponents are biased by 15 and by 127, the mantissas 10 and 23 bits long.
        0x0400..0x7c00 => (magnitude << 13) + ((127 - 15) << 23),
        // Infinity and not-a-number.
        _ => (magnitude << 13) | 0x7f80_0000,
    };
    f32::from_bits(sign | magnitude)
}

/// What the low halves of some bytes stand for, then what the high halves stand for.
///
/// The bytes are copied first: only then does the compiler see that writing a value cannot change
/// a byte, and handles all of them at once.
#[inline(always)]
pub(super) fn unpack_halves<const LEN: usize>(
    codes: &[u8; LEN],
    values: &mut [i8],
    value: impl Fn(u8) -> i8,
) {
    let codes = *codes;
    let (mut low, mut high) = ([0; LEN], [0; LEN]);
    for (i, &q) in codes.iter().enumerate() {
        low[i] = value(q & 0xf);
        high[i] = value(q >> 4);
    }
    values[..LEN].copy_from_slice(&low);
    values[LEN..].copy_from_slice(&high);
}

/// One bit of some bytes, the lowest of the first byte first.
#[inline(always)]
pub(super) fn bit(bytes: &[u8], index: usize) -> u8 {
    bytes[index / 8] >> (index % 8) & 1
}

/// Four bits of some bytes, the low half of the first byte first.
#[inline(always)]
pub(super) fn nibble(bytes: &[u8], index: usize) -> u8 {
    bytes[index / 2] >> (index % 2 * 4) & 0xf
}

/// Two bits of some bytes, the lowest of the first byte first.
#[inline(always)]
pub(super) fn pair(bytes: &[u8], index: usize) -> u8 {
    bytes[index / 4] >> (index % 4 * 2) & 3
}

/// 32 five-bit values less an offset of at most 16: the low halves of the codes, then the high
/// halves, and the fifth bits in the order of the values.
///
/// Eight values at a time, as the bytes of a word. To spread eight bits, every byte is given all of
/// them, keeps its own, and has it carried to the top, from where it moves to its place.
#[inline(always)]
pub(super) fn unpack_fives(codes: &[u8], fifths: &[u8], offset: u8, values: &mut [i8; 32]) {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let codes = codes.as_chunks::<8>().0;
    for (i, (&bits, values)) in fifths.iter().zip(values.as_chunks_mut::<8>().0).enumerate() {
        let low = u64::from_le_bytes(codes[i % 2]) >> (i / 2 * 4) & (0x0f * EACH);
        let own = u64::from(bits).wrapping_mul(EACH) & 0x8040_2010_0804_0201;
        let fifth = ((own + 0x7f * EACH) & (0x80 * EACH)) >> 3;
        // The top bit keeps a byte from borrowing, and is turned back.
        let word = ((low | fifth | (0x80 * EACH)) - u64::from(offset) * EACH) ^ (0x80 * EACH);
        *values = word.to_le_bytes().map(|byte| byte as i8);
    }
}

/// Eight bytes below 64, each less 32.
#[inline(always)]
pub(super) fn less_32(bytes: u64) -> u64 {
    // The top bit keeps a byte from borrowing, and is turned back.
    const EACH: u64 = 0x0101_0101_0101_0101;
    ((bytes | (0x80 * EACH)) - 32 * EACH) ^ (0x80 * EACH)
}

/// The first of the values that are farthest from zero.
pub(super) fn extreme(values: &[f32]) -> f32 {
    values.iter().fold(values[0], |max, &value| if value.abs() > max.abs() { value } else { max })
}

/// The smallest and the largest of the values.
pub(super) fn bounds(values: &[f32]) -> (f32, f32) {
    values.iter().fold((values[0], values[0]), |(min, max), &value| {
        (if value < min { value } else { min }, if value > max { value } else { max })
    })
}
