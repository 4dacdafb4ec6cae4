//! The fast backend: SIMD kernels over a persistent pool.
//!
//! A run of ops is one job of the pool. Within an op, workers share rows, heads or pieces of a
//! matrix; a barrier ends it. Which worker does what never changes a result: every output is
//! computed by one worker, in an order that depends on the batch alone.

mod attend;
mod cache;
mod cells;
mod codes;
mod experts;
mod mat_mul;
mod pool;
mod rope;
mod rows;
mod turns;

pub use pool::{Pool, Worker};

use std::ops::Range;
use std::sync::Arc;

use super::{Backend, Capacity, Values, check, in_bytes, kv, uses_cache};
use crate::bail;
use crate::error::{At, Result};
use crate::plan::{Batch, CacheInfo, Format, Op, Plan, Slot, Transform, Weight};
use crate::simd::Level;
use crate::types::SUB;
use crate::types::dot::{self, Columns, FloatColumns, Int8Columns};
use attend::Attention;
use cache::Cache;
use cells::Cells;
use mat_mul::MatMul;
use turns::Turns;

/// Runs plans on the processor.
pub struct Cpu {
    /// As it was given; that of the state may hold weights in other types.
    plan: Arc<Plan>,
    state: State,
    pool: Pool,
}

/// Everything but the threads; they share it.
struct State {
    plan: Arc<Plan>,
    capacity: Capacity,
    level: Level,
    slots: Vec<Memory>,
    caches: Vec<Cache>,
    /// By layer.
    turns: Vec<Turns>,
    mat_mul: MatMul,
    attention: Attention,
    /// One row of floats per worker.
    lines: Vec<Cells<f32>>,
    /// Norms, biases and frequencies as floats, by weight; empty for matrices.
    vectors: Vec<Vec<f32>>,
    rows: usize,
    logit_rows: usize,
}

/// The memory of a slot.
enum Memory {
    U32(Cells<u32>),
    F32(Cells<f32>),
    Int8(Int8Memory),
}

/// Codes as in `formats/activations.md`, rows padded for vectors; scales spread to runs of 16.
struct Int8Memory {
    group: usize,
    /// Values of 16 levels at the front of a row.
    coarse: usize,
    codes: Cells<i8>,
    scales: Cells<f32>,
    sums: Cells<i32>,
}

impl Cpu {
    /// Reserves memory and starts threads.
    ///
    /// # Errors
    /// If the plan has something that the kernels cannot run, or a thread cannot be started.
    pub fn new(plan: Arc<Plan>, capacity: Capacity, threads: usize, level: Level) -> Result<Cpu> {
        let ops = 0..plan.ops.len();
        Cpu::with_ops(plan, capacity, threads, level, ops)
    }

    /// As [`Cpu::new`], to run some of the ops only.
    ///
    /// # Errors
    /// As [`Cpu::new`].
    pub fn with_ops(
        plan: Arc<Plan>,
        capacity: Capacity,
        threads: usize,
        level: Level,
        ops: Range<usize>,
    ) -> Result<Cpu> {
        if !level.is_available() {
            bail!("instruction set: expected one of this machine, found {level}");
        }
        for op in &plan.ops[ops.clone()] {
            refuse(&plan, op).at(op.name())?;
        }
        kv::check(&plan, capacity, ops.clone())?;
        let threads = threads.max(1);
        let given = plan.clone();
        let plan = in_bytes(plan, ops.clone(), threads, |_| true);
        let mat_mul = MatMul::new(&plan, capacity, ops.clone(), threads, level);
        let plan = mat_mul.without_copies(&given, plan);
        let uses = uses_cache(&plan, ops.clone());
        let cache = |(layer, info): (usize, &CacheInfo)| {
            let context = if uses[layer] { capacity.context } else { 0 };
            Cache::new(*info, Capacity { context, ..capacity })
        };
        let caches: Vec<Cache> = plan.caches.iter().enumerate().map(cache).collect();
        let lines = plan.slots.iter().map(|slot| slot.width).max().unwrap_or(0);
        let state = State {
            capacity,
            level,
            slots: plan.slots.iter().map(|slot| Memory::new(slot, capacity)).collect(),
            mat_mul,
            attention: Attention::new(&plan, &caches, capacity, threads),
            caches,
            turns: Turns::of(&plan, &uses),
            lines: (0..threads).map(|_| Cells::new(lines)).collect(),
            vectors: vectors(&plan, ops),
            rows: 0,
            logit_rows: 0,
            plan,
        };
        Ok(Cpu { plan: given, state, pool: Pool::new(threads)? })
    }
}

impl Backend for Cpu {
    fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    fn capacity(&self) -> Capacity {
        self.state.capacity
    }

    fn load(&mut self, batch: &Batch) -> Result<()> {
        let state = &mut self.state;
        check(batch, &state.plan, state.capacity)?;
        (state.rows, state.logit_rows) = (batch.len(), batch.logit_rows.len());
        let plan = state.plan.clone();
        let inputs = [
            (plan.tokens, &batch.tokens),
            (plan.positions, &batch.positions),
            (plan.sequences, &batch.sequences),
            (plan.logit_rows, &batch.logit_rows),
        ];
        for (slot, values) in inputs {
            match &mut state.slots[slot.0] {
                Memory::U32(cells) => cells.all()[..values.len()].copy_from_slice(values),
                Memory::F32(_) | Memory::Int8(_) => bail!("batch: expected indices in the plan"),
            }
        }
        state.attention.load(batch);
        Ok(())
    }

    fn run_ops(&mut self, ops: Range<usize>) -> Result<()> {
        let state = &self.state;
        self.pool.run(&|worker| {
            for op in &state.plan.ops[ops.clone()] {
                // SAFETY: this is the only job, every worker runs the same ops in order, and a
                // barrier separates them.
                unsafe { state.op(op, worker) };
                worker.barrier();
            }
        });
        Ok(())
    }

    fn logits(&mut self) -> Result<&mut [f32]> {
        let (slot, rows) = (self.state.plan.logits, self.state.logit_rows);
        let width = self.state.plan.slots[slot.0].width;
        match &mut self.state.slots[slot.0] {
            Memory::F32(cells) => Ok(&mut cells.all()[..rows * width]),
            Memory::U32(_) | Memory::Int8(_) => panic!("logits are floats"),
        }
    }

    fn read(&mut self, slot: Slot) -> Result<Values> {
        let (rows, width) = (self.state.extent(slot), self.state.width(slot));
        // SAFETY: no job is running while the caller has a reference.
        Ok(unsafe {
            match &self.state.slots[slot.0] {
                Memory::U32(cells) => Values::U32(cells.get(0..rows * width).to_vec()),
                Memory::F32(cells) => Values::F32(cells.get(0..rows * width).to_vec()),
                Memory::Int8(memory) => memory.read(rows, width),
            }
        })
    }

    fn write(&mut self, slot: Slot, values: &Values) -> Result<()> {
        let (rows, width) = (self.state.extent(slot), self.state.width(slot));
        match (&mut self.state.slots[slot.0], values) {
            (Memory::U32(cells), Values::U32(values)) => {
                cells.all()[..rows * width].copy_from_slice(values);
            }
            (Memory::F32(cells), Values::F32(values)) => {
                cells.all()[..rows * width].copy_from_slice(values);
            }
            (Memory::Int8(memory), Values::Int8 { codes, scales }) => {
                memory.write(rows, width, codes, scales);
            }
            (_, values) => panic!("slot {} does not take {values:?}", slot.0),
        }
        Ok(())
    }
}

impl State {
    /// Runs this worker's part of an op.
    ///
    /// # Safety
    /// Every worker of one job must run it, and nobody anything else.
    unsafe fn op(&self, op: &Op, worker: &Worker) {
        // SAFETY: as the caller vouches.
        unsafe {
            match op {
                Op::Embed { tokens, table, transform, scale, out } => {
                    self.embed(worker, *tokens, *table, *transform, *scale, *out);
                }
                Op::Angles { positions, frequencies, amplitude, out } => {
                    self.angles(worker, *positions, *frequencies, *amplitude, *out);
                }
                Op::Prepare { input, rows, norm, transform, out } => {
                    self.prepare(worker, *input, *rows, *norm, *transform, *out);
                }
                Op::MatMul { input, parts } => self.mat_mul(worker, *input, parts),
                Op::Route { scores, chosen, shares } => {
                    self.route(worker, *scores, *chosen, *shares);
                }
                Op::ExpertMatMul { input, chosen, parts } => {
                    self.expert_mat_mul(worker, *input, *chosen, parts);
                }
                Op::Mix { x, y, shares } => self.mix(worker, *x, *y, *shares),
                Op::Rope { .. } => self.rope(worker, op),
                Op::Attend { .. } => self.attend(worker, op),
                Op::AddNorm { x, y, norm } => self.add_norm(worker, *x, *y, *norm),
                Op::SoftCap { x, cap } => self.soft_cap(worker, *x, *cap),
            }
        }
    }

    fn extent(&self, slot: Slot) -> usize {
        self.plan.slots[slot.0].extent.rows(self.rows, self.logit_rows)
    }

    fn width(&self, slot: Slot) -> usize {
        self.plan.slots[slot.0].width
    }

    fn floats(&self, slot: Slot) -> &Cells<f32> {
        match &self.slots[slot.0] {
            Memory::F32(cells) => cells,
            Memory::U32(_) | Memory::Int8(_) => panic!("slot {} has no floats", slot.0),
        }
    }

    fn cells(&self, slot: Slot) -> &Cells<u32> {
        match &self.slots[slot.0] {
            Memory::U32(cells) => cells,
            Memory::F32(_) | Memory::Int8(_) => panic!("slot {} has no indices", slot.0),
        }
    }

    /// # Safety
    /// Nobody may write the slot meanwhile.
    unsafe fn indices(&self, slot: Slot) -> &[u32] {
        // SAFETY: as the caller vouches.
        unsafe { self.cells(slot).get(0..self.extent(slot) * self.width(slot)) }
    }

    /// The rows of a slot, as the kernels want them.
    ///
    /// # Safety
    /// Nobody may write the slot meanwhile.
    unsafe fn columns(&self, slot: Slot) -> Columns<'_> {
        let (count, cols) = (self.extent(slot), self.width(slot));
        // SAFETY: as the caller vouches.
        unsafe {
            match &self.slots[slot.0] {
                Memory::F32(cells) => {
                    Columns::Float(FloatColumns { count, cols, values: cells.get(0..count * cols) })
                }
                Memory::Int8(memory) => {
                    let (codes, subs) = (dot::codes_stride(cols), dot::subs_stride(cols));
                    Columns::Int8(Int8Columns {
                        count,
                        cols,
                        group: memory.group,
                        codes: memory.codes.get(0..count * codes),
                        scales: memory.scales.get(0..count * subs),
                        sums: memory.sums.get(0..count * subs),
                    })
                }
                Memory::U32(_) => panic!("slot {} has no activations", slot.0),
            }
        }
    }

    fn signs(&self, transform: Transform) -> &[i8] {
        bytemuck::cast_slice(&self.plan.weights[transform.signs.0].signs)
    }

    fn vector(&self, weight: Weight) -> &[f32] {
        &self.vectors[weight.0]
    }
}

impl Memory {
    fn new(slot: &crate::plan::SlotInfo, capacity: Capacity) -> Memory {
        let rows = slot.extent.rows(capacity.rows, capacity.logit_rows);
        match slot.format {
            Format::U32 => Memory::U32(Cells::new(rows * slot.width)),
            Format::F32 => Memory::F32(Cells::new(rows * slot.width)),
            Format::Int8 { group, coarse } => Memory::Int8(Int8Memory {
                group,
                coarse,
                codes: Cells::new(rows * dot::codes_stride(slot.width)),
                scales: Cells::new(rows * dot::subs_stride(slot.width)),
                sums: Cells::new(rows * dot::subs_stride(slot.width)),
            }),
        }
    }
}

impl Int8Memory {
    /// # Safety
    /// Nobody may write it meanwhile.
    unsafe fn read(&self, rows: usize, width: usize) -> Values {
        let (codes_stride, subs_stride) = (dot::codes_stride(width), dot::subs_stride(width));
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for row in 0..rows {
            // SAFETY: as the caller vouches.
            let (from, spread) = unsafe {
                let spread = row * subs_stride..row * subs_stride + width / SUB;
                let codes = self.codes.get(row * codes_stride..row * codes_stride + width);
                (codes, self.scales.get(spread))
            };
            codes.extend_from_slice(from);
            scales.extend(spread.iter().step_by(self.group / SUB));
        }
        Values::Int8 { codes, scales }
    }

    fn write(&mut self, rows: usize, width: usize, codes: &[i8], scales: &[f32]) {
        assert_eq!(codes.len(), rows * width, "a code per value");
        assert_eq!(scales.len() * self.group, codes.len(), "a scale per group");
        for (row, (codes, scales)) in
            codes.chunks_exact(width).zip(scales.chunks_exact(width / self.group)).enumerate()
        {
            self.codes.all()[row * dot::codes_stride(width)..][..width].copy_from_slice(codes);
            let at = row * dot::subs_stride(width);
            for (sub, codes) in codes.chunks_exact(SUB).enumerate() {
                self.scales.all()[at + sub] = scales[sub * SUB / self.group];
                self.sums.all()[at + sub] = codes.iter().map(|&code| i32::from(code)).sum();
            }
        }
    }
}

/// The weights that ops use as plain vectors.
fn vectors(plan: &Plan, ops: Range<usize>) -> Vec<Vec<f32>> {
    let mut vectors = vec![Vec::new(); plan.weights.len()];
    let mut take = |weight: Weight| {
        let tensor = &plan.weights[weight.0];
        let mut values = vec![0.0; tensor.len()];
        tensor.kind.decode(&tensor.rows(0..tensor.rows), &mut values);
        vectors[weight.0] = values;
    };
    for op in &plan.ops[ops] {
        match op {
            Op::Angles { frequencies, .. } => take(*frequencies),
            Op::Prepare { norm, .. } => norm.iter().for_each(|norm| take(norm.weight)),
            Op::MatMul { parts, .. } => {
                parts.iter().filter_map(|part| part.bias).for_each(&mut take)
            }
            Op::Rope { q_norm, k_norm, .. } => {
                [q_norm, k_norm].into_iter().flatten().for_each(|norm| take(norm.weight));
            }
            Op::AddNorm { norm, .. } => take(norm.weight),
            Op::Embed { .. }
            | Op::Route { .. }
            | Op::ExpertMatMul { .. }
            | Op::Mix { .. }
            | Op::Attend { .. }
            | Op::SoftCap { .. } => {}
        }
    }
    vectors
}

/// Fails if the kernels cannot run an op.
fn refuse(plan: &Plan, op: &Op) -> Result<()> {
    match op {
        Op::MatMul { input, parts } => {
            for part in parts {
                refuse_matrix(plan, *input, part.weight)?;
            }
        }
        Op::ExpertMatMul { input, parts, .. } => {
            for part in parts {
                refuse_matrix(plan, *input, part.weight)?;
            }
        }
        Op::Prepare { out, .. } => {
            let slot = &plan.slots[out.0];
            let fits = |group: usize, len: usize| {
                group != 0 && group.is_multiple_of(SUB) && len.is_multiple_of(group)
            };
            if let Format::Int8 { group, coarse } = slot.format
                && !(fits(group, slot.width) && fits(group, coarse) && coarse <= slot.width)
            {
                bail!(
                    "expected groups that are multiples of {SUB}, found {group} of {}",
                    slot.width
                );
            }
        }
        Op::Attend { layer, heads, .. } => {
            let info = plan.caches[*layer];
            if info.heads == 0 || !heads.is_multiple_of(info.heads) {
                bail!("expected heads in groups of {}, found {heads}", info.heads);
            }
        }
        Op::Embed { .. }
        | Op::Angles { .. }
        | Op::Route { .. }
        | Op::Mix { .. }
        | Op::Rope { .. }
        | Op::AddNorm { .. }
        | Op::SoftCap { .. } => {}
    }
    Ok(())
}

/// Fails if the kernels cannot multiply an input with a matrix.
fn refuse_matrix(plan: &Plan, input: Slot, weight: Weight) -> Result<()> {
    let (slot, weight) = (&plan.slots[input.0], &plan.weights[weight.0]);
    let group = match slot.format {
        Format::Int8 { group, .. } => Some(group),
        Format::F32 => None,
        Format::U32 => bail!("expected activations, found indices"),
    };
    if weight.cols != slot.width {
        bail!("{}: expected {} inputs, found {}", weight.name, slot.width, weight.cols);
    }
    match dot::refusal(weight, group) {
        Some(reason) => bail!("{}: {reason}", weight.name),
        None => Ok(()),
    }
}
