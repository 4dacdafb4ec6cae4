//! What a device runs fastest: variants of the kernel of matrices, measured once.
//!
//! A few dozen measurements per kind of matrix, each a run through the real weights of all layers.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::lower::{self, Dispatch, Step};
use super::{Gpu, mat_mul, weights};
use crate::error::Result;
use crate::plan::Op;

/// How a matrix meets one row of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// Threads of a workgroup.
    pub threads: usize,
    /// Rows of weights that a team takes at once.
    pub rows: usize,
    /// Rounds of a workgroup: how often its teams take rows.
    pub rounds: usize,
    /// Copies of a grid's table in workgroup memory.
    pub copies: usize,
}

impl Variant {
    /// What does well on most devices.
    pub const DEFAULT: Variant = Variant { threads: 128, rows: 2, rounds: 1, copies: 1 };

    /// Whether a file may have held it.
    pub(super) fn is_sane(&self) -> bool {
        let within = |value: usize, max: usize| value.is_power_of_two() && value <= max;
        within(self.threads, 1024)
            && self.threads >= 64
            && within(self.rows, 8)
            && within(self.rounds, 64)
            && within(self.copies, 32)
    }
}

/// The best variants known, by kind of matrix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning(pub BTreeMap<String, Variant>);

/// What is tried for each kind of matrix: threads of a workgroup, rows of weights at once, copies
/// of a table. Random codes of 32 lanes meet in the same bank of a table three times, of sixteen
/// copies twice, of 32 never; but filling those takes a workgroup large enough to use them.
const SHAPES: [(usize, usize, usize); 21] = [
    (64, 1, 1),
    (64, 2, 1),
    (128, 1, 1),
    (128, 2, 1),
    (128, 4, 1),
    (128, 2, 8),
    (128, 4, 8),
    (256, 2, 1),
    (256, 2, 8),
    (256, 2, 32),
    (256, 4, 32),
    (256, 4, 8),
    (512, 1, 16),
    (512, 2, 16),
    (512, 4, 16),
    (512, 1, 32),
    (512, 2, 32),
    (512, 4, 32),
    (1024, 1, 32),
    (1024, 2, 32),
    (1024, 4, 32),
];
/// Matrices of a kind that one measurement runs through, so that none waits in a cache for its
/// turn, and measurements of which the best counts.
const RUNS: usize = 32;
const MEASUREMENTS: usize = 8;

/// The kinds of matrix that have not been measured on this device, with the ops that have them.
fn open(gpu: &Gpu, again: bool) -> Vec<(Vec<usize>, String)> {
    let core = &gpu.core;
    let mut kinds: Vec<(Vec<usize>, String)> = Vec::new();
    for at in gpu.ops.clone() {
        let Op::MatMul { parts, .. } = &core.plan.ops[at] else { continue };
        let key = mat_mul::tuning_key(core, core.weights.matrix(&weights::key(parts)));
        if core.tuning.0.contains_key(&key) && !again {
            continue;
        }
        match kinds.iter_mut().find(|(_, known)| *known == key) {
            Some((ops, _)) => ops.push(at),
            None => kinds.push((vec![at], key)),
        }
    }
    kinds
}

/// Measures what is not known yet, or everything `again`; `progress` hears how many kinds of matrix
/// are done and how many there are. Returns whether anything was measured.
pub(super) fn tune(
    gpu: &mut Gpu,
    again: bool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<bool> {
    let kinds = open(gpu, again);
    for (done, (ops, key)) in kinds.iter().enumerate() {
        progress(done, kinds.len());
        let best = best(gpu, ops)?;
        gpu.core.tuning.0.insert(key.clone(), best);
    }
    gpu.programs.clear();
    progress(kinds.len(), kinds.len());
    Ok(!kinds.is_empty())
}

fn best(gpu: &mut Gpu, ops: &[usize]) -> Result<Variant> {
    let has_table = gpu.core.has_table(ops[0]);
    let threads_max = gpu.core.device.limits.max_compute_invocations_per_workgroup as usize;
    let mut variants = Vec::new();
    for (threads, rows, copies) in SHAPES {
        let copies = if has_table { copies } else { 1 };
        let variant = Variant { threads, rows, rounds: 1, copies };
        if !variants.contains(&variant) && threads <= threads_max {
            variants.push(variant);
        }
    }
    // Side by side, since compiling takes longer than measuring.
    let plan = gpu.core.plan.clone();
    let recipes = variants.iter().flat_map(|&variant| steps(gpu, &plan.ops[ops[0]], variant));
    let recipes = recipes.map(|step| step.recipe).collect();
    gpu.core.compile(recipes);
    let mut best = (f64::INFINITY, Variant::DEFAULT);
    for variant in variants {
        let time = time(gpu, ops, variant)?;
        if time < best.0 {
            best = (time, variant);
        }
    }
    Ok(best.1)
}

fn steps(gpu: &Gpu, op: &Op, variant: Variant) -> Vec<Step> {
    let Op::MatMul { input, parts } = op else { unreachable!("only matrices are tuned") };
    mat_mul::steps_with(&gpu.core, *input, parts, lower::ONE_ROW, Some(variant))
}

/// Seconds of one run.
fn time(gpu: &mut Gpu, ops: &[usize], variant: Variant) -> Result<f64> {
    let plan = gpu.core.plan.clone();
    let mut dispatches: Vec<Dispatch> = Vec::new();
    for &at in ops.iter().cycle().take(ops.len().clamp(4, RUNS)) {
        for step in steps(gpu, &plan.ops[at], variant) {
            dispatches.push(gpu.core.dispatch_step(step));
        }
    }
    gpu.set_batch(1, 1);
    let device = gpu.core.device.clone();
    let mut best = f64::INFINITY;
    for _ in 0..=MEASUREMENTS {
        let mut encoder = device.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            dispatches.iter().for_each(|dispatch| gpu.dispatch(&mut pass, dispatch));
        }
        let started = Instant::now();
        device.queue.submit([encoder.finish()]);
        device.wait()?;
        best = best.min(started.elapsed().as_secs_f64() / dispatches.len() as f64);
    }
    Ok(best)
}
