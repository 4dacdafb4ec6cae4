//! Points that codes stand for, learned from the matrices that will have them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::encode::rows_together;
use super::journal::{Journal, Kept};
use super::recipe::fit;
use super::{Item, Options};
use crate::bail;
use crate::error::{At, Result};
use crate::file::Source;
use crate::quant::points::Points;
use crate::run::walk::original;
use crate::transform;
use crate::types::{Basis, Shape, TensorType, learned};

/// Vectors that are learned from for each point, where the matrices have as many.
const PER_POINT: usize = 50;
/// Vectors that are learned from at most.
const VECTORS_MAX: usize = 1 << 20;

/// The table of an item as the file will have it; zeros where it is not known yet.
pub(super) fn table(item: &Item) -> Vec<u8> {
    match (&item.points, item.kind.table(), learned(item.kind)) {
        (Some(points), ..) => bytemuck::cast_slice(points.table()).to_vec(),
        (None, Some(table), _) => bytemuck::cast_slice(table).to_vec(),
        (None, None, Some(shape)) => vec![0; shape.v * shape.points()],
        (None, None, None) => Vec::new(),
    }
}

/// The items, those of types of learned points with points, which are kept in the journal.
///
/// # Errors
/// If a weight is not finite, or there are fewer vectors than points.
pub(super) fn with_points(
    source: &Source,
    options: &Options,
    mut items: Vec<Item>,
    journal: &mut Journal,
) -> Result<Vec<Item>> {
    let mut by_kind: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, item) in items.iter().enumerate() {
        if learned(item.kind).is_some() && !item.keep {
            by_kind.entry(item.kind.name()).or_default().push(at);
        }
    }
    for (name, places) in by_kind {
        let kind = items[places[0]].kind;
        let points = match kept_points(journal, kind)? {
            Some(points) => points,
            None => match of_layers(source, options, &items, kind)? {
                Ok(points) => {
                    let table = bytemuck::cast_slice(points.table());
                    journal.add(&label(kind), &[f64::from(points.unit)], &[table])?;
                    points
                }
                Err(TooFew { vectors, points }) => bail!(
                    "{name}: expected at least {points} vectors to learn from, found {vectors}"
                ),
            },
        };
        let points = Arc::new(points);
        places.into_iter().for_each(|at| items[at].points = Some(points.clone()));
    }
    Ok(items)
}

/// Of the points of a type in a journal.
fn label(kind: &'static dyn TensorType) -> String {
    format!("points {}", kind.name())
}

fn kept_points(journal: &mut Journal, kind: &'static dyn TensorType) -> Result<Option<Points>> {
    let shape = learned(kind).expect("a type of learned points");
    let Some(Kept { numbers, planes }) = journal.get(&label(kind))? else { return Ok(None) };
    let ([unit], [table]) = (&numbers[..], &planes[..]) else { return Ok(None) };
    Ok(Points::of_table(shape, bytemuck::cast_slice(table), *unit as f32))
}

/// Fewer vectors than points.
pub(super) struct TooFew {
    vectors: usize,
    points: usize,
}

/// Points of a type for all layers of a model, whichever of them get it: after a rotation and with
/// a scale for each row they look alike, and a table costs bytes.
///
/// # Errors
/// If a weight is not finite.
pub(super) fn of_layers(
    source: &Source,
    options: &Options,
    items: &[Item],
    kind: &'static dyn TensorType,
) -> Result<Result<Points, TooFew>> {
    let mut group = Vec::new();
    for item in items.iter().filter(|item| item.role.is_layer_matrix()) {
        let tensor = source.tensor(&item.name)?.expect("the plan lists what the source has");
        if let Ok(choice) = fit(kind, &tensor, options) {
            let (basis, sign_seed) = (choice.basis, options.seed);
            group.push(Item { kind, basis, sign_seed, ..item.clone() });
        }
    }
    let shape = learned(kind).expect("a type of learned points");
    let all: usize = group.iter().map(|item| item.rows / shape.v * item.cols).sum();
    let step = (all / (PER_POINT * points(shape)).min(VECTORS_MAX)).max(1);
    let mut vectors = Vec::new();
    for item in &group {
        sample(source, item, shape.v, step, &mut vectors).at(source.path().display())?;
    }
    let found = vectors.len() / shape.v;
    if found < points(shape) {
        return Ok(Err(TooFew { vectors: found, points: points(shape) }));
    }
    Ok(Ok(Points::learn(shape, &vectors, options.seed)))
}

/// Points of the larger table of a type.
fn points(shape: Shape) -> usize {
    1 << shape.bits.max(shape.residual_bits)
}

/// Adds every `step`th vector of a matrix, rotated, with rows of unit variance.
fn sample(
    source: &Source,
    item: &Item,
    v: usize,
    step: usize,
    vectors: &mut Vec<f32>,
) -> Result<()> {
    let tensor = source.tensor(&item.name)?.expect("the plan lists what the source has");
    // Of a small matrix, its whole blocks.
    let (cols, together) = (item.cols, rows_together(item).min(item.rows / v * v));
    if together == 0 {
        return Ok(());
    }
    let signs = transform::signs(item.sign_seed, cols);
    let pieces = item.rows / together;
    // Few pieces are decoded, and of those more vectors are taken.
    let skip = step.min(pieces).max(1);
    let stride = (step / skip).max(1);
    for piece in (0..pieces).step_by(skip) {
        let rows = piece * together..(piece + 1) * together;
        let mut values = vec![0.0; together * cols];
        original(&tensor, rows, &mut values)?;
        for row in values.chunks_exact_mut(cols) {
            if item.basis != Basis::Original {
                transform::forward(item.basis, &signs, row);
            }
            let square: f64 = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
            let scale = (square / cols as f64).sqrt();
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            row.iter_mut().for_each(|w| *w = (f64::from(*w) * inverse) as f32);
        }
        for block in values.chunks_exact(v * cols) {
            for c in (0..cols).step_by(stride) {
                vectors.extend((0..v).map(|t| block[t * cols + c]));
            }
        }
    }
    Ok(())
}
