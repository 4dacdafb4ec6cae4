//! Two backends with a plan between them: the first layers on one, the rest on the other.

use std::ops::Range;
use std::sync::Arc;

use super::{Backend, Capacity, Timing, Values};
use crate::error::Result;
use crate::plan::{Batch, Plan, Slot};

/// Runs ops before the cut on one backend, those after it on another.
pub struct Split {
    first: Box<dyn Backend>,
    second: Box<dyn Backend>,
    cut: usize,
    /// Slots that are written before the cut and read after it.
    carried: Vec<Slot>,
    /// Whether the second one ran last.
    is_past: bool,
}

impl Split {
    /// Joins two backends of one plan at op `cut`.
    ///
    /// # Panics
    /// If the plan has no such op.
    pub fn new(first: Box<dyn Backend>, second: Box<dyn Backend>, cut: usize) -> Split {
        let plan = first.plan();
        assert!(cut <= plan.ops.len(), "the cut lies within the plan");
        let written: Vec<Slot> = plan.ops[..cut].iter().flat_map(|op| op.writes()).collect();
        let read: Vec<Slot> = plan.ops[cut..].iter().flat_map(|op| op.reads()).collect();
        let mut carried: Vec<Slot> =
            written.into_iter().filter(|slot| read.contains(slot)).collect();
        carried.sort_unstable();
        carried.dedup();
        Split { first, second, cut, carried, is_past: false }
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
        self.second.load(batch)
    }

    fn run_ops(&mut self, ops: Range<usize>) -> Result<()> {
        let before = ops.start.min(self.cut)..ops.end.min(self.cut);
        let after = ops.start.max(self.cut)..ops.end.max(self.cut);
        self.is_past = !after.is_empty();
        if !before.is_empty() {
            let reaches_the_cut = before.end == self.cut;
            self.first.run_ops(before)?;
            if reaches_the_cut {
                for &slot in &self.carried {
                    let values = self.first.read(slot)?;
                    self.second.write(slot, &values)?;
                }
            }
        }
        if after.is_empty() { Ok(()) } else { self.second.run_ops(after) }
    }

    fn logits(&mut self) -> Result<&mut [f32]> {
        self.second.logits()
    }

    /// From the backend that wrote it last.
    fn read(&mut self, slot: Slot) -> Result<Values> {
        let writes = |op: &crate::plan::Op| op.writes().contains(&slot);
        let is_there =
            self.carried.contains(&slot) || self.plan().ops[self.cut..].iter().any(writes);
        if self.is_past && is_there { self.second.read(slot) } else { self.first.read(slot) }
    }

    fn write(&mut self, slot: Slot, values: &Values) -> Result<()> {
        self.first.write(slot, values)?;
        self.second.write(slot, values)
    }

    fn profile(&mut self) -> Result<Option<Vec<Timing>>> {
        Ok(None)
    }

    fn tune(
        &mut self,
        again: bool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<String>> {
        self.second.tune(again, progress)
    }

    fn top(&mut self, k: usize) -> Result<Vec<(u32, f32)>> {
        self.second.top(k)
    }
}
