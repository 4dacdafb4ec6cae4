//! 512-bit vectors with byte permutes and the integer dot product.

use std::arch::x86_64::*;

use super::{PairTable, Simd, WithSimd};

/// The proof that the machine has them.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// # Safety
/// The machine must have `Level::Avx512`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn enter<W: WithSimd>(work: W) -> W::Output {
    work.with(Avx512(()))
}

/// Two tables of 256 bytes.
#[derive(Clone, Copy)]
pub(super) struct Pairs {
    even: [__m512i; 4],
    odd: [__m512i; 4],
}

/// 64 bytes of 256, by index.
///
/// # Safety
/// The machine must have `Level::Avx512`.
#[inline(always)]
unsafe fn look_up(table: &[__m512i; 4], index: __m512i) -> __m512i {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let low = _mm512_permutex2var_epi8(table[0], index, table[1]);
        let high = _mm512_permutex2var_epi8(table[2], index, table[3]);
        _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high)
    }
}

/// Bytes of `turn`: number r of point `4 * h + i` goes to byte i of lane `8 * h + r`.
const TURN: [u8; 64] = {
    let mut bytes = [0; 64];
    let mut at = 0;
    while at < 64 {
        let (lane, i) = (at / 4, at % 4);
        bytes[at] = ((lane / 8 * 4 + i) * 8 + lane % 8) as u8;
        at += 1;
    }
    bytes
};

/// Eight points of eight numbers, one after the other.
///
/// # Safety
/// The machine must have `Level::Avx512`, and each pointer be valid for eight bytes before it and
/// after it.
#[inline(always)]
unsafe fn gather(at: [*const i8; 8]) -> __m512i {
    // SAFETY: the caller vouches for the instructions and the pointers.
    unsafe {
        let mut twos = [_mm_setzero_si128(); 4];
        for i in 0..4 {
            let (first, second) = (at[2 * i], at[2 * i + 1]);
            // A point that comes with what is before it need not be shuffled into its place: the
            // port for shuffles has the most to do.
            let second = _mm_loadu_si128(second.sub(8).cast());
            twos[i] = _mm_blend_epi32::<0b1100>(_mm_loadl_epi64(first.cast()), second);
        }
        let low = _mm256_set_m128i(twos[1], twos[0]);
        let high = _mm256_set_m128i(twos[3], twos[2]);
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
    }
}

/// As [`Simd::points`], from points one after the other.
///
/// # Safety
/// The machine must have `Level::Avx512`.
#[inline(always)]
unsafe fn turn(points: __m512i) -> __m512i {
    // SAFETY: the caller vouches for the instructions.
    unsafe { _mm512_permutexvar_epi8(_mm512_loadu_si512(TURN.as_ptr().cast()), points) }
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    const BIAS: i32 = 128;
    type F32 = __m512;
    type I32 = __m512i;
    type Bytes = __m512i;
    type Pairs = Pairs;
    type Points = [__m512i; 1];

    ops! {
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        unsafe fn load(at: *const f32) -> __m512 { _mm512_loadu_ps(at) }
        unsafe fn store(at: *mut f32, x: __m512) { _mm512_storeu_ps(at, x) }
        unsafe fn load_f16(at: *const u16) -> __m512 {
            _mm512_cvtph_ps(_mm256_loadu_si256(at.cast()))
        }
        unsafe fn store_f16(at: *mut u16, x: __m512) {
            let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
            _mm256_storeu_si256(at.cast(), halves)
        }
        unsafe fn load_bf16(at: *const u16) -> __m512 {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
        unsafe fn load_u8(at: *const u8) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast())))
        }
        unsafe fn load_u4(at: *const u8) -> (__m512, __m512) {
            let both = _mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()));
            let low = _mm512_and_si512(both, _mm512_set1_epi32(15));
            (_mm512_cvtepi32_ps(low), _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(both)))
        }
        unsafe fn load_spread(at: *const f32) -> __m512 {
            let four = _mm512_broadcast_f32x4(_mm_loadu_ps(at));
            let index = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
            _mm512_permutevar_ps(four, index)
        }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn abs(a: __m512) -> __m512 { _mm512_abs_ps(a) }
        fn shift_to_exponent(a: __m512) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(a)))
        }
        fn sum(a: __m512) -> f32 { _mm512_reduce_add_ps(a) }
        fn largest(a: __m512) -> f32 { _mm512_reduce_max_ps(a) }
        unsafe fn store_codes(at: *mut i8, x: __m512) {
            _mm_storeu_si128(at.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)))
        }
        fn splat_i32(x: i32) -> __m512i { _mm512_set1_epi32(x) }
        fn first_i32(x: i32) -> __m512i { _mm512_zextsi128_si512(_mm_cvtsi32_si128(x)) }
        unsafe fn load_i32(at: *const i32) -> __m512i { _mm512_loadu_si512(at.cast()) }
        fn to_f32(x: __m512i) -> __m512 { _mm512_cvtepi32_ps(x) }
        unsafe fn load_bytes(at: *const i8) -> __m512i { _mm512_loadu_si512(at.cast()) }
        unsafe fn store_bytes(at: *mut i8, x: __m512i) { _mm512_storeu_si512(at.cast(), x) }
        fn prefetch(at: *const u8) { _mm_prefetch::<_MM_HINT_T0>(at.cast()); }
        unsafe fn load_half(at: *const i8) -> __m512i {
            _mm512_zextsi256_si512(_mm256_loadu_si256(at.cast()))
        }
        unsafe fn splat_4(at: *const i8) -> __m512i {
            _mm512_set1_epi32(at.cast::<i32>().read_unaligned())
        }
        fn bias(w: __m512i) -> __m512i { _mm512_xor_si512(w, _mm512_set1_epi8(-128)) }
        fn dot4_signed(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
            // The sign of w moves to x, so that the unsigned operand is |w|.
            let negative = _mm512_movepi8_mask(w);
            let x = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
            _mm512_dpbusd_epi32(sum, _mm512_abs_epi8(w), x)
        }
        fn dot4(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
            _mm512_dpbusd_epi32(sum, w, x)
        }
        fn dot4_unsigned(sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
            _mm512_dpbusd_epi32(sum, w, x)
        }
        unsafe fn load_i8(at: *const i8) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast())))
        }
        unsafe fn load_i8_twice(at: *const i8) -> __m512 {
            let eight = _mm_loadl_epi64(at.cast());
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_unpacklo_epi8(eight, eight)))
        }
        unsafe fn load_twice(at: *const i8, stride: usize) -> __m512i {
            let low = _mm256_broadcastsi128_si256(_mm_loadu_si128(at.cast()));
            let high = _mm256_broadcastsi128_si256(_mm_loadu_si128(at.add(stride).cast()));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
        unsafe fn load_runs(at: *const i8, stride: usize) -> __m512i {
            let low = _mm256_loadu_si256(at.cast());
            let high = _mm256_loadu_si256(at.add(stride).cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        }
        fn splat_byte(x: i8) -> __m512i { _mm512_set1_epi8(x) }
        fn spread_bits(bits: u64) -> __m512i { _mm512_movm_epi8(bits) }
        fn and(a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        fn or(a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn sub_bytes(a: __m512i, b: __m512i) -> __m512i { _mm512_sub_epi8(a, b) }
        fn shift_down(a: __m512i, counts: __m512i) -> __m512i { _mm512_srlv_epi32(a, counts) }
        fn shift_up(a: __m512i, counts: __m512i) -> __m512i { _mm512_sllv_epi32(a, counts) }
        fn look_up_16(table: __m512i, codes: __m512i) -> __m512i {
            _mm512_shuffle_epi8(table, codes)
        }
        unsafe fn points(at: [*const i8; 8]) -> [__m512i; 1] { [turn(gather(at))] }
        unsafe fn point_sums(at: [*const i8; 8], more: [*const i8; 8]) -> [__m512i; 1] {
            let sums = _mm512_adds_epi8(gather(at), gather(more));
            [_mm512_max_epi8(turn(sums), _mm512_set1_epi8(-127))]
        }
        fn negate(a: __m512i, signs: __m512i, bit: __m512i) -> __m512i {
            let minus = _mm512_test_epi8_mask(signs, bit);
            _mm512_mask_sub_epi8(a, minus, _mm512_setzero_si512(), a)
        }
        unsafe fn spread_8(at: *const i8) -> [__m512i; 1] {
            let both = _mm512_set1_epi64(at.cast::<i64>().read_unaligned());
            let index = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
            [_mm512_permutexvar_epi32(index, both)]
        }
        fn pairs(table: &PairTable) -> Pairs {
            let quarters = |bytes: &[u8; 256]| {
                let at = bytes.as_ptr();
                [0, 64, 128, 192].map(|i| _mm512_loadu_si512(at.add(i).cast()))
            };
            Pairs { even: quarters(&table.even), odd: quarters(&table.odd) }
        }
        fn look_up_pairs(
            pairs: &Pairs,
            _table: &PairTable,
            codes: __m512i
        ) -> (__m512i, __m512i) {
            // Interleaving works within 128 bits: move the codes to where it will find them.
            let order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
            let codes = _mm512_permutexvar_epi64(order, codes);
            let (even, odd) = (look_up(&pairs.even, codes), look_up(&pairs.odd, codes));
            (_mm512_unpacklo_epi8(even, odd), _mm512_unpackhi_epi8(even, odd))
        }
    }
}
