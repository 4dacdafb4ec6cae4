//! Matrices times the rows of a batch: sections, variants, grids.

use super::Core;
use super::lower::{Count, Form, Grid, Step, named, rows_of};
use super::shader::{Choices, Recipe, shared};
use super::tune::Variant;
use super::weights::{self, Section};
use crate::plan::{Extent, Format, Part, Slot};

/// Rows and columns of a tile of `mat_mat`, and of `mat_mat_float`.
const TILE: (usize, usize) = (128, 64);
const F16_TILE: (usize, usize) = (128, 128);

/// Values of a row that `mat_mat_f16` takes at a time.
const F16_STEP: usize = 64;

const FLOAT_TILE: (usize, usize) = (64, 64);

/// Rows of weights that a team takes at once where there are several columns.
const ROWS_OF_COLUMNS: usize = 2;

/// Bindings that are not a section's.
const OWN_BINDINGS: usize = 4;

/// Bindings of a section at most.
const SECTION_BINDINGS: usize = 4;

/// Bytes of workgroup memory that kernels use beside tables.
const OWN_WORKGROUP_BYTES: usize = 1024;
const TILE_WORKGROUP_BYTES: usize = 13 << 10;
const F16_WORKGROUP_BYTES: usize = 44 << 10;

pub(super) fn steps(core: &Core, input: Slot, parts: &[Part], form: Form) -> Vec<Step> {
    steps_with(core, input, parts, form, None)
}

/// As [`steps`], in a variant that is being measured.
pub(super) fn steps_with(
    core: &Core,
    input: Slot,
    parts: &[Part],
    form: Form,
    wish: Option<Variant>,
) -> Vec<Step> {
    let sections = core.weights.matrix(&weights::key(parts));
    let bindings = core.device.limits.max_storage_buffers_per_shader_stage as usize;
    let most = (bindings.saturating_sub(OWN_BINDINGS) / SECTION_BINDINGS).max(1);
    let has_halves = form == Form::Many && has_halves(core, input);
    let step = |sections: &[Section]| match form {
        Form::Few { columns, .. } => {
            // What is measured is one column; several keep more sums than large workgroups have
            // registers for.
            let known = || if columns == 1 { variant(core, sections) } else { Variant::DEFAULT };
            let variant = wish.unwrap_or_else(known);
            vec_step(core, input, parts, sections, columns, variant)
        }
        Form::Many | Form::Nothing => mat_step(core, input, parts, sections, has_halves),
    };
    let halves = has_halves.then(|| halves_step(core, input));
    halves.into_iter().chain(sections.chunks(most).map(step)).collect()
}

/// Whether matrices of this input run on units for half-precision tiles.
fn has_halves(core: &Core, input: Slot) -> bool {
    let info = &core.plan.slots[input.0];
    let is_int8 = matches!(info.format, Format::Int8 { .. });
    core.device.mask.matrix && is_int8 && info.width.is_multiple_of(F16_STEP)
}

/// Int8 activations to halves.
fn halves_step(core: &Core, input: Slot) -> Step {
    let (from, info) = (&core.places[input.0], &core.plan.slots[input.0]);
    let Format::Int8 { group, .. } = info.format else { unreachable!("floats have no halves") };
    let choices = Choices::default().set("COLS", info.width).set("ACTIVATION_GROUP", group);
    let buffers = vec![
        named("input", &from.buffer),
        named("input_scales", from.scales.as_ref().expect("int8 slots have scales")),
        named("to", &core.work.halves),
        named("peaks", &core.work.peaks),
    ];
    let grid = [Count::Fixed(1), rows_of(core, input, 1), Count::Fixed(1)];
    Step::new(Recipe::new("halves", choices), buffers, grid)
}

/// What a matrix is tuned under.
pub(super) fn tuning_key(core: &Core, sections: &[Section]) -> String {
    let kinds: Vec<String> = sections
        .iter()
        .map(|section| format!("{}x{}x{}", section.kind_name, section.rows, section.cols))
        .collect();
    let dot = if core.device.mask.packed_dot { "packed" } else { "float" };
    format!("{} {dot}", kinds.join(" "))
}

fn variant(core: &Core, sections: &[Section]) -> Variant {
    let known = core.tuning.0.get(&tuning_key(core, sections));
    let threads_max = core.device.limits.max_compute_invocations_per_workgroup as usize;
    let fits = |variant: &&Variant| variant.threads <= threads_max;
    known.filter(fits).copied().unwrap_or(Variant::DEFAULT)
}

/// The buffers of sections, by the names that they have in the shader.
pub(super) fn section_buffers(sections: &[Section], buffers: &mut Vec<(String, wgpu::Buffer)>) {
    for (number, section) in sections.iter().enumerate() {
        let name = |(name, buffer): &(&'static str, wgpu::Buffer)| {
            (format!("{name}_{number}"), buffer.clone())
        };
        buffers.extend(section.buffers.iter().map(name));
    }
}

/// Copies of tables that fit beside what the kernel uses itself.
pub(super) fn copies(core: &Core, sections: &[Section], wish: usize, own_bytes: usize) -> usize {
    let words: usize = sections.iter().map(Section::table_words).sum();
    let limit = core.device.limits.max_compute_workgroup_storage_size as usize;
    let mut copies = wish.max(1);
    while copies > 1 && 4 * words * copies + own_bytes > limit {
        copies /= 2;
    }
    copies
}

/// What all kernels of matrices share: where the input lies and where the products go.
fn common(
    core: &Core,
    input: Slot,
    parts: &[Part],
) -> (Choices, Vec<(String, wgpu::Buffer)>, bool) {
    let (from, to) = (&core.places[input.0], &core.places[parts[0].out.0]);
    let info = &core.plan.slots[input.0];
    let extent = match info.extent {
        Extent::Tokens => "extent_tokens",
        Extent::LogitRows => "extent_logit_rows",
        Extent::Chosen(_) => unreachable!("experts have kernels of their own"),
    };
    let dot = if core.device.mask.packed_dot { "dot_packed" } else { "dot_float" };
    let choices = Choices::default()
        .import("out", shared(if parts[0].add { "out_add" } else { "out_set" }))
        .import("extent", shared(extent))
        .import("dot", shared(dot))
        .set("COLS", info.width)
        .set("OUT_STRIDE", to.stride);
    let mut buffers = vec![named("out", &to.buffer), named("input", &from.buffer)];
    match (&from.scales, info.format) {
        (Some(scales), Format::Int8 { group, .. }) => {
            buffers.push(named("input_scales", scales));
            (choices.set("ACTIVATION_GROUP", group), buffers, false)
        }
        _ => {
            let choices = choices.set("IN_STRIDE", from.stride).set("IN_OFFSET", from.offset);
            (choices, buffers, true)
        }
    }
}

pub(super) fn step(
    recipe: Recipe,
    buffers: Vec<(String, wgpu::Buffer)>,
    grid: Grid,
    sections: &[Section],
) -> Step {
    let rows: usize = sections.iter().map(|section| section.rows).sum();
    let (kind, cols) = (sections[0].kind_name, sections[0].cols);
    let planes = sections.iter().flat_map(|section| &section.buffers);
    let bytes = planes.filter(|(name, _)| *name != "table").map(|(_, buffer)| buffer.size()).sum();
    Step { recipe, buffers, grid, what: format!("{kind} {rows}x{cols}"), bytes }
}

/// How a team adds up, and its lanes: at most, where that is known at run time only.
pub(super) fn reduce(core: &Core) -> (&'static str, usize) {
    let info = &core.device.info;
    let (least, most) = (info.subgroup_min_size as usize, info.subgroup_max_size as usize);
    match core.device.mask.subgroups {
        true if least == most && most > 0 => ("reduce_subgroup_fixed", most),
        true => ("reduce_subgroup", most.max(4)),
        false => ("reduce_shared", 16),
    }
}

/// Few rows of activations: a team takes rows of weights.
pub(super) fn vec_step(
    core: &Core,
    input: Slot,
    parts: &[Part],
    sections: &[Section],
    columns: usize,
    variant: Variant,
) -> Step {
    let (choices, mut buffers, is_float) = common(core, input, parts);
    let rows = if columns == 1 { variant.rows } else { ROWS_OF_COLUMNS };
    let (reduce, lanes) = reduce(core);
    let activation_group = match core.plan.slots[input.0].format {
        Format::Int8 { group, .. } => group,
        Format::F32 | Format::U32 => 0,
    };
    let at_once = |section: &Section| section.rows_at_once(activation_group);
    let mut block_rows = (variant.threads / lanes).max(1) * rows * variant.rounds;
    let blocks = |section: &Section, block_rows: usize| match at_once(section) {
        Some(at_once) => section.rows.div_ceil(at_once * (block_rows / rows)),
        None => section.rows.div_ceil(block_rows),
    };
    let all = |block_rows| -> usize { sections.iter().map(|s| blocks(s, block_rows)).sum() };
    // A grid has an end: a large vocabulary takes more rows to a workgroup.
    while all(block_rows) > core.device.limits.max_compute_workgroups_per_dimension as usize {
        block_rows *= 2;
    }
    let choices = choices
        .import("reduce", shared(reduce))
        .set("THREADS", variant.threads)
        .set("LANES", lanes)
        .set("COLUMNS", columns)
        .set("ROWS", rows)
        .set("BLOCK_ROWS", block_rows);
    let copies = copies(core, sections, variant.copies, OWN_WORKGROUP_BYTES);
    section_buffers(sections, &mut buffers);
    let of = |section: &Section| {
        let walk = if at_once(section).is_some() { "walk_points" } else { "walk_rows" };
        let choices = section.choices(copies).import("walk", shared(walk));
        choices.set("BLOCKS", blocks(section, block_rows))
    };
    let recipe = Recipe {
        kernel: if is_float { "mat_vec_float" } else { "mat_vec" },
        choices,
        sections: sections.iter().map(of).collect(),
    };
    let grid = [Count::Fixed(all(block_rows)), Count::Fixed(1), Count::Fixed(1)];
    step(recipe, buffers, grid, sections)
}

/// Many rows of activations: tiles.
fn mat_step(
    core: &Core,
    input: Slot,
    parts: &[Part],
    sections: &[Section],
    has_halves: bool,
) -> Step {
    let (choices, mut buffers, is_float) = common(core, input, parts);
    if has_halves {
        buffers.push(named("activations", &core.work.halves));
        buffers.push(named("peaks", &core.work.peaks));
    }
    let (kernel, tile, own_bytes) = match is_float {
        true => ("mat_mat_float", FLOAT_TILE, 0),
        false if has_halves => ("mat_mat_f16", F16_TILE, F16_WORKGROUP_BYTES),
        false => ("mat_mat", TILE, TILE_WORKGROUP_BYTES),
    };
    let copies = copies(core, sections, 4, own_bytes);
    let blocks = |section: &Section| section.rows.div_ceil(tile.0);
    section_buffers(sections, &mut buffers);
    let recipe = Recipe {
        kernel,
        choices,
        sections: sections.iter().map(|s| s.choices(copies).set("BLOCKS", blocks(s))).collect(),
    };
    let grid = [
        Count::Fixed(sections.iter().map(blocks).sum()),
        rows_of(core, input, tile.1),
        Count::Fixed(1),
    ];
    step(recipe, buffers, grid, sections)
}
