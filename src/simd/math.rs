//! The functions that activations and softmax need, as vectors.

use std::f32::consts::LOG2_E;

use super::Simd;

/// e to the x, within two units in the last place; x is first held within -87..=88.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // Adding this leaves round(x / ln 2) + 127 in the low bits: an exponent, ready to be shifted.
    const MAGIC: f32 = 12_582_912.0 + 127.0;
    // ln 2 in two parts, the first short enough for its products to be exact (Cody and Waite).
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = (std::f64::consts::LN_2 - LN_2_HIGH as f64) as f32;
    let x = s.min(s.max(x, s.splat(-87.0)), s.splat(88.0));
    let shifted = s.fma(x, s.splat(LOG2_E), s.splat(MAGIC));
    let n = s.sub(shifted, s.splat(MAGIC));
    let r = s.fma(n, s.splat(-LN_2_HIGH), x);
    let r = s.fma(n, s.splat(-LN_2_LOW), r);
    // The series; |r| <= ln 2 / 2, so that the first term left out is below 1e-8.
    let mut sum = s.splat(1.0 / 5040.0);
    for k in [720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        sum = s.fma(sum, r, s.splat(1.0 / k));
    }
    s.mul(sum, s.shift_to_exponent(shifted))
}

/// 1 / (1 + exp(-x)).
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F32) -> S::F32 {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// x / (1 + exp(-x)).
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::F32) -> S::F32 {
    s.div(x, s.add(s.splat(1.0), exp(s, s.sub(s.splat(0.0), x))))
}

/// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))), written as x * sigmoid(2 * ...).
#[inline(always)]
pub fn gelu<S: Simd>(s: S, x: S::F32) -> S::F32 {
    const ROOT: f32 = 0.797_884_6;
    let cubic = s.fma(s.mul(s.mul(x, x), x), s.splat(0.044_715), x);
    s.mul(x, sigmoid(s, s.mul(cubic, s.splat(2.0 * ROOT))))
}

/// The hyperbolic tangent, to about 1e-7 absolute.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // Beyond 20 it is 1 in f32.
    let x = s.min(s.max(x, s.splat(-20.0)), s.splat(20.0));
    let square = exp(s, s.add(x, x));
    let one = s.splat(1.0);
    s.div(s.sub(square, one), s.add(square, one))
}
