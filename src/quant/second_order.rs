//! Rounding that lets later inputs make up for the errors of earlier ones: GPTQ (arXiv 2210.17323)
//! in its form as LDLQ (arXiv 2307.13304), over the groups of p values that a grid rounds at once.
//!
//! An error row e of a weight costs `e M e^T`, with M the moments of the input. With
//! `M = R D R^T`, R unit upper triangular, that is `sum over j of D_j (e R)_j^2`. So, input by
//! input:
//!
//! ```text
//! target = w_j + sum over i < j of e_i R_ij
//! q_j = the nearest point to target
//! e_j = w_j - q_j
//! ```
//!
//! makes every term the plain error of one rounding. What follows, and what a sequence cannot see,
//! is a descent: each group again, all others given, and the scales by least squares in M.
//!
//! Rows do not meet. Sixteen of them are worked on side by side, as the lanes of a vector, so every
//! sum has one order on every machine.

use half::f16;

use super::factor;
use crate::simd::Level;
pub use crate::simd::products::LANES;
use crate::simd::products::{Lanes, add_products};
use crate::types::Higgs;

/// Inputs whose errors are gathered before they reach the inputs far behind.
const BLOCK: usize = 64;

/// What the moments of an input say to a rounding.
pub struct Feedback {
    /// Values per row.
    pub width: usize,
    /// Added to the diagonal, as a share of its mean.
    pub damping: f64,
    /// R, `(width, width)`.
    pub(super) factors: Vec<f32>,
    /// D.
    pub(super) weights: Vec<f64>,
    /// M with its damping, `(width, width)`.
    pub(super) metric: Vec<f32>,
}

impl Feedback {
    /// From moments `(width, width)` of `count` tokens. `damping` is raised tenfold until the
    /// matrix has a factor.
    ///
    /// # Panics
    /// If the matrix is not square, or not finite.
    pub fn new(width: usize, moments: Vec<f64>, count: u64, damping: f64) -> Feedback {
        assert_eq!(moments.len(), width * width, "a square matrix");
        let scale = 1.0 / count.max(1) as f64;
        let mut moments = moments;
        moments.iter_mut().for_each(|moment| *moment *= scale);
        let trace: f64 = (0..width).map(|i| moments[i * width + i]).sum();
        assert!(trace.is_finite(), "moments are finite");
        // An input that is always zero leaves every rounding free.
        let mean = if trace > 0.0 { trace / width as f64 } else { 1.0 };
        let mut damping = damping;
        loop {
            let mut damped = moments.clone();
            (0..width).for_each(|i| damped[i * width + i] += damping * mean);
            let metric = damped.iter().map(|&moment| moment as f32).collect();
            if let Some(weights) = factor::factor(&mut damped, width) {
                let factors = damped.iter().map(|&factor| factor as f32).collect();
                return Feedback { width, damping, factors, weights, metric };
            }
            damping = (10.0 * damping).max(1e-8);
        }
    }

    /// The part of the error of `(rows, width)` in an output, `trace(E M E^T)`, for every unit of
    /// squared error that each rounding makes: the mean of D.
    pub fn mean_weight(&self) -> f64 {
        self.weights.iter().sum::<f64>() / self.width as f64
    }

    /// `trace(E M E^T)` of up to [`LANES`] rows of errors, or of weights.
    pub fn cost(&self, rows: &[f32]) -> f64 {
        let rows = to_lanes(rows, self.width);
        let mut products = vec![[0.0; LANES]; self.width];
        self.add_slopes(0, &rows, &mut products);
        let terms = rows.as_flattened().iter().zip(products.as_flattened());
        terms.map(|(e, p)| f64::from(*e) * f64::from(*p)).sum()
    }

    /// Turns independent errors of single roundings, `(rows, width)`, into the errors of weights
    /// that such roundings leave: `E = noise R^-1`, in place.
    pub fn shape(&self, noise: &mut [f32]) {
        for rows in noise.chunks_mut(LANES * self.width) {
            let wanted = to_lanes(rows, self.width);
            let zeros = vec![[0.0; LANES]; self.width];
            let mut errors = zeros.clone();
            let choose = |at: usize, targets: &[Lanes; 1], chosen: &mut [Lanes; 1]| {
                (0..LANES).for_each(|lane| chosen[0][lane] = targets[0][lane] - wanted[at][lane]);
            };
            self.feed::<1>(&zeros, &mut errors, choose);
            from_lanes(&errors, rows);
        }
    }

    /// The sequence: `choose` gets the place of P inputs and their targets, and says what stands
    /// there in the end. Leaves the errors of the weights.
    pub(super) fn feed<const P: usize>(
        &self,
        weights: &[Lanes],
        errors: &mut [Lanes],
        mut choose: impl FnMut(usize, &[Lanes; P], &mut [Lanes; P]),
    ) {
        let (level, width) = (Level::best(), self.width);
        let matrix = (&self.factors[..], width);
        let mut fed = vec![[0.0; LANES]; width];
        for start in (0..width).step_by(BLOCK) {
            let end = (start + BLOCK).min(width);
            for at in (start..end).step_by(P) {
                let mut targets = [[0.0; LANES]; P];
                for i in 0..P {
                    let (w, f) = (&weights[at + i], &fed[at + i]);
                    (0..LANES).for_each(|lane| targets[i][lane] = w[lane] + f[lane]);
                }
                let mut chosen = [[0.0; LANES]; P];
                choose(at, &targets, &mut chosen);
                for i in 0..P {
                    let (w, e) = (&weights[at + i], &mut errors[at + i]);
                    (0..LANES).for_each(|lane| e[lane] = w[lane] - chosen[i][lane]);
                }
                add_products(level, matrix, at, &errors[at..at + P], at + P..end, &mut fed);
            }
            add_products(level, matrix, start, &errors[start..end], end..width, &mut fed);
        }
    }

    /// What the square of one input's error costs.
    pub(super) fn own(&self, at: usize) -> f32 {
        self.metric[at * self.width + at]
    }

    /// `out[j] += sum over i of M[first + i][j] * values[i]`.
    pub(super) fn add_slopes(&self, first: usize, values: &[Lanes], out: &mut [Lanes]) {
        let matrix = (&self.metric[..], self.width);
        add_products(Level::best(), matrix, first, values, 0..self.width, out);
    }
}

/// Rounds rows to a grid.
pub struct Rounding<'a> {
    /// What an error costs.
    pub feedback: &'a Feedback,
    /// The grid.
    pub grid: &'a Higgs,
    /// Weights per scale; divides the width.
    pub group: usize,
    /// Descents after the sequence.
    pub descents: usize,
}

impl Rounding<'_> {
    /// Rounds up to [`LANES`] rows `(n, width)`: codes `(n, width / p)`, norms
    /// `(n, width / group)`.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn round(&self, values: &[f32], codes: &mut [u16], norms: &mut [f16]) {
        match self.grid.values_per_code() {
            1 => self.round_of::<1>(values, codes, norms),
            2 => self.round_of::<2>(values, codes, norms),
            _ => self.round_of::<4>(values, codes, norms),
        }
    }

    fn round_of<const P: usize>(&self, values: &[f32], codes: &mut [u16], norms: &mut [f16]) {
        let width = self.feedback.width;
        let rows = values.len() / width;
        assert!(rows <= LANES && values.len() == rows * width, "up to {LANES} rows");
        assert_eq!((codes.len(), norms.len()), (rows * width / P, rows * width / self.group));
        let weights = to_lanes(values, width);
        let mut scales = self.first_scales(values, rows);
        let mut state = State::<P> {
            codes: vec![[0; LANES]; width / P],
            errors: vec![[0.0; LANES]; width],
            weights,
        };
        self.sequence(&mut state, &scales);
        for _ in 0..self.descents {
            self.descend(&mut state, &mut scales);
        }
        for row in 0..rows {
            let codes = &mut codes[row * width / P..][..width / P];
            codes.iter_mut().zip(&state.codes).for_each(|(to, code)| *to = code[row]);
            let norms = &mut norms[row * width / self.group..][..width / self.group];
            norms.iter_mut().zip(&scales).for_each(|(to, scale)| *to = f16::from_f32(scale[row]));
        }
    }

    /// A scale per group and lane, as half precision keeps it.
    fn first_scales(&self, values: &[f32], rows: usize) -> Vec<Lanes> {
        let width = self.feedback.width;
        let mut scales = vec![[0.0; LANES]; width / self.group];
        for row in 0..rows {
            let groups = values[row * width..][..width].chunks_exact(self.group);
            for (group, scales) in groups.zip(&mut scales) {
                scales[row] = kept(self.grid.scale(group));
            }
        }
        scales
    }

    fn sequence<const P: usize>(&self, state: &mut State<P>, scales: &[Lanes]) {
        let (search, group) = (self.grid.search(), self.group);
        let State { codes, errors, weights } = state;
        let choose = |at: usize, targets: &[Lanes; P], chosen: &mut [Lanes; P]| {
            let scales = &scales[at / group];
            for lane in 0..LANES {
                let place: [f32; P] = std::array::from_fn(|i| targets[i][lane]);
                let code = if scales[lane] == 0.0 { 0 } else { search.code(place, scales[lane]) };
                let point = search.point(code);
                codes[at / P][lane] = code;
                (0..P).for_each(|i| chosen[i][lane] = scales[lane] * point[i]);
            }
        };
        self.feedback.feed::<P>(weights, errors, choose);
    }

    /// Scales by least squares, then every group of P inputs again.
    fn descend<const P: usize>(&self, state: &mut State<P>, scales: &mut [Lanes]) {
        let Feedback { width, ref metric, .. } = *self.feedback;
        let mut slopes = vec![[0.0; LANES]; width];
        self.feedback.add_slopes(0, &state.errors, &mut slopes);
        self.fit_scales(state, scales, &mut slopes);
        let search = self.grid.search();
        for at in (0..width).step_by(P) {
            let block: [[f32; P]; P] =
                std::array::from_fn(|i| std::array::from_fn(|j| metric[(at + i) * width + at + j]));
            let Some(inverse) = invert(&block) else { continue };
            let scales = &scales[at / self.group];
            let mut steps = [[0.0; LANES]; P];
            let mut moved = false;
            for lane in (0..LANES).filter(|&lane| scales[lane] > 0.0) {
                let errors: [f32; P] = std::array::from_fn(|i| state.errors[at + i][lane]);
                let slopes: [f32; P] = std::array::from_fn(|i| slopes[at + i][lane]);
                let rest = sub(slopes, times(&block, errors));
                let weights: [f32; P] = std::array::from_fn(|i| state.weights[at + i][lane]);
                let best = times(&inverse, rest);
                let target: [f32; P] = std::array::from_fn(|i| weights[i] + best[i]);
                let code = search.code(target, scales[lane]);
                if code == state.codes[at / P][lane] {
                    continue;
                }
                let point = search.point(code);
                let new: [f32; P] = std::array::from_fn(|i| weights[i] - scales[lane] * point[i]);
                let cost = |e: [f32; P]| dot(e, times(&block, e)) + 2.0 * dot(e, rest);
                if cost(new) < cost(errors) {
                    moved = true;
                    state.codes[at / P][lane] = code;
                    for i in 0..P {
                        steps[i][lane] = new[i] - errors[i];
                        state.errors[at + i][lane] = new[i];
                    }
                }
            }
            if moved {
                self.feedback.add_slopes(at, &steps, &mut slopes);
            }
        }
    }

    /// For each group the scale that costs least, all else given.
    fn fit_scales<const P: usize>(
        &self,
        state: &mut State<P>,
        scales: &mut [Lanes],
        slopes: &mut [Lanes],
    ) {
        let width = self.feedback.width;
        let search = self.grid.search();
        for (g, scales) in scales.iter_mut().enumerate() {
            let inputs = g * self.group..(g + 1) * self.group;
            let point = |at: usize, lane: usize| {
                let code = state.codes[at / P][lane];
                search.point(code)[at % P]
            };
            let points: Vec<Lanes> =
                inputs.clone().map(|at| std::array::from_fn(|lane| point(at, lane))).collect();
            let mut products = vec![[0.0; LANES]; width];
            self.feedback.add_slopes(inputs.start, &points, &mut products);
            let mut steps = [0.0; LANES];
            for lane in 0..LANES {
                let sum = |values: &[Lanes]| -> f64 {
                    let terms = points.iter().zip(&values[inputs.clone()]);
                    terms.map(|(p, v)| f64::from(p[lane]) * f64::from(v[lane])).sum()
                };
                let square = sum(&products);
                if square > 0.0 {
                    let scale = f64::from(scales[lane]) + sum(slopes) / square;
                    let scale = kept(scale);
                    steps[lane] = scales[lane] - scale;
                    scales[lane] = scale;
                }
            }
            for (error, point) in state.errors[inputs].iter_mut().zip(&points) {
                (0..LANES).for_each(|lane| error[lane] += steps[lane] * point[lane]);
            }
            for (slope, product) in slopes.iter_mut().zip(&products) {
                (0..LANES).for_each(|lane| slope[lane] += steps[lane] * product[lane]);
            }
        }
    }
}

/// Rows under way.
struct State<const P: usize> {
    /// `(width / P)`.
    codes: Vec<[u16; LANES]>,
    /// `(width)`.
    errors: Vec<Lanes>,
    /// `(width)`.
    weights: Vec<Lanes>,
}

/// A scale as it is stored: half precision, not below zero, finite.
pub(super) fn kept(scale: f64) -> f32 {
    f16::from_f64(scale).clamp(f16::ZERO, f16::MAX).to_f32()
}

/// `(rows, width)` to a vector of rows per input; lanes past the rows are zero.
pub(super) fn to_lanes(rows: &[f32], width: usize) -> Vec<Lanes> {
    let mut lanes = vec![[0.0; LANES]; width];
    for (lane, row) in rows.chunks_exact(width).enumerate() {
        lanes.iter_mut().zip(row).for_each(|(to, &value)| to[lane] = value);
    }
    lanes
}

fn from_lanes(lanes: &[Lanes], rows: &mut [f32]) {
    for (lane, row) in rows.chunks_exact_mut(lanes.len()).enumerate() {
        row.iter_mut().zip(lanes).for_each(|(to, values)| *to = values[lane]);
    }
}

fn times<const P: usize>(matrix: &[[f32; P]; P], vector: [f32; P]) -> [f32; P] {
    std::array::from_fn(|i| dot(matrix[i], vector))
}

fn dot<const P: usize>(a: [f32; P], b: [f32; P]) -> f32 {
    a.iter().zip(&b).fold(0.0, |sum, (a, b)| sum + a * b)
}

fn sub<const P: usize>(a: [f32; P], b: [f32; P]) -> [f32; P] {
    std::array::from_fn(|i| a[i] - b[i])
}

/// The inverse of a positive definite matrix, by Gauss and Jordan; `None` if it has none.
fn invert<const P: usize>(matrix: &[[f32; P]; P]) -> Option<[[f32; P]; P]> {
    let mut left = matrix.map(|row| row.map(f64::from));
    let mut right = [[0.0; P]; P];
    (0..P).for_each(|i| right[i][i] = 1.0);
    for pivot in 0..P {
        let value = left[pivot][pivot];
        if value.is_nan() || value <= 0.0 {
            return None;
        }
        for j in 0..P {
            left[pivot][j] /= value;
            right[pivot][j] /= value;
        }
        for row in (0..P).filter(|&row| row != pivot) {
            let factor = left[row][pivot];
            for j in 0..P {
                left[row][j] -= factor * left[pivot][j];
                right[row][j] -= factor * right[pivot][j];
            }
        }
    }
    Some(right.map(|row| row.map(|value| value as f32)))
}
