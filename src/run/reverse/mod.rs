//! A forward pass and back: how far the answers of a quantised model are from those of the model it
//! was made from, and how that changes with what stays in float.
//!
//! Every row of a layer's matrix and every value of a norm has a factor, 1 at first. Only their
//! gradients are wanted, so no product has the size of a matrix: the gradient of a row's factor is
//! the sum over tokens of the row's output times the output's gradient.

mod attention;
mod experts;
mod head;
mod local;
mod pass;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::{Capacity, KvFormat};
use crate::error::Result;
use crate::model::Model;
use crate::plan::{Extent, Format, Norm, Op, Part, Plan, Slot, SlotInfo, Weight};
use crate::run::Options;
use crate::run::walk::{Aligned, batch, float, floats, head as head_op, of_floats};
use crate::types::{Bytes, Tensor, by_name};
use half::f16;
use head::Head;
use pass::Pass;

/// By weight: a factor per row of a matrix, per value of a norm.
pub type Factors = BTreeMap<String, Vec<f32>>;

/// As many zeros as there are factors.
pub fn zeros(factors: &Factors) -> Factors {
    factors.iter().map(|(name, all)| (name.clone(), vec![0.0; all.len()])).collect()
}

/// What the original model answers: the inputs of its head, `(rows, embed)` for each window.
pub struct Taught {
    states: Vec<Vec<f32>>,
    /// The head, plain.
    head: Tensor,
}

impl Taught {
    /// Runs the original model over windows of one length.
    ///
    /// # Errors
    /// If the model cannot be run, or a weight is not finite.
    pub fn new(
        model: &Model,
        options: &Options,
        windows: &[Vec<u32>],
        done: &mut dyn FnMut(),
    ) -> Result<Taught> {
        let plan = Arc::new(floats(model, |_| true, plain)?);
        let (end, input, head) = last(&plan);
        let mut backend = backend(options, windows[0].len(), plan.clone(), 0..end)?;
        let mut states = Vec::new();
        for window in windows {
            backend.load(&batch(window, 0..window.len()))?;
            backend.run_ops(0..end)?;
            states.push(backend.read(input)?.to_f32());
            done();
        }
        Ok(Taught { states, head: plan.weights[head.0].clone() })
    }
}

/// The quantised model, its matrices plain, and the products of the way back.
pub struct Student {
    options: Options,
    rows: usize,
    /// Behind the ops of the model those of [`Product`].
    plan: Plan,
    products: HashMap<usize, Product>,
    /// The head's op, and what goes into it.
    end: usize,
    head_input: Slot,
    head: Head,
    factors: Factors,
}

/// The ops that stand for one [`Op::MatMul`] or [`Op::ExpertMatMul`].
struct Product {
    /// The same without factors, bias and sum.
    op: usize,
    /// By part.
    ways: Vec<Way>,
}

/// One matrix there and back.
struct Way {
    /// Its product.
    raw: Slot,
    /// The gradient of that.
    slopes: Slot,
    /// The product with the turned matrix.
    op: usize,
    /// The gradient of the input.
    back: Slot,
}

/// A loss and how it changes.
pub struct Slope {
    /// KL divergence, nats per token.
    pub loss: f64,
    /// The gradient, for every factor.
    pub gradient: Factors,
}

impl Student {
    /// Readies a quantised model for windows of `rows` tokens. Tuned are the rows of the layers'
    /// matrices, and the model's own norms. The vocabulary has so many rows that they would learn
    /// the text by heart (`benches/results/`).
    ///
    /// # Errors
    /// If the model cannot be run, or a weight is not finite.
    pub fn new(model: &Model, taught: &Taught, options: &Options, rows: usize) -> Result<Student> {
        let mut factors = Factors::new();
        let in_layer = |weight: &&Tensor| {
            let place = model.tensors.place(&weight.name);
            place.is_some_and(|(role, _)| role.is_layer_matrix()) && !weight.norms.is_empty()
        };
        for weight in model.plan().weights.iter().filter(in_layer) {
            factors.insert(weight.name.clone(), vec![1.0; weight.rows]);
        }
        let mut plan = floats(model, |_| true, plain)?;
        for norm in norms(&plan.ops) {
            let weight = &plan.weights[norm.weight.0];
            if weight.kind.name() == "F32" {
                factors.insert(weight.name.clone(), vec![1.0; weight.cols]);
            }
        }
        let (end, head_input, head) = last(&plan);
        let head = Head::new(model, options, &plan.weights[head.0], &taught.head)?;
        let mut products = HashMap::new();
        for at in 0..end {
            match plan.ops[at].clone() {
                Op::MatMul { input, parts } => {
                    products.insert(at, add_product(&mut plan, input, &parts));
                }
                Op::ExpertMatMul { input, chosen, parts } => {
                    let product = experts::add_product(&mut plan, input, chosen, &parts);
                    products.insert(at, product);
                }
                Op::Embed { .. }
                | Op::Angles { .. }
                | Op::Prepare { .. }
                | Op::Route { .. }
                | Op::Mix { .. }
                | Op::Rope { .. }
                | Op::Attend { .. }
                | Op::AddNorm { .. }
                | Op::SoftCap { .. } => {}
            }
        }
        let options = options.clone();
        Ok(Student { options, rows, plan, products, end, head_input, head, factors })
    }

    /// Every factor, 1.
    pub fn factors(&self) -> &Factors {
        &self.factors
    }

    /// The loss in window number `at` of those that were taught, and its gradient.
    ///
    /// # Errors
    /// If the model cannot be run.
    pub fn slope(
        &mut self,
        taught: &Taught,
        (at, window): (usize, &[u32]),
        factors: &Factors,
    ) -> Result<Slope> {
        let plan = Arc::new(with_norms(&self.plan, factors));
        let ops = 0..plan.ops.len();
        let mut backend = backend(&self.options, self.rows, plan.clone(), ops)?;
        backend.load(&batch(window, 0..window.len()))?;
        let mut pass = Pass::new(backend, plan, &self.products, self.options.level, factors);
        pass.forward(0..self.end)?;
        let hidden = pass.value(self.head_input)?;
        let found = self.head.back(&hidden, &taught.states[at])?;
        let loss = found.loss / window.len() as f64;
        let gradient = pass.back(self.end, self.head_input, found.d_hidden)?;
        Ok(Slope { loss, gradient })
    }
}

/// Puts a product without factors, bias and sum behind the plan's ops, and the ways back.
fn add_product(plan: &mut Plan, input: Slot, parts: &[Part]) -> Product {
    assert!(parts.len() <= RAW.len(), "a name for each of {} products", parts.len());
    let mut ways = Vec::new();
    let mut plain = Vec::new();
    for (part, name) in parts.iter().zip(RAW) {
        let weight = plan.weights[part.weight.0].clone();
        let [raw, slopes, back] = [
            slot(plan, name, Extent::Tokens, weight.rows),
            slot(plan, "slopes", Extent::Tokens, weight.rows),
            slot(plan, "back", Extent::Tokens, weight.cols),
        ];
        plan.weights.push(turned(&weight, 1));
        plan.ops.push(product(slopes, plan.weights.len() - 1, back));
        ways.push(Way { raw, slopes, op: plan.ops.len() - 1, back });
        plain.push(Part { bias: None, add: false, out: raw, ..*part });
    }
    plan.ops.push(Op::MatMul { input, parts: plain });
    Product { op: plan.ops.len() - 1, ways }
}

/// Names of products that are there at once: queries, keys and values.
const RAW: [&str; 3] = ["raw 1", "raw 2", "raw 3"];

/// The slot of this name and shape.
fn slot(plan: &mut Plan, name: &'static str, extent: Extent, width: usize) -> Slot {
    let shape = (name, extent, width);
    let is_it = |slot: &SlotInfo| (slot.name, slot.extent, slot.width) == shape;
    if let Some(at) = plan.slots.iter().position(is_it) {
        return Slot(at);
    }
    plan.slots.push(SlotInfo { name, extent, width, format: Format::F32 });
    Slot(plan.slots.len() - 1)
}

/// One matrix, into a slot.
fn product(input: Slot, weight: usize, out: Slot) -> Op {
    let part = Part { weight: Weight(weight), bias: None, add: false, out };
    Op::MatMul { input, parts: vec![part] }
}

/// The plan with factors on its norms.
fn with_norms(plan: &Plan, factors: &Factors) -> Plan {
    let mut changed = plan.clone();
    for norm in norms(&plan.ops) {
        let tensor = &plan.weights[norm.weight.0];
        if let Some(factors) = factors.get(&tensor.name) {
            let values = vector(tensor).iter().zip(factors).map(|(w, f)| w * f).collect();
            changed.weights[norm.weight.0] = of_floats(tensor, values);
        }
    }
    changed
}

/// The norms of a plan; one of several layers comes several times.
fn norms(ops: &[Op]) -> impl Iterator<Item = Norm> {
    let of = |op: &Op| match op {
        Op::Prepare { norm, .. } => vec![*norm],
        Op::Rope { q_norm, k_norm, .. } => vec![*q_norm, *k_norm],
        Op::AddNorm { norm, .. } => vec![Some(*norm)],
        Op::Embed { .. }
        | Op::Angles { .. }
        | Op::MatMul { .. }
        | Op::Route { .. }
        | Op::ExpertMatMul { .. }
        | Op::Mix { .. }
        | Op::Attend { .. }
        | Op::SoftCap { .. } => Vec::new(),
    };
    ops.iter().flat_map(of).flatten()
}

/// The values of a one-row weight.
fn vector(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.cols];
    tensor.kind.decode(&tensor.rows(0..1), &mut values);
    values
}

/// The head's op, what goes into it, and its weight.
fn last(plan: &Plan) -> (usize, Slot, Weight) {
    let at = head_op(plan);
    let Op::MatMul { input, parts } = &plan.ops[at] else { unreachable!("a product") };
    (at, *input, parts[0].weight)
}

fn backend(options: &Options, rows: usize, plan: Arc<Plan>, ops: Range<usize>) -> Result<Cpu> {
    let capacity =
        Capacity { rows, logit_rows: rows, sequences: 1, context: rows, kv: KvFormat::F32 };
    Cpu::with_ops(plan, capacity, options.threads, options.level, ops)
}

/// A weight in half precision and the model's own basis: a quarter of a thousandth off, where
/// quantised ones are a hundred times that.
fn plain(tensor: &Tensor) -> Result<Tensor> {
    let tensor = float(tensor)?;
    let values: &[f32] = bytemuck::cast_slice(&tensor.codes);
    Ok(of_halves(&tensor, values.iter().map(|&value| f16::from_f32(value).to_bits()).collect()))
}

/// A plain weight with rows and columns changed over, in each of its matrices.
fn turned(tensor: &Tensor, matrices: usize) -> Tensor {
    let (rows, cols) = (tensor.rows / matrices, tensor.cols);
    let from: &[u16] = bytemuck::cast_slice(&tensor.codes);
    let mut to = vec![0; from.len()];
    // In tiles, which stay in the first cache.
    const TILE: usize = 32;
    for (from, to) in from.chunks_exact(rows * cols).zip(to.chunks_exact_mut(rows * cols)) {
        for first in (0..rows).step_by(TILE) {
            for col in (0..cols).step_by(TILE) {
                for row in first..(first + TILE).min(rows) {
                    for col in col..(col + TILE).min(cols) {
                        to[col * rows + row] = from[row * cols + col];
                    }
                }
            }
        }
    }
    of_halves(&Tensor { rows: matrices * cols, cols: rows, ..tensor.clone() }, to)
}

fn of_halves(tensor: &Tensor, values: Vec<u16>) -> Tensor {
    let kind = by_name("F16").expect("half precision is always there");
    let bytes = 2 * values.len();
    Tensor { kind, codes: Bytes::new(Arc::new(Aligned(values)), 0..bytes), ..tensor.clone() }
}
