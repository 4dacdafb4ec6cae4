//! Rounding of rows in two parts: the first to one grid, then the second to a finer one, which
//! makes up for what it can of the first one's errors.
//!
//! With `M = R D R^T` cut where the parts meet, errors (e, f) cost
//!
//! ```text
//! e (R_ee D_e R_ee^T) e^T + (f - g) M_ff (f - g)^T,   g = -e R_ef R_ff^-1
//! ```
//!
//! So the first part is rounded as if the second were exact, the second one's weights move by g,
//! and both are plain second-order roundings.

use half::f16;

use super::Feedback;
use super::second_order::{LANES, Rounding, kept};
use crate::types::Higgs;

/// What the moments of an input say to a rounding in two parts.
pub struct Parted {
    first: Feedback,
    second: Feedback,
    /// R_ef, `(first, second)`.
    across: Vec<f32>,
}

impl Parted {
    /// From what they say to a whole row; `first` of its inputs are of the first part.
    ///
    /// # Panics
    /// If a part has no inputs.
    pub fn new(whole: &Feedback, first: usize) -> Parted {
        let (width, second) = (whole.width, whole.width - first);
        assert!(first > 0 && second > 0, "two parts");
        let cut = |matrix: &[f32], rows: std::ops::Range<usize>, cols: std::ops::Range<usize>| {
            let row = |row: usize| matrix[row * width..][cols.clone()].to_vec();
            rows.flat_map(row).collect::<Vec<f32>>()
        };
        let across = cut(&whole.factors, 0..first, first..width);
        let mut metric = cut(&whole.metric, 0..first, 0..first);
        // What the second part makes up for costs nothing: R_ef D_f R_ef^T goes.
        let weights = &whole.weights[first..];
        for (i, row) in across.chunks_exact(second).enumerate() {
            for (j, other) in across.chunks_exact(second).enumerate() {
                let terms = row.iter().zip(other).zip(weights);
                let sum: f64 = terms.map(|((a, b), w)| f64::from(*a) * f64::from(*b) * w).sum();
                metric[i * first + j] = (f64::from(metric[i * first + j]) - sum) as f32;
            }
        }
        let part = |range: std::ops::Range<usize>, metric| Feedback {
            width: range.len(),
            damping: whole.damping,
            factors: cut(&whole.factors, range.clone(), range.clone()),
            weights: whole.weights[range].to_vec(),
            metric,
        };
        Parted {
            second: part(first..width, cut(&whole.metric, first..width, first..width)),
            first: part(0..first, metric),
            across,
        }
    }

    /// Rounds up to [`LANES`] rows, each part to its grid under a norm of its own: codes
    /// `(n, first / p)` and `(n, second / p)`, norms `(n, 2)`.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn round(
        &self,
        grids: [&Higgs; 2],
        descents: usize,
        values: &[f32],
        codes: [&mut [u16]; 2],
        norms: &mut [[f16; 2]],
    ) {
        let (first, second) = (self.first.width, self.second.width);
        let rows = values.len() / (first + second);
        assert!(rows <= LANES && rows == norms.len(), "up to {LANES} rows, two norms each");
        let part = |range: std::ops::Range<usize>| -> Vec<f32> {
            values
                .chunks_exact(first + second)
                .flat_map(|row| row[range.clone()].to_vec())
                .collect()
        };
        let (firsts, mut seconds) = (part(0..first), part(first..first + second));
        let [first_codes, second_codes] = codes;
        let mut scales = vec![f16::ZERO; rows];
        let (feedback, grid) = (&self.first, grids[0]);
        let rounding = Rounding { feedback, grid, group: first, descents };
        rounding.round(&firsts, first_codes, &mut scales);
        norms.iter_mut().zip(&scales).for_each(|(norm, scale)| norm[0] = *scale);
        let decoded = decoded(grid, first, first_codes, &scales);
        for (row, values) in seconds.chunks_exact_mut(second).enumerate() {
            let range = row * first..(row + 1) * first;
            let errors = firsts[range.clone()].iter().zip(&decoded[range]).map(|(w, q)| w - q);
            self.make_up(errors, values);
        }
        let (feedback, grid) = (&self.second, grids[1]);
        let rounding = Rounding { feedback, grid, group: second, descents };
        rounding.round(&seconds, second_codes, &mut scales);
        norms.iter_mut().zip(&scales).for_each(|(norm, scale)| norm[1] = *scale);
    }

    /// Moves the second part's weights of a row by what makes up for errors of the first's:
    /// `values += errors R_ef R_ff^-1`.
    fn make_up(&self, errors: impl Iterator<Item = f32>, values: &mut [f32]) {
        let width = values.len();
        let mut moves = vec![0.0_f64; width];
        for (error, across) in errors.zip(self.across.chunks_exact(width)) {
            let terms = moves.iter_mut().zip(across);
            terms.for_each(|(to, a)| *to += f64::from(error) * f64::from(*a));
        }
        for at in 0..width {
            let (done, rest) = moves.split_at_mut(at + 1);
            let factors = &self.second.factors[at * width..][at + 1..width];
            let terms = rest.iter_mut().zip(factors);
            terms.for_each(|(to, factor)| *to -= done[at] * f64::from(*factor));
        }
        values
            .iter_mut()
            .zip(moves)
            .for_each(|(value, by)| *value = (f64::from(*value) + by) as f32);
    }
}

/// What rows of codes under a scale each stand for.
fn decoded(grid: &Higgs, width: usize, codes: &[u16], scales: &[f16]) -> Vec<f32> {
    let p = grid.values_per_code();
    let mut values = Vec::with_capacity(width * scales.len());
    for (codes, scale) in codes.chunks_exact(width / p).zip(scales) {
        let scale = kept(scale.to_f64());
        values.extend(codes.iter().flat_map(|&code| {
            let point = grid.search().point(code);
            (0..p).map(move |i| scale * point[i])
        }));
    }
    values
}
