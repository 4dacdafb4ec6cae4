//! Weights times prepared activations: the kernels of a backend without a GPU.
//!
//! The simple idea, for every row of the weight and every column of activations:
//!
//! ```text
//! out[column][row] = sum over i of weight[row][i] * activation[column][i]
//! ```
//!
//! Few columns ([`mat_vec`]): each row is read once and multiplied with all columns, a vector along
//! the row at a time. Many columns ([`pack_columns`], [`Panel`]): rows are decoded into a panel in
//! which neighbouring lanes are neighbouring rows, and the panel is multiplied with tiles of
//! columns, so that a decoded weight is used for the whole batch and sums stay in registers.

mod abreast;
mod float;
mod int8;
mod lanes;
mod panel;
mod planes;
mod points;
mod runs;
mod scales;

use std::sync::Arc;

use crate::simd::{Level, PairTable, Simd};

use super::{Int8Row, Kernel, Layout, SUB, Tensor};

pub use panel::{Output, Packing, Panel, pack_columns};

/// Values by which the rows of int8 activations are padded with zeros: the longest vector.
pub const CODES_ALIGN: usize = 64;

/// Scales and sums by which the rows of int8 activations are padded with zeros.
pub const SUBS_ALIGN: usize = 16;

/// The most columns that [`mat_vec`] takes.
pub const COLUMNS_MAX: usize = 8;

/// The most rows that [`mat_vec`] takes.
pub const ROWS_MAX: usize = 64;

/// Prepared activations, row after row; a row is a column of the product.
#[derive(Clone, Copy)]
pub enum Columns<'a> {
    /// Plain floats.
    Float(FloatColumns<'a>),
    /// Codes and scales, as `formats/activations.md` fixes.
    Int8(Int8Columns<'a>),
}

/// Plain floats.
#[derive(Clone, Copy)]
pub struct FloatColumns<'a> {
    /// Columns.
    pub count: usize,
    /// Values of one.
    pub cols: usize,
    /// `(count, cols)`.
    pub values: &'a [f32],
}

/// Codes, and scales and sums spread to runs of [`SUB`].
#[derive(Clone, Copy)]
pub struct Int8Columns<'a> {
    /// Columns.
    pub count: usize,
    /// Values of one.
    pub cols: usize,
    /// Values that share a scale, a multiple of [`SUB`].
    pub group: usize,
    /// `(count, codes_stride(cols))`.
    pub codes: &'a [i8],
    /// `(count, subs_stride(cols))`: the scale of each run.
    pub scales: &'a [f32],
    /// `(count, subs_stride(cols))`: the sum of each run's codes.
    pub sums: &'a [i32],
}

impl<'a> Int8Columns<'a> {
    /// Up to four columns from `first` on, in a number that kernels are compiled for: that leaves
    /// tables their registers.
    #[inline(always)]
    fn few(&self, first: usize) -> Int8Columns<'a> {
        let count = match self.count - first {
            1 => 1,
            2 | 3 => 2,
            _ => 4,
        };
        Int8Columns {
            count,
            codes: &self.codes[first * codes_stride(self.cols)..],
            scales: &self.scales[first * subs_stride(self.cols)..],
            sums: &self.sums[first * subs_stride(self.cols)..],
            ..*self
        }
    }
}

impl Columns<'_> {
    /// Columns.
    pub fn count(&self) -> usize {
        match self {
            Columns::Float(columns) => columns.count,
            Columns::Int8(columns) => columns.count,
        }
    }

    /// Values of one column.
    pub fn cols(&self) -> usize {
        match self {
            Columns::Float(columns) => columns.cols,
            Columns::Int8(columns) => columns.cols,
        }
    }
}

/// From one row of int8 activations to the next.
pub fn codes_stride(cols: usize) -> usize {
    cols.next_multiple_of(CODES_ALIGN)
}

/// From one row of scales or sums to the next.
pub fn subs_stride(cols: usize) -> usize {
    cols.div_ceil(SUB).next_multiple_of(SUBS_ALIGN)
}

/// Why the kernels cannot multiply this weight with such activations, if they cannot.
pub fn refusal(weight: &Tensor, activation_group: Option<usize>) -> Option<String> {
    match (weight.kind.kernel(), activation_group) {
        (Kernel::Float, None) => None,
        (Kernel::Int8 { group, .. }, Some(activation)) => {
            let group = if group == 0 { weight.group } else { group };
            let fits = |group: usize| {
                group != 0 && group.is_multiple_of(SUB) && weight.cols.is_multiple_of(group)
            };
            (!fits(group) || !fits(activation)).then(|| {
                format!(
                    "groups of {group} weights and {activation} activations: expected multiples \
                     of {SUB} that divide {}",
                    weight.cols
                )
            })
        }
        (Kernel::Float, Some(_)) => Some("expected float activations, found int8".into()),
        (Kernel::Int8 { .. }, None) => Some("expected int8 activations, found floats".into()),
    }
}

/// What a weight's kernel needs beside its planes; clones share it.
#[derive(Clone, Default)]
pub struct Lookup {
    pairs: Option<Arc<PairTable>>,
    points: Option<Arc<points::Points>>,
    places: Option<Arc<points::Places>>,
    lanes: Option<Arc<lanes::Lanes>>,
}

impl Lookup {
    /// For a weight.
    pub fn new(weight: &Tensor, level: Level) -> Lookup {
        Lookup::tables(weight, level).with_rows(weight, level)
    }

    /// What is made of a weight's table alone, for any with its type and that table.
    pub fn tables(weight: &Tensor, level: Level) -> Lookup {
        let pairs = match weight.kind.layout() {
            Layout::Pairs | Layout::Parted => {
                let table: &[i8] = bytemuck::cast_slice(&weight.table);
                Some(Arc::new(PairTable::new(table, level)))
            }
            _ => None,
        };
        let points = points::Points::new(weight).map(Arc::new);
        Lookup { pairs, points, ..Lookup::default() }
    }

    /// Whether it has the rows of its weight, so that the code plane is not read again.
    pub fn has_rows(&self) -> bool {
        self.lanes.is_some()
    }

    /// Rows that the kernel for few columns multiplies together.
    pub fn rows_together(&self) -> usize {
        match self.places.is_some() {
            // Those of a block, which share codes anyway.
            true => 1,
            false if self.lanes.is_some() => lanes::ROWS,
            false => 8,
        }
    }

    /// With the weight's rows in the order that its products are quickest in, where that is not
    /// its own; its code plane is then not read again.
    #[must_use]
    pub fn with_rows(self, weight: &Tensor, level: Level) -> Lookup {
        let places =
            self.points.as_deref().map(|points| Arc::new(points::Places::new(points, weight)));
        let lanes = lanes::Lanes::new(weight, level).map(Arc::new);
        Lookup { places, lanes, ..self }
    }
}

/// Memory for one worker, made once.
pub struct Scratch {
    values: Vec<f32>,
    codes: Vec<i8>,
    scales: Vec<f32>,
    mins: Vec<f32>,
    products: Vec<f32>,
    runs: runs::Runs,
    planes: scales::Buffers,
    lanes: abreast::Buffers,
}

impl Scratch {
    /// For rows of up to `cols` values.
    pub fn new(cols: usize) -> Scratch {
        let subs = subs_stride(cols);
        Scratch {
            values: vec![0.0; cols],
            codes: vec![0; codes_stride(cols)],
            scales: vec![0.0; subs],
            mins: vec![0.0; subs],
            products: vec![0.0; subs],
            runs: runs::Runs::new(cols),
            planes: scales::Buffers::new(cols),
            lanes: abreast::Buffers::new(cols),
        }
    }
}

/// `out[c * count + r]` = row `first + r` of the weight times column `c`, for `count` rows.
///
/// # Panics
/// If there are more than [`COLUMNS_MAX`] columns or [`ROWS_MAX`] rows, a length does not fit, or
/// [`refusal`] has one.
#[allow(clippy::too_many_arguments, reason = "a kernel: planes in, products out")]
pub fn mat_vec(
    level: Level,
    weight: &Tensor,
    lookup: &Lookup,
    first: usize,
    count: usize,
    columns: &Columns,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    assert!(columns.count() <= COLUMNS_MAX && columns.cols() == weight.cols, "columns that fit");
    assert!(count <= ROWS_MAX, "few rows at a time");
    assert_eq!(out.len(), columns.count() * count, "one product per row and column");
    match columns {
        Columns::Float(columns) => {
            let work = float::MatVec { weight, first, count, columns, scratch, out };
            level.dispatch(work);
        }
        Columns::Int8(columns) => {
            let work = int8::MatVec { weight, lookup, first, count, columns, scratch, out };
            match &lookup.lanes {
                Some(lanes) if abreast::fits(lanes, columns) => abreast::rows(level, lanes, work),
                _ => level.dispatch(work),
            }
        }
    }
}

/// As [`TensorType::unpack`](super::TensorType::unpack), read as the kernels read it.
///
/// # Panics
/// If the kernel of the type is not `Int8`, or a length does not fit.
pub fn unpack(level: Level, weight: &Tensor, row: usize, scratch: &mut Scratch, out: &mut Int8Row) {
    match weight.kind.layout() {
        Layout::Planes(layout) => {
            planes::unpack(level, &layout, weight, row, &mut scratch.planes, out);
        }
        _ => weight.kind.unpack(&weight.rows(row..row + 1), out),
    }
}

/// The sum of the products of two runs of floats, by `load` from the first.
///
/// # Safety
/// `w` is valid for `len` numbers as `load` and `one` read them, `x` for `len` floats.
#[inline(always)]
unsafe fn dot_floats<S: Simd, N: Number>(s: S, w: *const N, x: *const f32, len: usize) -> f32 {
    let vectors = len / S::LANES;
    let mut sums = [s.splat(0.0); 4];
    // SAFETY: every index is below `len`.
    unsafe {
        for i in 0..vectors / 4 {
            for (j, sum) in sums.iter_mut().enumerate() {
                let at = (4 * i + j) * S::LANES;
                *sum = s.fma(N::load(s, w.add(at)), s.load(x.add(at)), *sum);
            }
        }
        for i in vectors / 4 * 4..vectors {
            let at = i * S::LANES;
            sums[0] = s.fma(N::load(s, w.add(at)), s.load(x.add(at)), sums[0]);
        }
        let mut sum = s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])));
        for i in vectors * S::LANES..len {
            sum += N::one(w.add(i)) * *x.add(i);
        }
        sum
    }
}

/// A number format of weights that vectors load directly.
trait Number: Copy {
    /// # Safety
    /// `at` is valid for a vector.
    unsafe fn load<S: Simd>(s: S, at: *const Self) -> S::F32;
    /// # Safety
    /// `at` is valid for one.
    unsafe fn one(at: *const Self) -> f32;
}
