//! One tensor to another type: decode, back to the original basis, into the new one, code.
//!
//! Rows are coded in pieces on all cores; sums of errors run in a fixed order, so that the report
//! does not depend on how many there are.

use rayon::prelude::*;

use super::Item;
use crate::bail;
use crate::error::Result;
use crate::file::planes::Role as Plane;
use crate::transform;
use crate::types::{Basis, Rows, Tensor, norm_bytes};

/// Rows that one task codes.
const ROWS: usize = 16;

/// A coded tensor.
pub struct Encoded {
    codes: Vec<u8>,
    norms: Vec<u8>,
    table: Vec<u8>,
    signs: Vec<u8>,
    /// Squared error over squared values.
    pub error: f64,
}

impl Encoded {
    /// The bytes of one plane.
    pub fn plane(&self, plane: Plane) -> &[u8] {
        match plane {
            Plane::Codes => &self.codes,
            Plane::Norms => &self.norms,
            Plane::Table => &self.table,
            Plane::Signs => &self.signs,
        }
    }
}

/// Codes a tensor as its item says.
///
/// # Errors
/// If a weight is not finite.
pub(super) fn encode(tensor: &Tensor, item: &Item) -> Result<Encoded> {
    if item.keep {
        return Ok(kept(tensor));
    }
    let signs = match item.basis {
        Basis::Original => Vec::new(),
        _ => transform::signs(item.sign_seed, item.cols),
    };
    let table = item.kind.table().map(|table| bytemuck::cast_slice(table).to_vec());
    let row_bytes = item.kind.row_bytes(item.cols).expect("the choice fits");
    let norm_bytes = norm_bytes(item.cols, item.group);
    let mut encoded = Encoded {
        codes: vec![0; item.rows * row_bytes],
        norms: vec![0; item.rows * norm_bytes],
        table: table.unwrap_or_default(),
        signs: bytemuck::cast_slice(&signs).to_vec(),
        error: 0.0,
    };
    if same_form(tensor, item, &signs, &encoded.table) {
        return Ok(kept(tensor));
    }
    tensor.codes.prepare();
    let codes = encoded.codes.par_chunks_mut(ROWS * row_bytes);
    let pieces = item.rows.div_ceil(ROWS);
    let norms: Vec<&mut [u8]> = match norm_bytes {
        0 => (0..pieces).map(|_| Default::default()).collect(),
        bytes => encoded.norms.chunks_mut(ROWS * bytes).collect(),
    };
    let table = bytemuck::cast_slice(&encoded.table);
    let sums: Result<Vec<(f64, f64)>> = codes
        .zip(norms)
        .enumerate()
        .map(|(piece, (codes, norms))| {
            let rows = piece * ROWS..((piece + 1) * ROWS).min(item.rows);
            let mut values = original(tensor, rows.clone())?;
            if item.basis != Basis::Original {
                for row in values.chunks_exact_mut(item.cols) {
                    transform::forward(item.basis, &signs, row);
                }
            }
            item.kind.encode(&values, item.cols, item.group, codes, norms);
            let (group, cols, count) = (item.group, item.cols, rows.len());
            let rows = Rows { count, cols, group, codes, norms, table };
            let mut decoded = vec![0.0; values.len()];
            item.kind.decode(&rows, &mut decoded);
            Ok(squares(&values, &decoded))
        })
        .collect();
    let (noise, signal) =
        sums?.iter().fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    encoded.error = if noise == 0.0 { 0.0 } else { noise / signal };
    Ok(encoded)
}

/// All planes as they are.
fn kept(tensor: &Tensor) -> Encoded {
    Encoded {
        codes: tensor.codes.to_vec(),
        norms: tensor.norms.to_vec(),
        table: tensor.table.to_vec(),
        signs: tensor.signs.to_vec(),
        error: 0.0,
    }
}

/// Whether coding the tensor again would give what it has.
fn same_form(tensor: &Tensor, item: &Item, signs: &[i8], table: &[u8]) -> bool {
    let planes = tensor.kind.id() == item.kind.id() && tensor.group == item.group;
    let signs: &[u8] = bytemuck::cast_slice(signs);
    planes && tensor.basis == item.basis && *tensor.signs == *signs && *tensor.table == *table
}

/// Rows in the basis the model was trained in.
fn original(tensor: &Tensor, rows: std::ops::Range<usize>) -> Result<Vec<f32>> {
    let mut values = vec![0.0; rows.len() * tensor.cols];
    tensor.kind.decode(&tensor.rows(rows.clone()), &mut values);
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        let (row, col) = (rows.start + at / tensor.cols, at % tensor.cols);
        let (name, found) = (&tensor.name, values[at]);
        bail!("tensor `{name}`: expected finite weights, found {found} in row {row}, column {col}");
    }
    if tensor.basis != Basis::Original {
        let signs = bytemuck::cast_slice(&tensor.signs);
        for row in values.chunks_exact_mut(tensor.cols) {
            transform::inverse(tensor.basis, signs, row);
        }
    }
    Ok(values)
}

/// Squared error and squared values.
fn squares(values: &[f32], decoded: &[f32]) -> (f64, f64) {
    values.iter().zip(decoded).fold((0.0, 0.0), |(noise, signal), (&value, &decoded)| {
        let (value, decoded) = (f64::from(value), f64::from(decoded));
        (noise + (value - decoded).powi(2), signal + value.powi(2))
    })
}
