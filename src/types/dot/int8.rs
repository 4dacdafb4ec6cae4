//! Few columns, weights that are small integers.
//!
//! ```text
//! for each run of 16 values:
//!     out += weight_scale * activation_scale * (sum of codes * codes)
//!     out += weight_min * activation_scale * (sum of activation codes)
//! ```
//!
//! The first line is done for a vector of runs at once: each lane adds up four products, and is
//! multiplied by the scale of its run.

use crate::simd::{Simd, WithSimd};

use super::super::{Int8Row, Kernel, Layout, SUB, Tensor};
use super::{Int8Columns, Lookup, Scratch, codes_stride, points, runs, subs_stride};

/// See [`super::mat_vec`].
pub(super) struct MatVec<'a> {
    pub(super) weight: &'a Tensor,
    pub(super) lookup: &'a Lookup,
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) columns: &'a Int8Columns<'a>,
    pub(super) scratch: &'a mut Scratch,
    pub(super) out: &'a mut [f32],
}

impl WithSimd for MatVec<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let columns = self.columns;
        let (codes, subs) = (codes_stride(columns.cols), subs_stride(columns.cols));
        assert!(columns.codes.len() >= columns.count * codes, "padded codes");
        assert!(columns.scales.len() >= columns.count * subs, "padded scales");
        assert!(columns.sums.len() >= columns.count * subs, "padded sums");
        match self.weight.kind.layout() {
            Layout::Pairs | Layout::Parted | Layout::Integers
                if runs::fits(self.weight, columns) =>
            {
                runs::rows(s, self);
            }
            Layout::Points(_) => points::rows(s, self),
            _ => unpacked_rows(s, self),
        }
    }
}

#[inline(always)]
fn unpacked_rows<S: Simd>(s: S, work: MatVec) {
    let MatVec { weight, first, count, columns, scratch, out, .. } = work;
    let Kernel::Int8 { mins: has_mins, .. } = weight.kind.kernel() else {
        panic!("{} has no integer form", weight.kind.name());
    };
    let (cols, subs) = (columns.cols, columns.cols / SUB);
    let (codes_stride, subs_stride) = (codes_stride(cols), subs_stride(cols));
    // What is past the row may be left from a longer one.
    scratch.codes[cols..codes_stride].fill(0);
    scratch.scales[subs..subs_stride].fill(0.0);
    scratch.mins[subs..subs_stride].fill(0.0);
    for r in 0..count {
        let planes = weight.rows(first + r..first + r + 1);
        let mut row = Int8Row {
            values: &mut scratch.codes[..cols],
            scales: &mut scratch.scales[..subs],
            mins: &mut scratch.mins[..subs],
        };
        weight.kind.unpack(&planes, &mut row);
        for c in 0..columns.count {
            // SAFETY: the scratch has a padded row, and so has each column, as `with` asserted.
            out[c * count + r] = unsafe {
                let sums = columns.sums.as_ptr().add(c * subs_stride);
                let scales = columns.scales.as_ptr().add(c * subs_stride);
                let codes = columns.codes.as_ptr().add(c * codes_stride);
                let rest = scale_runs(s, scratch, has_mins, scales, sums, subs_stride);
                rest + dot_runs(s, &scratch.codes, &scratch.products, codes, codes_stride)
            };
        }
    }
}

/// Multiplies the scales of weights and activations into `products`; returns what the minimums
/// amount to.
///
/// # Safety
/// `scales` and `sums` are valid for `subs`, a multiple of [`super::SUBS_ALIGN`]; so is `scratch`.
#[inline(always)]
unsafe fn scale_runs<S: Simd>(
    s: S,
    scratch: &mut Scratch,
    has_mins: bool,
    scales: *const f32,
    sums: *const i32,
    subs: usize,
) -> f32 {
    let mut rest = s.splat(0.0);
    for at in (0..subs).step_by(S::LANES) {
        // SAFETY: `at` and the lanes after it are below `subs`.
        unsafe {
            let weight = s.load(scratch.scales.as_ptr().add(at));
            let activation = s.load(scales.add(at));
            s.store(scratch.products.as_mut_ptr().add(at), s.mul(weight, activation));
            if has_mins {
                let min = s.load(scratch.mins.as_ptr().add(at));
                let sum = s.to_f32(s.load_i32(sums.add(at)));
                rest = s.fma(min, s.mul(activation, sum), rest);
            }
        }
    }
    s.sum(rest)
}

/// The sum of `products[i / SUB] * weights[i] * codes[i]`.
///
/// # Safety
/// `codes` and `weights` are valid for `len`, a multiple of [`super::CODES_ALIGN`]; `products` for
/// its runs.
#[inline(always)]
unsafe fn dot_runs<S: Simd>(
    s: S,
    weights: &[i8],
    products: &[f32],
    codes: *const i8,
    len: usize,
) -> f32 {
    let mut sums = [s.splat(0.0); 2];
    let bytes = 4 * S::LANES;
    for (i, at) in (0..len).step_by(bytes).enumerate() {
        // SAFETY: `at` and the bytes after it are below `len`.
        unsafe {
            let (w, x) = (s.load_bytes(weights.as_ptr().add(at)), s.load_bytes(codes.add(at)));
            let dot = s.dot4_signed(s.splat_i32(0), w, x);
            let scale = s.load_spread(products.as_ptr().add(at / SUB));
            sums[i % 2] = s.fma(s.to_f32(dot), scale, sums[i % 2]);
        }
    }
    s.sum(s.add(sums[0], sums[1]))
}
