//! `VPTQ_V*_K*`: a code names a learned point of v neighbouring outputs of one input.
//! Page: `formats/vptq.md`; the method: arXiv 2409.17066.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};

use super::points::{self, even_signs, signed};
use super::raw::{self, RawType};
use super::{
    Block, Bytes, ColumnPlanes, Int8Row, Kernel, Layout, PRIVATE_IDS, Role, Rows, SUB, Shader,
    Tensor, TensorType,
};

/// Numbers of a point at most.
const POINT_MAX: usize = 16;
/// Rows of a block that a fused kernel takes, and from which on it is worth it.
pub(super) const FUSED_MAX: usize = 8;
const FUSED_MIN: usize = 5;
/// Words of a table that fit a workgroup's memory beside what kernels keep there.
const KEPT_MAX: usize = 1024;
/// Codes of a block, so that a block is whole bytes.
const RUN: usize = 8;
/// The group of a column that has codes and a table of its own.
pub const OUTLIER: u8 = 255;
/// The first number, in the order in which a program met the types: files have their names.
const FIRST_ID: u32 = PRIVATE_IDS + 0x1_0000;

/// How the numbers of points are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entries {
    /// Integers under a norm for each group of a row, as in the fixed grids.
    Int8,
    /// Half precision, as checkpoints have them.
    F16,
    /// bfloat16, as checkpoints have them.
    Bf16,
}

/// ColumnPlanes that are coded apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outliers {
    /// How many.
    pub count: usize,
    /// Outputs per code.
    pub v: usize,
    /// Bits per code; two bytes hold one.
    pub bits: usize,
}

/// What makes a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    /// Outputs per code.
    pub v: usize,
    /// Bits per code: a table has `1 << bits` points.
    pub bits: usize,
    /// Bits of the code of a second point that is added; 0 for none.
    pub residual_bits: usize,
    /// Whether a code says which numbers of its point have the other sign: an even number of them,
    /// so that the last one needs no bit. Then there is no second point.
    pub signs: bool,
    /// How the numbers of points are stored.
    pub entries: Entries,
    /// Tables, one per group of columns; 1 for int8.
    pub tables: usize,
    /// ColumnPlanes that are coded apart; none for int8.
    pub outliers: Option<Outliers>,
    /// Whether columns have a norm and a mean; never for int8.
    pub has_norm: bool,
}

impl Shape {
    /// Points of int8 numbers, as this program learns them.
    pub const fn int8(v: usize, bits: usize, residual_bits: usize) -> Shape {
        let (signs, entries, tables) = (false, Entries::Int8, 1);
        Shape { v, bits, residual_bits, signs, entries, tables, outliers: None, has_norm: false }
    }

    /// Points of int8 numbers, with signs in the code.
    pub const fn signed(v: usize, bits: usize) -> Shape {
        Shape { signs: true, ..Shape::int8(v, bits, 0) }
    }

    /// Bits of a code, all its parts together.
    pub const fn width(&self) -> usize {
        self.bits + self.residual_bits + if self.signs { self.v - 1 } else { 0 }
    }

    /// Points of all tables, the second ones among them; each has `v` numbers.
    pub fn points(&self) -> usize {
        let residual = if self.residual_bits > 0 { 1 << self.residual_bits } else { 0 };
        self.tables * ((1 << self.bits) + residual)
    }

    /// Whether all numbers are within what the format allows.
    fn is_valid(&self) -> bool {
        let int8 = self.entries == Entries::Int8;
        let outliers = |o: Outliers| {
            (1..=65535).contains(&o.count) && (1..=16).contains(&o.v) && (1..=16).contains(&o.bits)
        };
        (2..=POINT_MAX).contains(&self.v)
            && (1..=16).contains(&self.bits)
            && self.residual_bits <= 16
            && (1..=16).contains(&self.tables)
            && self.outliers.is_none_or(outliers)
            && (!self.signs || int8 && self.residual_bits == 0)
            && (!int8 || self.tables == 1 && self.outliers.is_none() && !self.has_norm)
    }

    /// As in the file: `VPTQ_V8_K4096_R256`, `VPTQ_V6_K128_S`, `VPTQ_V12_K4096_G4_O64V4K64_BF16N`.
    fn name(&self) -> String {
        let mut name = format!("VPTQ_V{}_K{}", self.v, 1_u32 << self.bits);
        if self.residual_bits > 0 {
            let _ = write!(name, "_R{}", 1_u32 << self.residual_bits);
        }
        if self.signs {
            name += "_S";
        }
        if self.tables > 1 {
            let _ = write!(name, "_G{}", self.tables);
        }
        if let Some(Outliers { count, v, bits }) = self.outliers {
            let _ = write!(name, "_O{count}V{v}K{}", 1_u32 << bits);
        }
        name += match self.entries {
            Entries::Int8 => "",
            Entries::F16 => "_F16",
            Entries::Bf16 => "_BF16",
        };
        name + if self.has_norm { "N" } else { "" }
    }

    /// The inverse of `name`, in any case.
    fn by_name(name: &str) -> Option<Shape> {
        let upper = name.to_ascii_uppercase();
        let mut words = upper.split('_').peekable();
        let size = |text: &str| text.parse::<usize>().ok();
        let bits = |text: &str| {
            let points = size(text)?;
            points.is_power_of_two().then(|| points.trailing_zeros() as usize)
        };
        if words.next() != Some("VPTQ") {
            return None;
        }
        let v = size(words.next()?.strip_prefix('V')?)?;
        let mut shape = Shape::int8(v, bits(words.next()?.strip_prefix('K')?)?, 0);
        for word in words {
            match (word, word.split_at_checked(1)?) {
                ("F16" | "F16N", _) => shape.entries = Entries::F16,
                ("BF16" | "BF16N", _) => shape.entries = Entries::Bf16,
                ("S", _) => shape.signs = true,
                (_, ("R", points)) => shape.residual_bits = bits(points)?,
                (_, ("G", tables)) => shape.tables = size(tables)?,
                (_, ("O", rest)) => {
                    let (count, rest) = rest.split_once('V')?;
                    let (v, points) = rest.split_once('K')?;
                    let (count, v, bits) = (size(count)?, size(v)?, bits(points)?);
                    shape.outliers = Some(Outliers { count, v, bits });
                }
                _ => return None,
            }
            shape.has_norm = word.ends_with("16N");
        }
        // Parsing is lenient; one spelling per type is enough.
        (shape.is_valid() && shape.name() == upper).then_some(shape)
    }
}

/// A type of learned points.
pub struct Vptq {
    name: &'static str,
    id: u32,
    /// Of the shader.
    constants: &'static [(&'static str, u32)],
    /// What makes it.
    pub shape: Shape,
}

/// The types that somebody asked for. There are few shapes in a model, and they live as long as the
/// program.
static KNOWN: Mutex<BTreeMap<Shape, &'static Vptq>> = Mutex::new(BTreeMap::new());

/// The type of a shape, or `None` if a number of it is out of range.
pub fn of_shape(shape: Shape) -> Option<&'static Vptq> {
    if !shape.is_valid() {
        return None;
    }
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let id = FIRST_ID + known.len() as u32;
    let make = || {
        let name = Box::leak(shape.name().into_boxed_str());
        let numbers = [
            ("V", shape.v),
            ("STRIDE", stride(shape.v)),
            ("BITS", shape.bits),
            ("MORE", shape.residual_bits),
            ("SIGNS", usize::from(shape.signs)),
            ("WIDTH", shape.width()),
            ("KEPT", kept_words(shape)),
        ];
        let constants = Box::leak(Box::new(numbers.map(|(name, value)| (name, value as u32))));
        &*Box::leak(Box::new(Vptq { name, id, constants, shape }))
    };
    Some(known.entry(shape).or_insert_with(make))
}

/// Words of a table that a GPU keeps at hand; 0 where it is too long for that.
fn kept_words(shape: Shape) -> usize {
    let words = stride(shape.v) * shape.points();
    if words <= KEPT_MAX { words } else { 0 }
}

/// Words from a point to the next on a GPU.
fn stride(v: usize) -> usize {
    v.next_power_of_two().div_ceil(4)
}

/// The type with this name, in any case.
pub(super) fn by_name(name: &str) -> Option<&'static Vptq> {
    of_shape(Shape::by_name(name)?)
}

/// What a type of learned points is made of, if it is one.
pub fn learned(kind: &dyn TensorType) -> Option<Shape> {
    Shape::by_name(kind.name())
}

impl Vptq {
    /// Writes codes as the bytes of one row of blocks.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn pack(&self, codes: &[u32], bytes: &mut [u8]) {
        let width = self.shape.width();
        assert_eq!(codes.len() * width, bytes.len() * 8, "whole blocks");
        let (mut held, mut count, mut at) = (0_u64, 0, 0);
        for &code in codes {
            held |= u64::from(code) << count;
            count += width;
            while count >= 8 {
                bytes[at] = held as u8;
                (held, count, at) = (held >> 8, count - 8, at + 1);
            }
        }
    }

    /// Reads the codes of one row of blocks.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn unpack_codes(&self, bytes: &[u8], codes: &mut [u32]) {
        let width = self.shape.width();
        assert_eq!(codes.len() * width, bytes.len() * 8, "whole blocks");
        codes.iter_mut().zip(points::codes(bytes, width)).for_each(|(to, code)| *to = code);
    }

    /// Calls `each` with every row: its place in `rows`, its place in its block, the codes.
    fn each_row(&self, rows: &Rows, mut each: impl FnMut(usize, usize, &[u32])) {
        let v = self.shape.v;
        let mut codes = vec![0; rows.cols];
        let bytes = rows.codes.chunks_exact(rows.cols / RUN * self.shape.width());
        let skipped = rows.first % v;
        for (block, bytes) in bytes.enumerate() {
            self.unpack_codes(bytes, &mut codes);
            for t in 0..v {
                let at = (block * v + t).wrapping_sub(skipped);
                if at < rows.count {
                    each(at, t, &codes);
                }
            }
        }
    }

    /// The integers of rows, which follow each other without a gap.
    fn integers(&self, rows: &Rows, out: &mut [i8]) {
        let Shape { v, bits, signs, .. } = self.shape;
        let (main, residual) = rows.table.split_at(v << bits);
        let mask = (1 << bits) - 1;
        let mut codes = vec![0; rows.cols];
        let bytes = rows.codes.chunks_exact(rows.cols / RUN * self.shape.width());
        let skipped = rows.first % v;
        for (block, bytes) in bytes.enumerate() {
            self.unpack_codes(bytes, &mut codes);
            let first = (block * v).saturating_sub(skipped);
            let last = (block * v + v - skipped).min(rows.count);
            let from = first + skipped - block * v;
            let out = &mut out[first * rows.cols..last * rows.cols];
            for (c, &code) in codes.iter().enumerate() {
                let (code, rest) = ((code & mask) as usize, (code >> bits) as usize);
                let mut point = [0; POINT_MAX];
                point[..v].copy_from_slice(&main[code * v..][..v]);
                if !residual.is_empty() {
                    for (to, &more) in point.iter_mut().zip(&residual[rest * v..][..v]) {
                        *to = to.saturating_add(more);
                    }
                }
                if signs {
                    point = signed(&point.map(|q| q.max(-127)), even_signs(rest as u32, v));
                }
                for (t, &q) in point[from..from + last - first].iter().enumerate() {
                    out[t * rows.cols + c] = q.max(-127);
                }
            }
        }
    }

    /// The values of rows of an imported type.
    fn floats(&self, rows: &Rows, out: &mut [f32]) {
        let Shape { v, bits, residual_bits, entries, tables, outliers, has_norm, .. } = self.shape;
        let round = |x: f32| match entries {
            Entries::Bf16 => bf16::from_f32(x).to_f32(),
            _ => f16::from_f32(x).to_f32(),
        };
        let number = |&bytes: &[u8; 2]| match entries {
            Entries::Bf16 => bf16::from_le_bytes(bytes).to_f32(),
            _ => f16::from_le_bytes(bytes).to_f32(),
        };
        let numbers =
            |bytes: &[u8]| -> Vec<f32> { bytes.as_chunks::<2>().0.iter().map(number).collect() };
        let table = numbers(bytemuck::cast_slice(rows.table));
        let (main, residual) = table.split_at((tables * v) << bits);
        let columns = rows.columns.expect("an imported type has planes for its columns");
        let (norms, means) = (numbers(&columns.norms), numbers(&columns.means));
        let outlier_table = numbers(&columns.outlier_table);
        let mask = (1 << bits) - 1;
        self.each_row(rows, |at, t, codes| {
            let out = &mut out[at * rows.cols..][..rows.cols];
            let row = rows.first + at;
            let mut outlier = 0;
            for (c, (to, &code)) in out.iter_mut().zip(codes).enumerate() {
                let group = columns.groups.get(c).copied().unwrap_or_default();
                let mut value = if let Some(o) = outliers.filter(|_| group == OUTLIER) {
                    let at = 2 * (row / o.v * o.count + outlier);
                    let codes = &columns.outlier_codes;
                    let code = u16::from_le_bytes([codes[at], codes[at + 1]]);
                    outlier += 1;
                    outlier_table[usize::from(code) * o.v + row % o.v]
                } else {
                    let table = usize::from(group);
                    let (code, rest) = ((code & mask) as usize, (code >> bits) as usize);
                    let main = main[((table << bits) + code) * v + t];
                    match residual_bits {
                        0 => main,
                        more => round(main + residual[((table << more) + rest) * v + t]),
                    }
                };
                if has_norm {
                    value = round(round(value * norms[c]) + means[c]);
                }
                *to = value;
            }
        });
    }

    /// Everything that could be wrong with the planes of a weight, past their shapes.
    fn check_groups(&self, groups: &[u8]) -> Result<(), String> {
        let Shape { tables, outliers, .. } = self.shape;
        let found = groups.iter().filter(|&&group| group == OUTLIER).count();
        let expected = outliers.map_or(0, |outliers| outliers.count);
        if found != expected {
            return Err(format!("{found} outlier columns, expected {expected}"));
        }
        let wrong = |&&group: &&u8| group != OUTLIER && usize::from(group) >= tables;
        match groups.iter().find(wrong) {
            Some(group) => Err(format!("column group {group}, expected less than {tables}")),
            None => Ok(()),
        }
    }
}

impl TensorType for Vptq {
    fn name(&self) -> &'static str {
        self.name
    }

    fn id(&self) -> u32 {
        self.id
    }

    fn block(&self) -> Block {
        Block { len: RUN, bytes: self.shape.width() }
    }

    fn row_block(&self) -> usize {
        self.shape.v
    }

    fn kernel(&self) -> Kernel {
        match self.shape.entries {
            Entries::Int8 => Kernel::Int8 { group: 0, mins: false },
            Entries::F16 | Entries::Bf16 => Kernel::Float,
        }
    }

    fn shader(&self) -> Option<Shader> {
        (self.shape.entries == Entries::Int8).then_some(Shader {
            text: include_str!("../../shaders/types/vptq.wgsl"),
            constants: self.constants,
            chunk: 32,
            table_words: kept_words(self.shape),
        })
    }

    fn shader_table(&self, table: &[u8]) -> Vec<u8> {
        let v = self.shape.v;
        let padded = 4 * stride(v);
        let pad = |point: &[u8]| [point, &[0; POINT_MAX][..padded - v]].concat();
        table.chunks_exact(v).flat_map(pad).collect()
    }

    /// With points that somebody learned; [`TensorType::encode`] has none.
    fn can_encode(&self) -> bool {
        self.shape.entries == Entries::Int8
    }

    fn plane(&self, role: Role, rows: u64, cols: u64, group: u64) -> Option<(RawType, Vec<u64>)> {
        let Shape { v, entries, tables, outliers, has_norm, .. } = self.shape;
        let number = match entries {
            Entries::Int8 => raw::I8,
            Entries::F16 => raw::F16,
            Entries::Bf16 => raw::BF16,
        };
        let points = self.shape.points() as u64;
        Some(match role {
            Role::Codes => {
                let bytes = RawType::of(self).bytes(cols, 1)?;
                (raw::I8, vec![bytes, rows.div_ceil(v as u64)])
            }
            Role::Norms if entries == Entries::Int8 => (raw::F16, vec![cols / group, rows]),
            Role::Table => (number, vec![v as u64, points]),
            Role::ColumnNorms | Role::ColumnMeans if has_norm => (number, vec![cols]),
            Role::ColumnGroups if tables > 1 || outliers.is_some() => (raw::I8, vec![cols]),
            Role::OutlierCodes => {
                let Outliers { count, v, .. } = outliers?;
                (raw::I8, vec![2 * count as u64, rows.div_ceil(v as u64)])
            }
            Role::OutlierTable => {
                let Outliers { v, bits, .. } = outliers?;
                (number, vec![v as u64, 1 << bits])
            }
            _ => return None,
        })
    }

    fn check(&self, tensor: &Tensor) -> Result<(), String> {
        let Shape { tables, outliers, .. } = self.shape;
        if tables > 1 || outliers.is_some() {
            self.check_groups(&tensor.columns.groups)?;
        }
        let Some(Outliers { bits, .. }) = outliers else { return Ok(()) };
        let codes = tensor.columns.outlier_codes.as_chunks::<2>().0;
        let wrong = codes.iter().map(|&code| u16::from_le_bytes(code));
        match wrong.into_iter().find(|&code| usize::from(code) >> bits > 0) {
            Some(code) => Err(format!("outlier code {code}, expected less than {}", 1 << bits)),
            None => Ok(()),
        }
    }

    fn layout(&self) -> Layout {
        match (self.shape.entries, self.shape.v) {
            (Entries::Int8, FUSED_MIN..=FUSED_MAX) => Layout::Points(self.shape),
            _ => Layout::Opaque,
        }
    }

    fn in_bytes(&self, tensor: &Tensor) -> Option<Tensor> {
        if self.layout() != Layout::Opaque {
            return None;
        }
        let rows = tensor.rows(0..tensor.rows);
        let plain =
            Tensor { table: Bytes::empty(), columns: ColumnPlanes::default(), ..tensor.clone() };
        Some(match self.shape.entries {
            Entries::Int8 => {
                let mut integers = vec![0; tensor.len()];
                self.integers(&rows, &mut integers);
                let codes: Vec<u8> = integers.into_iter().map(i8::cast_unsigned).collect();
                Tensor { kind: &super::higgs::P1_N256, codes: codes.into(), ..plain }
            }
            // Every value is already one of the narrow format.
            Entries::F16 | Entries::Bf16 => {
                let mut values = vec![0.0; tensor.len()];
                self.floats(&rows, &mut values);
                let is_f16 = self.shape.entries == Entries::F16;
                let narrow = |&value: &f32| match is_f16 {
                    true => f16::from_f32(value).to_le_bytes(),
                    false => bf16::from_f32(value).to_le_bytes(),
                };
                let codes: Vec<u8> = values.iter().flat_map(narrow).collect();
                let kind: &dyn TensorType =
                    if is_f16 { &super::f16::F16 } else { &super::bf16::Bf16 };
                Tensor { kind, group: 0, codes: codes.into(), ..plain }
            }
        })
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        assert_eq!(out.len(), rows.count * rows.cols, "{} rows of {}", rows.count, rows.cols);
        if self.shape.entries != Entries::Int8 {
            return self.floats(rows, out);
        }
        let mut integers = vec![0; out.len()];
        self.integers(rows, &mut integers);
        out.iter_mut().zip(integers).for_each(|(to, q)| *to = f32::from(q));
        let norms = rows.norms.as_chunks::<2>().0.iter();
        for (group, &norm) in out.chunks_exact_mut(rows.group).zip(norms) {
            let norm = f16::from_le_bytes(norm).to_f32();
            group.iter_mut().for_each(|value| *value *= norm);
        }
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        assert_eq!((row.count, out.values.len()), (1, row.cols), "one row");
        self.integers(row, out.values);
        let norms = row.norms.as_chunks::<2>().0.iter();
        for (scales, &norm) in out.scales.chunks_exact_mut(row.group / SUB).zip(norms) {
            scales.fill(f16::from_le_bytes(norm).to_f32());
        }
    }
}
