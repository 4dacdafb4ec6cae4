//! 128-bit vectors of aarch64, with the integer dot product.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{PairTable, Simd, WithSimd};

/// The proof that the machine has them.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

/// # Safety
/// The machine must have `Level::Neon`.
#[target_feature(enable = "neon,dotprod,fp16")]
pub(super) unsafe fn enter<W: WithSimd>(work: W) -> W::Output {
    work.with(Neon(()))
}

/// 16 bytes of 256, by index.
///
/// # Safety
/// The machine must have `Level::Neon`.
#[inline(always)]
unsafe fn look_up(table: &[u8; 256], index: uint8x16_t) -> uint8x16_t {
    // SAFETY: the caller vouches for the instructions, and the table has four quarters.
    unsafe {
        // A lookup gives zero for what is not in its quarter, and the quarters are disjoint.
        let quarter = |i: u8| {
            let table = vld1q_u8_x4(table.as_ptr().add(64 * usize::from(i)));
            vqtbl4q_u8(table, vsubq_u8(index, vdupq_n_u8(64 * i)))
        };
        vorrq_u8(vorrq_u8(quarter(0), quarter(1)), vorrq_u8(quarter(2), quarter(3)))
    }
}

/// Four bytes as integers.
///
/// # Safety
/// The machine must have `Level::Neon`, and `at` be valid for four bytes.
#[inline(always)]
unsafe fn wide(at: *const u8) -> uint32x4_t {
    // SAFETY: the caller vouches for the instructions and the pointer.
    unsafe {
        let four = vcreate_u8(u64::from(at.cast::<u32>().read_unaligned()));
        vmovl_u16(vget_low_u16(vmovl_u8(four)))
    }
}

/// As [`Simd::points`], from loaded points.
///
/// # Safety
/// The machine must have `Level::Neon`.
#[inline(always)]
unsafe fn turn(points: [int8x8_t; 8]) -> [int8x16_t; 4] {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let [a, b, c, d, e, f, g, h] = points;
        let ab = vreinterpretq_s16_s8(vcombine_s8(vzip1_s8(a, b), vzip2_s8(a, b)));
        let cd = vreinterpretq_s16_s8(vcombine_s8(vzip1_s8(c, d), vzip2_s8(c, d)));
        let ef = vreinterpretq_s16_s8(vcombine_s8(vzip1_s8(e, f), vzip2_s8(e, f)));
        let gh = vreinterpretq_s16_s8(vcombine_s8(vzip1_s8(g, h), vzip2_s8(g, h)));
        [
            vreinterpretq_s8_s16(vzip1q_s16(ab, cd)),
            vreinterpretq_s8_s16(vzip2q_s16(ab, cd)),
            vreinterpretq_s8_s16(vzip1q_s16(ef, gh)),
            vreinterpretq_s8_s16(vzip2q_s16(ef, gh)),
        ]
    }
}

impl Simd for Neon {
    const LANES: usize = 4;
    const BIAS: i32 = 0;
    type F32 = float32x4_t;
    type I32 = int32x4_t;
    type Bytes = int8x16_t;
    type Pairs = ();
    type Points = [int8x16_t; 4];

    #[inline(always)]
    fn dot4_signed(self, sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
        self.dot4(sum, w, x)
    }

    ops! {
        fn splat(x: f32) -> float32x4_t { vdupq_n_f32(x) }
        unsafe fn load(at: *const f32) -> float32x4_t { vld1q_f32(at) }
        unsafe fn store(at: *mut f32, x: float32x4_t) { vst1q_f32(at, x) }
        unsafe fn load_f16(at: *const u16) -> float32x4_t {
            vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at)))
        }
        unsafe fn store_f16(at: *mut u16, x: float32x4_t) {
            vst1_u16(at, vreinterpret_u16_f16(vcvt_f16_f32(x)))
        }
        unsafe fn load_bf16(at: *const u16) -> float32x4_t {
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(at)))
        }
        unsafe fn load_u8(at: *const u8) -> float32x4_t { vcvtq_f32_u32(wide(at)) }
        unsafe fn load_u4(at: *const u8) -> (float32x4_t, float32x4_t) {
            let both = wide(at);
            let low = vandq_u32(both, vdupq_n_u32(15));
            (vcvtq_f32_u32(low), vcvtq_f32_u32(vshrq_n_u32::<4>(both)))
        }
        unsafe fn load_spread(at: *const f32) -> float32x4_t { vdupq_n_f32(*at) }
        fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t { vaddq_f32(a, b) }
        fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t { vsubq_f32(a, b) }
        fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t { vmulq_f32(a, b) }
        fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t { vdivq_f32(a, b) }
        fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            vfmaq_f32(c, a, b)
        }
        fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t { vmaxq_f32(a, b) }
        fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t { vminq_f32(a, b) }
        fn abs(a: float32x4_t) -> float32x4_t { vabsq_f32(a) }
        fn shift_to_exponent(a: float32x4_t) -> float32x4_t {
            vreinterpretq_f32_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(a)))
        }
        fn sum(a: float32x4_t) -> f32 { vaddvq_f32(a) }
        fn largest(a: float32x4_t) -> f32 { vmaxvq_f32(a) }
        unsafe fn store_codes(at: *mut i8, x: float32x4_t) {
            let words = vmovn_s32(vcvtnq_s32_f32(x));
            let bytes = vmovn_s16(vcombine_s16(words, words));
            at.cast::<u32>().write_unaligned(vget_lane_u32::<0>(vreinterpret_u32_s8(bytes)))
        }
        fn splat_i32(x: i32) -> int32x4_t { vdupq_n_s32(x) }
        fn first_i32(x: i32) -> int32x4_t { vsetq_lane_s32::<0>(x, vdupq_n_s32(0)) }
        unsafe fn load_i32(at: *const i32) -> int32x4_t { vld1q_s32(at) }
        fn to_f32(x: int32x4_t) -> float32x4_t { vcvtq_f32_s32(x) }
        unsafe fn load_bytes(at: *const i8) -> int8x16_t { vld1q_s8(at) }
        unsafe fn store_bytes(at: *mut i8, x: int8x16_t) { vst1q_s8(at, x) }
        fn prefetch(at: *const u8) {
            asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags));
        }
        unsafe fn load_half(at: *const i8) -> int8x16_t {
            vcombine_s8(vld1_s8(at), vdup_n_s8(0))
        }
        unsafe fn splat_4(at: *const i8) -> int8x16_t {
            vreinterpretq_s8_s32(vdupq_n_s32(at.cast::<i32>().read_unaligned()))
        }
        fn bias(w: int8x16_t) -> int8x16_t { w }
        fn dot4(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
            // The intrinsic is not stable; the instruction is.
            let mut sum = sum;
            asm!(
                "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
                sum = inout(vreg) sum,
                w = in(vreg) w,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
            sum
        }
        fn dot4_unsigned(sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
            Neon(()).dot4(sum, w, x)
        }
        unsafe fn load_i8(at: *const i8) -> float32x4_t {
            let four = vdup_n_s32(at.cast::<i32>().read_unaligned());
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(four)))))
        }
        unsafe fn load_i8_twice(at: *const i8) -> float32x4_t {
            let two = vreinterpret_s8_s16(vdup_n_s16(at.cast::<i16>().read_unaligned()));
            let twice = vmovl_s16(vget_low_s16(vmovl_s8(vzip1_s8(two, two))));
            vcvtq_f32_s32(twice)
        }
        unsafe fn load_twice(at: *const i8, _stride: usize) -> int8x16_t { vld1q_s8(at) }
        unsafe fn load_runs(at: *const i8, _stride: usize) -> int8x16_t { vld1q_s8(at) }
        fn splat_byte(x: i8) -> int8x16_t { vdupq_n_s8(x) }
        fn spread_bits(bits: u64) -> int8x16_t {
            let own = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let bits = vcombine_u8(vdup_n_u8(bits as u8), vdup_n_u8((bits >> 8) as u8));
            vreinterpretq_s8_u8(vtstq_u8(bits, own))
        }
        fn and(a: int8x16_t, b: int8x16_t) -> int8x16_t { vandq_s8(a, b) }
        fn or(a: int8x16_t, b: int8x16_t) -> int8x16_t { vorrq_s8(a, b) }
        fn sub_bytes(a: int8x16_t, b: int8x16_t) -> int8x16_t { vsubq_s8(a, b) }
        fn shift_down(a: int8x16_t, counts: int32x4_t) -> int8x16_t {
            vreinterpretq_s8_u32(vshlq_u32(vreinterpretq_u32_s8(a), vnegq_s32(counts)))
        }
        fn shift_up(a: int8x16_t, counts: int32x4_t) -> int8x16_t {
            vreinterpretq_s8_u32(vshlq_u32(vreinterpretq_u32_s8(a), counts))
        }
        fn look_up_16(table: int8x16_t, codes: int8x16_t) -> int8x16_t {
            vqtbl1q_s8(table, vreinterpretq_u8_s8(codes))
        }
        unsafe fn points(at: [*const i8; 8]) -> [int8x16_t; 4] {
            let mut points = [vdup_n_s8(0); 8];
            for i in 0..8 {
                points[i] = vld1_s8(at[i]);
            }
            turn(points)
        }
        unsafe fn point_sums(at: [*const i8; 8], more: [*const i8; 8]) -> [int8x16_t; 4] {
            let mut sums = [vdup_n_s8(0); 8];
            for i in 0..8 {
                sums[i] = vqadd_s8(vld1_s8(at[i]), vld1_s8(more[i]));
            }
            let mut turned = turn(sums);
            for sums in &mut turned {
                *sums = vmaxq_s8(*sums, vdupq_n_s8(-127));
            }
            turned
        }
        fn negate(a: int8x16_t, signs: int8x16_t, bit: int8x16_t) -> int8x16_t {
            let minus = vreinterpretq_s8_u8(vtstq_s8(signs, bit));
            vsubq_s8(veorq_s8(a, minus), minus)
        }
        unsafe fn spread_8(at: *const i8) -> [int8x16_t; 4] {
            let at: *const i32 = at.cast();
            let low = vreinterpretq_s8_s32(vdupq_n_s32(at.read_unaligned()));
            let high = vreinterpretq_s8_s32(vdupq_n_s32(at.add(1).read_unaligned()));
            [low, low, high, high]
        }
        fn pairs(_table: &PairTable) -> () {}
        fn look_up_pairs(
            _pairs: &(),
            table: &PairTable,
            codes: int8x16_t
        ) -> (int8x16_t, int8x16_t) {
            let codes = vreinterpretq_u8_s8(codes);
            let (even, odd) = (look_up(&table.even, codes), look_up(&table.odd, codes));
            let (low, high) = (vzip1q_u8(even, odd), vzip2q_u8(even, odd));
            (vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high))
        }
    }
}
