//! Runs a plan. `reference` is plain loops and the oracle; `cpu` is the fast one.
//!
//! A backend runs every op of a plan or refuses when it is made; nothing falls back at run time.

pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod kv;
mod levels;
pub mod reference;
pub mod split;

pub use kv::KvFormat;

use crate::error::Result;
use crate::plan::{Batch, Op, Plan, Slot, Weight};
use crate::types::Tensor;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// What a backend reserves memory for.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Rows of the largest batch.
    pub rows: usize,
    /// Rows of a batch that may want logits.
    pub logit_rows: usize,
    /// Sequences that share the cache.
    pub sequences: usize,
    /// Cells per sequence.
    pub context: usize,
    /// How the cache is stored.
    pub kv: KvFormat,
}

/// The values of a slot, taken out of a backend or put into it.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Tokens, positions, row numbers.
    U32(Vec<u32>),
    /// `(rows, width)`.
    F32(Vec<f32>),
    /// Codes `(rows, width)` and scales `(rows, width / group)`.
    Int8 {
        /// Within -127..=127.
        codes: Vec<i8>,
        /// One per group.
        scales: Vec<f32>,
    },
}

impl Values {
    /// The numbers these values stand for.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Values::U32(values) => values.iter().map(|&value| value as f32).collect(),
            Values::F32(values) => values.clone(),
            Values::Int8 { codes, scales } => {
                let group = codes.len() / scales.len().max(1);
                let scale = |i: usize| scales[i / group];
                codes.iter().enumerate().map(|(i, &code)| scale(i) * f32::from(code)).collect()
            }
        }
    }
}

/// What one kind of kernel took in one run of a plan.
#[derive(Clone, Debug)]
pub struct Timing {
    /// The kernel, and what it works on.
    pub name: String,
    /// How often it ran.
    pub count: usize,
    /// All runs together, in microseconds.
    pub micros: f64,
    /// Bytes of weights and caches that it read.
    pub bytes: u64,
}

/// Something that runs a plan.
pub trait Backend: Send {
    /// The plan it was made for.
    fn plan(&self) -> &Arc<Plan>;

    /// What it has memory for.
    fn capacity(&self) -> Capacity;

    /// What a user should know: a line per fact.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// How far the products of many rows may be from the reference's, as a share of their size,
    /// past the rounding of single precision.
    fn product_error(&self) -> f64 {
        0.0
    }

    /// Takes the rows of a batch into the plan's input slots.
    ///
    /// # Errors
    /// If the batch is empty or over the capacity, or a token, position or sequence is outside.
    fn load(&mut self, batch: &Batch) -> Result<()>;

    /// Runs some ops, in order, on the batch that was loaded.
    ///
    /// # Errors
    /// If the device is lost.
    fn run_ops(&mut self, ops: Range<usize>) -> Result<()>;

    /// `(logit rows, vocabulary)`, after the last op.
    ///
    /// # Errors
    /// If the device is lost.
    fn logits(&mut self) -> Result<&mut [f32]>;

    /// A copy of a slot, for `verify` and calibration.
    ///
    /// # Errors
    /// If the device is lost.
    fn read(&mut self, slot: Slot) -> Result<Values>;

    /// Overwrites a slot, for `verify`.
    ///
    /// # Errors
    /// If the device is lost.
    ///
    /// # Panics
    /// If the values do not have the slot's format and size.
    fn write(&mut self, slot: Slot, values: &Values) -> Result<()>;

    /// Runs the whole plan.
    ///
    /// # Errors
    /// As [`Backend::load`] and [`Backend::run_ops`].
    fn run(&mut self, batch: &Batch) -> Result<()> {
        self.load(batch)?;
        self.run_ops(0..self.plan().ops.len())
    }

    /// Runs all ops on the batch that was loaded and says what each kernel took; `None` without a
    /// clock for it.
    ///
    /// # Errors
    /// If the device is lost.
    fn profile(&mut self) -> Result<Option<Vec<Timing>>> {
        Ok(None)
    }

    /// Finds the fastest variants of the kernels that were not measured on this device before, or
    /// all of them `again`; `progress` hears how many kinds are done, and of how many. Returns what
    /// is known about the device, to be kept for the next time, if anything is new.
    ///
    /// # Errors
    /// If the device is lost.
    fn tune(
        &mut self,
        again: bool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<String>> {
        let _ = (again, progress);
        Ok(None)
    }

    /// The `k` likeliest tokens of the first logit row and their logits, in order; of equal ones
    /// the smaller id first. A device may give fewer than it was asked for, but at least one.
    ///
    /// # Errors
    /// If the device is lost.
    fn top(&mut self, k: usize) -> Result<Vec<(u32, f32)>> {
        let vocabulary = self.plan().slots[self.plan().logits.0].width;
        let logits = &self.logits()?[..vocabulary];
        Ok(top(logits, k))
    }

    /// Takes the likeliest token of the first logit row, runs it at `position`, and so on:
    /// `take` hears each of up to `steps` tokens and may end it. The last one is not run; a device
    /// may have run some past the end, in cells that are written again before they are read.
    ///
    /// # Errors
    /// If the device is lost, or a position is outside the context.
    fn greedy(
        &mut self,
        position: u32,
        sequence: u32,
        steps: usize,
        take: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut batch = Batch::default();
        for step in 0..steps {
            let token = self.top(1)?[0].0;
            if take(token).is_break() || step + 1 == steps {
                break;
            }
            batch.clear();
            batch.push(token, position + step as u32, sequence, true);
            self.run(&batch)?;
        }
        Ok(())
    }
}

/// Which layers' caches some ops of a plan use.
fn uses_cache(plan: &Plan, ops: Range<usize>) -> Vec<bool> {
    let mut uses = vec![false; plan.caches.len()];
    plan.ops[ops].iter().filter_map(Op::cache).for_each(|layer| uses[layer] = true);
    uses
}

/// The `k` largest logits and their ids, in order, of equal ones the smaller id first; what is not
/// a number counts as the smallest.
fn top(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let clean = |logit: f32| if logit.is_nan() { f32::NEG_INFINITY } else { logit };
    let rank = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if k == 1 {
        return largest(logits, clean).into_iter().collect();
    }
    let mut all: Vec<_> =
        logits.iter().enumerate().map(|(id, &logit)| (id as u32, clean(logit))).collect();
    if k < all.len() {
        all.select_nth_unstable_by(k, rank);
        all.truncate(k);
    }
    all.sort_unstable_by(rank);
    all
}

/// The first of `top`, which every token waits for: two passes that vectors help with.
fn largest(logits: &[f32], clean: impl Fn(f32) -> f32) -> Option<(u32, f32)> {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (max, &logit) in lanes.iter_mut().zip(chunk) {
            *max = if logit > *max { logit } else { *max };
        }
    }
    let max = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &logit| max.max(logit));
    let id = logits.iter().position(|&logit| clean(logit) == max)?;
    Some((id as u32, clean(logits[id])))
}

/// Refuses a batch that a plan or its memory cannot take.
pub(crate) fn check(batch: &Batch, plan: &Plan, capacity: Capacity) -> Result<()> {
    if batch.is_empty() || batch.len() > capacity.rows {
        crate::bail!("batch: expected 1 to {} rows, found {}", capacity.rows, batch.len());
    }
    if batch.positions.len() != batch.len() || batch.sequences.len() != batch.len() {
        crate::bail!("batch: every row needs a token, a position and a sequence");
    }
    if batch.logit_rows.len() > capacity.logit_rows {
        let (found, max) = (batch.logit_rows.len(), capacity.logit_rows);
        crate::bail!("batch: expected at most {max} rows with logits, found {found}");
    }
    let vocabulary = plan.slots[plan.logits.0].width as u64;
    let bounds = [
        ("token", &batch.tokens, vocabulary),
        ("position", &batch.positions, capacity.context as u64),
        ("sequence", &batch.sequences, capacity.sequences as u64),
        ("logit row", &batch.logit_rows, batch.len() as u64),
    ];
    for (what, values, bound) in bounds {
        if let Some(&found) = values.iter().find(|&&value| u64::from(value) >= bound) {
            crate::bail!("batch: {what} {found} is outside 0..{bound}");
        }
    }
    Ok(())
}

/// The matrices that an op multiplies with.
fn matrices(op: &Op) -> Vec<Weight> {
    match op {
        Op::MatMul { parts, .. } => parts.iter().map(|part| part.weight).collect(),
        Op::ExpertMatMul { parts, .. } => parts.iter().map(|part| part.weight).collect(),
        _ => Vec::new(),
    }
}

/// The plan with the wanted matrices in types that kernels are quick with, where that is worth
/// memory.
fn in_bytes(
    plan: Arc<Plan>,
    ops: Range<usize>,
    threads: usize,
    wanted: fn(&Tensor) -> bool,
) -> Arc<Plan> {
    let mut weights: Vec<usize> = plan.ops[ops].iter().flat_map(matrices).map(|w| w.0).collect();
    weights.retain(|&at| wanted(&plan.weights[at]));
    weights.sort_unstable();
    weights.dedup();
    let next = AtomicUsize::new(0);
    let work = || -> Vec<(usize, Tensor)> {
        let mine = std::iter::from_fn(|| weights.get(next.fetch_add(1, Relaxed)));
        let changed = mine.map(|&at| (at, &plan.weights[at]));
        changed.filter_map(|(at, tensor)| Some((at, tensor.kind.in_bytes(tensor)?))).collect()
    };
    let changed: Vec<(usize, Tensor)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("decoding is total")).collect()
    });
    if changed.is_empty() {
        return plan;
    }
    let mut plan = Plan::clone(&plan);
    changed.into_iter().for_each(|(at, tensor)| plan.weights[at] = tensor);
    Arc::new(plan)
}
