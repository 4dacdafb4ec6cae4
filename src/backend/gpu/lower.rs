//! From ops to dispatches: which kernel, with which choices, over which grid.

use std::ops::Range;
use std::sync::Arc;

use super::device::{Device, Kernel};
use super::memory::buffer;
use super::shader::{Choices, Recipe, shared};
use super::upload::Uploader;
use super::weights::{self, Section};
use super::{Core, attention, experts, mat_mul};
use crate::backend::Capacity;
use crate::error::Result;
use crate::plan::{Activation, Extent, Format, Input, Norm, Op, Plan, Slot, SlotInfo, Transform};
use crate::transform::{Paley, parted_blocks, parted_order};
use crate::types::Basis;

/// The most rows that the kernels for few rows take.
pub(super) const FEW: usize = 8;

/// Cells that one partial result of attention covers: more in long contexts, so that the results do
/// not pile up, but no more than whose scores fit workgroup memory.
const SPLIT_CELLS: [usize; 2] = [64, 256];

/// Partial results of a row that are worth having: enough to fill a device.
const SPLITS: usize = 64;

/// Bytes of workgroup memory for scores.
const SCORES_BYTES: usize = 16 << 10;

/// One kernel over a grid, with its buffers.
pub(super) struct Dispatch {
    pub(super) kernel: Arc<Kernel>,
    pub(super) group: wgpu::BindGroup,
    pub(super) grid: Grid,
    /// For the profile: the kernel and what it works on, and the bytes of weights that it reads.
    pub(super) label: String,
    pub(super) bytes: u64,
}

/// The form for one row.
pub(super) const ONE_ROW: Form = Form::Few { columns: 1, fused: false };

/// Workgroups in each direction.
pub(super) type Grid = [Count; 3];

/// How many workgroups, given the batch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Count {
    /// Always so many.
    Fixed(usize),
    /// One per so many rows.
    Rows(usize),
    /// One per so many rows that want logits.
    LogitRows(usize),
    /// So many per row.
    Chosen(usize),
    /// One per so many cells that a row sees, at most the second number of them.
    Cells(usize, usize),
}

/// What the size of a grid depends on.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub(super) rows: usize,
    pub(super) logit_rows: usize,
    pub(super) cells: usize,
}

impl Count {
    pub(super) fn of(self, size: Size) -> u32 {
        let count = match self {
            Count::Fixed(count) => count,
            Count::Rows(per) => size.rows.div_ceil(per),
            Count::LogitRows(per) => size.logit_rows.div_ceil(per),
            Count::Chosen(count) => size.rows * count,
            Count::Cells(per, cells) => size.cells.min(cells).div_ceil(per),
        };
        u32::try_from(count).expect("grids are small")
    }
}

/// Which of an op's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// There are no rows to work on.
    Nothing,
    /// For so many rows: 1, 2, 4 or 8. `fused`: attention and the op that prepares its output run
    /// one after the other, and share the work of putting splits together.
    Few { columns: usize, fused: bool },
    /// For any number of rows.
    Many,
}

/// The form of op `at`, when `ops` run together.
pub(super) fn form(
    plan: &Plan,
    at: usize,
    ops: &Range<usize>,
    rows: usize,
    logit_rows: usize,
) -> Form {
    let op = &plan.ops[at];
    let rows = plan.slots[op.writes()[0].0].extent.rows(rows, logit_rows);
    let fuses = |attend: usize| {
        ops.contains(&attend) && ops.contains(&(attend + 1)) && is_prepared(plan, attend)
    };
    let fused = match op {
        Op::Attend { .. } => fuses(at),
        Op::Prepare { .. } => at > 0 && fuses(at - 1),
        _ => false,
    };
    match rows {
        0 => Form::Nothing,
        rows if rows <= FEW => Form::Few { columns: rows.next_power_of_two(), fused },
        _ => Form::Many,
    }
}

/// Whether an op is attention whose output only goes through the next op's preparation.
fn is_prepared(plan: &Plan, at: usize) -> bool {
    let Op::Attend { out, layer, .. } = &plan.ops[at] else { return false };
    if plan.caches[*layer].turn.is_some() {
        return false;
    }
    matches!(
        plan.ops.get(at + 1),
        Some(Op::Prepare { input: Input::Rows(slot), rows: None, norm: None, .. }) if slot == out
    )
}

/// Memory that kernels use between themselves.
pub(super) struct Work {
    pub(super) partials: wgpu::Buffer,
    line: wgpu::Buffer,
    /// Activations as halves, and the largest scale of each row, for matrix units.
    pub(super) halves: wgpu::Buffer,
    pub(super) peaks: wgpu::Buffer,
    pub(super) split_cells: usize,
    pub(super) splits_max: usize,
}

impl Work {
    pub(super) fn new(device: &Device, plan: &Plan, capacity: Capacity) -> Work {
        let width = plan.slots.iter().map(|slot| slot.width).filter(|&w| w < 1 << 16).max();
        let heads = |op: &Op| match op {
            Op::Attend { heads, layer, .. } => heads * (plan.caches[*layer].head_len + 2),
            _ => 0,
        };
        let partial = plan.ops.iter().map(heads).max().unwrap_or(0);
        let share = |op: &Op| match op {
            Op::Attend { heads, layer, .. } => heads / plan.caches[*layer].heads.max(1),
            _ => 1,
        };
        // A score takes two floats: two threads make it.
        let share = plan.ops.iter().map(share).max().unwrap_or(1).max(1);
        let [least, most] = SPLIT_CELLS;
        let wish = capacity.context.div_ceil(SPLITS).next_power_of_two().clamp(least, most);
        let fits = (SCORES_BYTES / (8 * share)).max(16);
        let split_cells = if wish <= fits { wish } else { 1 << fits.ilog2() };
        let splits_max = capacity.context.div_ceil(split_cells);
        let rows = |slot: &SlotInfo| slot.extent.rows(capacity.rows, capacity.logit_rows);
        let lines = plan.slots.iter().map(rows).max().unwrap_or(0) * width.unwrap_or(0);
        let needs_line = plan.ops.iter().any(|op| match op {
            Op::Prepare { transform, out, .. } => !line_fits(
                device,
                segment(plan.slots[out.0].width, *transform, out_group(plan, *out)),
            ),
            Op::Embed { out, .. } => !line_fits(device, plan.slots[out.0].width),
            _ => false,
        });
        Work {
            partials: buffer(device, "partials", 4 * FEW * splits_max * partial),
            line: buffer(device, "line", if needs_line { 4 * lines } else { 0 }),
            halves: buffer(device, "halves", if device.mask.matrix { 2 * lines } else { 0 }),
            peaks: buffer(device, "peaks", 4 * capacity.rows.max(capacity.logit_rows)),
            split_cells,
            splits_max,
        }
    }
}

fn out_group(plan: &Plan, out: Slot) -> usize {
    match plan.slots[out.0].format {
        Format::Int8 { group, .. } => group,
        Format::F32 | Format::U32 => 1,
    }
}

/// Whether a line of so many values fits in workgroup memory, peaks and sums beside it.
fn line_fits(device: &Device, values: usize) -> bool {
    5 * values + 2048 <= device.limits.max_compute_workgroup_storage_size as usize
}

/// Values of a row that a workgroup prepares: enough that its work is worth a workgroup, whole
/// blocks and groups, the whole row for a Kronecker product or one of two parts.
fn segment(width: usize, transform: Option<Transform>, group: usize) -> usize {
    let block = match transform.map(|transform| transform.basis) {
        Some(Basis::Kronecker { .. } | Basis::Parted { .. }) => return width,
        Some(Basis::Hadamard { block }) => block as usize,
        Some(Basis::Original) | None => 4,
    };
    // Both are powers of two times something that divides the row.
    let unit = lcm(block, group.max(4));
    if !width.is_multiple_of(unit) {
        return width;
    }
    let count = (1..=width / unit).filter(|n| (width / unit).is_multiple_of(*n));
    let fits = count.filter(|n| n * unit <= 1024).max().unwrap_or(1);
    fits * unit
}

fn lcm(a: usize, b: usize) -> usize {
    let gcd = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    a / gcd(a, b) * b
}

/// Uploads what an op uses.
pub(super) fn upload(
    core: &mut Core,
    device: &Device,
    up: &mut Uploader,
    plan: &Plan,
    op: &Op,
) -> Result<()> {
    let Core { weights, places, capacity, .. } = core;
    let mut transforms = Vec::new();
    let mut vectors = Vec::new();
    match op {
        Op::Embed { table, transform, .. } => {
            weights.add_table(device, up, plan, *table, places)?;
            transforms.extend(transform.map(|transform| (transform, true)));
        }
        Op::Angles { frequencies, amplitude, .. } => {
            let frequencies = &plan.weights[frequencies.0];
            let bytes = || turns(&weights::floats(frequencies), *amplitude, capacity.context);
            weights.add_made(device, up, frequencies.name.clone(), bytes)?;
        }
        Op::Prepare { norm, transform, .. } => {
            vectors.extend(norm.map(|norm| norm.weight));
            transforms.extend(transform.map(|transform| (transform, false)));
        }
        Op::MatMul { parts, .. } => weights.add_matrix(device, up, plan, parts, places)?,
        Op::Rope { q_norm, k_norm, layer, .. } => {
            attention::upload_turn(weights, device, up, plan, *layer)?;
            vectors.extend([q_norm, k_norm].into_iter().flatten().map(|norm| norm.weight));
        }
        Op::AddNorm { norm, .. } => vectors.push(norm.weight),
        Op::ExpertMatMul { parts, .. } => {
            for part in parts {
                weights.add_matrix(device, up, plan, &[experts::as_part(part)], places)?;
            }
        }
        Op::Route { .. } | Op::Mix { .. } | Op::SoftCap { .. } => {}
        // Where attention stands alone on the device, the basis is not there yet.
        Op::Attend { layer, .. } => attention::upload_turn(weights, device, up, plan, *layer)?,
    }
    for vector in vectors {
        weights.add_vector(device, up, plan, vector)?;
    }
    for (transform, transposed) in transforms {
        if let Basis::Parted { .. } = transform.basis {
            let tensor = &plan.weights[transform.signs.0];
            weights.add_made(device, up, order_name(transform), || order(&tensor.signs))?;
            continue;
        }
        weights.add_signs(device, up, plan, transform)?;
        if let Basis::Kronecker { order, .. } = transform.basis {
            weights
                .add_made(device, up, paley_name(order, transposed), || paley(order, transposed))?;
        }
    }
    Ok(())
}

/// `(positions, pairs)` of (cos, sin), in the arithmetic of the reference.
fn turns(frequencies: &[f32], amplitude: f32, context: usize) -> Vec<u8> {
    let turn = |position: usize| {
        frequencies.iter().flat_map(move |&frequency| {
            let (sin, cos) = (position as f64 * f64::from(frequency)).sin_cos();
            [cos as f32 * amplitude, sin as f32 * amplitude]
        })
    };
    let values: Vec<f32> = (0..context).flat_map(turn).collect();
    bytemuck::cast_slice(&values).to_vec()
}

fn order_name(transform: Transform) -> String {
    format!("order {}", transform.signs.0)
}

/// For each place of a parted row the input that comes there, twice, and 1 if its sign is -1.
fn order(signs: &[u8]) -> Vec<u8> {
    let signs: &[i8] = bytemuck::cast_slice(signs);
    let words: Vec<u32> = parted_order(signs)
        .map(|at| 2 * u32::try_from(at).expect("rows are short") + u32::from(signs[at] < 0))
        .collect();
    bytemuck::cast_slice(&words).to_vec()
}

fn paley_name(order: u32, transposed: bool) -> String {
    format!("paley {order} {transposed}")
}

/// A bit per place, row after row.
fn paley(order: u32, transposed: bool) -> Vec<u8> {
    let paley = Paley::get(order).expect("the reader has checked the order");
    let plus = if transposed { paley.plus_transposed() } else { paley.plus() };
    let bits = (order * order) as usize;
    let mut bytes = vec![0_u8; bits.div_ceil(32) * 4];
    for (row, places) in plus.iter().enumerate() {
        for &col in places {
            let bit = row * order as usize + col as usize;
            bytes[bit / 8] |= 1 << (bit % 8);
        }
    }
    bytes
}

/// The recipes that most batches need, to be compiled at once.
pub(super) fn recipes(core: &Core, ops: Range<usize>) -> Vec<Recipe> {
    let mut recipes = Vec::new();
    for at in ops.clone() {
        for rows in [1, FEW + 1] {
            let form = form(&core.plan, at, &ops, rows, 1);
            recipes.extend(plan_op(core, at, form).into_iter().map(|step| step.recipe));
        }
    }
    recipes
}

/// The dispatches of op `at`.
pub(super) fn lower(core: &mut Core, at: usize, form: Form) -> Vec<Dispatch> {
    let steps = plan_op(core, at, form);
    steps.into_iter().map(|step| core.dispatch_step(step)).collect()
}

/// A dispatch before it has a pipeline.
pub(super) struct Step {
    pub(super) recipe: Recipe,
    pub(super) buffers: Vec<(String, wgpu::Buffer)>,
    pub(super) grid: Grid,
    /// For the profile.
    pub(super) what: String,
    pub(super) bytes: u64,
}

impl Step {
    pub(super) fn new(recipe: Recipe, buffers: Vec<(String, wgpu::Buffer)>, grid: Grid) -> Step {
        Step { recipe, buffers, grid, what: String::new(), bytes: 0 }
    }
}

pub(super) fn named(name: &str, buffer: &wgpu::Buffer) -> (String, wgpu::Buffer) {
    (name.to_string(), buffer.clone())
}

/// One per so many rows of a slot; per row where there are several for a row of the batch.
pub(super) fn rows_of(core: &Core, slot: Slot, per: usize) -> Count {
    match core.plan.slots[slot.0].extent {
        Extent::Tokens => Count::Rows(per),
        Extent::LogitRows => Count::LogitRows(per),
        Extent::Chosen(count) => Count::Chosen(count),
    }
}

pub(super) const ONE: Count = Count::Fixed(1);

pub(super) fn plan_op(core: &Core, at: usize, form: Form) -> Vec<Step> {
    if form == Form::Nothing {
        return Vec::new();
    }
    let op = &core.plan.ops[at];
    match op {
        Op::Embed { tokens, table, transform, scale, out } => {
            vec![embed(core, *tokens, core.weights.table(*table), *transform, *scale, *out)]
        }
        Op::Angles { positions, frequencies, out, .. } => {
            let width = core.plan.slots[out.0].width;
            let name = &core.plan.weights[frequencies.0].name;
            let buffers = vec![
                named("positions", &core.places[positions.0].buffer),
                named("turns", core.weights.made(name)),
                named("out", &core.places[out.0].buffer),
            ];
            let recipe = Recipe::new("angles", Choices::default().set("WIDTH", width));
            let grid = [Count::Fixed(width.div_ceil(64)), Count::Rows(1), ONE];
            vec![Step::new(recipe, buffers, grid)]
        }
        Op::Prepare { input, rows, norm, transform, out } => {
            let fused = matches!(form, Form::Few { fused: true, .. });
            let attend = fused.then(|| &core.plan.ops[at - 1]);
            vec![prepare(core, *input, *rows, *norm, *transform, *out, attend)]
        }
        Op::MatMul { input, parts } => mat_mul::steps(core, *input, parts, form),
        Op::Route { .. } | Op::ExpertMatMul { .. } | Op::Mix { .. } => experts::steps(core, op),
        Op::Rope { .. } => vec![attention::rope(core, op)],
        Op::Attend { .. } => attention::attend(core, op, form),
        Op::AddNorm { x, y, norm } => vec![add_norm(core, *x, *y, *norm)],
        Op::SoftCap { x, cap } => {
            let width = core.plan.slots[x.0].width;
            let choices = with_out(core, Choices::default(), *x).set("WIDTH", width);
            let recipe = Recipe::new("soft_cap", choices.set("CAP", *cap));
            let buffers = vec![named("out", &core.places[x.0].buffer)];
            let grid = [Count::Fixed(width.div_ceil(256)), rows_of(core, *x, 1), ONE];
            vec![Step::new(recipe, buffers, grid)]
        }
    }
}

pub(super) fn with_out(core: &Core, choices: Choices, slot: Slot) -> Choices {
    let place = &core.places[slot.0];
    choices.set("OUT_STRIDE", place.stride).set("OUT_OFFSET", place.offset)
}

/// Chooses where a line of values lies.
fn with_line(core: &Core, choices: Choices, values: usize) -> Choices {
    let file = if line_fits(&core.device, values) { "line_shared" } else { "line_storage" };
    choices.set("SEGMENT", values).import("line", shared(file))
}

/// Chooses the transform, and adds its buffers.
fn with_turn(
    core: &Core,
    choices: Choices,
    transform: Option<Transform>,
    transposed: bool,
    buffers: &mut Vec<(String, wgpu::Buffer)>,
) -> Choices {
    let Some(transform) = transform else { return choices.import("turn", shared("turn_none")) };
    match transform.basis {
        Basis::Parted { .. } => {
            buffers.push(named("order", core.weights.made(&order_name(transform))));
        }
        _ => buffers.push(named("signs", core.weights.signs(transform))),
    }
    let scale = |width: u32| (1.0 / f64::from(width).sqrt()) as f32;
    match transform.basis {
        Basis::Original => choices.import("turn", shared("turn_none")),
        Basis::Parted { high } => {
            let low = core.plan.weights[transform.signs.0].signs.len() - high as usize;
            let [low_block, high_block] = parted_blocks(low, high as usize);
            choices
                .import("turn", shared("turn_parted"))
                .set("LOW", low)
                .set("BLOCK", low_block.min(high_block))
                .set("LOW_BLOCK", low_block)
                .set("HIGH_BLOCK", high_block)
                .set("LOW_SCALE", scale(low_block))
                .set("HIGH_SCALE", scale(high_block))
        }
        Basis::Hadamard { block } => choices
            .import("turn", shared("turn_hadamard"))
            .set("BLOCK", block)
            .set("TURN_SCALE", scale(block)),
        Basis::Kronecker { order, block } => {
            let name = paley_name(order, transposed);
            buffers.push(named("paley", core.weights.made(&name)));
            choices
                .import("turn", shared("turn_kronecker"))
                .set("BLOCK", block)
                .set("ORDER", order)
                .set("TURN_SCALE", scale(order * block))
        }
    }
}

fn embed(
    core: &Core,
    tokens: Slot,
    table: &[Section],
    transform: Option<Transform>,
    scale: f32,
    out: Slot,
) -> Step {
    let mut buffers = vec![
        named("tokens", &core.places[tokens.0].buffer),
        named("out", &core.places[out.0].buffer),
        named("line", &core.work.line),
    ];
    let width = core.plan.slots[out.0].width;
    let mut choices = with_out(core, Choices::default().set("SCALE", scale), out);
    let is_float = table[0].shader.chunk == 0;
    if !is_float {
        choices = with_line(core, choices, width);
        choices = with_turn(core, choices, transform, true, &mut buffers);
    }
    mat_mul::section_buffers(table, &mut buffers);
    let sections = table.iter().map(|section| section.choices(1)).collect();
    let kernel = if is_float { "embed_float" } else { "embed" };
    let recipe = Recipe { kernel, choices, sections };
    Step::new(recipe, buffers, [ONE, Count::Rows(1), ONE])
}

fn prepare(
    core: &Core,
    input: Input,
    rows: Option<Slot>,
    norm: Option<Norm>,
    transform: Option<Transform>,
    out: Slot,
    attend: Option<&Op>,
) -> Step {
    let info = &core.plan.slots[out.0];
    let segment = segment(info.width, transform, out_group(&core.plan, out));
    let mut buffers = vec![named("line", &core.work.line)];
    let choices = Choices::default().set("WIDTH", info.width);
    let mut choices = with_line(core, choices, segment);
    choices = with_turn(core, choices, transform, false, &mut buffers);
    choices = match (input, attend) {
        (_, Some(attend)) => {
            buffers.push(named("partials", &core.work.partials));
            let choices = choices.import("input", shared("input_splits"));
            attention::with_splits(core, choices, attend, &mut buffers)
        }
        (Input::Rows(slot), None) => {
            let place = &core.places[slot.0];
            buffers.push(named("x", &place.buffer));
            choices
                .import("input", shared("input_rows"))
                .set("X_STRIDE", place.stride)
                .set("X_OFFSET", place.offset)
        }
        (Input::Gated { gate, up, activation }, None) => {
            let (gate, up) = (&core.places[gate.0], &core.places[up.0]);
            buffers.push(named("gate_up", &gate.buffer));
            choices
                .import("input", shared("input_gated"))
                .set("X_STRIDE", gate.stride)
                .set("GATE_OFFSET", gate.offset)
                .set("UP_OFFSET", up.offset)
                .set("GELU", activation == Activation::Gelu)
        }
    };
    choices = match rows {
        None => choices.import("gather", shared("gather_all")),
        Some(rows) => {
            buffers.push(named("rows", &core.places[rows.0].buffer));
            choices.import("gather", shared("gather_rows"))
        }
    };
    choices = match norm {
        None => choices.import("norm", shared("norm_none")),
        Some(norm) => {
            buffers.push(named("norm_weight", core.weights.vector(norm.weight)));
            choices.import("norm", shared("norm_rms")).set("EPSILON", norm.epsilon)
        }
    };
    let place = &core.places[out.0];
    choices = match (info.format, &place.scales) {
        (Format::Int8 { group, .. }, Some(scales)) => {
            buffers.push(named("out_codes", &place.buffer));
            buffers.push(named("out_scales", scales));
            choices.import("store", shared("store_int8")).set("ACTIVATION_GROUP", group)
        }
        _ => {
            buffers.push(named("out", &place.buffer));
            with_out(core, choices.import("store", shared("store_f32")), out)
        }
    };
    let grid = [Count::Fixed(info.width / segment), rows_of(core, out, 1), ONE];
    Step::new(Recipe::new("prepare", choices), buffers, grid)
}

fn add_norm(core: &Core, x: Slot, y: Slot, norm: Norm) -> Step {
    let (width, from) = (core.plan.slots[x.0].width, &core.places[y.0]);
    let choices = with_out(core, Choices::default(), x)
        .set("WIDTH", width)
        .set("Y_STRIDE", from.stride)
        .set("Y_OFFSET", from.offset)
        .set("EPSILON", norm.epsilon);
    let buffers = vec![
        named("y", &from.buffer),
        named("out", &core.places[x.0].buffer),
        named("norm_weight", core.weights.vector(norm.weight)),
    ];
    let grid = [ONE, rows_of(core, x, 1), ONE];
    Step::new(Recipe::new("add_norm", choices), buffers, grid)
}
