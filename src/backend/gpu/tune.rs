//! What a device runs fastest: variants of the kernel of matrices, measured once.
//!
//! One knob after the other, from what does well on most devices: a dozen measurements per kind of
//! matrix, each a few runs of the real weights.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::lower::{self, Dispatch};
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
    pub const DEFAULT: Variant = Variant { threads: 128, rows: 2, rounds: 2, copies: 8 };

    /// Whether a file may have held it.
    pub(super) fn is_sane(&self) -> bool {
        let within = |value: usize, max: usize| value.is_power_of_two() && value <= max;
        within(self.threads, 256)
            && self.threads >= 64
            && within(self.rows, 8)
            && within(self.rounds, 64)
            && within(self.copies, 32)
    }
}

/// The best variants known, by kind of matrix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning(pub BTreeMap<String, Variant>);

type Knob = (&'static [usize], fn(&mut Variant) -> &mut usize);

/// In the order in which they matter.
const KNOBS: [Knob; 4] = [
    (&[1, 2, 4], |variant| &mut variant.rows),
    (&[1, 8, 32], |variant| &mut variant.copies),
    (&[1, 2, 4, 8, 16], |variant| &mut variant.rounds),
    (&[64, 128, 256], |variant| &mut variant.threads),
];

/// Runs of a kernel in one measurement, and measurements of which the best counts.
const RUNS: usize = 16;
const MEASUREMENTS: usize = 3;

/// The ops whose kind of matrix has not been measured on this device, one of each kind.
fn open(gpu: &Gpu, again: bool) -> Vec<(usize, String)> {
    let core = &gpu.core;
    let mut kinds: Vec<(usize, String)> = Vec::new();
    for at in gpu.ops.clone() {
        let Op::MatMul { parts, .. } = &core.plan.ops[at] else { continue };
        let key = mat_mul::tuning_key(core, core.weights.matrix(&weights::key(parts)));
        let is_known = core.tuning.0.contains_key(&key) && !again;
        if !is_known && !kinds.iter().any(|(_, known)| *known == key) {
            kinds.push((at, key));
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
    for (done, (at, key)) in kinds.iter().enumerate() {
        progress(done, kinds.len());
        let best = best(gpu, *at)?;
        gpu.core.tuning.0.insert(key.clone(), best);
    }
    gpu.programs.clear();
    progress(kinds.len(), kinds.len());
    Ok(!kinds.is_empty())
}

fn best(gpu: &mut Gpu, at: usize) -> Result<Variant> {
    let mut best = Variant::DEFAULT;
    let mut best_time = time(gpu, at, best)?;
    for (values, knob) in KNOBS {
        let start = best;
        for &value in values {
            let mut variant = start;
            *knob(&mut variant) = value;
            if variant == start {
                continue;
            }
            let time = time(gpu, at, variant)?;
            if time < best_time {
                (best, best_time) = (variant, time);
            }
        }
    }
    Ok(best)
}

/// Seconds of one run.
fn time(gpu: &mut Gpu, at: usize, variant: Variant) -> Result<f64> {
    let plan = gpu.core.plan.clone();
    let Op::MatMul { input, parts } = &plan.ops[at] else {
        unreachable!("only matrices are tuned")
    };
    let steps = mat_mul::steps_with(&gpu.core, *input, parts, lower::ONE_ROW, Some(variant));
    let dispatches: Vec<Dispatch> =
        steps.into_iter().map(|step| gpu.core.dispatch_step(step)).collect();
    gpu.set_batch(1, 1);
    let device = gpu.core.device.clone();
    let mut best = f64::INFINITY;
    for _ in 0..=MEASUREMENTS {
        let mut encoder = device.device.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for _ in 0..RUNS {
                dispatches.iter().for_each(|dispatch| gpu.dispatch(&mut pass, dispatch));
            }
        }
        let started = Instant::now();
        device.queue.submit([encoder.finish()]);
        device.wait()?;
        best = best.min(started.elapsed().as_secs_f64() / RUNS as f64);
    }
    Ok(best)
}
