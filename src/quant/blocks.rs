//! Second-order rounding of rows that share codes: a code is a point of v neighbouring rows in one
//! column, so every column is rounded by itself, and all rows of it have the same weight in the
//! metric. Vectors along the outputs are what makes that so (arXiv 2409.17066, section 3.2).
//!
//! The sequence and the descent are those of `second_order.rs`; each row has one scale.

use half::f16;

use super::points::{Points, Room, V_MAX};
use super::second_order::{Feedback, LANES, kept, to_lanes};
use crate::simd::products::Lanes;

/// Rounds rows to learned points.
pub struct BlockRounding<'a> {
    /// Values per row.
    pub width: usize,
    /// What an error costs; if nothing is known, its square.
    pub feedback: Option<&'a Feedback>,
    /// What a code may stand for.
    pub points: &'a Points,
    /// Descents after the sequence.
    pub descents: usize,
}

/// Rows under way.
struct State {
    /// By block of rows, then by column.
    codes: Vec<Vec<u32>>,
    /// The integer that stands for each weight, `(width)`.
    integers: Vec<Lanes>,
    /// `(width)`.
    errors: Vec<Lanes>,
    /// `(width)`.
    weights: Vec<Lanes>,
    scales: Lanes,
    room: Room,
}

impl BlockRounding<'_> {
    /// Rows that are rounded together at most: whole blocks.
    pub fn rows(v: usize) -> usize {
        LANES / v * v
    }

    /// Rounds up to [`BlockRounding::rows`] rows `(n, width)`: codes `(n / v rounded up, width)`, a
    /// norm per row.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn round(&self, values: &[f32], codes: &mut [u32], norms: &mut [f16]) {
        let (width, v) = (self.width, self.points.shape.v);
        let rows = values.len() / width;
        let blocks = rows.div_ceil(v);
        assert!(rows <= Self::rows(v) && values.len() == rows * width, "whole rows, not too many");
        assert_eq!((codes.len(), norms.len()), (blocks * width, rows));
        let mut scales = [0.0; LANES];
        for (scale, row) in scales.iter_mut().zip(values.chunks_exact(width)) {
            let square: f64 = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
            *scale = kept((square / width as f64).sqrt() / f64::from(self.points.unit));
        }
        let mut state = State {
            codes: vec![vec![0; width]; blocks],
            integers: vec![[0.0; LANES]; width],
            errors: vec![[0.0; LANES]; width],
            weights: to_lanes(values, width),
            scales,
            room: Room::default(),
        };
        self.sequence(&mut state);
        for _ in 0..self.descents {
            self.descend(&mut state);
        }
        codes.chunks_exact_mut(width).zip(&state.codes).for_each(|(to, from)| {
            to.copy_from_slice(from);
        });
        norms.iter_mut().zip(state.scales).for_each(|(to, scale)| *to = f16::from_f32(scale));
    }

    /// The point for block `block` of a column whose weights should be `targets`.
    fn choose(
        &self,
        block: usize,
        targets: &Lanes,
        scales: &Lanes,
        room: &mut Room,
    ) -> (u32, [f32; V_MAX]) {
        let v = self.points.shape.v;
        let place = std::array::from_fn(|t| match scales.get(block * v + t) {
            // A row of zeros, or past the last one.
            Some(&scale) if t < v && scale > 0.0 => targets[block * v + t] / scale,
            _ => 0.0,
        });
        self.points.search(&place, room)
    }

    fn sequence(&self, state: &mut State) {
        let v = self.points.shape.v;
        let State { codes, integers, errors, weights, scales, room } = state;
        let mut choose = |at: usize, targets: &[Lanes; 1], chosen: &mut [Lanes; 1]| {
            for (block, codes) in codes.iter_mut().enumerate() {
                let (code, point) = self.choose(block, &targets[0], scales, room);
                codes[at] = code;
                for (t, &value) in point.iter().enumerate().take(v) {
                    integers[at][block * v + t] = value;
                }
            }
            let lanes = chosen[0].iter_mut().zip(&integers[at]).zip(&*scales);
            lanes.for_each(|((to, integer), scale)| *to = integer * scale);
        };
        let Some(feedback) = self.feedback else {
            for (at, (weights, errors)) in weights.iter().zip(errors).enumerate() {
                let mut chosen = [[0.0; LANES]];
                choose(at, &[*weights], &mut chosen);
                *errors = std::array::from_fn(|lane| weights[lane] - chosen[0][lane]);
            }
            return;
        };
        feedback.feed::<1>(weights, errors, choose);
    }

    /// Scales by least squares, then every column again.
    fn descend(&self, state: &mut State) {
        let v = self.points.shape.v;
        let mut slopes = self.slopes(&state.errors);
        self.fit_scales(state, &mut slopes);
        for at in 0..self.width {
            let own = self.feedback.map_or(1.0, |feedback| feedback.own(at));
            if own <= 0.0 {
                continue;
            }
            let (errors, weights) = (state.errors[at], state.weights[at]);
            let rest: Lanes = std::array::from_fn(|i| slopes[at][i] - own * errors[i]);
            let targets: Lanes = std::array::from_fn(|i| weights[i] + rest[i] / own);
            let mut steps = [[0.0; LANES]];
            let mut moved = false;
            for block in 0..state.codes.len() {
                let (code, point) = self.choose(block, &targets, &state.scales, &mut state.room);
                if code == state.codes[block][at] {
                    continue;
                }
                let lanes = block * v..(block + 1) * v;
                let new = |i: usize| weights[i] - state.scales[i] * point[i - block * v];
                let cost = |e: f32, i: usize| e * (own * e + 2.0 * rest[i]);
                let gain: f32 = lanes.clone().map(|i| cost(errors[i], i) - cost(new(i), i)).sum();
                if gain <= 0.0 {
                    continue;
                }
                moved = true;
                for i in lanes {
                    steps[0][i] = new(i) - errors[i];
                    state.errors[at][i] = new(i);
                    state.integers[at][i] = point[i - block * v];
                }
                state.codes[block][at] = code;
            }
            if let Some(feedback) = self.feedback.filter(|_| moved) {
                feedback.add_slopes(at, &steps, &mut slopes);
            }
        }
    }

    /// The metric times values of each column.
    fn slopes(&self, values: &[Lanes]) -> Vec<Lanes> {
        let Some(feedback) = self.feedback else { return values.to_vec() };
        let mut slopes = vec![[0.0; LANES]; self.width];
        feedback.add_slopes(0, values, &mut slopes);
        slopes
    }

    /// For each row the scale that costs least, all else given.
    fn fit_scales(&self, state: &mut State, slopes: &mut [Lanes]) {
        let products = self.slopes(&state.integers);
        let mut steps = [0.0; LANES];
        for lane in 0..LANES {
            let sum = |values: &[Lanes]| -> f64 {
                let terms = state.integers.iter().zip(values);
                terms.map(|(p, v)| f64::from(p[lane]) * f64::from(v[lane])).sum()
            };
            let square = sum(&products);
            if square > 0.0 && state.scales[lane] > 0.0 {
                let scale = kept(f64::from(state.scales[lane]) + sum(slopes) / square);
                steps[lane] = state.scales[lane] - scale;
                state.scales[lane] = scale;
            }
        }
        let integers = state.errors.iter_mut().zip(&state.integers);
        for (error, integer) in integers {
            (0..LANES).for_each(|lane| error[lane] += steps[lane] * integer[lane]);
        }
        for (slope, product) in slopes.iter_mut().zip(&products) {
            (0..LANES).for_each(|lane| slope[lane] += steps[lane] * product[lane]);
        }
    }
}
