//! Rope and attention to dispatches.

use super::Core;
use super::lower::{Count, Form, ONE, Step, named, with_out};
use super::shader::{Choices, Recipe, shared};
use crate::backend::KvFormat;
use crate::plan::{Norm, Op, Pairing, Slot};

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
    let choices = Choices::default()
        .import("cache", shared(cache_file(core, "write_f16", "write_f32")))
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
    let buffers = vec![
        named("qkv", &place(q).buffer),
        named("turns", &place(angles).buffer),
        named("positions", &place(positions).buffer),
        named("sequences", &place(sequences).buffer),
        ("q_norm".to_string(), vector(q_norm)),
        ("k_norm".to_string(), vector(k_norm)),
        named("keys", &cache.keys),
        named("values", &cache.values),
    ];
    let grid = [Count::Fixed(heads + 2 * kv_heads), Count::Rows(1), ONE];
    Step::new(Recipe::new("rope", choices), buffers, grid)
}

fn cache_file(core: &Core, half: &'static str, single: &'static str) -> &'static str {
    match core.capacity.kv {
        KvFormat::F16 => half,
        KvFormat::F32 => single,
    }
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
    let choices = Choices::default()
        .import("cache", shared(cache_file(core, "read_f16", "read_f32")))
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
        return vec![Step::new(Recipe::new("attend_tile", choices), buffers, grid)];
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
