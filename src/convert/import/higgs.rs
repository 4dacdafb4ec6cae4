//! Weights that `transformers` has quantised with HIGGS: the codes as they are, the grid and the
//! scales as our planes have them.
//!
//! A module has `weight` (codes, packed for FLUTE), `scales`, `tables` and `tables2` (the grid).
//! The grid becomes integers, `unit` steps to 1, and the scales are divided by `unit`.

use half::{bf16, f16};
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::folder::Folder;
use super::tensors::Order;
use crate::bail;
use crate::error::{At, Error, Result};
use crate::file::safetensors::Entry;
use crate::limits;
use crate::quant::flute::{self, Packing};
use crate::types::{Basis, Bytes, ColumnPlanes, HIGGS, Higgs, SUB, Tensor, TensorType};

/// What `transformers` takes where the configuration says nothing.
const DEFAULTS: [(&str, u64); 4] =
    [("bits", 4), ("p", 2), ("hadamard_size", 512), ("group_size", 256)];

/// How much a value of the grid may differ, relatively: half precision and bfloat16 keep 8 bits.
const GRID_TOLERANCE: f32 = 1.0 / 256.0;

/// `quantization_config`, checked.
pub(super) struct Checkpoint {
    kind: &'static Higgs,
    /// Bits of a value; a point has twice as many where it is two values.
    bits: usize,
    hadamard: usize,
    /// Values for which a scale is stored.
    group: usize,
    /// For each module, the kernel that its codes were packed for; nothing in older files.
    kernels: Map<String, Value>,
}

impl Checkpoint {
    pub(super) fn new(config: &Value) -> Result<Checkpoint> {
        let mut numbers = [0; DEFAULTS.len()];
        for (number, (name, default)) in numbers.iter_mut().zip(DEFAULTS) {
            let value = config.get(name).filter(|value| !value.is_null());
            let found = value.map_or(Some(default), Value::as_u64);
            let max = limits::WIDTH_MAX;
            *number = match found.filter(|found| (1..=max).contains(found)) {
                Some(found) => found as usize,
                None => bail!("{name}: expected 1 to {max}, found {}", config[name]),
            };
        }
        let [bits, p, hadamard, group] = numbers;
        let kind = HIGGS.iter().find(|kind| {
            (kind.values_per_code(), kind.bits()) == (p, p * bits)
                && flute::published_grid(p, bits).is_some()
        });
        let Some(&kind) = kind else {
            bail!(
                "a grid of p {p} and {bits} bits is not supported, expected p 2 and 2, 3 or 4 \
                 bits, or p 1 and 4 bits"
            );
        };
        if !hadamard.is_power_of_two() || !hadamard.is_multiple_of(kind.block().len) {
            let len = kind.block().len;
            bail!("hadamard_size: expected a power of two from {len} up, found {hadamard}");
        }
        if !hadamard.is_multiple_of(group) || !group.is_multiple_of(SUB) {
            bail!(
                "group_size: expected a multiple of {SUB} that divides {hadamard}, found {group}"
            );
        }
        let kernels = config.get("tune_metadata").and_then(Value::as_object).cloned();
        Ok(Checkpoint { kind, bits, hadamard, group, kernels: kernels.unwrap_or_default() })
    }

    /// The tensors that a module may have, besides its bias.
    pub(super) fn parts(module: &str) -> [String; 5] {
        ["weight", "scales", "tables", "tables2", "num_sms_packed"]
            .map(|part| format!("{module}.{part}"))
    }

    /// The weight of a module.
    pub(super) fn tensor(
        &self,
        folder: &Folder,
        module: &str,
        name: String,
        shape: &[u64],
        order: Order,
    ) -> Result<Tensor> {
        let [weight, scales, tables, tables2, _] = Checkpoint::parts(module);
        let &[rows, cols] = shape else { bail!("tensor `{weight}`: expected a vector of floats") };
        let (rows, cols) = (rows as usize, cols as usize);
        let packing = self.packing(folder, module).at(format_args!("module `{module}`"))?;
        let (entry, words) = folder.require(&weight)?;
        self.check(packing, entry, rows, cols).at(format_args!("tensor `{weight}`"))?;

        let (entry, bytes) = folder.require(&scales)?;
        let place = format_args!("tensor `{scales}`");
        expect(entry, &["F16", "BF16"], &[rows, cols / self.group]).at(place)?;
        let half = Half::of(&entry.dtype);
        let values = half.read(&bytes);

        let grid = if self.kind.values_per_code() == 1 { tables } else { tables2 };
        let (entry, bytes) = folder.require(&grid)?;
        let grid = self.grid(entry, &half.read(&bytes)).at(format_args!("tensor `{grid}`"))?;
        let (table, unit) = flute::integer_grid(&grid);

        let (group, norms) = self.norms(&values, unit, rows, order).at(place)?;
        Ok(Tensor {
            name,
            kind: self.kind,
            rows,
            cols,
            first: 0,
            basis: Basis::Hadamard { block: self.hadamard as u32 },
            group,
            codes: self.codes(packing, words, rows, cols, order),
            norms: Bytes::from(norms),
            table: Bytes::from(bytemuck::cast_slice(&table).to_vec()),
            signs: Bytes::from(vec![1; cols]),
            columns: ColumnPlanes::default(),
        })
    }

    fn packing(&self, folder: &Folder, module: &str) -> Result<Packing> {
        let Some(kernel) = self.kernels.get(module) else {
            if folder.get(&format!("{module}.num_sms_packed")).is_none() {
                bail!("neither `tune_metadata` nor `num_sms_packed` says how it is packed");
            }
            return Ok(Packing::new(self.bits, flute::OLD_TILE).expect("every width has it"));
        };
        let bits = kernel.get("num_bits").and_then(Value::as_u64);
        if let Some(found) = bits.filter(|&found| found != self.bits as u64) {
            bail!("`tune_metadata`: num_bits {found}, expected {}", self.bits);
        }
        let template = kernel.get("template_id").unwrap_or(&Value::Null);
        let packing = template.as_u64().and_then(|id| Packing::of_template(self.bits, id));
        packing.ok_or_else(|| {
            let bits = self.bits;
            Error::new(format!(
                "`tune_metadata`: no kernel of {bits} bits has template_id {template}"
            ))
        })
    }

    /// Whether the words are those of `rows` outputs and `cols` inputs.
    fn check(&self, packing: Packing, entry: &Entry, rows: usize, cols: usize) -> Result<()> {
        let padded = cols.next_multiple_of(self.hadamard);
        if padded != cols {
            bail!(
                "rows of {cols} values are padded to {padded}, which is not supported: expected a \
                 multiple of {}",
                self.hadamard
            );
        }
        if !rows.is_multiple_of(packing.outputs()) {
            bail!("expected a multiple of {} outputs, found {rows}", packing.outputs());
        }
        expect(entry, &["I16"], &[packing.word_rows(rows), cols])
    }

    /// The points, once they are known to be those that were published.
    fn grid(&self, entry: &Entry, found: &[f32]) -> Result<Vec<f32>> {
        let (p, side) = (self.kind.values_per_code(), 1 << self.bits);
        // Bits of a grid of bfloat16 are stored under the name of half precision.
        let shape = if p == 1 { vec![side] } else { vec![side, side, p] };
        expect(entry, &["F16", "BF16"], &shape)?;
        let published = flute::published_grid(p, self.bits).expect("the constructor has seen it");
        let mut pairs = found.iter().zip(&published).enumerate();
        let differs = |found: &f32, expected: &f32| {
            let difference = (found - expected).abs();
            found.is_nan() || difference > GRID_TOLERANCE * expected.abs()
        };
        if let Some((at, (found, expected))) = pairs.find(|(_, (f, e))| differs(f, e)) {
            bail!("value {at} is {found}, but the published grid has {expected}");
        }
        Ok(found.to_vec())
    }

    /// For how many values each scale is, and the scales in our order: those of one block of the
    /// transform are equal in what `transformers` writes, and then one is enough.
    fn norms(
        &self,
        scales: &[f32],
        unit: f32,
        rows: usize,
        order: Order,
    ) -> Result<(usize, Vec<u8>)> {
        if let Some(at) = scales.iter().position(|scale| !scale.is_finite()) {
            bail!("expected finite numbers, found {} at {at}", scales[at]);
        }
        let repeats = self.hadamard / self.group;
        let are_equal = |block: &[f32]| block.iter().all(|scale| *scale == block[0]);
        let repeats = if scales.chunks(repeats).all(are_equal) { repeats } else { 1 };
        let row_len = scales.len() / rows;
        let row = |row| &scales[order.source(row) * row_len..][..row_len];
        let norms = (0..rows).flat_map(|at| row(at).iter().step_by(repeats));
        // Half precision ends at 65504.
        let norms = norms.map(|scale| f16::from_f32(scale / unit).clamp(f16::MIN, f16::MAX));
        Ok((self.group * repeats, norms.flat_map(f16::to_le_bytes).collect()))
    }

    /// The code plane, made when it is read.
    fn codes(
        &self,
        packing: Packing,
        words: Bytes,
        rows: usize,
        cols: usize,
        order: Order,
    ) -> Bytes {
        let (kind, bits) = (self.kind, self.bits);
        let row_bytes = kind.row_bytes(cols).expect("a transform is whole blocks");
        Bytes::made(rows * row_bytes, move || {
            let mut bytes = vec![0; rows * row_bytes];
            bytes.par_chunks_mut(row_bytes).enumerate().for_each(|(row, bytes)| {
                let mut codes = vec![0; cols];
                packing.unpack(&words, rows, order.source(row), &mut codes);
                let codes: Vec<u16> = match kind.values_per_code() {
                    // The first value's bits are the upper ones.
                    2 => {
                        codes.as_chunks().0.iter().map(|[a, b]| u16::from(a << bits | b)).collect()
                    }
                    _ => codes.into_iter().map(u16::from).collect(),
                };
                kind.pack(&codes, bytes);
            });
            bytes
        })
    }
}

fn expect(entry: &Entry, dtypes: &[&str], shape: &[usize]) -> Result<()> {
    let dtype = entry.dtype.as_str();
    if !dtypes.contains(&dtype) {
        bail!("expected type {}, found {dtype}", dtypes.join(" or "));
    }
    if !entry.shape.iter().copied().eq(shape.iter().map(|&size| size as u64)) {
        bail!("expected shape {shape:?}, found {:?}", entry.shape);
    }
    Ok(())
}

/// The sixteen bits of a model's floats.
#[derive(Clone, Copy)]
enum Half {
    F16,
    Bf16,
}

impl Half {
    fn of(dtype: &str) -> Half {
        if dtype == "BF16" { Half::Bf16 } else { Half::F16 }
    }

    fn read(self, bytes: &[u8]) -> Vec<f32> {
        let values = bytes.as_chunks::<2>().0.iter();
        match self {
            Half::F16 => values.map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
            Half::Bf16 => values.map(|&bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
        }
    }
}
