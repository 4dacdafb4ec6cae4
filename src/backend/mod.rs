//! Runs a plan. `reference` is plain loops and the oracle; `cpu` is the fast one.
//!
//! A backend runs every op of a plan or refuses when it is made; nothing falls back at run time.

pub mod cpu;
pub mod reference;

use crate::error::Result;
use crate::plan::{Batch, Plan, Slot};
use std::ops::Range;
use std::sync::Arc;

/// How the keys and values of the cache are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// Exact, for comparisons.
    F32,
    /// Half the memory.
    F16,
}

impl KvFormat {
    /// Every format, as on the command line: `--kv-type f16`.
    pub const ALL: [(&'static str, KvFormat); 2] = [("f32", KvFormat::F32), ("f16", KvFormat::F16)];
}

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

/// Something that runs a plan.
pub trait Backend: Send {
    /// The plan it was made for.
    fn plan(&self) -> &Arc<Plan>;

    /// What it has memory for.
    fn capacity(&self) -> Capacity;

    /// Takes the rows of a batch into the plan's input slots.
    ///
    /// # Errors
    /// If the batch is empty or over the capacity, or a token, position or sequence is outside.
    fn load(&mut self, batch: &Batch) -> Result<()>;

    /// Runs some ops, in order, on the batch that was loaded.
    fn run_ops(&mut self, ops: Range<usize>);

    /// `(logit rows, vocabulary)`, after the last op.
    fn logits(&mut self) -> &mut [f32];

    /// A copy of a slot, for `verify` and calibration.
    fn read(&self, slot: Slot) -> Values;

    /// Overwrites a slot, for `verify`.
    ///
    /// # Panics
    /// If the values do not have the slot's format and size.
    fn write(&mut self, slot: Slot, values: &Values);

    /// Runs the whole plan.
    fn run(&mut self, batch: &Batch) -> Result<()> {
        self.load(batch)?;
        self.run_ops(0..self.plan().ops.len());
        Ok(())
    }
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
