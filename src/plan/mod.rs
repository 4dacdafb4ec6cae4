//! The forward pass as data: ops over numbered slots, built once and replayed for every batch.
//!
//! A plan runs a batch of rows. Each row has a token, a position, a sequence, and perhaps a wish
//! for logits; prefill, decode and several conversations at once are the same plan. Slots are
//! virtual: a backend gives them memory, sized by the largest batch it will be asked to run.

mod op;

pub use op::{Activation, ExpertPart, Input, Norm, Op, Pairing, Part, Transform};

use crate::types::{Basis, Tensor};

/// A value that ops read and write; an index into [`Plan::slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub usize);

/// A weight; an index into [`Plan::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Weight(pub usize);

/// How many rows a slot has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// One per row of the batch.
    Tokens,
    /// One per row that asks for logits.
    LogitRows,
    /// So many per row of the batch, one after the other: one per expert chosen for it.
    Chosen(usize),
}

impl Extent {
    /// Rows of a slot, of a batch of `tokens` rows of which `logit_rows` ask for logits.
    pub fn rows(self, tokens: usize, logit_rows: usize) -> usize {
        match self {
            Extent::Tokens => tokens,
            Extent::LogitRows => logit_rows,
            Extent::Chosen(count) => tokens * count,
        }
    }
}

/// How the values of a slot are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// Tokens, positions, row numbers.
    U32,
    /// Plain floats.
    F32,
    /// Codes within -127..=127 and one f32 scale per `group`, as `formats/activations.md` fixes.
    Int8 {
        /// Values that share a scale.
        group: usize,
        /// Values at the front of a row that have 16 levels; the parts of a row then have one scale
        /// each. 0 for the usual rule.
        coarse: usize,
    },
}

/// The shape of a slot.
#[derive(Clone, Debug)]
pub struct SlotInfo {
    /// As the op's result is called in messages.
    pub name: &'static str,
    /// Rows.
    pub extent: Extent,
    /// Values per row.
    pub width: usize,
    /// How they are stored.
    pub format: Format,
}

/// The key and value cache of one layer.
#[derive(Clone, Copy, Debug)]
pub struct CacheInfo {
    /// Heads of keys and values.
    pub heads: usize,
    /// Values per key and per value.
    pub head_len: usize,
    /// The basis that it is kept in; the model's own if there is none.
    pub turn: Option<Turn>,
}

/// What turns keys after RoPE, queries like them, and values, head by head, so that a cache of few
/// bits loses less. [`Op::Attend`] turns its output back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The transform of this basis, without signs, for both.
    Hadamard(Basis),
    /// Orthogonal matrices `(heads * head_len, head_len)`, for each head one, a row per direction.
    Matrices {
        /// Of keys; a query has its key head's.
        keys: Weight,
        /// Of values.
        values: Weight,
    },
}

/// A forward pass.
#[derive(Clone)]
pub struct Plan {
    /// Every slot.
    pub slots: Vec<SlotInfo>,
    /// Every weight and constant, planes and all.
    pub weights: Vec<Tensor>,
    /// What to do, in order.
    pub ops: Vec<Op>,
    /// The op that each layer begins with, then the op after the last layer.
    pub layers: Vec<usize>,
    /// The caches, one per layer.
    pub caches: Vec<CacheInfo>,
    /// `(Tokens, 1)` U32, given by the batch.
    pub tokens: Slot,
    /// `(Tokens, 1)` U32, given by the batch.
    pub positions: Slot,
    /// `(Tokens, 1)` U32, given by the batch.
    pub sequences: Slot,
    /// `(LogitRows, 1)` U32, given by the batch: which rows want logits.
    pub logit_rows: Slot,
    /// `(LogitRows, vocabulary)` F32, the result.
    pub logits: Slot,
}

/// The rows of one run of a plan.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// A vocabulary entry per row.
    pub tokens: Vec<u32>,
    /// Where in its sequence each row stands; the cache cell it writes.
    pub positions: Vec<u32>,
    /// Which sequence each row belongs to.
    pub sequences: Vec<u32>,
    /// The rows that want logits, ascending.
    pub logit_rows: Vec<u32>,
}

impl Batch {
    /// Forgets the rows, keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.logit_rows.clear();
    }

    /// Adds a row.
    pub fn push(&mut self, token: u32, position: u32, sequence: u32, wants_logits: bool) {
        if wants_logits {
            self.logit_rows.push(self.tokens.len() as u32);
        }
        self.tokens.push(token);
        self.positions.push(position);
        self.sequences.push(sequence);
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}
