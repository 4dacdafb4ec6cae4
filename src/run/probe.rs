//! How much a change of one weight costs: the KL divergence of the model's answers from those of
//! the unquantised model, with everything before the weight's layer computed once.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Capacity, KvFormat, Values};
use crate::error::Result;
use crate::model::Model;
use crate::plan::{Batch, Op, Plan};
use crate::run::Options;
use crate::run::score::log_sum_exp;
use crate::run::walk::{angles, batch, float, floats, products, stream};
use crate::types::Tensor;

/// Walks through a model of plain floats and tries changes in the layer it has come to.
pub struct Probe<'a> {
    options: &'a Options,
    windows: &'a [Vec<u32>],
    /// All matrices plain floats.
    plan: Plan,
    angles: Vec<Values>,
    /// Hidden states before the current layer, by window.
    states: Vec<Vec<f32>>,
    /// Log-probabilities of the unquantised model, by window.
    answers: Vec<Vec<f32>>,
    layer: usize,
}

impl<'a> Probe<'a> {
    /// Runs the unquantised model over all windows, which have one length.
    ///
    /// # Errors
    /// If the model cannot be run.
    pub fn new(model: &Model, options: &'a Options, windows: &'a [Vec<u32>]) -> Result<Probe<'a>> {
        let plan = floats(model, |_| true, float)?;
        let mut probe = Probe {
            options,
            windows,
            plan,
            angles: Vec::new(),
            states: Vec::new(),
            answers: Vec::new(),
            layer: 0,
        };
        let shared = Arc::new(probe.plan.clone());
        let first = shared.layers[0];
        let mut backend = probe.backend(shared.clone(), 0)?;
        for window in windows {
            backend.load(&scored(window))?;
            backend.run_ops(0..first)?;
            probe.states.push(backend.read(stream(&shared))?.to_f32());
            backend.run_ops(first..shared.ops.len())?;
            let mut answers = backend.logits()?.to_vec();
            let width = shared.slots[shared.logits.0].width;
            answers.par_chunks_exact_mut(width).for_each(normalise);
            probe.answers.push(answers);
        }
        probe.angles = angles(&shared).map(|slot| backend.read(slot)).collect::<Result<_>>()?;
        Ok(probe)
    }

    /// The weights of the current layer, or after the last one of the head and the embedding, as
    /// plain floats in the order of their use; nothing after that.
    ///
    /// # Errors
    /// If a weight is not finite.
    pub fn weights(&self) -> Result<Vec<Tensor>> {
        let layers = self.plan.layers.len() - 1;
        if self.layer > layers {
            return Ok(Vec::new());
        }
        let end = self.plan.layers.get(self.layer + 1).copied().unwrap_or(self.plan.ops.len());
        let mut weights = Vec::new();
        for op in &self.plan.ops[self.plan.layers[self.layer]..end] {
            let Some((_, of_op)) = products(&self.plan, op) else { continue };
            weights.extend(of_op.iter().map(|weight| self.plan.weights[weight.0].clone()));
        }
        let embedding = embedding(&self.plan);
        if self.layer == layers && weights.iter().all(|weight| weight.name != embedding.name) {
            weights.push(float(embedding)?);
        }
        Ok(weights)
    }

    /// The mean KL divergence, in nats per scored token, with a weight of the current layer
    /// replaced by another of its shape. The head's weight is replaced in the embedding, too, where
    /// they are one.
    ///
    /// # Errors
    /// If the model cannot be run.
    pub fn cost(&self, changed: &Tensor) -> Result<f64> {
        let mut plan = self.plan.clone();
        let slot = plan.weights.iter_mut().find(|weight| weight.name == changed.name);
        *slot.expect("a weight of the plan") = changed.clone();
        let plan = Arc::new(plan);
        let is_embedding = embedding(&plan).name == changed.name;
        let start = if is_embedding { 0 } else { plan.layers[self.layer] };
        let mut backend = self.backend(plan.clone(), start)?;
        let (mut sum, mut count) = (0.0, 0);
        for (i, window) in self.windows.iter().enumerate() {
            backend.load(&scored(window))?;
            if !is_embedding {
                self.restore(&mut backend, &plan, i)?;
            }
            backend.run_ops(start..plan.ops.len())?;
            let width = plan.slots[plan.logits.0].width;
            let (logits, answers) = (backend.logits()?, &self.answers[i]);
            let rows = logits.par_chunks_exact(width).zip(answers.par_chunks_exact(width));
            let costs: Vec<f64> = rows.map(|(logits, answer)| divergence(answer, logits)).collect();
            sum += costs.iter().sum::<f64>();
            count += costs.len();
        }
        Ok(sum / count.max(1) as f64)
    }

    /// Goes on to the next layer.
    ///
    /// # Errors
    /// If the model cannot be run.
    pub fn step(&mut self) -> Result<()> {
        let layers = self.plan.layers.len() - 1;
        if self.layer < layers {
            let plan = Arc::new(self.plan.clone());
            let ops = plan.layers[self.layer]..plan.layers[self.layer + 1];
            let mut backend = self.backend(plan.clone(), ops.start)?;
            for i in 0..self.windows.len() {
                backend.load(&scored(&self.windows[i]))?;
                self.restore(&mut backend, &plan, i)?;
                backend.run_ops(ops.clone())?;
                self.states[i] = backend.read(stream(&plan))?.to_f32();
            }
        }
        self.layer += 1;
        Ok(())
    }

    fn restore(&self, backend: &mut Cpu, plan: &Plan, window: usize) -> Result<()> {
        backend.write(stream(plan), &Values::F32(self.states[window].clone()))?;
        for (slot, values) in angles(plan).zip(&self.angles) {
            backend.write(slot, values)?;
        }
        Ok(())
    }

    fn backend(&self, plan: Arc<Plan>, start: usize) -> Result<Cpu> {
        let ops = start..plan.ops.len();
        backend(self.options, self.windows[0].len(), plan, ops)
    }
}

/// The mean KL divergence of a changed model, in nats per scored token, from one of plain floats.
/// The windows have one length.
///
/// # Errors
/// If a model cannot be run.
pub fn cost_together(
    model: &Model,
    changed: &Model,
    options: &Options,
    windows: &[Vec<u32>],
) -> Result<f64> {
    let (plan, changed) = (floats(model, |_| true, float)?, changed.plan());
    let width = plan.slots[plan.logits.0].width;
    // Other weights may want their inputs prepared by other ops.
    let ops = [0..plan.ops.len(), 0..changed.ops.len()];
    let of = |plan: Plan, ops: &Range<usize>| {
        backend(options, windows[0].len(), Arc::new(plan), ops.clone())
    };
    let (mut original, mut other) = (of(plan, &ops[0])?, of(changed, &ops[1])?);
    let (mut sum, mut count) = (0.0, 0);
    for window in windows {
        for (backend, ops) in [&mut original, &mut other].into_iter().zip(&ops) {
            backend.load(&scored(window))?;
            backend.run_ops(ops.clone())?;
        }
        let mut answers = original.logits()?.to_vec();
        answers.par_chunks_exact_mut(width).for_each(normalise);
        let rows = other.logits()?.par_chunks_exact(width).zip(answers.par_chunks_exact(width));
        let costs: Vec<f64> = rows.map(|(logits, answer)| divergence(answer, logits)).collect();
        sum += costs.iter().sum::<f64>();
        count += costs.len();
    }
    Ok(sum / count.max(1) as f64)
}

/// A window, with logits for its second half, as perplexity is scored.
fn scored(window: &[u32]) -> Batch {
    let mut batch = batch(window, 0..window.len());
    batch.logit_rows.retain(|&row| row as usize >= window.len() / 2);
    batch
}

fn backend(options: &Options, rows: usize, plan: Arc<Plan>, ops: Range<usize>) -> Result<Cpu> {
    let capacity = Capacity {
        rows,
        logit_rows: rows.div_ceil(2),
        sequences: 1,
        context: rows,
        kv: KvFormat::F32,
    };
    Cpu::with_ops(plan, capacity, options.threads, options.level, ops)
}

/// Logits to log-probabilities.
fn normalise(row: &mut [f32]) {
    let normaliser = log_sum_exp(row) as f32;
    row.iter_mut().for_each(|logit| *logit -= normaliser);
}

/// The table that tokens are looked up in.
fn embedding(plan: &Plan) -> &Tensor {
    let table = plan.ops.iter().find_map(|op| match op {
        Op::Embed { table, .. } => Some(&plan.weights[table.0]),
        _ => None,
    });
    table.expect("a forward pass begins with the embedding")
}

/// `sum p (log p - log q)`, from log-probabilities and logits.
fn divergence(answer: &[f32], logits: &[f32]) -> f64 {
    let normaliser = log_sum_exp(logits);
    let terms = answer.iter().zip(logits).map(|(&log_p, &logit)| {
        f64::from(log_p.exp()) * (f64::from(log_p) - f64::from(logit) + normaliser)
    });
    terms.sum()
}
