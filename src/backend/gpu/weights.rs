//! Weights on a device: matrices as sections that a shader binds, vectors as floats.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::device::Device;
use super::memory::{Place, weight_buffer};
use super::shader::{Choices, shared};
use super::upload::Uploader;
use crate::bail;
use crate::error::Result;
use crate::plan::{Part, Plan, Transform, Weight};
use crate::types::{INT8_SHADER, Int8Row, Kernel, Rows, SUB, Shader, Tensor};

/// Bytes that shaders may read past the end of a plane.
const PADDING: usize = 64;

/// Weights that `walk_points` scales at once, and rows of a point that it takes.
const RUN: usize = 32;
const POINT_MAX: usize = 8;

/// Rows that are transcoded at a time.
const TRANSCODE_ROWS: usize = 256;

/// Rows of one type that a shader binds together: some rows of a matrix, or several matrices that
/// share an input, one below the other.
pub(super) struct Section {
    pub(super) shader: Shader,
    pub(super) kind_name: &'static str,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Weights per norm.
    group: usize,
    mins: bool,
    /// Rows that share codes.
    pub(super) row_block: usize,
    /// Rows of its first block that are another matrix's.
    skip: usize,
    /// The column of the output buffer that its first row's product goes to.
    pub(super) first: usize,
    /// By name in the shader.
    pub(super) buffers: Vec<(&'static str, wgpu::Buffer)>,
    has_bias: bool,
}

impl Section {
    /// Words of workgroup memory that one copy of the table takes.
    pub(super) fn table_words(&self) -> usize {
        self.shader.table_words
    }

    /// Whether a walk that looks codes up once for all their rows can take it, and how many rows
    /// that are; activations come in groups of so many.
    pub(super) fn rows_at_once(&self, activation_group: usize) -> Option<usize> {
        let is_whole = |group: usize| group >= self.cols || group.is_multiple_of(RUN);
        let fits = (2..=POINT_MAX).contains(&self.row_block) && self.skip == 0;
        let is_apt = fits && is_whole(self.group) && activation_group.is_multiple_of(RUN);
        is_apt.then_some(self.row_block)
    }

    /// What fills this section's part of a kernel.
    pub(super) fn choices(&self, copies: usize) -> Choices {
        let bias = if self.has_bias { "bias_some" } else { "bias_none" };
        let mut choices = Choices::default()
            .import("type", self.shader.text)
            .import("bias", shared(bias))
            .set("COLS", self.cols)
            .set("GROUP", self.group.max(1))
            .set("COPIES", copies)
            .set("HEIGHT", self.rows)
            .set("FIRST_ROW", self.first)
            .set("OUT_OFFSET", self.first);
        for &(name, value) in self.shader.constants {
            choices = choices.set(name, value);
        }
        if self.shader.text == INT8_SHADER.text {
            choices = choices.set("MINS", self.mins);
        }
        if self.skip > 0 {
            choices = choices.set("SKIP", self.skip);
        }
        choices
    }
}

/// Everything that a plan's ops use, by who uses it.
#[derive(Default)]
pub(super) struct Weights {
    matrices: HashMap<Vec<(Weight, Option<Weight>)>, Vec<Section>>,
    vectors: HashMap<Weight, wgpu::Buffer>,
    signs: HashMap<Weight, wgpu::Buffer>,
    /// What no file has: angles by position, matrices of bits.
    made: HashMap<String, wgpu::Buffer>,
    /// Tables of grids, by contents: a file has few.
    tables: HashMap<Vec<u8>, wgpu::Buffer>,
    /// Names of the tensors that are not in the file's form on the device.
    pub(super) transcoded: Vec<String>,
}

impl Weights {
    pub(super) fn matrix(&self, key: &[(Weight, Option<Weight>)]) -> &[Section] {
        &self.matrices[key]
    }

    /// The matrix whose rows are looked up, not multiplied.
    pub(super) fn table(&self, table: Weight) -> &[Section] {
        &self.matrices[&vec![(table, None)]]
    }

    /// Uploads a table whose rows are looked up, unless it is there.
    ///
    /// # Errors
    /// As [`Weights::add_matrix`].
    pub(super) fn add_table(
        &mut self,
        device: &Device,
        up: &mut Uploader,
        plan: &Plan,
        table: Weight,
        places: &[Place],
    ) -> Result<()> {
        let part = Part { weight: table, bias: None, add: false, out: plan.logits };
        self.add_matrix(device, up, plan, &[part], places)
    }

    /// Keeps values that are made for the device.
    ///
    /// # Errors
    /// If the device is lost.
    pub(super) fn add_made(
        &mut self,
        device: &Device,
        up: &mut Uploader,
        name: String,
        bytes: impl FnOnce() -> Vec<u8>,
    ) -> Result<()> {
        if let Entry::Vacant(entry) = self.made.entry(name) {
            let bytes = bytes();
            let to = weight_buffer(device, entry.key(), bytes.len());
            up.copy(&bytes, &to, 0)?;
            entry.insert(to);
        }
        Ok(())
    }

    pub(super) fn made(&self, name: &str) -> &wgpu::Buffer {
        &self.made[name]
    }

    pub(super) fn vector(&self, weight: Weight) -> &wgpu::Buffer {
        &self.vectors[&weight]
    }

    pub(super) fn signs(&self, transform: Transform) -> &wgpu::Buffer {
        &self.signs[&transform.signs]
    }

    /// Uploads the matrices that one op multiplies, unless they are there.
    ///
    /// # Errors
    /// If the device is lost, or a row is larger than a binding may be.
    pub(super) fn add_matrix(
        &mut self,
        device: &Device,
        up: &mut Uploader,
        plan: &Plan,
        parts: &[Part],
        places: &[Place],
    ) -> Result<()> {
        let key = key(parts);
        if self.matrices.contains_key(&key) {
            return Ok(());
        }
        let mut sections = Vec::new();
        for run in runs(plan, parts, places, binding_bytes(device)) {
            let first = places[run[0].out.0].offset;
            let tensors: Vec<&Tensor> = run.iter().map(|p| &plan.weights[p.weight.0]).collect();
            let rows: usize = tensors.iter().map(|tensor| tensor.rows).sum();
            let bias = biases(plan, run);
            // So many that pieces begin on whole words, and with rows that share codes.
            let unit = 4 * tensors[0].kind.row_block();
            let unit_bytes = device_code_bytes(tensors[0], unit);
            // Rows that begin within a block end in one more.
            let more = if tensors[0].skip() > 0 { tensors[0].row_bytes() } else { 0 };
            let most = binding_bytes(device).saturating_sub(more) / unit_bytes * unit;
            if most == 0 {
                let (name, max) = (&tensors[0].name, binding_bytes(device));
                bail!("{name}: expected {unit} rows within {max} bytes on this device");
            }
            let mut start = 0;
            while start < rows {
                let count = most.min(rows - start);
                let mut section = self.section(device, up, &tensors, start, count)?;
                section.first = first + start;
                if !bias.is_empty() {
                    // Sections of a split matrix have their own piece, so that rows count from 0.
                    let piece = weight_buffer(device, "bias", 4 * count);
                    up.copy(bytemuck::cast_slice(&bias[start..start + count]), &piece, 0)?;
                    section.buffers.push(("bias", piece));
                    section.has_bias = true;
                }
                sections.push(section);
                start += count;
            }
        }
        self.matrices.insert(key, sections);
        Ok(())
    }

    /// Uploads a vector of floats, unless it is there.
    ///
    /// # Errors
    /// If the device is lost.
    pub(super) fn add_vector(
        &mut self,
        device: &Device,
        up: &mut Uploader,
        plan: &Plan,
        weight: Weight,
    ) -> Result<()> {
        if let Entry::Vacant(entry) = self.vectors.entry(weight) {
            let values = floats(&plan.weights[weight.0]);
            let to = weight_buffer(device, &plan.weights[weight.0].name, 4 * values.len());
            up.copy(bytemuck::cast_slice(&values), &to, 0)?;
            entry.insert(to);
        }
        Ok(())
    }

    /// Uploads the signs of a transform, unless they are there.
    ///
    /// # Errors
    /// If the device is lost.
    pub(super) fn add_signs(
        &mut self,
        device: &Device,
        up: &mut Uploader,
        plan: &Plan,
        transform: Transform,
    ) -> Result<()> {
        if let Entry::Vacant(entry) = self.signs.entry(transform.signs) {
            let signs = &plan.weights[transform.signs.0].signs;
            let to = weight_buffer(device, "signs", signs.len());
            up.copy(signs, &to, 0)?;
            entry.insert(to);
        }
        Ok(())
    }

    /// Rows `start..start + count` of some tensors of one type, one below the other.
    fn section(
        &mut self,
        device: &Device,
        up: &mut Uploader,
        tensors: &[&Tensor],
        start: usize,
        count: usize,
    ) -> Result<Section> {
        let (kind, cols, group) = (tensors[0].kind, tensors[0].cols, tensors[0].group);
        let mins = matches!(kind.kernel(), Kernel::Int8 { mins: true, .. });
        let skip = tensors[0].skip();
        let section = |shader, (row_block, skip), buffers| Section {
            shader,
            kind_name: kind.name(),
            rows: count,
            cols,
            group,
            mins,
            row_block,
            skip,
            first: 0,
            buffers,
            has_bias: false,
        };
        let chunk = kind.shader().unwrap_or(INT8_SHADER).chunk.max(1);
        if !cols.is_multiple_of(chunk) {
            let name = &tensors[0].name;
            bail!("{name}: expected rows of a multiple of {chunk} on a GPU, found {cols}");
        }
        let Some(shader) = kind.shader() else {
            self.transcoded.extend(tensors.iter().map(|tensor| tensor.name.clone()));
            let buffers = transcode(device, up, tensors, start, count, mins)?;
            return Ok(section(INT8_SHADER, (1, 0), buffers));
        };
        let mut buffers = Vec::new();
        let planes: [(&'static str, usize, usize, usize); 2] = [
            ("codes", tensors[0].row_bytes(), kind.row_block(), skip),
            ("norms", crate::types::norm_bytes(cols, group), 1, 0),
        ];
        for (name, row_bytes, block, skip) in planes.into_iter().filter(|plane| plane.1 > 0) {
            let len = (skip + count).div_ceil(block) * row_bytes;
            let to = weight_buffer(device, &tensors[0].name, len + PADDING);
            let bytes = if name == "codes" { codes_of } else { norms_of };
            copy_rows(up, tensors, (start, count), (row_bytes, block), bytes, &to)?;
            buffers.push((name, to));
        }
        if !tensors[0].table.is_empty() {
            let bytes = kind.shader_table(&tensors[0].table);
            let to = match self.tables.get(&bytes) {
                Some(to) => to.clone(),
                None => {
                    let to = weight_buffer(device, "table", bytes.len());
                    up.copy(&bytes, &to, 0)?;
                    self.tables.insert(bytes, to.clone());
                    to
                }
            };
            buffers.push(("table", to));
        }
        Ok(section(shader, (kind.row_block(), skip), buffers))
    }
}

/// The biases of some parts, one after the other; none if they have none.
fn biases(plan: &Plan, run: &[Part]) -> Vec<f32> {
    run.iter().filter_map(|part| part.bias).flat_map(|bias| floats(&plan.weights[bias.0])).collect()
}

/// What a matrix is known by.
pub(super) fn key(parts: &[Part]) -> Vec<(Weight, Option<Weight>)> {
    parts.iter().map(|part| (part.weight, part.bias)).collect()
}

/// Bytes of a binding at most, with room for what shaders may read past the end.
fn binding_bytes(device: &Device) -> usize {
    let max = device.limits.max_storage_buffer_binding_size.min(device.limits.max_buffer_size);
    usize::try_from(max).unwrap_or(usize::MAX) - PADDING
}

/// Whether neither a shader reads a matrix as it is, nor can it be unpacked to small integers.
pub(super) fn has_no_form(tensor: &Tensor) -> bool {
    tensor.kind.shader().is_none() && tensor.kind.kernel() == Kernel::Float
}

/// Bytes of the codes of some rows on the device.
pub(super) fn device_code_bytes(tensor: &Tensor, rows: usize) -> usize {
    match tensor.kind.shader() {
        Some(_) => rows.div_ceil(tensor.kind.row_block()) * tensor.row_bytes(),
        None => rows * tensor.cols,
    }
}

/// Bytes of a weight on the device, all planes.
pub(super) fn device_bytes(tensor: &Tensor) -> usize {
    match tensor.kind.shader() {
        Some(_) => tensor.bytes(),
        // Half precision, or a format like it.
        None if has_no_form(tensor) => 2 * tensor.len(),
        None => tensor.len() + 2 * 4 * tensor.len() / SUB,
    }
}

/// Parts next to each other that can be one section: one type, one group, biases or none, outputs
/// side by side.
fn runs<'a>(plan: &Plan, parts: &'a [Part], places: &[Place], bytes_max: usize) -> Vec<&'a [Part]> {
    let mut runs = Vec::new();
    let mut start = 0;
    let mut bytes = 0;
    for end in 1..=parts.len() {
        let last = &plan.weights[parts[end - 1].weight.0];
        bytes += device_code_bytes(last, last.rows);
        let goes_on = parts.get(end).is_some_and(|next| {
            let tensor = &plan.weights[next.weight.0];
            tensor.kind.id() == last.kind.id()
                && tensor.group == last.group
                && *tensor.table == *last.table
                && next.bias.is_some() == parts[end - 1].bias.is_some()
                && places[next.out.0].offset == places[parts[end - 1].out.0].offset + last.rows
                && bytes.is_multiple_of(4)
                && (last.rows * crate::types::norm_bytes(last.cols, last.group)).is_multiple_of(4)
                && last.rows.is_multiple_of(last.kind.row_block())
                && (last.skip(), tensor.skip()) == (0, 0)
                && bytes + device_code_bytes(tensor, tensor.rows) <= bytes_max
        });
        if !goes_on {
            runs.push(&parts[start..end]);
            (start, bytes) = (end, 0);
        }
    }
    runs
}

fn codes_of<'a>(rows: Rows<'a>) -> &'a [u8] {
    rows.codes
}

fn norms_of<'a>(rows: Rows<'a>) -> &'a [u8] {
    rows.norms
}

fn copy_rows<'a>(
    up: &mut Uploader,
    tensors: &[&'a Tensor],
    (start, count): (usize, usize),
    (row_bytes, block): (usize, usize),
    bytes: fn(Rows<'a>) -> &'a [u8],
    to: &wgpu::Buffer,
) -> Result<()> {
    let mut first = 0;
    for tensor in tensors {
        let from = start.max(first);
        let end = (start + count).min(first + tensor.rows);
        if from < end {
            let rows = tensor.rows(from - first..end - first);
            up.copy(bytes(rows), to, (from - start) / block * row_bytes)?;
        }
        first += tensor.rows;
    }
    Ok(())
}

/// Rows as small integers, for types without a shader of their own: the same numbers, larger.
fn transcode(
    device: &Device,
    up: &mut Uploader,
    tensors: &[&Tensor],
    start: usize,
    count: usize,
    mins: bool,
) -> Result<Vec<(&'static str, wgpu::Buffer)>> {
    let cols = tensors[0].cols;
    let subs = cols / SUB;
    let codes = weight_buffer(device, &tensors[0].name, count * cols + PADDING);
    let scales = weight_buffer(device, "scales", 4 * count * subs + PADDING);
    let lows = weight_buffer(device, "lows", 4 * if mins { count * subs } else { 0 } + PADDING);
    if !mins {
        // A shader has the binding all the same, and every buffer is written once.
        up.copy(&[0; 16], &lows, 0)?;
    }
    let mut first = 0;
    for tensor in tensors {
        let end = (start + count).min(first + tensor.rows);
        let mut row = start.max(first);
        while row < end {
            let piece = TRANSCODE_ROWS.min(end - row);
            let mut values = vec![0_i8; piece * cols];
            let (mut piece_scales, mut piece_lows) =
                (vec![0.0_f32; piece * subs], vec![0.0_f32; piece * subs]);
            for i in 0..piece {
                let mut out = Int8Row {
                    values: &mut values[i * cols..(i + 1) * cols],
                    scales: &mut piece_scales[i * subs..(i + 1) * subs],
                    mins: &mut piece_lows[i * subs..(i + 1) * subs],
                };
                let at = row + i - first;
                tensor.kind.unpack(&tensor.rows(at..at + 1), &mut out);
            }
            let at = row - start;
            up.copy(bytemuck::cast_slice(&values), &codes, at * cols)?;
            up.copy(bytemuck::cast_slice(&piece_scales), &scales, 4 * at * subs)?;
            if mins {
                up.copy(bytemuck::cast_slice(&piece_lows), &lows, 4 * at * subs)?;
            }
            row += piece;
        }
        first += tensor.rows;
    }
    Ok(vec![("codes", codes), ("scales", scales), ("lows", lows)])
}

/// A vector as floats.
pub(super) fn floats(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.len()];
    tensor.kind.decode(&tensor.rows(0..tensor.rows), &mut values);
    values
}
