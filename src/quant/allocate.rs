//! Which type each tensor gets, so that the losses together are least for a number of bytes: exact
//! dynamic programming, for all budgets at once (arXiv 2411.17525, section 5).

use crate::bail;
use crate::error::Result;

/// Budgets that are told apart; steps get coarser, and costs are rounded up to them, past this.
const CELLS_MAX: u64 = 1 << 19;

/// What a tensor could become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// In the file.
    pub bytes: u64,
    /// What it costs the model, in units that add up.
    pub loss: f64,
}

/// The least loss for every budget.
pub struct Curve {
    /// Bytes of the smallest offers together.
    base: u64,
    /// Bytes between two budgets.
    unit: u64,
    /// Loss per budget.
    losses: Vec<f64>,
    /// `(tensors, budgets)`: the offer that the best choice of so many tensors ends with.
    choices: Vec<Vec<u8>>,
    /// `(tensors, offers)`: bytes above the smallest, in units.
    extras: Vec<Vec<usize>>,
}

impl Curve {
    /// Tries all combinations of the tensors' offers.
    ///
    /// # Errors
    /// If a tensor has no offer, or over 255.
    pub fn new(tensors: &[Vec<Offer>]) -> Result<Curve> {
        for (i, offers) in tensors.iter().enumerate() {
            if offers.is_empty() || offers.len() > u8::MAX as usize {
                bail!("tensor {i}: expected 1 to 255 types to choose from, found {}", offers.len());
            }
        }
        let least = |offers: &Vec<Offer>| offers.iter().map(|offer| offer.bytes).min();
        let most = |offers: &Vec<Offer>| offers.iter().map(|offer| offer.bytes).max();
        let base: u64 = tensors.iter().filter_map(least).sum();
        let top: u64 = tensors.iter().filter_map(most).sum();
        let above = |offers: &Vec<Offer>| -> Vec<u64> {
            let least = least(offers).unwrap_or(0);
            offers.iter().map(|offer| offer.bytes - least).collect()
        };
        let common = tensors.iter().flat_map(above).fold(0, greatest_common_divisor);
        let unit = common.max(1).max((top - base).div_ceil(CELLS_MAX));
        let extras: Vec<Vec<usize>> = tensors
            .iter()
            .map(|offers| above(offers).iter().map(|bytes| bytes.div_ceil(unit) as usize).collect())
            .collect();
        let most: usize = extras.iter().filter_map(|extras| extras.iter().max()).sum();
        let mut losses = vec![0.0; most + 1];
        let mut choices = Vec::with_capacity(tensors.len());
        for (offers, extras) in tensors.iter().zip(&extras) {
            let mut best = vec![f64::INFINITY; losses.len()];
            let mut choice = vec![0; losses.len()];
            for (number, (offer, &extra)) in offers.iter().zip(extras).enumerate() {
                for budget in extra..losses.len() {
                    let loss = losses[budget - extra] + offer.loss;
                    if loss < best[budget] {
                        (best[budget], choice[budget]) = (loss, number as u8);
                    }
                }
            }
            losses = best;
            choices.push(choice);
        }
        Ok(Curve { base, unit, losses, choices, extras })
    }

    /// The smallest and the largest budget that make a difference, in bytes.
    pub fn range(&self) -> (u64, u64) {
        (self.base, self.base + self.unit * (self.losses.len() as u64 - 1))
    }

    /// The loss at every budget that has less of it than the one before: bytes, loss.
    pub fn points(&self) -> Vec<(u64, f64)> {
        let mut least = f64::INFINITY;
        let mut points = Vec::new();
        for (budget, &loss) in self.losses.iter().enumerate() {
            if loss < least {
                least = loss;
                points.push((self.base + self.unit * budget as u64, loss));
            }
        }
        points
    }

    /// The offer of each tensor for a budget in bytes; `None` if it is too small for any.
    pub fn pick(&self, bytes: u64) -> Option<Vec<usize>> {
        let steps = bytes.checked_sub(self.base)? / self.unit;
        let mut budget = (steps as usize).min(self.losses.len() - 1);
        let mut picked = Vec::with_capacity(self.choices.len());
        for (choices, extras) in self.choices.iter().zip(&self.extras).rev() {
            let choice = choices[budget] as usize;
            picked.push(choice);
            budget -= extras[choice];
        }
        picked.reverse();
        Some(picked)
    }
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
