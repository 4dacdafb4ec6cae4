//! Matrices times the rows of a batch.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cells::Cells;
use super::experts::Gathered;
use super::{State, Worker};
use crate::backend::{Capacity, matrices};
use crate::plan::{Format, Op, Part, Plan, Slot, Weight};
use crate::simd::Level;
use crate::types::dot::{
    self, COLUMNS_MAX, Columns, Lookup, Output, Packing, Panel, ROWS_MAX, Scratch,
};

/// Pieces of work per worker that even out what the machine does to the workers.
const PIECES: usize = 8;

/// What the matrices need beside the plan.
pub(super) struct MatMul {
    /// By weight; empty for what is no matrix.
    pub(super) lookups: Vec<Lookup>,
    /// The columns of a batch in tiles, for all workers.
    packed: Cells<u32>,
    /// By worker.
    locals: Vec<Mutex<Local>>,
}

pub(super) struct Local {
    pub(super) scratch: Scratch,
    panel: Panel,
    pub(super) gathered: Gathered,
}

impl MatMul {
    pub(super) fn new(
        plan: &Plan,
        capacity: Capacity,
        ops: Range<usize>,
        threads: usize,
        level: Level,
    ) -> MatMul {
        let mut lookups = vec![Lookup::default(); plan.weights.len()];
        let mut known: HashMap<(*const u8, u32), Lookup> = HashMap::new();
        let mut wanted = vec![false; plan.weights.len()];
        let (mut packed, mut cols, mut panel) = (0, 0, [0, 0]);
        for op in &plan.ops[ops] {
            for at in matrices(op) {
                // Weights with one table share what is made of it, so that it stays in the cache.
                let weight = &plan.weights[at.0];
                let lookup = known.entry((weight.table.as_ptr(), weight.kind.id()));
                lookups[at.0] = lookup.or_insert_with(|| Lookup::tables(weight, level)).clone();
                wanted[at.0] = true;
                cols = weight.cols.max(cols);
            }
            let Op::MatMul { input, .. } = op else { continue };
            let slot = &plan.slots[input.0];
            let rows = slot.extent.rows(capacity.rows, capacity.logit_rows);
            if rows > COLUMNS_MAX {
                let int8 = matches!(slot.format, Format::Int8 { .. });
                let packing = Packing::new(level, slot.width, int8);
                packed = packed.max(packing.tiles(rows) * packing.words);
                panel[usize::from(int8)] = panel[usize::from(int8)].max(slot.width);
            }
        }
        let lookups = with_rows(plan, &lookups, &wanted, threads, level);
        let [floats, ints] = panel;
        let local = || Local {
            scratch: Scratch::new(cols),
            panel: Panel::new(level, floats, ints),
            gathered: Gathered::default(),
        };
        let locals = (0..threads).map(|_| Mutex::new(local())).collect();
        MatMul { lookups, packed: Cells::new(packed), locals }
    }

    /// The plan `held` that this was made from, with the weights of `given` where those are held
    /// once more in the order of the kernels.
    pub(super) fn without_copies(&self, given: &Plan, mut held: Arc<Plan>) -> Arc<Plan> {
        let is_twice = |at: &usize| {
            self.lookups[*at].has_rows()
                && held.weights[*at].kind.id() != given.weights[*at].kind.id()
        };
        let twice: Vec<usize> = (0..self.lookups.len()).filter(is_twice).collect();
        if !twice.is_empty() {
            let plan = Arc::make_mut(&mut held);
            twice.into_iter().for_each(|at| plan.weights[at] = given.weights[at].clone());
        }
        held
    }

    pub(super) fn local(&self, worker: &Worker) -> MutexGuard<'_, Local> {
        // What a panic left behind is overwritten before it is read.
        self.locals[worker.index()].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lookups with the rows of the wanted weights in the order of the kernels.
fn with_rows(
    plan: &Plan,
    lookups: &[Lookup],
    wanted: &[bool],
    threads: usize,
    level: Level,
) -> Vec<Lookup> {
    let next = AtomicUsize::new(0);
    let work = || -> Vec<(usize, Lookup)> {
        let mine = std::iter::from_fn(|| {
            let at = next.fetch_add(1, Relaxed);
            (at < lookups.len()).then_some(at)
        });
        let hold = |at: usize| (at, lookups[at].clone().with_rows(&plan.weights[at], level));
        mine.filter(|&at| wanted[at]).map(hold).collect()
    };
    let mut done = lookups.to_vec();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let held = worker.join().expect("reading rows is total");
            held.into_iter().for_each(|(at, lookup)| done[at] = lookup);
        }
    });
    done
}

impl State {
    /// # Safety
    /// As [`State::op`].
    pub(super) unsafe fn mat_mul(&self, worker: &Worker, input: Slot, parts: &[Part]) {
        // SAFETY: the input is not written by this op.
        let columns = unsafe { self.columns(input) };
        // SAFETY: as the caller vouches.
        unsafe {
            match columns.count() {
                0 => {}
                1..=COLUMNS_MAX => self.few_columns(worker, &columns, parts),
                _ => self.many_columns(worker, &columns, parts),
            }
        }
    }

    /// Rows that are quickest together: a vector of them, or more; those that share codes stay
    /// together, too.
    pub(super) fn unit(&self, weight: Weight) -> usize {
        let block = self.plan.weights[weight.0].kind.row_block();
        least_common_multiple(self.mat_mul.lookups[weight.0].rows_together(), block)
    }

    fn rows_of(&self, part: &Part) -> usize {
        self.plan.weights[part.weight.0].rows
    }

    /// The part and the piece of it that piece number `piece` of all parts is, `step` rows each.
    fn find<'a>(&self, parts: &'a [Part], mut piece: usize, step: usize) -> (&'a Part, usize) {
        for part in parts {
            let pieces = self.rows_of(part).div_ceil(step);
            if piece < pieces {
                return (part, piece);
            }
            piece -= pieces;
        }
        unreachable!("pieces are counted over the same parts")
    }

    /// # Safety
    /// As [`State::op`].
    unsafe fn few_columns(&self, worker: &Worker, columns: &Columns, parts: &[Part]) {
        let all: usize = parts.iter().map(|part| self.rows_of(part)).sum();
        let unit = |part: &Part| self.unit(part.weight);
        let unit = parts.iter().map(unit).fold(1, least_common_multiple).min(ROWS_MAX);
        let step = (all / (PIECES * worker.count())).next_multiple_of(unit);
        let step = step.clamp(unit, ROWS_MAX / unit * unit);
        let pieces = parts.iter().map(|part| self.rows_of(part).div_ceil(step)).sum();
        let mut local = self.mat_mul.local(worker);
        let mut products = [0.0; COLUMNS_MAX * ROWS_MAX];
        for piece in worker.pieces(pieces) {
            let (part, piece) = self.find(parts, piece, step);
            let weight = &self.plan.weights[part.weight.0];
            let lookup = &self.mat_mul.lookups[part.weight.0];
            let first = piece * step;
            let count = step.min(weight.rows - first);
            let products = &mut products[..columns.count() * count];
            let scratch = &mut local.scratch;
            dot::mat_vec(self.level, weight, lookup, first, count, columns, scratch, products);
            for (c, products) in products.chunks_exact_mut(count).enumerate() {
                if let Some(bias) = part.bias {
                    let bias = &self.vector(bias)[first..first + count];
                    products.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
                }
                let at = c * weight.rows + first;
                // SAFETY: these rows are this worker's.
                let out = unsafe { self.floats(part.out).get_mut(at..at + count) };
                if part.add {
                    out.iter_mut().zip(&*products).for_each(|(out, x)| *out += x);
                } else {
                    out.copy_from_slice(products);
                }
            }
        }
    }

    /// # Safety
    /// As [`State::op`].
    unsafe fn many_columns(&self, worker: &Worker, columns: &Columns, parts: &[Part]) {
        let (int8, group) = match columns {
            Columns::Float(_) => (false, 0),
            Columns::Int8(columns) => (true, columns.group),
        };
        let packing = Packing::new(self.level, columns.cols(), int8);
        let (tiles, words) = (packing.tiles(columns.count()), packing.words);
        for tile in worker.share(tiles) {
            let range = tile * words..(tile + 1) * words;
            // SAFETY: the tile is this worker's.
            dot::pack_columns(&packing, columns, tile, unsafe {
                self.mat_mul.packed.get_mut(range)
            });
        }
        worker.barrier();
        // SAFETY: nobody writes the tiles after the barrier.
        let packed = unsafe { self.mat_mul.packed.get(0..tiles * words) };
        let panels: usize =
            parts.iter().map(|part| self.rows_of(part).div_ceil(packing.rows)).sum();
        // Few panels are shared out by tiles too, at the price of decoding them more than once.
        let runs = (PIECES * worker.count()).div_ceil(panels).min(tiles.div_ceil(4)).max(1);
        let run = tiles.div_ceil(runs);
        let mut local = self.mat_mul.local(worker);
        for piece in worker.pieces(panels * runs) {
            let (part, panel) = self.find(parts, piece / runs, packing.rows);
            let weight = &self.plan.weights[part.weight.0];
            let first = panel * packing.rows;
            let count = packing.rows.min(weight.rows - first);
            let lookup = &self.mat_mul.lookups[part.weight.0];
            local.panel.fill(self.level, weight, lookup, first, count);
            let bias = part
                .bias
                .map_or(std::ptr::null(), |bias| self.vector(bias)[first..first + count].as_ptr());
            for tile in piece % runs * run..((piece % runs + 1) * run).min(tiles) {
                let column = tile * packing.columns;
                let real = packing.columns.min(columns.count() - column);
                let at = column * weight.rows + first;
                let end = at + (real - 1) * weight.rows + count;
                assert!(end <= self.floats(part.out).len(), "products fit the slot");
                // SAFETY: within the slot, and these rows and columns are this worker's.
                unsafe {
                    let at = self.floats(part.out).as_ptr().add(at);
                    let out = Output { at, stride: weight.rows, bias, add: part.add };
                    let words = &packed[tile * words..(tile + 1) * words];
                    local.panel.multiply(self.level, &packing, words, real, group, &out);
                }
            }
        }
    }
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    (a..).step_by(a).find(|multiple| multiple.is_multiple_of(b)).expect("their product is one")
}
