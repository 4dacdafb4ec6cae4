//! Plain Rust: the oracle of the other instruction sets.

use half::{bf16, f16};
use std::array::from_fn;

use super::{PairTable, Simd};

const LANES: usize = 4;

/// Needs nothing.
#[derive(Clone, Copy)]
pub(super) struct Portable;

/// # Safety
/// `at` is valid for `N` elements.
#[inline(always)]
unsafe fn read<T: Copy, const N: usize>(at: *const T) -> [T; N] {
    // SAFETY: the caller vouches for the pointer.
    unsafe { at.cast::<[T; N]>().read_unaligned() }
}

/// As [`Simd::points`].
fn turn(points: [[i8; 8]; 8]) -> [[i8; 4 * LANES]; 4] {
    from_fn(|k| from_fn(|i| points[k / 2 * 4 + i % 4][k % 2 * LANES + i / 4]))
}

/// Every four bytes as one number.
#[inline(always)]
fn shift(bytes: [i8; 4 * LANES], by: impl Fn(usize, u32) -> u32) -> [i8; 4 * LANES] {
    let lane = |i: usize| u32::from_le_bytes(from_fn(|j| bytes[4 * i + j] as u8));
    from_fn(|i| by(i / 4, lane(i / 4)).to_le_bytes()[i % 4] as i8)
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const BIAS: i32 = 0;
    type F32 = [f32; LANES];
    type I32 = [i32; LANES];
    type Bytes = [i8; 4 * LANES];
    type Pairs = ();
    type Points = [[i8; 4 * LANES]; 4];

    #[inline(always)]
    fn dot4_signed(
        self,
        sum: [i32; LANES],
        w: [i8; 4 * LANES],
        x: [i8; 4 * LANES],
    ) -> [i32; LANES] {
        self.dot4(sum, w, x)
    }

    ops! {
        fn splat(x: f32) -> [f32; LANES] { [x; LANES] }
        unsafe fn load(at: *const f32) -> [f32; LANES] { read(at) }
        unsafe fn store(at: *mut f32, x: [f32; LANES]) {
            at.cast::<[f32; LANES]>().write_unaligned(x)
        }
        unsafe fn load_f16(at: *const u16) -> [f32; LANES] {
            read::<u16, LANES>(at).map(|bits| f16::from_bits(bits).to_f32())
        }
        unsafe fn store_f16(at: *mut u16, x: [f32; LANES]) {
            let halves = x.map(|x| f16::from_f32(x).to_bits());
            at.cast::<[u16; LANES]>().write_unaligned(halves)
        }
        unsafe fn load_bf16(at: *const u16) -> [f32; LANES] {
            read::<u16, LANES>(at).map(|bits| bf16::from_bits(bits).to_f32())
        }
        unsafe fn load_u8(at: *const u8) -> [f32; LANES] { read::<u8, LANES>(at).map(f32::from) }
        unsafe fn load_u4(at: *const u8) -> ([f32; LANES], [f32; LANES]) {
            let both = read::<u8, LANES>(at);
            (both.map(|byte| f32::from(byte & 15)), both.map(|byte| f32::from(byte >> 4)))
        }
        unsafe fn load_spread(at: *const f32) -> [f32; LANES] { [*at; LANES] }
        fn add(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] { from_fn(|i| a[i] + b[i]) }
        fn sub(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] { from_fn(|i| a[i] - b[i]) }
        fn mul(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] { from_fn(|i| a[i] * b[i]) }
        fn div(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] { from_fn(|i| a[i] / b[i]) }
        fn fma(a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
            from_fn(|i| a[i] * b[i] + c[i])
        }
        fn max(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] { from_fn(|i| a[i].max(b[i])) }
        fn min(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] { from_fn(|i| a[i].min(b[i])) }
        fn abs(a: [f32; LANES]) -> [f32; LANES] { a.map(f32::abs) }
        fn shift_to_exponent(a: [f32; LANES]) -> [f32; LANES] {
            a.map(|a| f32::from_bits(a.to_bits() << 23))
        }
        fn sum(a: [f32; LANES]) -> f32 { (a[0] + a[2]) + (a[1] + a[3]) }
        fn largest(a: [f32; LANES]) -> f32 { a[0].max(a[2]).max(a[1].max(a[3])) }
        unsafe fn store_codes(at: *mut i8, x: [f32; LANES]) {
            let codes = x.map(|x| x.round_ties_even() as i8);
            at.cast::<[i8; LANES]>().write_unaligned(codes)
        }
        fn splat_i32(x: i32) -> [i32; LANES] { [x; LANES] }
        fn first_i32(x: i32) -> [i32; LANES] { [x, 0, 0, 0] }
        unsafe fn load_i32(at: *const i32) -> [i32; LANES] { read(at) }
        fn to_f32(x: [i32; LANES]) -> [f32; LANES] { x.map(|x| x as f32) }
        unsafe fn load_bytes(at: *const i8) -> [i8; 4 * LANES] { read(at) }
        unsafe fn store_bytes(at: *mut i8, x: [i8; 4 * LANES]) {
            at.cast::<[i8; 4 * LANES]>().write_unaligned(x)
        }
        fn prefetch(_at: *const u8) {}
        unsafe fn load_half(at: *const i8) -> [i8; 4 * LANES] {
            let half: [i8; 2 * LANES] = read(at);
            from_fn(|i| if i < half.len() { half[i] } else { 0 })
        }
        unsafe fn splat_4(at: *const i8) -> [i8; 4 * LANES] {
            let four: [i8; 4] = read(at);
            from_fn(|i| four[i % 4])
        }
        fn bias(w: [i8; 4 * LANES]) -> [i8; 4 * LANES] { w }
        fn dot4(sum: [i32; LANES], w: [i8; 4 * LANES], x: [i8; 4 * LANES]) -> [i32; LANES] {
            let product = |i: usize| i32::from(w[i]) * i32::from(x[i]);
            from_fn(|i| {
                let [a, b, c, d] = from_fn(|j| product(4 * i + j));
                sum[i] + (a + b) + (c + d)
            })
        }
        fn dot4_unsigned(
            sum: [i32; LANES],
            w: [i8; 4 * LANES],
            x: [i8; 4 * LANES]
        ) -> [i32; LANES] {
            Portable.dot4(sum, w, x)
        }
        unsafe fn load_i8(at: *const i8) -> [f32; LANES] {
            read::<i8, LANES>(at).map(f32::from)
        }
        unsafe fn load_i8_twice(at: *const i8) -> [f32; LANES] {
            let two: [i8; LANES / 2] = read(at);
            from_fn(|i| f32::from(two[i / 2]))
        }
        unsafe fn load_twice(at: *const i8, _stride: usize) -> [i8; 4 * LANES] { read(at) }
        unsafe fn load_runs(at: *const i8, _stride: usize) -> [i8; 4 * LANES] { read(at) }
        fn splat_byte(x: i8) -> [i8; 4 * LANES] { [x; 4 * LANES] }
        fn spread_bits(bits: u64) -> [i8; 4 * LANES] {
            from_fn(|i| if bits >> i & 1 == 1 { -1 } else { 0 })
        }
        fn and(a: [i8; 4 * LANES], b: [i8; 4 * LANES]) -> [i8; 4 * LANES] {
            from_fn(|i| a[i] & b[i])
        }
        fn or(a: [i8; 4 * LANES], b: [i8; 4 * LANES]) -> [i8; 4 * LANES] {
            from_fn(|i| a[i] | b[i])
        }
        fn sub_bytes(a: [i8; 4 * LANES], b: [i8; 4 * LANES]) -> [i8; 4 * LANES] {
            from_fn(|i| a[i].wrapping_sub(b[i]))
        }
        fn shift_down(a: [i8; 4 * LANES], counts: [i32; LANES]) -> [i8; 4 * LANES] {
            shift(a, |i, lane| lane >> counts[i])
        }
        fn shift_up(a: [i8; 4 * LANES], counts: [i32; LANES]) -> [i8; 4 * LANES] {
            shift(a, |i, lane| lane << counts[i])
        }
        fn look_up_16(table: [i8; 4 * LANES], codes: [i8; 4 * LANES]) -> [i8; 4 * LANES] {
            from_fn(|i| table[codes[i] as usize])
        }
        unsafe fn points(at: [*const i8; 8]) -> [[i8; 4 * LANES]; 4] {
            turn(at.map(|at| read(at)))
        }
        unsafe fn point_sums(at: [*const i8; 8], more: [*const i8; 8]) -> [[i8; 4 * LANES]; 4] {
            let sum = |i: usize| -> [i8; 8] {
                let (a, b): ([i8; 8], [i8; 8]) = (read(at[i]), read(more[i]));
                from_fn(|r| (i16::from(a[r]) + i16::from(b[r])).clamp(-127, 127) as i8)
            };
            turn(from_fn(sum))
        }
        fn negate(
            a: [i8; 4 * LANES],
            signs: [i8; 4 * LANES],
            bit: [i8; 4 * LANES]
        ) -> [i8; 4 * LANES] {
            from_fn(|i| if signs[i] & bit[i] == bit[i] { -a[i] } else { a[i] })
        }
        unsafe fn spread_8(at: *const i8) -> [[i8; 4 * LANES]; 4] {
            let bytes: [i8; 8] = read(at);
            from_fn(|k| from_fn(|i| bytes[k / 2 * 4 + i % 4]))
        }
        fn pairs(_table: &PairTable) -> () {}
        fn look_up_pairs(
            _pairs: &(),
            table: &PairTable,
            codes: [i8; 4 * LANES]
        ) -> ([i8; 4 * LANES], [i8; 4 * LANES]) {
            let pair = |code: i8| table.both[usize::from(code as u8)].to_le_bytes();
            let value = |i: usize| pair(codes[i / 2])[i % 2] as i8;
            (from_fn(value), from_fn(|i| value(4 * LANES + i)))
        }
    }
}
