//! Ops that work on each row for itself, back.

use rayon::prelude::*;

use crate::plan::{Activation, Pairing};

/// Rows that one task sums over, so that sums do not depend on how many threads there are.
const ROWS: usize = 32;

/// Values that one task changes.
const PIECE: usize = 8192;

/// Calls `each` with pieces of `(rows, width)` of the values, of `d_values`, which it may change,
/// and of a sum of its own; returns the sums' sum.
pub(super) fn sum_rows(
    width: usize,
    values: &[f32],
    d_values: &mut [f32],
    each: impl Fn(&[f32], &mut [f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    let pieces = values.par_chunks(ROWS * width).zip(d_values.par_chunks_mut(ROWS * width));
    let part = |(values, d_values): (&[f32], &mut [f32])| {
        let mut sum = vec![0.0; width];
        let rows = values.chunks_exact(width).zip(d_values.chunks_exact_mut(width));
        rows.for_each(|(values, d_values)| each(values, d_values, &mut sum));
        sum
    };
    let parts: Vec<Vec<f32>> = pieces.map(part).collect();
    let mut sum = vec![0.0; width];
    for part in parts {
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    sum
}

/// From the gradient of `y = x * w / sqrt(mean(x^2) + epsilon)`, `(rows, width)`, to that of `x`,
/// in place; returns that of a factor of each of `w`: the sum over rows of `y * dy`.
pub(super) fn norm(x: &[f32], weight: &[f32], epsilon: f32, d: &mut [f32]) -> Vec<f32> {
    sum_rows(weight.len(), x, d, |x, d, sum| {
        let width = x.len() as f32;
        let square: f32 = x.iter().map(|x| x * x).sum();
        let factor = 1.0 / (square / width + epsilon).sqrt();
        let products = x.iter().zip(&*d).zip(weight).map(|((x, d), w)| x * d * w);
        let pull = products.sum::<f32>() / width * factor * factor;
        for (((x, d), w), sum) in x.iter().zip(d).zip(weight).zip(sum) {
            *sum += x * factor * w * *d;
            *d = factor * (w * *d - x * pull);
        }
    })
}

/// From the gradient of factored outputs `(rows, width)` to that of the products, in place;
/// returns that of the factors.
pub(super) fn factored(products: &[f32], factors: &[f32], d: &mut [f32]) -> Vec<f32> {
    sum_rows(factors.len(), products, d, |products, d, sum| {
        for (((product, d), factor), sum) in products.iter().zip(d).zip(factors).zip(sum) {
            *sum += product * *d;
            *d *= factor;
        }
    })
}

/// From the gradient of `activation(gate) * up` to that of `up`, in place; returns that of `gate`.
pub(super) fn gated(activation: Activation, gate: &[f32], up: &[f32], d: &mut [f32]) -> Vec<f32> {
    let mut d_gate = vec![0.0; gate.len()];
    let all = d_gate.par_iter_mut().with_min_len(PIECE).zip(d).zip(gate).zip(up);
    all.for_each(|(((d_gate, d), gate), up)| {
        let (value, slope) = activate(activation, *gate);
        *d_gate = *d * up * slope;
        *d *= value;
    });
    d_gate
}

/// The activation and its slope.
fn activate(activation: Activation, x: f32) -> (f32, f32) {
    match activation {
        Activation::Silu => {
            let share = 1.0 / (1.0 + (-x).exp());
            (x * share, share * (1.0 + x * (1.0 - share)))
        }
        Activation::Gelu => {
            const ROOT: f32 = 0.797_884_6;
            let tanh = (ROOT * (x + 0.044715 * x * x * x)).tanh();
            let inner = ROOT * (1.0 + 3.0 * 0.044715 * x * x);
            (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner)
        }
    }
}

/// Turns pairs of heads `(rows, heads * len)` back by the angles `(rows, cos and sin of pairs)`.
pub(super) fn turn_back(
    values: &mut [f32],
    head_len: usize,
    angles: &[f32],
    (rows, pairing): (usize, Pairing),
) {
    let (width, turned) = (values.len() / rows, angles.len() / rows);
    let pairs = turned / 2;
    for (row, angles) in values.chunks_exact_mut(width).zip(angles.chunks_exact(turned)) {
        for head in row.chunks_exact_mut(head_len) {
            for (i, angle) in angles.chunks_exact(2).enumerate() {
                let (a, b) = pairing.values(i, pairs);
                let (x, y, cos, sin) = (head[a], head[b], angle[0], angle[1]);
                (head[a], head[b]) = (x * cos + y * sin, y * cos - x * sin);
            }
        }
    }
}
