//! Models of a known shape with random weights, made in memory: for speed, not for sense.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use half::f16;
use rayon::prelude::*;
use serde::Deserialize;

use super::{default_basis, form, record};
use crate::bail;
use crate::error::{At, Error, Result};
use crate::file::planes::PlanesBuilder;
use crate::file::{Metadata, NewTensor, Source, Value, Writer};
use crate::model::arch::{Arch, Dim, Need, Role};
use crate::quant::random::Random;
use crate::transform;
use crate::types::raw::RawType;
use crate::types::{
    self, Basis, Bytes, ColumnPlanes, Kernel, PRIVATE_IDS, Resq, Tensor, TensorType, norm_bytes,
};

/// Rows that are coded; a matrix repeats them.
const ROWS: usize = 256;

/// Integer steps per standard deviation of learned points.
const LEARNED_UNIT: f32 = 35.0;

/// What every random number begins with.
const SEED: u64 = 1;

/// A known shape.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// As on the command line.
    pub name: String,
    architecture: String,
    embed: usize,
    ffn: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_len: usize,
    vocabulary: usize,
    head: bool,
    bias: bool,
    rope_base: f32,
}

#[derive(Deserialize)]
struct Shapes {
    shape: Vec<Shape>,
}

/// Every shape.
pub static SHAPES: LazyLock<Vec<Shape>> = LazyLock::new(|| {
    let text = include_str!("../../models/shapes.toml");
    toml::from_str::<Shapes>(text).expect("the file is tested").shape
});

impl Shape {
    /// The shape of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn by_name(name: &str) -> Result<&'static Shape> {
        SHAPES.iter().find(|shape| shape.name == name).ok_or_else(|| {
            let known: Vec<&str> = SHAPES.iter().map(|shape| shape.name.as_str()).collect();
            Error::new(format!("no shape `{name}`, expected {}", known.join(", ")))
        })
    }

    /// A model of this shape, every matrix of type `kind`, the vocabulary's too; `group` weights
    /// to a norm where the type has them, 64 if nothing is said.
    ///
    /// # Errors
    /// If rows of the shape do not fit the type.
    pub fn make(&self, kind: &'static dyn TensorType, group: Option<usize>) -> Result<Source> {
        let arch = Arch::by_name(&self.architecture)?;
        let mut tiles = HashMap::new();
        let table = table(kind);
        let mut tensors = Vec::new();
        for words in &arch.tensors {
            let is_bias = [Role::AttnQBias, Role::AttnKBias, Role::AttnVBias].contains(&words.role);
            let is_there = words.need == Need::Always
                || (words.role == Role::Head && self.head)
                || (is_bias && self.bias);
            if !is_there {
                continue;
            }
            let layers = if words.name.contains("{layer}") { self.layers } else { 1 };
            for layer in 0..layers {
                let name = words.name.replace("{layer}", &layer.to_string());
                let tensor = match words.shape[..] {
                    [rows, cols] => {
                        let cols = self.dim(cols);
                        if let Entry::Vacant(entry) = tiles.entry(cols) {
                            entry.insert(Tile::new(kind, group, cols).at(&name)?);
                        }
                        matrix(name, kind, (self.dim(rows), cols), &tiles[&cols], &table)
                    }
                    _ => vector(name, self.dim(words.shape[0])),
                };
                tensors.push(tensor);
            }
        }
        Ok(Source::made(format!("{} of {}", self.name, kind.name()), self.metadata(), tensors))
    }

    fn dim(&self, dim: Dim) -> usize {
        match dim {
            Dim::Embed => self.embed,
            Dim::Query => self.heads * self.head_len,
            Dim::KeyValue => self.kv_heads * self.head_len,
            Dim::QueryKeyValue => (self.heads + 2 * self.kv_heads) * self.head_len,
            Dim::HeadLen => self.head_len,
            Dim::Ffn => self.ffn,
            Dim::GateUp => 2 * self.ffn,
            Dim::Experts | Dim::ExpertFfn => unreachable!("no shape in the list has experts"),
            Dim::Vocabulary => self.vocabulary,
            Dim::RopePairs => self.head_len / 2,
        }
    }

    fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::new();
        let arch = &self.architecture;
        metadata.set("general.architecture", Value::String(arch.clone()));
        let numbers = [
            ("context_length", 8192),
            ("embedding_length", self.embed),
            ("feed_forward_length", self.ffn),
            ("block_count", self.layers),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_len),
            ("attention.value_length", self.head_len),
            ("rope.dimension_count", self.head_len),
            ("vocab_size", self.vocabulary),
        ];
        for (key, value) in numbers {
            metadata.set(format!("{arch}.{key}"), Value::U32(value as u32));
        }
        metadata.set(format!("{arch}.rope.freq_base"), Value::F32(self.rope_base));
        metadata.set(format!("{arch}.attention.layer_norm_rms_epsilon"), Value::F32(1e-5));
        metadata
    }
}

/// Gaussian rows whose products with an activation are about as large as it.
fn matrix(
    name: String,
    kind: &'static dyn TensorType,
    (rows, cols): (usize, usize),
    tile: &Tile,
    table: &Bytes,
) -> Tensor {
    let row_bytes = kind.row_bytes(cols).expect("the tile has rows of this length");
    Tensor {
        name,
        kind,
        rows,
        cols,
        first: 0,
        basis: tile.basis,
        group: tile.group,
        codes: repeat(&tile.codes, rows.div_ceil(kind.row_block()) * row_bytes),
        norms: repeat(&tile.norms, rows * norm_bytes(cols, tile.group)),
        table: table.clone(),
        signs: Bytes::from(tile.signs.clone()),
        columns: ColumnPlanes::default(),
    }
}

/// The points of a type; of learned ones, some that could have been.
fn table(kind: &dyn TensorType) -> Bytes {
    let points: Vec<i8> = match types::learned(kind) {
        Some(shape) => {
            let numbers = gaussian(shape.v * shape.points(), LEARNED_UNIT);
            numbers.into_iter().map(|x| x as i8).collect()
        }
        None => kind.table().unwrap_or_default().to_vec(),
    };
    Bytes::from(bytemuck::cast_slice(&points).to_vec())
}

/// Coded rows of one length.
struct Tile {
    basis: Basis,
    group: usize,
    codes: Vec<u8>,
    norms: Vec<u8>,
    signs: Vec<u8>,
}

impl Tile {
    fn new(kind: &'static dyn TensorType, group: Option<usize>, cols: usize) -> Result<Tile> {
        let Some(row_bytes) = kind.row_bytes(cols).filter(|_| kind.can_encode()) else {
            bail!("rows of {cols} values cannot be written as {}", kind.name());
        };
        let has_group = matches!(kind.kernel(), Kernel::Int8 { group: 0, .. });
        let (group, basis) = match (types::resq(kind), has_group) {
            (Some(_), _) => {
                let (basis, group) = Resq::form(cols).expect("a row of such codes");
                (group, basis)
            }
            (None, true) => {
                (group.unwrap_or(1 << cols.trailing_zeros().min(6)), default_basis(cols))
            }
            (None, false) => (0, Basis::Original),
        };
        if has_group
            && (group == 0 || !group.is_multiple_of(types::SUB) || !cols.is_multiple_of(group))
        {
            bail!("expected a group that is a multiple of {} and divides {cols}", types::SUB);
        }
        let mut codes = vec![0; ROWS.div_ceil(kind.row_block()) * row_bytes];
        let mut norms = vec![0; ROWS * norm_bytes(cols, group)];
        let deviation = 1.0 / (cols as f32).sqrt();
        if types::learned(kind).is_some() {
            // Every code has a point.
            let mut random = Random(SEED);
            codes.iter_mut().for_each(|byte| *byte = random.bits() as u8);
            let norm = f16::from_f32(deviation / LEARNED_UNIT).to_le_bytes();
            norms.as_chunks_mut::<2>().0.fill(norm);
        } else {
            kind.encode(&gaussian(ROWS * cols, deviation), cols, group, &mut codes, &mut norms);
        }
        let signs = match basis {
            Basis::Original => Vec::new(),
            basis => bytemuck::cast_slice(&signs(basis, cols)).to_vec(),
        };
        Ok(Tile { basis, group, codes, norms, signs })
    }
}

/// Signs that suit a basis; the last inputs are loud where some are.
fn signs(basis: Basis, cols: usize) -> Vec<i8> {
    let mut signs = transform::signs(SEED, cols);
    if let Basis::Parted { high } = basis {
        let first = cols - high as usize;
        transform::mark(&mut signs, &(0..cols).map(|at| at >= first).collect::<Vec<bool>>());
    }
    signs
}

/// Numbers of a normal distribution, by sums of twelve uniform ones.
fn gaussian(count: usize, deviation: f32) -> Vec<f32> {
    let uniform = |i: u64| {
        let mut z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 24) as f32
    };
    let value = |i: usize| {
        let sum: f32 = (0..12).map(|k| uniform(SEED + 12 * i as u64 + k)).sum();
        (sum - 6.0) * deviation
    };
    (0..count).into_par_iter().map(value).collect()
}

fn repeat(tile: &[u8], len: usize) -> Bytes {
    if tile.is_empty() {
        return Bytes::empty();
    }
    let mut bytes = vec![0; len];
    bytes.par_chunks_mut(tile.len()).for_each(|part| part.copy_from_slice(&tile[..part.len()]));
    Bytes::new(Arc::new(bytes), 0..len)
}

/// Norms and biases: ones would do, but zeros would hide a bias.
fn vector(name: String, len: usize) -> Tensor {
    let values = vec![1.0_f32; len];
    Tensor {
        name,
        kind: types::by_name("F32").expect("plain floats are always there"),
        rows: 1,
        cols: len,
        first: 0,
        basis: Basis::Original,
        group: 0,
        codes: Bytes::from(bytemuck::cast_slice(&values).to_vec()),
        norms: Bytes::empty(),
        table: Bytes::empty(),
        signs: Bytes::empty(),
        columns: ColumnPlanes::default(),
    }
}

/// Writes a model that was made in memory.
///
/// # Errors
/// If the file cannot be written.
pub fn save(source: &Source, target: &Path) -> Result<()> {
    let mut builder = PlanesBuilder::new(form(false));
    let (mut records, mut bytes) = (Vec::new(), Vec::new());
    for tensor in source.tensors() {
        if tensor.kind.id() < PRIVATE_IDS {
            let shape = match tensor.rows {
                1 => vec![tensor.cols as u64],
                rows => vec![tensor.cols as u64, rows as u64],
            };
            records.push(NewTensor::new(&tensor.name, &shape, RawType::of(tensor.kind))?);
            bytes.push(&tensor.codes);
            continue;
        }
        for plane in builder.add_with_table(record(tensor, SEED), &tensor.table)? {
            bytes.push(tensor.plane(plane.role));
            records.push(plane.tensor);
        }
    }
    let mut metadata = source.metadata().clone();
    builder.finish(&mut metadata);
    let mut writer = Writer::create(target, &[], &metadata, records)?;
    for bytes in bytes {
        writer.write(bytes)?;
    }
    writer.finish()
}
