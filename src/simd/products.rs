//! Two products that quantisation spends its time in.

#![allow(clippy::needless_range_loop, reason = "tiles of registers read best by number")]

use super::{Level, Simd, WithSimd};

/// Rows that [`add_products`] works on side by side.
pub const LANES: usize = 16;

/// One value of each of [`LANES`] rows.
pub type Lanes = [f32; LANES];

/// Rows and columns of a tile of [`outer`].
pub const OUTER: usize = 32;

/// Columns that [`add_products`] keeps in registers.
const TILE: usize = 4;
/// Rows that it reads together. Each is in a page of its own, and there is room for so many pages
/// in the first table of addresses that a core looks into.
const RUN: usize = 32;

/// `tile[i][j] = sum over t of left[t][i] * right[t][j]`, in single precision, one after the other
/// in t, fused where the instruction set can.
///
/// # Panics
/// If one side is longer than the other.
pub fn outer(
    level: Level,
    left: &[[f32; OUTER]],
    right: &[[f32; OUTER]],
    tile: &mut [[f32; OUTER]; OUTER],
) {
    assert_eq!(left.len(), right.len(), "as many on both sides");
    level.dispatch(Outer { left, right, tile });
}

struct Outer<'a> {
    left: &'a [[f32; OUTER]],
    right: &'a [[f32; OUTER]],
    tile: &'a mut [[f32; OUTER]; OUTER],
}

impl WithSimd for Outer<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        // Eight sums hide what a multiplication waits for, and every set has registers for them.
        const ROWS: usize = 4;
        const VECTORS: usize = 2;
        let Outer { left, right, tile } = self;
        for first in (0..OUTER).step_by(ROWS) {
            for col in (0..OUTER).step_by(VECTORS * S::LANES) {
                let mut sums = [[s.splat(0.0); VECTORS]; ROWS];
                for (left, right) in left.iter().zip(right) {
                    let load = |v: usize| {
                        // SAFETY: a row has `OUTER` values, which pairs of vectors divide.
                        unsafe { s.load(right.as_ptr().add(col + v * S::LANES)) }
                    };
                    let right = [load(0), load(1)];
                    for i in 0..ROWS {
                        let value = s.splat(left[first + i]);
                        for v in 0..VECTORS {
                            sums[i][v] = s.fma(value, right[v], sums[i][v]);
                        }
                    }
                }
                for i in 0..ROWS {
                    for v in 0..VECTORS {
                        let at = tile[first + i].as_mut_ptr();
                        // SAFETY: the same of a row of the tile.
                        unsafe { s.store(at.add(col + v * S::LANES), sums[i][v]) };
                    }
                }
            }
        }
    }
}

/// `out[j] += sum over i of matrix[first + i][j] * values[i]` for the columns j in `cols`, one
/// after the other in i; products and sums are rounded apart, so every instruction set gives the
/// same.
///
/// # Panics
/// If the rows `first..first + values.len()` are not in `matrix` `(n, width)`, or `out` is shorter.
pub fn add_products(
    level: Level,
    (matrix, width): (&[f32], usize),
    first: usize,
    values: &[Lanes],
    cols: std::ops::Range<usize>,
    out: &mut [Lanes],
) {
    assert!((first + values.len()) * width <= matrix.len(), "rows of the matrix");
    assert!(cols.end <= width && cols.end <= out.len(), "columns of the matrix");
    level.dispatch(Products { matrix, width, first, values, cols, out });
}

struct Products<'a> {
    matrix: &'a [f32],
    width: usize,
    first: usize,
    values: &'a [Lanes],
    cols: std::ops::Range<usize>,
    out: &'a mut [Lanes],
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Products { matrix, width, first, values, cols, out } = self;
        for (run, values) in values.chunks(RUN).enumerate() {
            let mut col = cols.start;
            while col + TILE <= cols.end {
                // SAFETY: the rows and columns were checked to be there.
                unsafe {
                    let factors = matrix.as_ptr().add((first + run * RUN) * width + col);
                    tile::<S, TILE>(s, factors, width, values, &mut out[col..col + TILE]);
                }
                col += TILE;
            }
            for col in col..cols.end {
                // SAFETY: the rows and columns were checked to be there.
                unsafe {
                    let factors = matrix.as_ptr().add((first + run * RUN) * width + col);
                    tile::<S, 1>(s, factors, width, values, &mut out[col..col + 1]);
                }
            }
        }
    }
}

/// # Safety
/// `factors` has a row of `N` floats every `width` floats, one for each of `values`.
#[inline(always)]
unsafe fn tile<S: Simd, const N: usize>(
    s: S,
    factors: *const f32,
    width: usize,
    values: &[Lanes],
    out: &mut [Lanes],
) {
    assert_eq!(out.len(), N, "a tile");
    let vectors = LANES / S::LANES;
    let mut sums = [[s.splat(0.0); 4]; N];
    for j in 0..N {
        for v in 0..vectors {
            // SAFETY: the lanes are `vectors` vectors.
            sums[j][v] = unsafe { s.load(out[j].as_ptr().add(v * S::LANES)) };
        }
    }
    for (i, values) in values.iter().enumerate() {
        for v in 0..vectors {
            // SAFETY: the lanes are `vectors` vectors; the caller vouches for the factors.
            unsafe {
                let value = s.load(values.as_ptr().add(v * S::LANES));
                for j in 0..N {
                    let factor = s.splat(*factors.add(i * width + j));
                    sums[j][v] = s.add(sums[j][v], s.mul(factor, value));
                }
            }
        }
    }
    for j in 0..N {
        for v in 0..vectors {
            // SAFETY: the lanes are `vectors` vectors.
            unsafe { s.store(out[j].as_mut_ptr().add(v * S::LANES), sums[j][v]) };
        }
    }
}

/// `scores[j] = -halves[j] + sum over t of columns[t][j] * place[t]`, and the largest of every
/// [`LANES`] of them; products and sums are rounded apart, so every instruction set gives the same.
/// Where `turned[j]` is 1 and not 0, one of the products is turned, the least, and so taken off
/// twice; of as many as there are.
///
/// # Panics
/// If the columns are not whole runs of [`LANES`], or a length does not fit.
pub fn score(
    level: Level,
    columns: &[f32],
    halves: &[f32],
    place: &[f32],
    turned: &[f32],
    scores: &mut [f32],
    largest: &mut [f32],
) {
    let count = halves.len();
    assert!(count.is_multiple_of(LANES) && columns.len() == count * place.len(), "whole columns");
    assert!(turned.is_empty() || turned.len() == count, "a turn per point, or none");
    assert!(scores.len() == count && largest.len() * LANES == count, "a score per point");
    let work = Score { columns, halves, place, turned, scores, largest };
    level.dispatch(work);
}

struct Score<'a> {
    columns: &'a [f32],
    halves: &'a [f32],
    place: &'a [f32],
    turned: &'a [f32],
    scores: &'a mut [f32],
    largest: &'a mut [f32],
}

impl WithSimd for Score<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Score { columns, halves, place, turned, scores, largest } = self;
        for (run, largest) in largest.iter_mut().enumerate() {
            *largest = f32::NEG_INFINITY;
            for part in 0..LANES / S::LANES {
                let at = run * LANES + part * S::LANES;
                // SAFETY: `at` and a vector are within every column, which is whole runs.
                unsafe {
                    let mut sum = s.sub(s.splat(0.0), s.load(halves.as_ptr().add(at)));
                    let mut least = s.splat(f32::INFINITY);
                    for (t, &value) in place.iter().enumerate() {
                        let column = s.load(columns.as_ptr().add(t * halves.len() + at));
                        let product = s.mul(column, s.splat(value));
                        sum = s.add(sum, product);
                        least = s.min(least, product);
                    }
                    if !turned.is_empty() {
                        let turned = s.load(turned.as_ptr().add(at));
                        sum = s.sub(sum, s.mul(turned, s.add(least, least)));
                    }
                    s.store(scores.as_mut_ptr().add(at), sum);
                    *largest = largest.max(s.largest(sum));
                }
            }
        }
    }
}
