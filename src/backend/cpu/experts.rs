//! The ops of experts: which are chosen, their products, and the mix of what they say.
//!
//! ```text
//! for each expert, for each run of its rows:
//!     for each few choices of this expert: gather their inputs, multiply
//! ```
//!
//! A run of rows is decoded once for the few, and stays in the cache for the next few.

use super::{State, Worker};
use crate::plan::{ExpertPart, Slot};
use crate::types::dot::{
    self, COLUMNS_MAX, Columns, FloatColumns, Int8Columns, ROWS_MAX, codes_stride, subs_stride,
};

/// Inputs of one expert side by side.
#[derive(Default)]
pub(super) struct Gathered {
    values: Vec<f32>,
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

/// Each method runs one worker's part of the op of its name; what they ask for is what
/// [`State::op`] asks for: rows, and products of a run of an expert's rows, are written by one.
impl State {
    /// # Safety
    /// As [`State::op`].
    pub(super) unsafe fn route(&self, worker: &Worker, scores: Slot, chosen: Slot, shares: Slot) {
        let (experts, used) = (self.width(scores), self.width(chosen));
        for row in worker.share(self.extent(scores)) {
            // SAFETY: the row is this worker's; scores are not written.
            let (scores, chosen, shares) = unsafe {
                (
                    self.floats(scores).get(row * experts..(row + 1) * experts),
                    self.cells(chosen).get_mut(row * used..(row + 1) * used),
                    self.floats(shares).get_mut(row * used..(row + 1) * used),
                )
            };
            choose(scores, chosen);
            let peak = scores[chosen[0] as usize];
            for (share, &expert) in shares.iter_mut().zip(&*chosen) {
                *share = (scores[expert as usize] - peak).exp();
            }
            let total: f32 = shares.iter().sum();
            shares.iter_mut().for_each(|share| *share /= total);
        }
    }

    /// # Safety
    /// As [`State::op`].
    pub(super) unsafe fn expert_mat_mul(
        &self,
        worker: &Worker,
        input: Slot,
        chosen: Slot,
        parts: &[ExpertPart],
    ) {
        // SAFETY: this op writes neither.
        let (columns, chosen) = unsafe { (self.columns(input), self.indices(chosen)) };
        if chosen.is_empty() {
            return;
        }
        // Choices that share an input.
        let sharing = chosen.len() / columns.count();
        let mut order: Vec<u32> = (0..chosen.len() as u32).collect();
        order.sort_by_key(|&choice| chosen[choice as usize]);
        let is_same = |a: &u32, b: &u32| chosen[*a as usize] == chosen[*b as usize];
        let groups: Vec<&[u32]> = order.chunk_by(is_same).collect();
        let mut local = self.mat_mul.local(worker);
        let local = &mut *local;
        let mut products = [0.0; COLUMNS_MAX * ROWS_MAX];
        let runs = |part: &ExpertPart| self.width(part.out).div_ceil(self.run(part));
        let runs_of_all: usize = parts.iter().map(runs).sum();
        for piece in worker.pieces(groups.len() * runs_of_all) {
            let (group, mut run) = (groups[piece / runs_of_all], piece % runs_of_all);
            let part = parts.iter().find(|part| {
                let is_here = run < runs(part);
                run -= if is_here { 0 } else { runs(part) };
                is_here
            });
            let part = part.expect("runs are counted over the same parts");
            let (rows, weight) = (self.width(part.out), &self.plan.weights[part.weight.0]);
            let first = run * self.run(part);
            let count = self.run(part).min(rows - first);
            let row = chosen[group[0] as usize] as usize * rows + first;
            for few in group.chunks(COLUMNS_MAX) {
                let inputs = few.iter().map(|&choice| choice as usize / sharing);
                let columns = local.gathered.gather(&columns, inputs);
                let lookup = &self.mat_mul.lookups[part.weight.0];
                let products = &mut products[..few.len() * count];
                let scratch = &mut local.scratch;
                dot::mat_vec(self.level, weight, lookup, row, count, &columns, scratch, products);
                for (&choice, products) in few.iter().zip(products.chunks_exact(count)) {
                    let at = choice as usize * rows + first;
                    // SAFETY: these products are this worker's.
                    let out = unsafe { self.floats(part.out).get_mut(at..at + count) };
                    out.copy_from_slice(products);
                }
            }
        }
    }

    /// Rows of an expert that one worker multiplies: rows that share codes stay together.
    fn run(&self, part: &ExpertPart) -> usize {
        let unit = self.unit(part.weight).min(ROWS_MAX);
        ROWS_MAX / unit * unit
    }

    /// # Safety
    /// As [`State::op`].
    pub(super) unsafe fn mix(&self, worker: &Worker, x: Slot, y: Slot, shares: Slot) {
        let (width, used) = (self.width(x), self.width(shares));
        for row in worker.share(self.extent(x)) {
            // SAFETY: the row is this worker's; only x is written.
            let (x, y, shares) = unsafe {
                (
                    self.floats(x).get_mut(row * width..(row + 1) * width),
                    self.floats(y).get(row * used * width..(row + 1) * used * width),
                    self.floats(shares).get(row * used..(row + 1) * used),
                )
            };
            for (y, &share) in y.chunks_exact(width).zip(shares) {
                x.iter_mut().zip(y).for_each(|(x, y)| *x += share * y);
            }
        }
    }
}

/// The numbers of the largest scores, largest first, of equal ones the smaller number first.
fn choose(scores: &[f32], chosen: &mut [u32]) {
    for place in 0..chosen.len() {
        let (before, here) = chosen.split_at_mut(place);
        let left = (0..scores.len() as u32).filter(|expert| !before.contains(expert));
        let best = left.reduce(|best, expert| {
            let is_larger = scores[expert as usize].total_cmp(&scores[best as usize]).is_gt();
            if is_larger { expert } else { best }
        });
        here[0] = best.expect("no more experts are used than there are");
    }
}

impl Gathered {
    /// Some columns of several, in this order.
    fn gather(&mut self, all: &Columns, inputs: impl Iterator<Item = usize>) -> Columns<'_> {
        let Gathered { values, codes, scales, sums } = self;
        let mut count = 0;
        match *all {
            Columns::Float(FloatColumns { cols, values: from, .. }) => {
                values.clear();
                for at in inputs {
                    values.extend_from_slice(&from[at * cols..(at + 1) * cols]);
                    count += 1;
                }
                Columns::Float(FloatColumns { count, cols, values })
            }
            Columns::Int8(from) => {
                codes.clear();
                scales.clear();
                sums.clear();
                let (codes_len, subs_len) = (codes_stride(from.cols), subs_stride(from.cols));
                for at in inputs {
                    codes.extend_from_slice(&from.codes[at * codes_len..(at + 1) * codes_len]);
                    let subs = at * subs_len..(at + 1) * subs_len;
                    scales.extend_from_slice(&from.scales[subs.clone()]);
                    sums.extend_from_slice(&from.sums[subs]);
                    count += 1;
                }
                Columns::Int8(Int8Columns { count, codes, scales, sums, ..from })
            }
        }
    }
}
