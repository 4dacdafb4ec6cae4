//! One tensor to another type: decode, back to the original basis, into the new one, code.
//!
//! Rows are coded in pieces on all cores; sums of errors run in a fixed order, so that the report
//! does not depend on how many there are.

use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::journal::{Journal, Kept};
use super::{Feedbacks, Item, learn};
use crate::error::Result;
use crate::file::planes::Role as Plane;
use crate::quant::Feedback;
use crate::quant::blocks::BlockRounding;
use crate::quant::parted::Parted;
use crate::quant::points::Points;
use crate::quant::second_order::Rounding;
use crate::run::walk::original;
use crate::transform;
use crate::types::{
    Basis, ColumnPlanes, Higgs, Kernel, PRIVATE_IDS, Resq, Rows, Tensor, grid, norm_bytes,
    of_shape, resq,
};

/// Descents after a second-order rounding; more gain next to nothing (`benches/results/`).
const DESCENTS: usize = 2;

/// A coded tensor.
pub struct Encoded {
    codes: Vec<u8>,
    norms: Vec<u8>,
    table: Vec<u8>,
    signs: Vec<u8>,
    /// Of a tensor that stays as it is.
    columns: ColumnPlanes,
    /// Squared error over squared values.
    pub error: f64,
    /// Squared error over squared values in the output of the calibration text, if there was one.
    pub output_error: Option<f64>,
}

impl Encoded {
    /// The bytes of one plane.
    pub fn plane(&self, plane: Plane) -> &[u8] {
        match plane {
            Plane::Codes => &self.codes,
            Plane::Norms => &self.norms,
            Plane::Table => &self.table,
            Plane::Signs => &self.signs,
            plane => self.columns.plane(plane),
        }
    }

    /// What an interrupted conversion made of an item.
    ///
    /// # Errors
    /// If what is kept cannot be read.
    pub(super) fn kept(journal: &mut Journal, item: &Item) -> Result<Option<Encoded>> {
        let Some(Kept { numbers, planes }) = journal.get(&label(item))? else { return Ok(None) };
        let (Ok([codes, norms, table, signs]), [error, more @ ..]) =
            (<[Vec<u8>; 4]>::try_from(planes), &numbers[..])
        else {
            return Ok(None);
        };
        let (error, output_error) = (*error, more.first().copied());
        let columns = ColumnPlanes::default();
        Ok(Some(Encoded { codes, norms, table, signs, columns, error, output_error }))
    }

    /// Keeps it, if it took a text to make.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn keep(&self, journal: &mut Journal, item: &Item) -> Result<()> {
        let Some(output_error) = self.output_error else { return Ok(()) };
        let planes = [&self.codes, &self.norms, &self.table, &self.signs].map(Vec::as_slice);
        journal.add(&label(item), &[self.error, output_error], &planes)
    }

    /// Puts a factor on the scales of each row, or on each value of a plain vector.
    pub(super) fn scale(&mut self, tensor: &Tensor, factors: &[f32]) {
        if self.norms.is_empty() {
            let values = self.codes.as_chunks_mut::<4>().0;
            values.iter_mut().zip(factors).for_each(|(value, factor)| {
                *value = (f32::from_le_bytes(*value) * factor).to_le_bytes();
            });
            return;
        }
        let per_row = self.norms.len() / tensor.rows;
        let rows = self.norms.chunks_exact_mut(per_row);
        for (norms, factor) in rows.zip(factors) {
            norms.as_chunks_mut::<2>().0.iter_mut().for_each(|norm| {
                *norm = f16::from_f32(f16::from_le_bytes(*norm).to_f32() * factor).to_le_bytes();
            });
        }
    }
}

/// Of an item in a journal.
fn label(item: &Item) -> String {
    format!("tensor {}", item.name)
}

/// Codes a tensor as its item says, the matrix of each expert with the moments of its own input.
///
/// # Errors
/// If a weight is not finite, or the moments are damaged.
pub(super) fn encode(tensor: &Tensor, item: &Item, feedbacks: &mut Feedbacks) -> Result<Encoded> {
    if item.keep {
        return Ok(kept(tensor));
    }
    let signs = signs(item);
    let row_bytes = item.kind.row_bytes(item.cols).expect("the choice fits");
    let norm_bytes = norm_bytes(item.cols, item.group);
    let mut encoded = Encoded {
        codes: vec![0; item.rows.div_ceil(item.kind.row_block()) * row_bytes],
        norms: vec![0; item.rows * norm_bytes],
        table: learn::table(item),
        signs: bytemuck::cast_slice(&signs).to_vec(),
        columns: ColumnPlanes::default(),
        error: 0.0,
        output_error: None,
    };
    tensor.codes.prepare();
    if same_form(tensor, item, &signs, &encoded.table) {
        check_finite(tensor)?;
        return Ok(kept(tensor));
    }
    let is_fed = grid(item.kind).is_some() || item.points.is_some() || item.loud.is_some();
    let (mut errors, mut has_feedback) = (Errors::default(), false);
    for matrix in 0..item.matrices {
        let feedback = match is_fed {
            true => feedbacks.of_item(item, matrix)?,
            false => None,
        };
        has_feedback |= feedback.is_some();
        let parted = parted(item, feedback);
        let parted = parted.as_ref();
        let code = Code { item, feedback, parted, signs: &signs, table: &encoded.table };
        let rows = rows_of(item, matrix);
        let block = item.kind.row_block();
        let blocks = rows.start / block..rows.end.div_ceil(block);
        let codes = &mut encoded.codes[blocks.start * row_bytes..blocks.end * row_bytes];
        let norms = &mut encoded.norms[rows.start * norm_bytes..rows.end * norm_bytes];
        errors = errors.add(code.matrix(tensor, rows, codes, norms)?);
    }
    let share = |part: f64, whole: f64| if part == 0.0 { 0.0 } else { part / whole };
    encoded.error = share(errors.noise, errors.signal);
    let output_error = share(errors.output_noise, errors.output_signal);
    encoded.output_error = has_feedback.then_some(output_error);
    Ok(encoded)
}

/// The rows that are coded with the moments of one matrix. Blocks of rows that share codes are
/// counted from the first row of a tensor, so a matrix may end within one: the block is its own.
fn rows_of(item: &Item, matrix: usize) -> Range<usize> {
    let rows = item.rows / item.matrices;
    let whole = |row: usize| row.next_multiple_of(item.kind.row_block()).min(item.rows);
    whole(matrix * rows)..whole((matrix + 1) * rows)
}

/// How rows of a tensor are coded.
pub(super) struct Code<'a> {
    item: &'a Item,
    feedback: Option<&'a Feedback>,
    /// The same for a type of two parts.
    parted: Option<&'a Parted>,
    signs: &'a [i8],
    table: &'a [u8],
}

/// Squares that were lost, and squares there were.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Errors {
    pub(super) noise: f64,
    pub(super) signal: f64,
    /// In the outputs of the calibration text.
    pub(super) output_noise: f64,
    output_signal: f64,
}

impl Errors {
    fn add(self, other: Errors) -> Errors {
        Errors {
            noise: self.noise + other.noise,
            signal: self.signal + other.signal,
            output_noise: self.output_noise + other.output_noise,
            output_signal: self.output_signal + other.output_signal,
        }
    }
}

impl Code<'_> {
    /// Codes the rows of one matrix.
    fn matrix(
        &self,
        tensor: &Tensor,
        all: Range<usize>,
        codes: &mut [u8],
        norms: &mut [u8],
    ) -> Result<Errors> {
        let item = self.item;
        let row_bytes = item.kind.row_bytes(item.cols).expect("the choice fits");
        let together = rows_together(item);
        let pieces = all.len().div_ceil(together);
        let norms: Vec<&mut [u8]> = match norm_bytes(item.cols, item.group) {
            0 => (0..pieces).map(|_| Default::default()).collect(),
            bytes => norms.chunks_mut(together * bytes).collect(),
        };
        let codes = codes.par_chunks_mut(together / item.kind.row_block() * row_bytes);
        let errors: Result<Vec<Errors>> = codes
            .zip(norms)
            .enumerate()
            .map(|(piece, (codes, norms))| {
                let start = all.start + piece * together;
                let rows = start..(start + together).min(all.end);
                let mut values = vec![0.0; rows.len() * item.cols];
                original(tensor, rows, &mut values)?;
                Ok(self.rows(values, codes, norms))
            })
            .collect();
        Ok(errors?.into_iter().fold(Errors::default(), Errors::add))
    }

    /// Codes up to [`rows_together`] rows, given in the model's own basis.
    fn rows(&self, mut values: Vec<f32>, codes: &mut [u8], norms: &mut [u8]) -> Errors {
        let Code { item, feedback, signs, table, .. } = *self;
        let Item { kind, cols, group, basis, .. } = *item;
        if basis != Basis::Original {
            values.chunks_exact_mut(cols).for_each(|row| transform::forward(basis, signs, row));
        }
        match (feedback, self.parted, grid(kind), &item.points) {
            (.., Some(points)) => learned(feedback, points, cols, &values, codes, norms),
            (_, Some(parted), ..) => two_parts(parted, cols, &values, codes, norms),
            (Some(feedback), _, Some(grid), _) => {
                second_order(feedback, grid, group, &values, codes, norms);
            }
            _ => kind.encode(&values, cols, group, codes, norms),
        }
        let table = bytemuck::cast_slice(table);
        let count = values.len() / cols;
        let rows = Rows { first: 0, count, cols, group, codes, norms, table, columns: None };
        let mut decoded = vec![0.0; values.len()];
        kind.decode(&rows, &mut decoded);
        let (noise, signal) = squares(&values, &decoded);
        let lost: Vec<f32> = values.iter().zip(&decoded).map(|(v, d)| v - d).collect();
        let cost = |rows: &[f32]| feedback.map_or(0.0, |feedback| feedback.cost(rows));
        let (output_noise, output_signal) = (cost(&lost), cost(&values));
        Errors { noise, signal, output_noise, output_signal }
    }
}

/// The signs of an item's inputs; none in the original basis.
fn signs(item: &Item) -> Vec<i8> {
    match item.basis {
        Basis::Original => Vec::new(),
        _ => {
            let mut signs = transform::signs(item.sign_seed, item.cols);
            if let Some(loud) = &item.loud {
                transform::mark(&mut signs, loud);
            }
            signs
        }
    }
}

/// What a type of two parts asks of the moments.
fn parted(item: &Item, feedback: Option<&Feedback>) -> Option<Parted> {
    resq(item.kind)?;
    let parts = Resq::parts(item.cols).expect("the choice fits");
    Some(Parted::new(feedback?, parts.low))
}

/// Rows that one task codes.
pub(super) fn rows_together(item: &Item) -> usize {
    BlockRounding::rows(item.kind.row_block())
}

/// What coding some rows, in the model's own basis, would lose. Rows past the last whole block are
/// left out where there is one: fewer rows have codes of their own there, and lose less.
pub(super) fn trial(item: &Item, feedback: Option<&Feedback>, values: &[f32]) -> Errors {
    let signs = signs(item);
    let table = learn::table(item);
    let parted = parted(item, feedback);
    let code = Code { item, feedback, parted: parted.as_ref(), signs: &signs, table: &table };
    let row_bytes = item.kind.row_bytes(item.cols).expect("the choice fits");
    let of = |values: &[f32]| {
        let rows = values.len() / item.cols;
        let mut codes = vec![0; rows.div_ceil(item.kind.row_block()) * row_bytes];
        let mut norms = vec![0; rows * norm_bytes(item.cols, item.group)];
        code.rows(values.to_vec(), &mut codes, &mut norms)
    };
    let block = item.kind.row_block() * item.cols;
    let whole = if values.len() < block { values.len() } else { values.len() / block * block };
    let pieces = values[..whole].chunks(rows_together(item) * item.cols);
    pieces.map(of).fold(Errors::default(), Errors::add)
}

/// All planes as they are.
fn kept(tensor: &Tensor) -> Encoded {
    Encoded {
        codes: tensor.codes.to_vec(),
        norms: tensor.norms.to_vec(),
        table: tensor.table.to_vec(),
        signs: tensor.signs.to_vec(),
        columns: tensor.columns.clone(),
        error: 0.0,
        output_error: None,
    }
}

/// Fails if a plain float is none; codes that stay are not looked at.
fn check_finite(tensor: &Tensor) -> Result<()> {
    if tensor.kind.kernel() != Kernel::Float || tensor.kind.id() >= PRIVATE_IDS {
        return Ok(());
    }
    (0..tensor.rows).into_par_iter().try_for_each_init(Vec::new, |values, row| {
        values.resize(tensor.cols, 0.0);
        original(tensor, row..row + 1, values)
    })
}

/// Whether coding the tensor again would give what it has.
fn same_form(tensor: &Tensor, item: &Item, signs: &[i8], table: &[u8]) -> bool {
    let planes = tensor.kind.id() == item.kind.id() && tensor.group == item.group;
    let signs: &[u8] = bytemuck::cast_slice(signs);
    planes && tensor.basis == item.basis && *tensor.signs == *signs && *tensor.table == *table
}

/// Codes a few rows so that later inputs make up for the errors of earlier ones.
fn second_order(
    feedback: &Feedback,
    grid: &Higgs,
    group: usize,
    values: &[f32],
    codes: &mut [u8],
    norms: &mut [u8],
) {
    let rounding = Rounding { feedback, grid, group, descents: DESCENTS };
    let rows = values.len() / feedback.width;
    let mut numbers = vec![0; values.len() / grid.values_per_code()];
    let mut scales = vec![f16::ZERO; values.len() / group];
    rounding.round(values, &mut numbers, &mut scales);
    let row_codes = numbers.chunks_exact(numbers.len() / rows);
    for (numbers, codes) in row_codes.zip(codes.chunks_exact_mut(codes.len() / rows)) {
        grid.pack(numbers, codes);
    }
    let bytes = norms.as_chunks_mut::<2>().0;
    bytes.iter_mut().zip(scales).for_each(|(to, scale)| *to = scale.to_le_bytes());
}

/// Codes a few rows, their quiet part before their loud one.
fn two_parts(parted: &Parted, cols: usize, values: &[f32], codes: &mut [u8], norms: &mut [u8]) {
    let parts = Resq::parts(cols).expect("the choice fits");
    let grids = [Resq::low_grid(), Resq::high_grid()];
    let rows = values.len() / cols;
    let mut low = vec![0; rows * parts.low / grids[0].values_per_code()];
    let mut high = vec![0; rows * parts.high / grids[1].values_per_code()];
    let mut scales = vec![[f16::ZERO; 2]; rows];
    parted.round(grids, DESCENTS, values, [&mut low, &mut high], &mut scales);
    let numbers = low.chunks_exact(low.len() / rows).zip(high.chunks_exact(high.len() / rows));
    for ((low, high), codes) in numbers.zip(codes.chunks_exact_mut(codes.len() / rows)) {
        let (low_codes, high_codes) = codes.split_at_mut(Resq::low_bytes(parts));
        grids[0].pack(low, low_codes);
        grids[1].pack(high, high_codes);
    }
    let bytes = norms.as_chunks_mut::<2>().0;
    let scales = scales.as_flattened();
    bytes.iter_mut().zip(scales).for_each(|(to, scale)| *to = scale.to_le_bytes());
}

/// Codes whole blocks of rows.
fn learned(
    feedback: Option<&Feedback>,
    points: &Points,
    cols: usize,
    values: &[f32],
    codes: &mut [u8],
    norms: &mut [u8],
) {
    let rounding = BlockRounding { width: cols, feedback, points, descents: DESCENTS };
    let rows = values.len() / cols;
    let blocks = rows.div_ceil(points.shape.v);
    let mut numbers = vec![0; blocks * cols];
    let mut scales = vec![f16::ZERO; rows];
    rounding.round(values, &mut numbers, &mut scales);
    let kind = of_shape(points.shape).expect("points have a valid shape");
    let row_codes = numbers.chunks_exact(cols);
    for (numbers, codes) in row_codes.zip(codes.chunks_exact_mut(codes.len() / blocks)) {
        kind.pack(numbers, codes);
    }
    let bytes = norms.as_chunks_mut::<2>().0;
    bytes.iter_mut().zip(scales).for_each(|(to, scale)| *to = scale.to_le_bytes());
}

/// Squared error and squared values.
fn squares(values: &[f32], decoded: &[f32]) -> (f64, f64) {
    values.iter().zip(decoded).fold((0.0, 0.0), |(noise, signal), (&value, &decoded)| {
        let (value, decoded) = (f64::from(value), f64::from(decoded));
        (noise + (value - decoded).powi(2), signal + value.powi(2))
    })
}
