//! The transforms as their definition, plain: what the fast ones must equal bit by bit.

use super::{Steps, turn, turn_back};
use crate::types::Basis;

const PLAIN: Steps = Steps { sylvester, kronecker };

/// As [`super::forward`].
pub fn forward(basis: Basis, signs: &[i8], row: &mut [f32]) {
    turn(PLAIN, basis, signs, row);
}

/// As [`super::inverse`].
pub fn inverse(basis: Basis, signs: &[i8], row: &mut [f32]) {
    turn_back(PLAIN, basis, signs, row);
}

/// Sylvester's matrix of order `block` on every run of `block` values, not normalised:
/// the stages at distance 1, 2, 4, ... in this order, each (a, b) to (a + b, a - b).
pub(super) fn sylvester(row: &mut [f32], block: usize) {
    for run in row.chunks_exact_mut(block) {
        let mut half = 1;
        while half < block {
            for at in (0..block).filter(|at| at & half == 0) {
                let (a, b) = (run[at], run[at + half]);
                run[at] = a + b;
                run[at + half] = a - b;
            }
            half *= 2;
        }
    }
}

/// A matrix across the runs of `block` values, not normalised; `plus` are its places of +1.
///
/// `out[k] = 2 * (sum of the values at +1) - (sum of all values)`: half the additions of a plain
/// product. Both sums are taken in the order of the runs, from the first value on.
pub(super) fn kronecker(row: &mut [f32], block: usize, plus: &[Vec<u8>]) {
    for lane in 0..block {
        let values: Vec<f32> = row[lane..].iter().step_by(block).copied().collect();
        let total = values[1..].iter().fold(values[0], |sum, value| sum + value);
        for (k, places) in plus.iter().enumerate() {
            let first = values[places[0] as usize];
            let sum = places[1..].iter().fold(first, |sum, &at| sum + values[at as usize]);
            row[k * block + lane] = (sum + sum) - total;
        }
    }
}
