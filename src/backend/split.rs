//! Two backends that share a plan: one runs the first ops, the other the rest.
//!
//! Each slot is held by the backend that wrote it last. An op that reads what the other one holds
//! waits for a copy; where a pass crosses from the first to the second, that is the residual stream
//! and the angles.

use std::ops::Range;
use std::sync::Arc;

use super::{Backend, Capacity, Values};
use crate::error::Result;
use crate::plan::{Batch, Op, Plan, Slot};

/// Runs ops `0..cut` on one backend and the others on another one.
pub struct Split {
    first: Box<dyn Backend>,
    second: Box<dyn Backend>,
    cut: usize,
    /// By op.
    reads: Vec<Vec<Slot>>,
    writes: Vec<Vec<Slot>>,
    /// By slot.
    holders: Vec<Holder>,
}

/// Who has the values of a slot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    Both,
    First,
    Second,
}

impl Split {
    /// Both backends must have been made for the same plan and capacity.
    ///
    /// # Panics
    /// If they were not.
    pub fn new(first: Box<dyn Backend>, second: Box<dyn Backend>, cut: usize) -> Split {
        let plan = first.plan();
        assert!(Arc::ptr_eq(plan, second.plan()), "both backends run one plan");
        assert!(cut <= plan.ops.len(), "the cut is in the plan");
        Split {
            reads: plan.ops.iter().map(Op::reads).collect(),
            writes: plan.ops.iter().map(Op::writes).collect(),
            holders: vec![Holder::Both; plan.slots.len()],
            first,
            second,
            cut,
        }
    }

    /// Runs ops that are all on one side, after a copy of what the other side holds of their
    /// inputs.
    fn run_side(&mut self, side: Holder, ops: Range<usize>) -> Result<()> {
        let (own, other) = match side {
            Holder::First => (&mut self.first, &mut self.second),
            Holder::Second | Holder::Both => (&mut self.second, &mut self.first),
        };
        for op in ops.clone() {
            for slot in &self.reads[op] {
                let holder = &mut self.holders[slot.0];
                if *holder != side && *holder != Holder::Both {
                    own.write(*slot, &other.read(*slot)?)?;
                    *holder = Holder::Both;
                }
            }
            self.writes[op].iter().for_each(|slot| self.holders[slot.0] = side);
        }
        if ops.is_empty() { Ok(()) } else { own.run_ops(ops) }
    }
}

impl Backend for Split {
    fn plan(&self) -> &Arc<Plan> {
        self.first.plan()
    }

    fn capacity(&self) -> Capacity {
        self.first.capacity()
    }

    fn notes(&self) -> Vec<String> {
        [self.first.notes(), self.second.notes()].concat()
    }

    fn load(&mut self, batch: &Batch) -> Result<()> {
        self.first.load(batch)?;
        self.second.load(batch)?;
        // The slots of the batch are on both sides; the others hold nothing yet.
        self.holders.fill(Holder::Both);
        Ok(())
    }

    fn run_ops(&mut self, ops: Range<usize>) -> Result<()> {
        let Range { start, end } = ops;
        self.run_side(Holder::First, start.min(self.cut)..end.min(self.cut))?;
        self.run_side(Holder::Second, start.max(self.cut)..end.max(self.cut))
    }

    fn logits(&mut self) -> Result<&mut [f32]> {
        self.second.logits()
    }

    fn read(&mut self, slot: Slot) -> Result<Values> {
        match self.holders[slot.0] {
            Holder::First => self.first.read(slot),
            Holder::Second | Holder::Both => self.second.read(slot),
        }
    }

    fn write(&mut self, slot: Slot, values: &Values) -> Result<()> {
        if self.holders[slot.0] != Holder::Second {
            self.first.write(slot, values)?;
        }
        if self.holders[slot.0] != Holder::First {
            self.second.write(slot, values)?;
        }
        Ok(())
    }

    fn tune(
        &mut self,
        again: bool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<String>> {
        let first = self.first.tune(again, progress)?;
        Ok(self.second.tune(again, progress)?.or(first))
    }

    fn top(&mut self, k: usize) -> Result<Vec<(u32, f32)>> {
        self.second.top(k)
    }
}
