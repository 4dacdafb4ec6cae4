//! Few columns, float weights.

use half::{bf16, f16};

use crate::simd::{Simd, WithSimd};

use super::super::{Layout, Tensor};
use super::{FloatColumns, Number, Scratch, dot_floats};

/// See [`super::mat_vec`].
pub(super) struct MatVec<'a> {
    pub(super) weight: &'a Tensor,
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) columns: &'a FloatColumns<'a>,
    pub(super) scratch: &'a mut Scratch,
    pub(super) out: &'a mut [f32],
}

impl WithSimd for MatVec<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        match self.weight.kind.layout() {
            Layout::F32 => rows::<S, f32>(s, self),
            Layout::F16 => rows::<S, f16>(s, self),
            Layout::Bf16 => rows::<S, bf16>(s, self),
            _ => decoded_rows(s, self),
        }
    }
}

#[inline(always)]
fn rows<S: Simd, N: Number>(s: S, work: MatVec) {
    let MatVec { weight, first, count, columns, out, .. } = work;
    let cols = weight.cols;
    let planes = weight.rows(first..first + count);
    assert!(planes.codes.len() == count * cols * size_of::<N>(), "rows of plain numbers");
    assert!(columns.values.len() == columns.count * cols, "columns of plain numbers");
    let codes: *const N = planes.codes.as_ptr().cast();
    for r in 0..count {
        for c in 0..columns.count {
            // SAFETY: row r and column c are within the lengths just asserted.
            out[c * count + r] = unsafe {
                dot_floats(s, codes.add(r * cols), columns.values.as_ptr().add(c * cols), cols)
            };
        }
    }
}

#[inline(always)]
fn decoded_rows<S: Simd>(s: S, work: MatVec) {
    let MatVec { weight, first, count, columns, scratch, out } = work;
    let cols = weight.cols;
    let values = &mut scratch.values[..cols];
    for r in 0..count {
        weight.kind.decode(&weight.rows(first + r..first + r + 1), values);
        for (c, column) in columns.values.chunks_exact(cols).enumerate() {
            // SAFETY: both have `cols` floats.
            let dot = unsafe { dot_floats(s, values.as_ptr(), column.as_ptr(), cols) };
            out[c * count + r] = dot;
        }
    }
}

impl Number for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const f32) -> S::F32 {
        // SAFETY: as the caller vouches.
        unsafe { s.load(at) }
    }

    #[inline(always)]
    unsafe fn one(at: *const f32) -> f32 {
        // SAFETY: as the caller vouches.
        unsafe { at.read_unaligned() }
    }
}

impl Number for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const f16) -> S::F32 {
        // SAFETY: as the caller vouches.
        unsafe { s.load_f16(at.cast()) }
    }

    #[inline(always)]
    unsafe fn one(at: *const f16) -> f32 {
        // SAFETY: as the caller vouches.
        unsafe { at.read_unaligned() }.to_f32()
    }
}

impl Number for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const bf16) -> S::F32 {
        // SAFETY: as the caller vouches.
        unsafe { s.load_bf16(at.cast()) }
    }

    #[inline(always)]
    unsafe fn one(at: *const bf16) -> f32 {
        // SAFETY: as the caller vouches.
        unsafe { at.read_unaligned() }.to_f32()
    }
}
