//! Weights of VPTQ checkpoints: every code as it is, in the model's own order of columns.
//!
//! A module has `indices`, packed or not, `centroids.weight` and, where its configuration says so,
//! `res_centroids.weight`, `res_indices`, `outlier_centroids.weight`, `outlier_indices`, `perm`,
//! `weight_scale` and `weight_bias`. Columns are stored outliers first, then group by group, and
//! `perm` says which column of the model each one is.

use half::{bf16, f16};
use serde_json::Value;

use crate::bail;
use crate::error::{At, Result};
use crate::file::safetensors::Entry;
use crate::limits;
use crate::types::{
    Basis, Bytes, ColumnPlanes, Entries, OUTLIER, Outliers, Shape, Tensor, TensorType, Vptq,
    of_shape,
};

/// Finds a tensor of a module by what follows the module's name.
pub type Get<'a> = &'a dyn Fn(&str) -> Option<(Entry, Bytes)>;

/// Names of the tensors that a module may have, besides its bias.
pub(super) const PARTS: [&str; 9] = [
    "indices",
    "res_indices",
    "centroids.weight",
    "res_centroids.weight",
    "outlier_indices",
    "outlier_centroids.weight",
    "perm",
    "weight_scale",
    "weight_bias",
];

/// Outliers of a weight, as far as the format's names go.
const OUTLIERS_MAX: u64 = 65535;

/// `quantization_config`.
pub(super) struct Checkpoint(Value);

impl Checkpoint {
    pub(super) fn new(config: &Value) -> Checkpoint {
        Checkpoint(config.clone())
    }

    /// What the configuration says of a module, if it is quantised.
    pub(super) fn layer(&self, module: &str) -> Option<&Value> {
        let last = module.rsplit('.').next().unwrap_or(module);
        let in_table = |table: &str, name: &str| self.0.get(table)?.get(name);
        in_table("config_for_layers", module).or_else(|| in_table("shared_layer_config", last))
    }
}

/// The configuration of a module, checked.
struct Layer {
    rows: usize,
    cols: usize,
    /// `entries` and `has_norm` are not known yet.
    shape: Shape,
    /// ColumnPlanes of a group.
    group_len: usize,
    has_perm: bool,
    is_packed: bool,
}

fn integer(name: &str, value: &Value, least: i64, most: u64) -> Result<i64> {
    let fits = |&found: &i64| found >= least && found <= most as i64;
    match value.as_i64().filter(fits) {
        Some(found) => Ok(found),
        None => bail!("{name}: expected {least} to {most}, found {value}"),
    }
}

/// A number of outliers, and one of the other columns.
fn pair(config: &Value, name: &str, most: u64) -> Result<[i64; 2]> {
    let values = config.get(name).and_then(Value::as_array);
    match values.map(Vec::as_slice) {
        Some([a, b]) => Ok([integer(name, a, -1, most)?, integer(name, b, -1, most)?]),
        _ => bail!("{name}: expected two numbers, found {}", config[name]),
    }
}

fn flag(config: &Value, name: &str) -> Result<bool> {
    match config.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(found) => bail!("{name}: expected true or false, found {found}"),
    }
}

/// Fails if norms are not those of columns, or vectors do not run along outputs.
fn check_directions(config: &Value) -> Result<()> {
    for (name, expected) in [("norm_dim", Value::from(0)), ("vector_quant_dim", "out".into())] {
        match config.get(name) {
            Some(found) if !found.is_null() && *found != expected => {
                bail!("{name}: expected {expected}, found {found}")
            }
            _ => {}
        }
    }
    Ok(())
}

impl Layer {
    fn new(config: &Value) -> Result<Layer> {
        let number = |name: &str, least: i64, most: u64| {
            integer(name, config.get(name).unwrap_or(&Value::Null), least, most)
        };
        let rows = number("out_features", 1, limits::WIDTH_MAX)? as usize;
        let cols = number("in_features", 1, limits::WIDTH_MAX)? as usize;
        let [outlier_v, v] = pair(config, "vector_lens", 16)?;
        let [outlier_points, points] = pair(config, "num_centroids", 1 << 16)?;
        let [outlier_residual, residual] = pair(config, "num_res_centroids", 1 << 16)?;
        let tables = number("group_num", 1, 16)? as usize;
        let group_len = number("group_size", 1, limits::WIDTH_MAX)? as usize;
        let count = match config.get("outlier_size") {
            None | Some(Value::Null) => 0,
            Some(_) => number("outlier_size", 0, OUTLIERS_MAX.min(cols as u64))? as usize,
        };
        if count + tables * group_len != cols {
            bail!(
                "{count} outliers and {tables} groups of {group_len} columns, expected {cols} \
                 in all"
            );
        }
        if outlier_residual > 0 {
            bail!("num_res_centroids: expected no residual of outliers, found {outlier_residual}");
        }
        check_directions(config)?;
        let outliers = match count {
            0 => None,
            _ if outlier_v < 1 => {
                bail!("vector_lens: expected 1 to 16 for outliers, found {outlier_v}")
            }
            count => Some(Outliers {
                count,
                v: outlier_v as usize,
                bits: bits("num_centroids", outlier_points)?,
            }),
        };
        let shape = Shape {
            bits: bits("num_centroids", points)?,
            residual_bits: if residual > 0 { bits("num_res_centroids", residual)? } else { 0 },
            entries: Entries::F16,
            tables,
            outliers,
            has_norm: flag(config, "enable_norm")?,
            ..Shape::int8(v.max(0) as usize, 1, 0)
        };
        if of_shape(shape).is_none() {
            bail!("vector_lens: expected 2 to 16, found {}", config["vector_lens"]);
        }
        let (has_perm, is_packed) =
            (flag(config, "enable_perm")?, flag(config, "is_indice_packed")?);
        Ok(Layer { rows, cols, shape, group_len, has_perm, is_packed })
    }

    /// Fails if there is a tensor that the configuration has no use for.
    fn refuse_others(&self, get: Get) -> Result<()> {
        let Shape { residual_bits, outliers, has_norm, .. } = self.shape;
        let has_residual = residual_bits > 0;
        for (part, is_used) in [
            ("weight", false),
            ("weight_scale", has_norm),
            ("weight_bias", has_norm),
            ("perm", self.has_perm),
            ("res_centroids.weight", has_residual),
            ("res_indices", has_residual && !self.is_packed),
            ("outlier_centroids.weight", outliers.is_some()),
            ("outlier_indices", outliers.is_some()),
        ] {
            if !is_used && get(part).is_some() {
                bail!("tensor `{part}`: the configuration says that there is none");
            }
        }
        Ok(())
    }
}

fn bits(name: &str, points: i64) -> Result<usize> {
    match points {
        2..=65536 if points.count_ones() == 1 => Ok(points.trailing_zeros() as usize),
        _ => bail!("{name}: expected a power of two from 2 to 65536, found {points}"),
    }
}

/// The weight of a module whose tensors `get` finds, under the name `name`.
///
/// Decodes to the bits that the method's published code gives in PyTorch, which rounds after every
/// operation.
///
/// # Errors
/// If the configuration or a tensor is missing, contradicts another, or asks for what the format
/// does not have.
pub fn layer(config: &Value, name: &str, get: Get) -> Result<Tensor> {
    let layer = Layer::new(config)?;
    let Layer { rows, cols, mut shape, .. } = layer;
    let Shape { v, bits, residual_bits, tables, outliers, has_norm, .. } = shape;
    layer.refuse_others(get)?;
    let part = |part: &str, dtypes: &[&str], expected: &[usize]| {
        let Some((entry, bytes)) = get(part) else { bail!("tensor `{part}` is missing") };
        check(&entry, dtypes, expected).at(format_args!("tensor `{part}`"))?;
        if matches!(&*entry.dtype, "F16" | "BF16") {
            finite(&entry.dtype, &bytes).at(format_args!("tensor `{part}`"))?;
        }
        Ok((entry.dtype, bytes))
    };
    let (dtype, main) = part("centroids.weight", &["F16", "BF16"], &[tables, v << bits])?;
    shape.entries = if dtype == "F16" { Entries::F16 } else { Entries::Bf16 };
    let halves = [&*dtype];
    let residual = match residual_bits {
        0 => Bytes::empty(),
        more => part("res_centroids.weight", &halves, &[tables, v << more])?.1,
    };
    let of_columns = |name| -> Result<Bytes> {
        match has_norm {
            true => Ok(part(name, &halves, &[cols])?.1),
            false => Ok(Bytes::empty()),
        }
    };
    let mut columns = ColumnPlanes {
        norms: of_columns("weight_scale")?,
        means: of_columns("weight_bias")?,
        ..ColumnPlanes::default()
    };
    let order = order(&layer, &part)?;
    if tables > 1 || outliers.is_some() {
        columns.groups = groups(&layer, &order).into();
    }
    if let Some(outliers) = outliers {
        let Outliers { count, v, bits } = outliers;
        let of_outliers = [1, rows.div_ceil(v), count];
        let (_, codes) = part("outlier_indices", &["I16", "U16"], &of_outliers)?;
        below(&codes, bits).at("tensor `outlier_indices`")?;
        columns.outlier_codes = outlier_codes(&codes, count, &order);
        columns.outlier_table = part("outlier_centroids.weight", &halves, &[1, v << bits])?.1;
    }
    let Some(kind) = of_shape(shape) else { unreachable!("the shape was checked") };
    if kind.row_bytes(cols).is_none() {
        bail!("in_features: expected a multiple of {}, found {cols}", kind.block().len);
    }
    let table_len = main.len() + residual.len();
    Ok(Tensor {
        name: name.to_string(),
        kind,
        rows,
        cols,
        first: 0,
        basis: Basis::Original,
        group: 0,
        codes: codes(kind, &layer, order, &part)?,
        norms: Bytes::empty(),
        table: Bytes::made(table_len, move || [&*main, &*residual].concat()),
        signs: Bytes::empty(),
        columns,
    })
}

/// Finds a tensor of a type and shape.
type Part<'a> = &'a dyn Fn(&str, &[&str], &[usize]) -> Result<(String, Bytes)>;

/// The column of the model that each stored column is.
fn order(layer: &Layer, part: Part) -> Result<Vec<usize>> {
    let cols = layer.cols;
    if !layer.has_perm {
        return Ok((0..cols).collect());
    }
    let (dtype, bytes) = part("perm", &["I16", "U16", "I32", "I64"], &[cols])?;
    let size = bytes.len() / cols;
    let number = |bytes: &[u8]| {
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(bytes);
        u64::from_le_bytes(wide)
    };
    let order: Vec<u64> = bytes.chunks_exact(size).map(number).collect();
    let mut seen = vec![false; cols];
    for &column in &order {
        match seen.get_mut(usize::try_from(column).unwrap_or(usize::MAX)) {
            Some(seen) if !*seen => *seen = true,
            _ => bail!(
                "tensor `perm`: expected each of {cols} columns once, found {column} in {dtype}"
            ),
        }
    }
    Ok(order.into_iter().map(|column| column as usize).collect())
}

/// The group of each of the model's columns.
fn groups(layer: &Layer, order: &[usize]) -> Vec<u8> {
    let outliers = layer.shape.outliers.map_or(0, |outliers| outliers.count);
    let mut groups = vec![OUTLIER; layer.cols];
    for (at, &column) in order.iter().skip(outliers).enumerate() {
        groups[column] = (at / layer.group_len) as u8;
    }
    groups
}

/// Codes of outliers, in the model's order of their columns.
fn outlier_codes(codes: &Bytes, count: usize, order: &[usize]) -> Bytes {
    let mut places: Vec<usize> = (0..count).collect();
    places.sort_unstable_by_key(|&at| order[at]);
    let rows = codes.chunks_exact(2 * count);
    let sorted = rows.flat_map(|row| places.iter().flat_map(|&at| [row[2 * at], row[2 * at + 1]]));
    sorted.collect::<Vec<u8>>().into()
}

/// The code plane, made when it is read.
fn codes(kind: &'static Vptq, layer: &Layer, order: Vec<usize>, part: Part) -> Result<Bytes> {
    let Layer { cols, group_len, is_packed, .. } = *layer;
    let Shape { v, bits, residual_bits, tables, outliers, .. } = layer.shape;
    let (blocks, width) = (layer.rows.div_ceil(v), bits + residual_bits);
    let skipped = outliers.map_or(0, |outliers| outliers.count);
    let stored = Stored { blocks, group_len, bits, residual_bits };
    let (main, residual) = if is_packed {
        let words = (group_len * width).div_ceil(32);
        (part("indices", &["I32"], &[tables, blocks, words])?.1, Bytes::empty())
    } else {
        let shape = [tables, blocks, group_len];
        let indices = |name: &str, bits| -> Result<Bytes> {
            let (_, codes) = part(name, &["I16", "U16"], &shape)?;
            below(&codes, bits).at(format_args!("tensor `{name}`"))?;
            Ok(codes)
        };
        let main = indices("indices", bits)?;
        match residual_bits {
            0 => (main, Bytes::empty()),
            more => (main, indices("res_indices", more)?),
        }
    };
    let row_bytes = cols / kind.block().len * kind.block().bytes;
    let make = move || {
        let mut bytes = vec![0; blocks * row_bytes];
        let mut codes = vec![0; cols];
        for (block, bytes) in bytes.chunks_exact_mut(row_bytes).enumerate() {
            for group in 0..tables {
                for at in 0..group_len {
                    let code = match is_packed {
                        true => stored.packed(&main, group, block, at),
                        false => stored.apart(&main, &residual, group, block, at),
                    };
                    codes[order[skipped + group * group_len + at]] = code;
                }
            }
            kind.pack(&codes, bytes);
        }
        bytes
    };
    Ok(Bytes::made(blocks * row_bytes, make))
}

/// How a checkpoint stores codes.
struct Stored {
    blocks: usize,
    group_len: usize,
    bits: usize,
    residual_bits: usize,
}

impl Stored {
    /// One code from the words of its row, the lowest bit first.
    fn packed(&self, words: &[u8], group: usize, block: usize, at: usize) -> u32 {
        let width = self.bits + self.residual_bits;
        let row_bytes = (self.group_len * width).div_ceil(32) * 4;
        let row = &words[(group * self.blocks + block) * row_bytes..][..row_bytes];
        let first = at * width;
        let mut wide = [0; 8];
        let bytes = &row[first / 8..row.len().min(first / 8 + 8)];
        wide[..bytes.len()].copy_from_slice(bytes);
        let code = u64::from_le_bytes(wide) >> (first % 8) & ((1 << width) - 1);
        code as u32
    }

    /// One code from main and residual codes of two bytes.
    fn apart(&self, main: &[u8], residual: &[u8], group: usize, block: usize, at: usize) -> u32 {
        let place = 2 * ((group * self.blocks + block) * self.group_len + at);
        let code = |bytes: &[u8]| u32::from(u16::from_le_bytes([bytes[place], bytes[place + 1]]));
        let rest = if residual.is_empty() { 0 } else { code(residual) };
        code(main) | rest << self.bits
    }
}

/// Checks codes of two bytes.
fn below(codes: &[u8], bits: usize) -> Result<()> {
    let codes = codes.as_chunks::<2>().0.iter().map(|&code| u16::from_le_bytes(code));
    match codes.into_iter().find(|&code| usize::from(code) >> bits > 0) {
        Some(code) => bail!("code {code}, expected less than {}", 1 << bits),
        None => Ok(()),
    }
}

/// Checks numbers of half precision or bfloat16.
fn finite(dtype: &str, bytes: &Bytes) -> Result<()> {
    let float = |&bytes: &[u8; 2]| match dtype {
        "F16" => f16::from_le_bytes(bytes).to_f32(),
        _ => bf16::from_le_bytes(bytes).to_f32(),
    };
    match bytes.as_chunks::<2>().0.iter().map(float).enumerate().find(|(_, x)| !x.is_finite()) {
        Some((at, found)) => bail!("number {at}: expected a finite one, found {found}"),
        None => Ok(()),
    }
}

fn check(entry: &Entry, dtypes: &[&str], expected: &[usize]) -> Result<()> {
    let Entry { dtype, shape, .. } = entry;
    if !dtypes.contains(&&**dtype) {
        bail!("expected type {}, found {dtype}", dtypes.join(" or "));
    }
    let same = shape.iter().copied().eq(expected.iter().map(|&size| size as u64));
    if !same {
        bail!("expected shape {expected:?}, found {shape:?}");
    }
    Ok(())
}
