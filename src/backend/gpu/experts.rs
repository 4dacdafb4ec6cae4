//! The ops of experts: who is chosen, their products, and the mix of what they say.
//!
//! A choice is a row of the grid, whether the batch is one row or many.

use super::Core;
use super::lower::{Count, Step, named, rows_of, with_out};
use super::mat_mul::{copies, reduce, section_buffers, step};
use super::shader::{Choices, Recipe, shared};
use super::weights::{self, Section};
use crate::plan::{ExpertPart, Extent, Format, Op, Part, Plan, Slot};

/// Threads of a workgroup, and rows of weights that it multiplies.
const THREADS: usize = 128;
const BLOCK_ROWS: usize = 32;

/// Bytes of workgroup memory that the kernels use beside tables.
const OWN_WORKGROUP_BYTES: usize = 1024;

const ONE: Count = Count::Fixed(1);

/// The dispatches of an op of experts.
///
/// # Panics
/// If it is another op.
pub(super) fn steps(core: &Core, op: &Op) -> Vec<Step> {
    match op {
        Op::Route { scores, chosen, shares } => vec![route(core, *scores, *chosen, *shares)],
        Op::ExpertMatMul { input, chosen, parts } => {
            let of_part = |part| expert_mat_mul(core, *input, *chosen, part);
            parts.iter().flat_map(of_part).collect()
        }
        Op::Mix { x, y, shares } => vec![mix(core, *x, *y, *shares)],
        op => unreachable!("{} is no op of experts", op.name()),
    }
}

/// The matrices of experts as those of another op: each is uploaded by itself.
pub(super) fn as_part(part: &ExpertPart) -> Part {
    Part { weight: part.weight, bias: None, add: false, out: part.out }
}

fn route(core: &Core, scores: Slot, chosen: Slot, shares: Slot) -> Step {
    let from = &core.places[scores.0];
    let choices = Choices::default()
        .set("EXPERTS", core.plan.slots[scores.0].width)
        .set("USED", core.plan.slots[chosen.0].width)
        .set("X_STRIDE", from.stride)
        .set("X_OFFSET", from.offset);
    let buffers = vec![
        named("scores", &from.buffer),
        named("chosen", &core.places[chosen.0].buffer),
        named("shares", &core.places[shares.0].buffer),
    ];
    Step::new(Recipe::new("route", choices), buffers, [ONE, rows_of(core, scores, 1), ONE])
}

fn mix(core: &Core, x: Slot, y: Slot, shares: Slot) -> Step {
    let (width, from) = (core.plan.slots[x.0].width, &core.places[y.0]);
    let choices = with_out(core, Choices::default(), x)
        .set("WIDTH", width)
        .set("USED", core.plan.slots[shares.0].width)
        .set("Y_STRIDE", from.stride)
        .set("Y_OFFSET", from.offset);
    let buffers = vec![
        named("y", &from.buffer),
        named("shares", &core.places[shares.0].buffer),
        named("out", &core.places[x.0].buffer),
    ];
    let grid = [Count::Fixed(width.div_ceil(256)), rows_of(core, x, 1), ONE];
    Step::new(Recipe::new("mix", choices), buffers, grid)
}

/// One dispatch for each piece that the matrices of one part were cut into.
fn expert_mat_mul(core: &Core, input: Slot, chosen: Slot, part: &ExpertPart) -> Vec<Step> {
    let sections = core.weights.matrix(&weights::key(&[as_part(part)]));
    sections.iter().map(|section| piece(core, (input, chosen), part, section)).collect()
}

fn piece(core: &Core, (input, chosen): (Slot, Slot), part: &ExpertPart, section: &Section) -> Step {
    let (from, to) = (&core.places[input.0], &core.places[part.out.0]);
    let (info, rows) = (&core.plan.slots[input.0], core.plan.slots[part.out.0].width);
    let dot = if core.device.mask.packed_dot { "dot_packed" } else { "dot_float" };
    let (reduce, lanes) = reduce(core);
    let mut choices = Choices::default()
        .import("reduce", shared(reduce))
        .import("dot", shared(dot))
        .import("out", shared("out_set"))
        .set("THREADS", THREADS)
        .set("BLOCK_ROWS", BLOCK_ROWS)
        .set("COLS", info.width)
        .set("EXPERT_ROWS", rows)
        .set("SHARING", sharing(&core.plan, input, chosen))
        .set("LANES", lanes)
        .set("OUT_STRIDE", to.stride);
    let mut buffers = vec![
        named("out", &to.buffer),
        named("input", &from.buffer),
        named("chosen", &core.places[chosen.0].buffer),
    ];
    let kernel = match (&from.scales, info.format) {
        (Some(scales), Format::Int8 { group, .. }) => {
            buffers.push(named("input_scales", scales));
            choices = choices.set("ACTIVATION_GROUP", group);
            "expert_mat_vec"
        }
        _ => {
            choices = choices.set("IN_STRIDE", from.stride).set("IN_OFFSET", from.offset);
            "expert_mat_vec_float"
        }
    };
    let pieces = std::slice::from_ref(section);
    section_buffers(pieces, &mut buffers);
    let copies = copies(core, pieces, 4, OWN_WORKGROUP_BYTES);
    let own = section.choices(copies).set("FIRST", section.first - to.offset);
    let sections = vec![own.set("OUT_OFFSET", to.offset)];
    let grid = [Count::Fixed(rows.div_ceil(BLOCK_ROWS)), rows_of(core, part.out, 1), ONE];
    let step = step(Recipe { kernel, choices, sections }, buffers, grid, pieces);
    // Of one row of a batch.
    let used = rows * core.plan.slots[chosen.0].width;
    let bytes = step.bytes * used.min(section.rows) as u64 / section.rows as u64;
    Step { bytes, ..step }
}

/// Choices that share a row of the input.
fn sharing(plan: &Plan, input: Slot, chosen: Slot) -> usize {
    match plan.slots[input.0].extent {
        Extent::Chosen(_) => 1,
        Extent::Tokens | Extent::LogitRows => plan.slots[chosen.0].width,
    }
}
