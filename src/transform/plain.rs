//! The transforms as their definition, plain: what the fast ones must equal bit by bit.

use super::{Number, Steps, turn, turn_back};
use crate::types::Basis;

/// As [`super::forward`].
pub fn forward(basis: Basis, signs: &[i8], row: &mut [f32]) {
    turn(steps(), basis, signs, row);
}

/// As [`super::inverse`].
pub fn inverse(basis: Basis, signs: &[i8], row: &mut [f32]) {
    turn_back(steps(), basis, signs, row);
}

pub(super) fn steps<T: Number>() -> Steps<T> {
    Steps { sylvester, kronecker }
}

/// Sylvester's matrix of order `block` on every run of `block` values, not normalised:
/// the stages at distance 1, 2, 4, ... in this order, each (a, b) to (a + b, a - b).
pub(super) fn sylvester<T: Number>(row: &mut [T], block: usize) {
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
pub(super) fn kronecker<T: Number>(row: &mut [T], block: usize, plus: &[Vec<u8>]) {
    for lane in 0..block {
        let values: Vec<T> = row[lane..].iter().step_by(block).copied().collect();
        let total = values[1..].iter().fold(values[0], |sum, &value| sum + value);
        for (k, places) in plus.iter().enumerate() {
            let first = values[places[0] as usize];
            let sum = places[1..].iter().fold(first, |sum, &at| sum + values[at as usize]);
            row[k * block + lane] = (sum + sum) - total;
        }
    }
}
