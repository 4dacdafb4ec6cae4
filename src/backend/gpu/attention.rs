//! Rope and attention to dispatches.

use super::Core;
use super::device::Device;
use super::lower::{Count, Form, ONE, Step, named, with_out};
use super::shader::{Choices, Recipe, shared};
use super::upload::Uploader;
use super::weights::{self, Weights};
use crate::backend::KvFormat;
use crate::error::Result;
use crate::plan::{CacheInfo, Norm, Op, Pairing, Plan, Slot, Turn};
use crate::transform;

/// The constants of `shared/splits.wgsl`, and the positions that it reads.
pub(super) fn with_splits(
    core: &Core,
    choices: Choices,
    op: &Op,
    buffers: &mut Vec<(String, wgpu::Buffer)>,
) -> Choices {
    let Op::Attend { positions, layer, heads, window, .. } = op else { unreachable!() };
    buffers.push(named("positions", &core.places[positions.0].buffer));
    choices
        .set("HEADS", *heads)
        .set("HEAD_LEN", core.plan.caches[*layer].head_len)
        .set("SPLIT_CELLS", core.work.split_cells)
        .set("SPLITS_MAX", core.work.splits_max)
        .set("WINDOW", window.unwrap_or(u32::MAX))
}

pub(super) fn rope(core: &Core, op: &Op) -> Step {
    let Op::Rope { q, k, v, angles, q_norm, k_norm, .. } = op else { unreachable!() };
    let Op::Rope { pairing, head_len, positions, sequences, layer, .. } = op else {
        unreachable!()
    };
    let place = |slot: &Slot| &core.places[slot.0];
    let (heads, kv_heads) = (core.plan.slots[q.0].width / head_len, core.plan.caches[*layer].heads);
    let cache = &core.caches[*layer];
    let vector = |norm: &Option<Norm>| match norm {
        Some(norm) => core.weights.vector(norm.weight).clone(),
        None => core.batch.clone(),
    };
    let epsilon = |norm: &Option<Norm>| norm.map_or(1.0, |norm| norm.epsilon);
    let choices = with_cache(core, Choices::default(), Way::Write, *head_len);
    let choices = choices
        .set("HEADS", heads)
        .set("KV_HEADS", kv_heads)
        .set("HEAD_LEN", *head_len)
        .set("PAIRS", core.plan.slots[angles.0].width / 2)
        .set("HALVES", *pairing == Pairing::Halves)
        .set("STRIDE", place(q).stride)
        .set("Q_OFFSET", place(q).offset)
        .set("K_OFFSET", place(k).offset)
        .set("V_OFFSET", place(v).offset)
        .set("Q_NORM", q_norm.is_some())
        .set("K_NORM", k_norm.is_some())
        .set("Q_EPSILON", epsilon(q_norm))
        .set("K_EPSILON", epsilon(k_norm));
    let mut buffers = vec![
        named("qkv", &place(q).buffer),
        named("turns", &place(angles).buffer),
        named("positions", &place(positions).buffer),
        named("sequences", &place(sequences).buffer),
        ("q_norm".to_string(), vector(q_norm)),
        ("k_norm".to_string(), vector(k_norm)),
        named("keys", &cache.keys),
        named("values", &cache.values),
    ];
    let choices = with_turn(core, choices, *layer, &mut buffers);
    let grid = [Count::Fixed(heads + 2 * kv_heads), Count::Rows(1), ONE];
    Step::new(Recipe::new("rope", choices), buffers, grid)
}

/// What is done with the cache.
#[derive(Clone, Copy)]
enum Way {
    Write,
    Read,
}

/// Chooses how the cache is stored.
fn with_cache(core: &Core, choices: Choices, way: Way, head_len: usize) -> Choices {
    let kv = core.capacity.kv;
    let [write, read] = match kv {
        KvFormat::F16 => ["write_f16", "read_f16"],
        KvFormat::F32 => ["write_f32", "read_f32"],
        KvFormat::Q8 | KvFormat::Q4 | KvFormat::Resq4 => ["write_codes", "read_codes"],
    };
    let choices = choices.import("cache", shared(if let Way::Write = way { write } else { read }));
    let groups = kv.groups(head_len);
    let of = |bits: usize| groups.iter().filter(move |group| group.bits == bits);
    let len = |bits: usize| of(bits).next().map_or(1, |group| group.len);
    match groups.is_empty() {
        true => choices,
        false => choices
            .set("FINE", of(8).map(|group| group.len).sum::<usize>())
            .set("FINE_GROUP", len(8))
            .set("GROUP", len(4)),
    }
}

/// Chooses what turns heads into the basis of a layer's cache and back.
fn with_turn(
    core: &Core,
    choices: Choices,
    layer: usize,
    buffers: &mut Vec<(String, wgpu::Buffer)>,
) -> Choices {
    let CacheInfo { heads, head_len, turn } = core.plan.caches[layer];
    let Some(turn) = turn else { return choices.import("turn", shared("head_own")) };
    buffers.push(named("basis", core.weights.made(&basis_name(turn, head_len))));
    let matrices = if let Turn::Hadamard(_) = turn { 1 } else { heads };
    choices.import("turn", shared("head_turned")).set("MATRICES", matrices)
}

/// Uploads what turns heads, unless it is there.
///
/// # Errors
/// If the device is lost.
pub(super) fn upload_turn(
    weights: &mut Weights,
    device: &Device,
    up: &mut Uploader,
    plan: &Plan,
    layer: usize,
) -> Result<()> {
    let CacheInfo { head_len, turn, .. } = plan.caches[layer];
    let Some(turn) = turn else { return Ok(()) };
    let bytes = || {
        let [keys, values] = match turn {
            Turn::Hadamard(basis) => {
                let mut rows = vec![0.0; head_len * head_len];
                for (i, row) in rows.chunks_exact_mut(head_len).enumerate() {
                    row[i] = 1.0;
                    transform::inverse(basis, &[], row);
                }
                [rows.clone(), rows]
            }
            Turn::Matrices { keys, values } => {
                [keys, values].map(|weight| weights::floats(&plan.weights[weight.0]))
            }
        };
        let heads = |matrices: &[f32]| -> Vec<f32> {
            matrices
                .chunks_exact(head_len * head_len)
                .flat_map(|m| transposed(m, head_len))
                .collect()
        };
        let all = [heads(&keys), heads(&values), values].concat();
        bytemuck::cast_slice(&all).to_vec()
    };
    weights.add_made(device, up, basis_name(turn, head_len), bytes)
}

fn transposed(matrix: &[f32], len: usize) -> Vec<f32> {
    (0..len * len).map(|at| matrix[at % len * len + at / len]).collect()
}

fn basis_name(turn: Turn, head_len: usize) -> String {
    format!("basis {head_len} {turn:?}")
}

/// Bytes of what turns heads, for the layers of one matrix each.
pub(super) fn turn_bytes(info: CacheInfo) -> usize {
    let matrices = match info.turn {
        None => 0,
        Some(Turn::Hadamard(_)) => 1,
        Some(Turn::Matrices { .. }) => info.heads,
    };
    3 * 4 * matrices * info.head_len * info.head_len
}

/// A step that turns the output of attention back, if the cache is turned.
fn turn_back(core: &Core, op: &Op) -> Option<Step> {
    let Op::Attend { layer, heads, out, .. } = op else { unreachable!() };
    let info = core.plan.caches[*layer];
    info.turn?;
    let mut buffers = vec![named("out", &core.places[out.0].buffer)];
    let choices = with_out(core, Choices::default(), *out)
        .set("HEADS", *heads)
        .set("KV_HEADS", info.heads)
        .set("HEAD_LEN", info.head_len);
    let choices = with_turn(core, choices, *layer, &mut buffers);
    let grid = [Count::Fixed(*heads), Count::Rows(1), ONE];
    Some(Step::new(Recipe::new("turn_back", choices), buffers, grid))
}

pub(super) fn attend(core: &Core, op: &Op, form: Form) -> Vec<Step> {
    let Op::Attend { q, positions, sequences, layer, heads, out, .. } = op else { unreachable!() };
    let Op::Attend { scale, window, soft_cap, .. } = op else { unreachable!() };
    let info = core.plan.caches[*layer];
    let (place, cache) = (&core.places[q.0], &core.caches[*layer]);
    let mut buffers = vec![
        named("qkv", &place.buffer),
        named("sequences", &core.places[sequences.0].buffer),
        named("keys", &cache.keys),
        named("values", &cache.values),
    ];
    let choices = with_cache(core, Choices::default(), Way::Read, info.head_len)
        .set("KV_HEADS", info.heads)
        .set("STRIDE", place.stride)
        .set("Q_OFFSET", place.offset)
        .set("SCALE", *scale)
        .set("CAP", soft_cap.unwrap_or(0.0));
    let Form::Few { fused, .. } = form else {
        buffers.push(named("positions", &core.places[positions.0].buffer));
        buffers.push(named("out", &core.places[out.0].buffer));
        let tile = Tile::new(info.head_len);
        let choices = with_out(core, choices, *out)
            .set("HEADS", *heads)
            .set("HEAD_LEN", info.head_len)
            .set("WINDOW", window.unwrap_or(u32::MAX))
            .set("THREADS", tile.threads)
            .set("QUERIES", tile.queries)
            .set("CELLS", tile.cells);
        let grid = [Count::Fixed(*heads), Count::Rows(tile.queries), ONE];
        let step = Step::new(Recipe::new("attend_tile", choices), buffers, grid);
        return [Some(step), turn_back(core, op)].into_iter().flatten().collect();
    };
    buffers.push(named("partials", &core.work.partials));
    let choices = with_splits(core, choices, op, &mut buffers).set("SHARE", heads / info.heads);
    let cells = window.map_or(usize::MAX, |window| window as usize);
    let grid =
        [Count::Cells(core.work.split_cells, cells), Count::Fixed(info.heads), Count::Rows(1)];
    let mut steps = vec![Step::new(Recipe::new("attend", choices), buffers, grid)];
    if !fused {
        let mut buffers =
            vec![named("partials", &core.work.partials), named("out", &core.places[out.0].buffer)];
        let width = core.plan.slots[out.0].width;
        let choices = with_out(core, Choices::default().set("WIDTH", width), *out);
        let choices = with_splits(core, choices, op, &mut buffers);
        let grid = [Count::Fixed(width.div_ceil(256)), Count::Rows(1), ONE];
        steps.push(Step::new(Recipe::new("combine", choices), buffers, grid));
        steps.extend(turn_back(core, op));
    }
    steps
}

/// The tile of attention for many rows.
struct Tile {
    threads: usize,
    queries: usize,
    cells: usize,
}

impl Tile {
    /// Within 32 KiB of workgroup memory; a thread owns the same pair of values in several rows.
    fn new(head_len: usize) -> Tile {
        let pairs = head_len / 2;
        let (queries, cells) = match head_len {
            0..=64 => (32, 32),
            65..=128 => (32, 16),
            _ => (8, 8),
        };
        let bands = (256 / pairs).max(1);
        let bands = if bands.is_power_of_two() { bands } else { bands.next_power_of_two() / 2 };
        Tile { threads: pairs * bands.min(queries), queries, cells }
    }
}
