//! The unquantised model, a layer at a time over all windows of a text: what calibration listens
//! to.
//!
//! Only one layer's weights are floats at a time, and between layers the hidden states of all
//! windows wait in memory, or in a file where they are too many.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Capacity, KvFormat, Values};
use crate::bail;
use crate::error::{At, Result};
use crate::model::Model;
use crate::plan::{Batch, Extent, Op, Plan, Slot, Weight};
use crate::run::Options;
use crate::types::{Basis, Bytes, ColumnPlanes, Tensor, by_name, whole_name};

/// Rows of a batch of the head: its logits are wide.
const HEAD_ROWS: usize = 64;

/// Something that a walk comes by. Values are rows of one window, the first token first.
pub enum Tap<'a> {
    /// What these weights are multiplied with, in the model's own basis.
    Input {
        /// Names of the weights that share it.
        weights: Vec<&'a str>,
        /// `(rows, width)`.
        values: &'a [f32],
        /// Values per row.
        width: usize,
    },
    /// What matrices of experts are multiplied with, where each has rows of its own.
    Experts {
        /// Names of the weights that share it.
        weights: Vec<&'a str>,
        /// `(rows, width)`.
        values: &'a [f32],
        /// Values per row.
        width: usize,
        /// Each row's expert.
        chosen: &'a [u32],
    },
    /// Keys after RoPE and values of a layer, as the cache takes them, and what reads the keys.
    Cache {
        /// `(rows, heads * head_len)`; as many for each key head, in order.
        queries: &'a [f32],
        /// `(rows, kv_heads * head_len)`.
        keys: &'a [f32],
        /// `(rows, kv_heads * head_len)`.
        values: &'a [f32],
        /// Values per row of keys.
        width: usize,
    },
}

/// Walks through a model, layer by layer.
pub struct Walk<'a> {
    model: &'a Model,
    options: &'a Options,
    windows: &'a [Vec<u32>],
    states: States,
    /// The angles of every position, as each plan's `Angles` ops leave them.
    angles: Vec<Values>,
    next: usize,
}

impl<'a> Walk<'a> {
    /// Embeds all windows, which have one length. Hidden states over `limit` bytes go to a file
    /// without a name in `folder`.
    ///
    /// # Errors
    /// If there are no windows, or the file cannot be written.
    pub fn new(
        model: &'a Model,
        options: &'a Options,
        windows: &'a [Vec<u32>],
        limit: u64,
        folder: &Path,
    ) -> Result<Walk<'a>> {
        let len = windows.first().map_or(0, Vec::len);
        if len == 0 || windows.iter().any(|window| window.len() != len) {
            bail!("calibration: expected windows of one length, found none or others");
        }
        let plan = Arc::new(model.plan());
        let x = stream(&plan);
        let width = plan.slots[x.0].width;
        let states = States::new(windows.len(), len * width, limit, folder)?;
        let mut walk = Walk { model, options, windows, states, angles: Vec::new(), next: 0 };
        let ops = 0..plan.layers[0];
        let mut backend = walk.backend(plan.clone(), len, ops.clone())?;
        for (i, window) in windows.iter().enumerate() {
            backend.load(&batch(window, 0..len))?;
            backend.run_ops(ops.clone())?;
            walk.states.put(i, &backend.read(x)?.to_f32())?;
        }
        walk.angles = angles(&plan).map(|slot| backend.read(slot)).collect::<Result<_>>()?;
        Ok(walk)
    }

    /// Walks through the next layer with every window; `false` after the last step.
    ///
    /// # Errors
    /// If a weight or a hidden state is not finite, or the file of hidden states fails.
    pub fn step(&mut self, tap: &mut dyn FnMut(Tap)) -> Result<bool> {
        let layers = self.model.hparams.layers;
        if self.next > layers {
            return Ok(false);
        }
        let is_head = self.next == layers;
        let make = if is_head { shell } else { float };
        let plan = Arc::new(floats(self.model, |layer| layer == self.next, make)?);
        let ops = match is_head {
            true => plan.layers[layers]..head(&plan),
            false => plan.layers[self.next]..plan.layers[self.next + 1],
        };
        let (x, len) = (stream(&plan), self.windows[0].len());
        let width = plan.slots[x.0].width;
        let rows = if is_head { HEAD_ROWS.min(len) } else { len };
        let mut backend = self.backend(plan.clone(), rows, ops.clone())?;
        for (i, window) in self.windows.iter().enumerate() {
            let state = self.states.get(i)?;
            for first in (0..len).step_by(rows) {
                let range = first..(first + rows).min(len);
                backend.load(&batch(window, range.clone()))?;
                let state = &state[range.start * width..range.end * width];
                backend.write(x, &Values::F32(state.to_vec()))?;
                for (slot, values) in angles(&plan).zip(&self.angles).filter(|_| !is_head) {
                    backend.write(slot, values)?;
                }
                run(&mut backend, &plan, ops.clone(), tap)?;
                if is_head {
                    listen(&mut backend, &plan, ops.end, tap)?;
                }
            }
            if !is_head {
                let state = backend.read(x)?.to_f32();
                if let Some(found) = state.iter().find(|value| !value.is_finite()) {
                    bail!("calibration: layer {}: found a hidden state of {found}", self.next);
                }
                self.states.put(i, &state)?;
            }
        }
        self.next += 1;
        Ok(true)
    }

    fn backend(&self, plan: Arc<Plan>, rows: usize, ops: Range<usize>) -> Result<Cpu> {
        let context = self.windows[0].len();
        let kv = KvFormat::F32;
        let capacity = Capacity { rows, logit_rows: rows, sequences: 1, context, kv };
        Cpu::with_ops(plan, capacity, self.options.threads, self.options.level, ops)
    }
}

/// What a walk hears of each key head, in order; queries are those of all heads that read its keys.
pub const CACHED: [&str; 3] = ["keys", "values", "queries"];

/// One thing that a walk comes by, once per window.
pub struct Heard {
    /// The first weight that uses an input; `blk.N.keys.H` for heads, and so for all [`CACHED`].
    pub name: String,
    /// All weights that use it.
    pub weights: Vec<String>,
    /// Values per row.
    pub width: usize,
    /// Experts that have rows of their own, where there are several.
    pub experts: Option<usize>,
}

/// Everything that a walk comes by, in order.
///
/// # Errors
/// None: what is planned has no weights to be wrong.
pub fn heard(model: &Model) -> Result<Vec<Heard>> {
    let plan = floats(model, |_| true, shell)?;
    let mut all = Vec::new();
    for op in &plan.ops {
        match op {
            Op::MatMul { .. } | Op::ExpertMatMul { .. } => {
                let Some((input, weights)) = products(&plan, op) else { continue };
                let mut weights: Vec<String> = names(&plan, &weights).map(str::to_string).collect();
                weights.dedup();
                let (name, info) = (weights[0].clone(), &plan.slots[input.0]);
                let has_own = matches!(info.extent, Extent::Chosen(_));
                let experts = model.hparams.experts.filter(|_| has_own);
                let experts = experts.map(|experts| experts.count).filter(|&count| count > 1);
                all.push(Heard { name, weights, width: info.width, experts });
            }
            Op::Rope { k, layer, head_len, .. } => {
                for what in CACHED {
                    for head in 0..plan.slots[k.0].width / head_len {
                        let name = format!("blk.{layer}.{what}.{head}");
                        let (weights, width) = (Vec::new(), *head_len);
                        all.push(Heard { name, weights, width, experts: None });
                    }
                }
            }
            Op::Embed { .. }
            | Op::Angles { .. }
            | Op::Prepare { .. }
            | Op::Route { .. }
            | Op::Mix { .. }
            | Op::Attend { .. }
            | Op::AddNorm { .. }
            | Op::SoftCap { .. } => {}
        }
    }
    Ok(all)
}

/// Runs the ops of one layer, and taps what is asked for.
fn run(
    backend: &mut dyn Backend,
    plan: &Plan,
    ops: Range<usize>,
    tap: &mut dyn FnMut(Tap),
) -> Result<()> {
    for at in ops {
        listen(backend, plan, at, tap)?;
        backend.run_ops(at..at + 1)?;
        if let Op::Rope { q, k, v, .. } = &plan.ops[at] {
            let mut read = |slot: Slot| backend.read(slot).map(|values| values.to_f32());
            let (queries, keys, values) = (&*read(*q)?, &*read(*k)?, &*read(*v)?);
            tap(Tap::Cache { queries, keys, values, width: plan.slots[k.0].width });
        }
    }
    Ok(())
}

/// Taps the input of a product that is about to run.
fn listen(
    backend: &mut dyn Backend,
    plan: &Plan,
    at: usize,
    tap: &mut dyn FnMut(Tap),
) -> Result<()> {
    let op = &plan.ops[at];
    let Some((input, weights)) = products(plan, op) else { return Ok(()) };
    let mut weights: Vec<&str> = names(plan, &weights).collect();
    weights.dedup();
    let values = backend.read(input)?.to_f32();
    let info = &plan.slots[input.0];
    let (width, values) = (info.width, &values[..]);
    match (op, info.extent) {
        (Op::ExpertMatMul { chosen, .. }, Extent::Chosen(_)) => {
            let Values::U32(chosen) = backend.read(*chosen)? else { unreachable!("indices") };
            tap(Tap::Experts { weights, values, width, chosen: &chosen });
        }
        _ => tap(Tap::Input { weights, values, width }),
    }
    Ok(())
}

/// The input of an op's matrices, and the matrices; none of one that chooses experts, which is
/// never coded.
///
/// Where all experts read one input, it is heard once for all of them, whoever is chosen: an input
/// is as wide as the model, and a text has too few tokens per expert for so many directions.
pub(crate) fn products(plan: &Plan, op: &Op) -> Option<(Slot, Vec<Weight>)> {
    let routed = plan.ops.iter().find_map(|op| match op {
        Op::Route { scores, .. } => Some(*scores),
        _ => None,
    });
    match op {
        Op::MatMul { parts, .. } if parts.iter().any(|part| Some(part.out) == routed) => None,
        Op::MatMul { input, .. } | Op::ExpertMatMul { input, .. } => Some((*input, of_op(op))),
        _ => None,
    }
}

/// Names of whole weights.
fn names<'a>(plan: &'a Plan, weights: &[Weight]) -> impl Iterator<Item = &'a str> {
    weights.iter().map(|weight| whole_name(&plan.weights[weight.0].name))
}

/// The product of the head.
pub(crate) fn head(plan: &Plan) -> usize {
    let is_product = |op: &Op| matches!(op, Op::MatMul { .. });
    plan.ops.iter().rposition(is_product).expect("a forward pass ends with the head")
}

/// The residual stream.
pub(crate) fn stream(plan: &Plan) -> Slot {
    let embed = plan.ops.iter().find_map(|op| match op {
        Op::Embed { out, .. } => Some(*out),
        _ => None,
    });
    embed.expect("a forward pass begins with the embedding")
}

/// The slots of angles, in the order of their ops.
pub(crate) fn angles(plan: &Plan) -> impl Iterator<Item = Slot> {
    plan.ops.iter().filter_map(|op| match op {
        Op::Angles { out, .. } => Some(*out),
        _ => None,
    })
}

/// Rows of one window, all of which may want logits.
pub(crate) fn batch(window: &[u32], rows: Range<usize>) -> Batch {
    let mut batch = Batch::default();
    rows.for_each(|row| batch.push(window[row], row as u32, 0, true));
    batch
}

/// The plan of a model in which `make` replaced the matrices of the wanted layers; the number of
/// layers stands for the head.
///
/// # Errors
/// If `make` fails.
pub(crate) fn floats(
    model: &Model,
    wanted: impl Fn(usize) -> bool,
    make: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Plan> {
    let plan = model.plan();
    let layers = plan.layers.len() - 1;
    let mut replaced = HashMap::new();
    for layer in (0..=layers).filter(|&layer| wanted(layer)) {
        let end = plan.layers.get(layer + 1).copied().unwrap_or(plan.ops.len());
        for op in &plan.ops[plan.layers[layer]..end] {
            for weight in of_op(op) {
                let tensor = &plan.weights[weight.0];
                replaced.insert(tensor.name.clone(), make(tensor)?);
            }
        }
    }
    Ok(model.with(&replaced).plan())
}

/// The matrices of an op.
fn of_op(op: &Op) -> Vec<Weight> {
    match op {
        Op::MatMul { parts, .. } => parts.iter().map(|part| part.weight).collect(),
        Op::ExpertMatMul { parts, .. } => parts.iter().map(|part| part.weight).collect(),
        _ => Vec::new(),
    }
}

/// A weight as plain floats in the model's own basis.
pub(crate) fn float(tensor: &Tensor) -> Result<Tensor> {
    let mut all = Vec::with_capacity(tensor.len());
    pieces(tensor, |values| all.extend_from_slice(values))?;
    Ok(of_floats(tensor, all))
}

/// The rows of a weight as plain floats in the model's own basis, a few at a time.
///
/// # Errors
/// If one is not finite.
pub(crate) fn pieces(tensor: &Tensor, mut take: impl FnMut(&[f32])) -> Result<()> {
    let mut values = vec![0.0; ROWS.min(tensor.rows) * tensor.cols];
    for first in (0..tensor.rows).step_by(ROWS) {
        let rows = first..(first + ROWS).min(tensor.rows);
        let values = &mut values[..rows.len() * tensor.cols];
        original(tensor, rows, values)?;
        take(values);
    }
    Ok(())
}

/// A weight as plain floats that has no bytes: it is planned and never run, or gets others.
pub(crate) fn shell(tensor: &Tensor) -> Result<Tensor> {
    let rows = tensor.rows;
    Ok(Tensor { rows, ..of_floats(&Tensor { rows: 0, ..tensor.clone() }, Vec::new()) })
}

/// Rows that are decoded at a time.
const ROWS: usize = 64;

/// A weight of the same name and shape with these values, `(rows, cols)`.
pub fn of_floats(tensor: &Tensor, values: Vec<f32>) -> Tensor {
    assert_eq!(values.len(), tensor.len(), "a value per weight");
    let bytes = 4 * values.len();
    Tensor {
        name: tensor.name.clone(),
        kind: by_name("F32").expect("plain floats are always there"),
        rows: tensor.rows,
        cols: tensor.cols,
        first: 0,
        basis: Basis::Original,
        group: 0,
        codes: Bytes::new(Arc::new(Aligned(values)), 0..bytes),
        norms: Bytes::empty(),
        table: Bytes::empty(),
        signs: Bytes::empty(),
        columns: ColumnPlanes::default(),
    }
}

/// Keeps numbers where their bytes are aligned.
pub(crate) struct Aligned<T>(pub(crate) Vec<T>);

impl<T: bytemuck::NoUninit> AsRef<[u8]> for Aligned<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Rows of a weight in the basis the model was trained in, into `values`.
///
/// # Errors
/// If one is not finite.
pub fn original(tensor: &Tensor, rows: Range<usize>, values: &mut [f32]) -> Result<()> {
    tensor.kind.decode(&tensor.rows(rows.clone()), values);
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        let (row, col) = (rows.start + at / tensor.cols, at % tensor.cols);
        let (name, found) = (&tensor.name, values[at]);
        bail!("tensor `{name}`: expected finite weights, found {found} in row {row}, column {col}");
    }
    if tensor.basis != Basis::Original {
        let signs = bytemuck::cast_slice(&tensor.signs);
        for row in values.chunks_exact_mut(tensor.cols) {
            crate::transform::inverse(tensor.basis, signs, row);
        }
    }
    Ok(())
}

/// The hidden states of all windows.
struct States {
    /// Values per window.
    len: usize,
    kept: Kept,
}

enum Kept {
    Memory(Vec<f32>),
    /// Deleted when it was opened: gone with the process.
    File(File),
}

impl States {
    fn new(windows: usize, len: usize, limit: u64, folder: &Path) -> Result<States> {
        let bytes = 4 * (windows * len) as u64;
        if bytes <= limit {
            return Ok(States { len, kept: Kept::Memory(vec![0.0; windows * len]) });
        }
        let file = tempfile::tempfile_in(folder).at(folder.display())?;
        file.set_len(bytes).at(folder.display())?;
        Ok(States { len, kept: Kept::File(file) })
    }

    fn put(&mut self, window: usize, values: &[f32]) -> Result<()> {
        let at = window * self.len;
        match &mut self.kept {
            Kept::Memory(all) => all[at..at + self.len].copy_from_slice(values),
            Kept::File(file) => {
                file.seek(SeekFrom::Start(4 * at as u64))?;
                file.write_all(bytemuck::cast_slice(values)).at("calibration: hidden states")?;
            }
        }
        Ok(())
    }

    fn get(&mut self, window: usize) -> Result<Vec<f32>> {
        let at = window * self.len;
        match &mut self.kept {
            Kept::Memory(all) => Ok(all[at..at + self.len].to_vec()),
            Kept::File(file) => {
                let mut values = vec![0.0; self.len];
                file.seek(SeekFrom::Start(4 * at as u64))?;
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
                file.read_exact(bytes).at("calibration: hidden states")?;
                Ok(values)
            }
        }
    }
}
