//! What statistics say to the rounding of each tensor, made when it is needed.

use std::collections::VecDeque;

use super::{Item, Statistics};
use crate::error::Result;
use crate::quant::Feedback;
use crate::transform;
use crate::types::Basis;

/// Added to the diagonal of moments, as a share of its mean. Chosen by measurement, as
/// `benches/results/` tells.
const DAMPING: f64 = 0.1;
/// The same where a weight is also the table that tokens are looked up in: there every direction
/// counts alike.
const TIED_DAMPING: f64 = 0.3;

/// The tensors of a layer lie close together in a file and share inputs, so the last few are kept.
pub struct Feedbacks<'a> {
    statistics: Option<&'a Statistics>,
    /// The name of a weight that is the embedding and the head at once.
    tied: Option<String>,
    known: VecDeque<((usize, usize, Basis), Feedback)>,
    /// What had to be damped further to have a factor, and by how much.
    pub damped: Vec<(String, f64)>,
}

impl<'a> Feedbacks<'a> {
    /// The inputs of a layer.
    const KEPT: usize = 4;

    /// None are made yet; none ever, without statistics.
    pub fn new(statistics: Option<&'a Statistics>, tied: Option<String>) -> Feedbacks<'a> {
        Feedbacks { statistics, tied, known: VecDeque::new(), damped: Vec::new() }
    }

    /// For what is coded without a text.
    pub fn none() -> Feedbacks<'static> {
        Feedbacks::new(None, None)
    }

    /// Whether there are statistics at all.
    pub fn is_calibrated(&self) -> bool {
        self.statistics.is_some()
    }

    /// Whether there are statistics of a weight's input.
    pub fn has(&self, weight: &str) -> bool {
        self.statistics.is_some_and(|statistics| statistics.use_of(weight).is_some())
    }

    /// Of one of the matrices of an item, as it is to be coded.
    pub(super) fn of_item(&mut self, item: &Item, matrix: usize) -> Result<Option<&Feedback>> {
        self.get((&item.name, matrix), item.cols, item.basis, item.sign_seed)
    }

    /// Of a weight, and the number of one of the matrices in it, with `cols` inputs in a basis;
    /// nothing if there are no statistics of it.
    ///
    /// # Errors
    /// If the statistics are damaged.
    pub fn get(
        &mut self,
        (weight, matrix): (&str, usize),
        cols: usize,
        basis: Basis,
        sign_seed: u64,
    ) -> Result<Option<&Feedback>> {
        let Some(statistics) = self.statistics else { return Ok(None) };
        let Some(input) = statistics.use_of(weight) else { return Ok(None) };
        let matrix = statistics.matrix(input, matrix)?;
        let key = (input, matrix, basis);
        if let Some(at) = self.known.iter().position(|(known, _)| *known == key) {
            return Ok(Some(&self.known[at].1));
        }
        if self.known.len() == Self::KEPT {
            self.known.pop_front();
        }
        let mut signs = transform::signs(sign_seed, cols);
        let moments = statistics.moments(input, matrix)?;
        if let Basis::Parted { high } = basis {
            transform::mark(&mut signs, &moments.loudest(high as usize));
        }
        let turned = moments.turned(basis, &signs);
        let is_tied = self.tied.as_deref() == Some(weight);
        let damping = if is_tied { TIED_DAMPING } else { DAMPING };
        let feedback = Feedback::new(cols, turned, moments.count, damping);
        if feedback.damping > damping {
            self.damped.push((weight.to_string(), feedback.damping));
        }
        self.known.push_back((key, feedback));
        Ok(self.known.back().map(|(_, feedback)| feedback))
    }
}
