//! How much each token of a text matters to a weight.
//!
//! An error E of a weight changes the loss by `sum over tokens of (d_t E x_t)^2`, d_t the gradient
//! by the product of that token, so the metric of a rounding is the moments of its inputs with
//! tokens weighted by the squares of their gradients (GuidedQuant, arXiv 2505.07004). Answers are
//! drawn from the model itself: then the squares are those of the Fisher information, which is what
//! the KL divergence from the unquantised model is made of. Their roots serve better where a text
//! is short, since few tokens have nearly all of the squares (`benches/results/`).

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::head::Head;
use super::pass::Pass;
use super::{Factors, Ways, backend, plain};
use crate::backend::Backend;
use crate::error::Result;
use crate::model::Model;
use crate::run::Options;
use crate::run::walk::{batch, floats, pieces, shell};
use crate::types::{Bytes, Tensor, TensorType, whole_name};

/// The weight of every token of all windows, in order, by the first weight that uses an input; 1 on
/// average. Nothing of an input: its tokens count alike.
pub type TokenWeights = HashMap<String, Vec<f32>>;

/// Sums of squares of gradients, by the first weight that uses an input.
#[derive(Default)]
pub(super) struct Squares(HashMap<String, Vec<f32>>);

impl Squares {
    /// Adds those of gradients `(rows, width)` of a product. So many neighbouring rows are of one
    /// row of the input.
    pub(super) fn add(&mut self, first: &Tensor, d: &[f32], (width, sharing): (usize, usize)) {
        let rows = d.len() / width / sharing;
        let name = whole_name(&first.name).to_string();
        let sums = self.0.entry(name).or_insert_with(|| vec![0.0; rows]);
        let all = sums.par_iter_mut().zip(d.par_chunks_exact(sharing * width));
        all.for_each(|(sum, d)| *sum += d.iter().map(|d| d * d).sum::<f32>());
    }
}

/// Finds the weights of all tokens of windows of one length, with matrices in a type that is exact
/// enough for that. `draw` gives numbers from 0 to 1, `done` hears when all weights were read, and
/// of every window.
///
/// # Errors
/// If the model cannot be run, or a weight is not finite.
pub fn token_weights(
    model: &Model,
    options: &Options,
    windows: &[Vec<u32>],
    kind: &'static dyn TensorType,
    draw: &mut dyn FnMut() -> f64,
    done: &mut dyn FnMut(),
) -> Result<TokenWeights> {
    let Some(first) = windows.first() else { return Ok(TokenWeights::new()) };
    let make = |tensor: &Tensor| coded(tensor, kind);
    let ways = Ways::new(floats(model, |_| true, make)?, &make)?;
    done();
    let Ways { plan, products, end, head_input, head } = ways;
    let plan = Arc::new(plan);
    let weight = &plan.weights[head.0];
    let name = whole_name(&weight.name).to_string();
    let mut head = Head::new(model, options, weight, None, &make)?;
    let ops = 0..plan.ops.len();
    let mut of_inputs = TokenWeights::new();
    let none = Factors::new();
    let mut backend = backend(options, first.len(), plan.clone(), ops)?;
    for window in windows {
        backend.load(&batch(window, 0..window.len()))?;
        let mut pass = Pass::new(backend, plan.clone(), &products, options.level, &none);
        pass.squares = Some(Squares::default());
        pass.forward(0..end)?;
        let hidden = pass.value(head_input)?;
        let (d_hidden, squares) = head.draw(&hidden, draw)?;
        pass.back(end, head_input, d_hidden)?;
        let found = pass.squares.take().unwrap_or_default().0;
        for (name, squares) in found.into_iter().chain([(name.clone(), squares)]) {
            of_inputs.entry(name).or_default().extend(squares.iter().map(|square| square.sqrt()));
        }
        backend = pass.backend;
        done();
    }
    of_inputs.retain(|_, weights| even_out(weights));
    Ok(of_inputs)
}

/// Divides numbers by their mean, if there is one to divide by.
fn even_out(weights: &mut [f32]) -> bool {
    let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
    let mean = sum / weights.len() as f64;
    weights.iter_mut().for_each(|weight| *weight = (f64::from(*weight) / mean) as f32);
    mean.is_normal()
}

/// A weight in a stock type and the model's own basis, or in half precision if its rows do not fit.
fn coded(tensor: &Tensor, kind: &'static dyn TensorType) -> Result<Tensor> {
    let Some(row_bytes) = kind.row_bytes(tensor.cols) else { return plain(tensor) };
    let mut codes = Vec::with_capacity(tensor.rows * row_bytes);
    pieces(tensor, |values| {
        let first = codes.len();
        codes.resize(first + values.len() / tensor.cols * row_bytes, 0);
        let rows = codes[first..].par_chunks_exact_mut(row_bytes);
        let rows = rows.zip(values.par_chunks_exact(tensor.cols));
        rows.for_each(|(codes, row)| kind.encode(row, tensor.cols, 0, codes, &mut []));
    })?;
    Ok(Tensor { kind, codes: Bytes::from(codes), ..shell(tensor)? })
}
