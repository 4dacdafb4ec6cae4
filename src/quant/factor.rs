//! `M = R D R^T` with R unit upper triangular: Cholesky's factor without roots, from the last row
//! up.

use rayon::prelude::*;

use crate::simd::{Level, Simd, WithSimd};

/// Columns that are eliminated before the rest of the matrix hears of them.
const BLOCK: usize = 32;

/// Factors a symmetric matrix `(width, width)` in place: R above the diagonal, ones on it, zeros
/// below. Returns D, or nothing if the matrix is not positive definite.
pub(super) fn factor(matrix: &mut [f64], width: usize) -> Option<Vec<f64>> {
    let mut weights = vec![0.0; width];
    // Only the part on and left of the diagonal is worked on: row k, columns up to k. At the end
    // row k of it holds column k of R.
    let mut end = width;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        for pivot in (start..end).rev() {
            let weight = matrix[pivot * width + pivot];
            if !weight.is_normal() || weight < 0.0 {
                return None;
            }
            weights[pivot] = weight;
            let (above, rest) = matrix.split_at_mut(pivot * width);
            let row = &mut rest[..pivot];
            row.iter_mut().for_each(|value| *value /= weight);
            for k in start..pivot {
                let factor = row[k] * weight;
                let target = &mut above[k * width..][..k + 1];
                target.iter_mut().zip(&*row).for_each(|(to, r)| *to -= factor * r);
            }
        }
        let (above, panel) = matrix.split_at_mut(start * width);
        let panel = &panel[..(end - start) * width];
        above.par_chunks_mut(width).enumerate().with_max_len(4).for_each(|(k, row)| {
            let weights = &weights[start..end];
            Level::best().dispatch(Eliminate { row: &mut row[..k + 1], panel, width, weights });
        });
        end = start;
    }
    for row in 0..width {
        matrix[row * width + row] = 1.0;
        for col in 0..row {
            matrix[col * width + row] = matrix[row * width + col];
            matrix[row * width + col] = 0.0;
        }
    }
    Some(weights)
}

/// Takes some finished columns of R, the rows of `panel`, out of a row.
struct Eliminate<'a> {
    row: &'a mut [f64],
    panel: &'a [f64],
    width: usize,
    weights: &'a [f64],
}

impl WithSimd for Eliminate<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, _: S) {
        let Eliminate { row, panel, width, weights } = self;
        let len = row.len();
        for i in (0..weights.len()).rev() {
            let column = &panel[i * width..][..len];
            let factor = column[len - 1] * weights[i];
            for k in 0..len {
                row[k] -= factor * column[k];
            }
        }
    }
}
