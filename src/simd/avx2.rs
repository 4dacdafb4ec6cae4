//! 256-bit vectors, fused multiply-add and half-precision conversion.

use std::arch::x86_64::*;

use super::{PairTable, Simd, WithSimd};

/// The proof that the machine has them.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// # Safety
/// The machine must have `Level::Avx2`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn enter<W: WithSimd>(work: W) -> W::Output {
    work.with(Avx2(()))
}

/// As [`Simd::points`], from points in the low halves of vectors.
///
/// # Safety
/// The machine must have `Level::Avx2`.
#[inline(always)]
unsafe fn turn(points: [__m128i; 8]) -> [__m256i; 2] {
    // SAFETY: the caller vouches for the instructions.
    unsafe {
        let [a, b, c, d, e, f, g, h] = points;
        let (ab, cd) = (_mm_unpacklo_epi8(a, b), _mm_unpacklo_epi8(c, d));
        let (ef, gh) = (_mm_unpacklo_epi8(e, f), _mm_unpacklo_epi8(g, h));
        [
            _mm256_set_m128i(_mm_unpackhi_epi16(ab, cd), _mm_unpacklo_epi16(ab, cd)),
            _mm256_set_m128i(_mm_unpackhi_epi16(ef, gh), _mm_unpacklo_epi16(ef, gh)),
        ]
    }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const BIAS: i32 = 0;
    type F32 = __m256;
    type I32 = __m256i;
    type Bytes = __m256i;
    type Pairs = ();
    type Points = [__m256i; 2];

    #[inline(always)]
    fn dot4_signed(self, sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
        self.dot4(sum, w, x)
    }

    ops! {
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        unsafe fn load(at: *const f32) -> __m256 { _mm256_loadu_ps(at) }
        unsafe fn store(at: *mut f32, x: __m256) { _mm256_storeu_ps(at, x) }
        unsafe fn load_f16(at: *const u16) -> __m256 { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
        unsafe fn store_f16(at: *mut u16, x: __m256) {
            _mm_storeu_si128(at.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x))
        }
        unsafe fn load_bf16(at: *const u16) -> __m256 {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
        unsafe fn load_u8(at: *const u8) -> __m256 {
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast())))
        }
        unsafe fn load_u4(at: *const u8) -> (__m256, __m256) {
            let both = _mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()));
            let low = _mm256_and_si256(both, _mm256_set1_epi32(15));
            (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(both)))
        }
        unsafe fn load_spread(at: *const f32) -> __m256 {
            _mm256_set_m128(_mm_set1_ps(*at.add(1)), _mm_set1_ps(*at))
        }
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
        fn min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
        fn abs(a: __m256) -> __m256 { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
        fn shift_to_exponent(a: __m256) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a)))
        }
        fn sum(a: __m256) -> f32 {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
        fn largest(a: __m256) -> f32 {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
        unsafe fn store_codes(at: *mut i8, x: __m256) {
            let wide = _mm256_cvtps_epi32(x);
            let (low, high) = (_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
            let words = _mm_packs_epi32(low, high);
            _mm_storel_epi64(at.cast(), _mm_packs_epi16(words, words))
        }
        fn splat_i32(x: i32) -> __m256i { _mm256_set1_epi32(x) }
        fn first_i32(x: i32) -> __m256i { _mm256_zextsi128_si256(_mm_cvtsi32_si128(x)) }
        unsafe fn load_i32(at: *const i32) -> __m256i { _mm256_loadu_si256(at.cast()) }
        fn to_f32(x: __m256i) -> __m256 { _mm256_cvtepi32_ps(x) }
        unsafe fn load_bytes(at: *const i8) -> __m256i { _mm256_loadu_si256(at.cast()) }
        unsafe fn store_bytes(at: *mut i8, x: __m256i) { _mm256_storeu_si256(at.cast(), x) }
        fn prefetch(at: *const u8) { _mm_prefetch::<_MM_HINT_T0>(at.cast()); }
        unsafe fn load_half(at: *const i8) -> __m256i {
            _mm256_zextsi128_si256(_mm_loadu_si128(at.cast()))
        }
        unsafe fn splat_4(at: *const i8) -> __m256i {
            _mm256_set1_epi32(at.cast::<i32>().read_unaligned())
        }
        fn bias(w: __m256i) -> __m256i { w }
        fn dot4(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
            // The sign of w moves to x, so that the unsigned operand is |w|; two products of at
            // most 127 * 127 fit into 16 bits.
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
        fn dot4_unsigned(sum: __m256i, w: __m256i, x: __m256i) -> __m256i {
            // Two products of at most 127 * 127 fit into 16 bits.
            let pairs = _mm256_maddubs_epi16(w, x);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
        unsafe fn load_i8(at: *const i8) -> __m256 {
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast())))
        }
        unsafe fn load_i8_twice(at: *const i8) -> __m256 {
            let four = _mm_cvtsi32_si128(at.cast::<i32>().read_unaligned());
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpacklo_epi8(four, four)))
        }
        unsafe fn load_twice(at: *const i8, _stride: usize) -> __m256i {
            _mm256_broadcastsi128_si256(_mm_loadu_si128(at.cast()))
        }
        unsafe fn load_runs(at: *const i8, _stride: usize) -> __m256i {
            _mm256_loadu_si256(at.cast())
        }
        fn splat_byte(x: i8) -> __m256i { _mm256_set1_epi8(x) }
        fn spread_bits(bits: u64) -> __m256i {
            // Each byte is given the eight bits that its own is among, and keeps that one.
            let order = _mm256_setr_epi64x(
                0,
                0x0101_0101_0101_0101,
                0x0202_0202_0202_0202,
                0x0303_0303_0303_0303,
            );
            let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64.cast_signed());
            let bits = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), order);
            _mm256_cmpeq_epi8(_mm256_and_si256(bits, own), own)
        }
        fn and(a: __m256i, b: __m256i) -> __m256i { _mm256_and_si256(a, b) }
        fn or(a: __m256i, b: __m256i) -> __m256i { _mm256_or_si256(a, b) }
        fn sub_bytes(a: __m256i, b: __m256i) -> __m256i { _mm256_sub_epi8(a, b) }
        fn shift_down(a: __m256i, counts: __m256i) -> __m256i { _mm256_srlv_epi32(a, counts) }
        fn shift_up(a: __m256i, counts: __m256i) -> __m256i { _mm256_sllv_epi32(a, counts) }
        fn look_up_16(table: __m256i, codes: __m256i) -> __m256i {
            _mm256_shuffle_epi8(table, codes)
        }
        unsafe fn points(at: [*const i8; 8]) -> [__m256i; 2] {
            let mut points = [_mm_setzero_si128(); 8];
            for i in 0..8 {
                points[i] = _mm_loadl_epi64(at[i].cast());
            }
            turn(points)
        }
        unsafe fn point_sums(at: [*const i8; 8], more: [*const i8; 8]) -> [__m256i; 2] {
            let mut sums = [_mm_setzero_si128(); 8];
            for i in 0..8 {
                let (a, b) = (_mm_loadl_epi64(at[i].cast()), _mm_loadl_epi64(more[i].cast()));
                sums[i] = _mm_adds_epi8(a, b);
            }
            let [low, high] = turn(sums);
            let least = _mm256_set1_epi8(-127);
            [_mm256_max_epi8(low, least), _mm256_max_epi8(high, least)]
        }
        fn negate(a: __m256i, signs: __m256i, bit: __m256i) -> __m256i {
            let minus = _mm256_cmpeq_epi8(_mm256_and_si256(signs, bit), bit);
            _mm256_sub_epi8(_mm256_xor_si256(a, minus), minus)
        }
        unsafe fn spread_8(at: *const i8) -> [__m256i; 2] {
            let at: *const i32 = at.cast();
            let (low, high) = (at.read_unaligned(), at.add(1).read_unaligned());
            [_mm256_set1_epi32(low), _mm256_set1_epi32(high)]
        }
        fn pairs(_table: &PairTable) -> () {}
        fn look_up_pairs(
            _pairs: &(),
            table: &PairTable,
            codes: __m256i
        ) -> (__m256i, __m256i) {
            let at: *const i32 = table.both.as_ptr().cast();
            let sixteen = |codes: __m128i| {
                // Two codes in each 32 bits; an entry is 16 bits, and its upper neighbour is cut.
                let codes = _mm256_cvtepu16_epi32(codes);
                let first = _mm256_and_si256(codes, _mm256_set1_epi32(0xff));
                let second = _mm256_srli_epi32::<8>(codes);
                let first = _mm256_i32gather_epi32::<2>(at, first);
                let second = _mm256_slli_epi32::<16>(_mm256_i32gather_epi32::<2>(at, second));
                _mm256_blend_epi16::<0xaa>(first, second)
            };
            let (low, high) = (_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes));
            (sixteen(low), sixteen(high))
        }
    }
}
