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
mod tokens;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::{Capacity, KvFormat};
use crate::error::Result;
use crate::model::{Model, activation_format};
use crate::plan::{Extent, Format, Input, Norm, Op, Part, Plan, Slot, SlotInfo, Weight};
use crate::run::Options;
use crate::run::walk::{Aligned, batch, floats, head as head_op, of_floats, pieces, shell};
use crate::types::{Bytes, Tensor, by_name};
use half::f16;
use head::Head;
use pass::Pass;
pub use tokens::{TokenWeights, token_weights};

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
    ways: Ways,
    head: Head,
    factors: Factors,
}

/// Gives a turned weight its type.
type Make<'a> = &'a dyn Fn(&Tensor) -> Result<Tensor>;

/// A forward pass with its ways back.
struct Ways {
    /// Behind the ops of the model those of [`Product`].
    plan: Plan,
    products: HashMap<usize, Product>,
    /// The head's op, and what goes into it.
    end: usize,
    head_input: Slot,
    head: Weight,
}

impl Ways {
    /// From a plan; `make` gives turned ones another type.
    fn new(mut plan: Plan, make: Make) -> Result<Ways> {
        let (end, head_input, head) = last(&plan);
        let mut products = HashMap::new();
        for at in 0..end {
            match plan.ops[at].clone() {
                Op::MatMul { input, parts } => {
                    products.insert(at, add_product(&mut plan, input, &parts, make)?);
                }
                Op::ExpertMatMul { input, chosen, parts } => {
                    let product = experts::add_product(&mut plan, (input, chosen), &parts, make)?;
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
        Ok(Ways { plan, products, end, head_input, head })
    }
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
    /// The product with the turned matrix, and what prepares its input.
    ops: Range<usize>,
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
        let plan = floats(model, |_| true, plain)?;
        for norm in norms(&plan.ops) {
            let weight = &plan.weights[norm.weight.0];
            if weight.kind.name() == "F32" {
                factors.insert(weight.name.clone(), vec![1.0; weight.cols]);
            }
        }
        let ways = Ways::new(plan, &plain)?;
        let weight = &ways.plan.weights[ways.head.0];
        let head = Head::new(model, options, weight, Some(&taught.head), &plain)?;
        Ok(Student { options: options.clone(), rows, ways, head, factors })
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
        let Ways { plan, products, end, head_input, .. } = &self.ways;
        let plan = Arc::new(with_norms(plan, factors));
        let ops = 0..plan.ops.len();
        let mut backend = backend(&self.options, self.rows, plan.clone(), ops)?;
        backend.load(&batch(window, 0..window.len()))?;
        let mut pass = Pass::new(backend, plan, products, self.options.level, factors);
        pass.forward(0..*end)?;
        let hidden = pass.value(*head_input)?;
        let found = self.head.back(&hidden, &taught.states[at])?;
        let loss = found.loss / window.len() as f64;
        pass.back(*end, *head_input, found.d_hidden)?;
        Ok(Slope { loss, gradient: pass.gradient })
    }
}

/// Puts a product without factors, bias and sum behind the plan's ops, and the ways back.
fn add_product(plan: &mut Plan, input: Slot, parts: &[Part], make: Make) -> Result<Product> {
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
        let ops = put_product(plan, slopes, make(&turned(&weight, 1)?)?, |input, weight| {
            product(input, weight, back)
        });
        ways.push(Way { raw, slopes, ops, back });
        plain.push(Part { bias: None, add: false, out: raw, ..*part });
    }
    plan.ops.push(Op::MatMul { input, parts: plain });
    Ok(Product { op: plan.ops.len() - 1, ways })
}

/// Puts an op that multiplies floats by a weight behind the plan's ops, and before it what gives
/// the floats the form that the weight wants.
fn put_product(
    plan: &mut Plan,
    input: Slot,
    weight: Tensor,
    op: impl FnOnce(Slot, Weight) -> Op,
) -> Range<usize> {
    let (first, format, width) = (plan.ops.len(), activation_format(&weight), weight.cols);
    let mut prepared = input;
    if format != Format::F32 {
        let extent = plan.slots[input.0].extent;
        prepared = slot_of(plan, SlotInfo { name: "prepared", extent, width, format });
        let input = Input::Rows(input);
        plan.ops.push(Op::Prepare {
            input,
            rows: None,
            norm: None,
            transform: None,
            out: prepared,
        });
    }
    plan.weights.push(weight);
    plan.ops.push(op(prepared, Weight(plan.weights.len() - 1)));
    first..plan.ops.len()
}

/// Names of products that are there at once: queries, keys and values.
const RAW: [&str; 3] = ["raw 1", "raw 2", "raw 3"];

/// The slot of this name and shape, of floats.
fn slot(plan: &mut Plan, name: &'static str, extent: Extent, width: usize) -> Slot {
    slot_of(plan, SlotInfo { name, extent, width, format: Format::F32 })
}

/// The slot that is so.
fn slot_of(plan: &mut Plan, wanted: SlotInfo) -> Slot {
    let shape = |slot: &SlotInfo| (slot.name, slot.extent, slot.width, slot.format);
    if let Some(at) = plan.slots.iter().position(|slot| shape(slot) == shape(&wanted)) {
        return Slot(at);
    }
    plan.slots.push(wanted);
    Slot(plan.slots.len() - 1)
}

/// One matrix, into a slot.
fn product(input: Slot, weight: Weight, out: Slot) -> Op {
    let part = Part { weight, bias: None, add: false, out };
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
    if tensor.kind.name() == "F16" {
        return Ok(tensor.clone());
    }
    let mut halves = Vec::with_capacity(tensor.len());
    let half = |&value: &f32| f16::from_f32(value).to_bits();
    pieces(tensor, |values| halves.extend(values.iter().map(half)))?;
    Ok(of_halves(&shell(tensor)?, halves))
}

/// A weight with rows and columns changed over, in each of its matrices, in half precision.
fn turned(tensor: &Tensor, matrices: usize) -> Result<Tensor> {
    let tensor = &plain(tensor)?;
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
    Ok(of_halves(&Tensor { rows: matrices * cols, cols: rows, ..tensor.clone() }, to))
}

fn of_halves(tensor: &Tensor, values: Vec<u16>) -> Tensor {
    let kind = by_name("F16").expect("half precision is always there");
    let bytes = 2 * values.len();
    Tensor { kind, codes: Bytes::new(Arc::new(Aligned(values)), 0..bytes), ..tensor.clone() }
}
