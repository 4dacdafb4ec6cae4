//! Points that codes stand for, learned from the matrices that will have them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::journal::{Journal, Kept};
use super::recipe::fit;
use super::{Item, Options};
use crate::bail;
use crate::error::{At, Result};
use crate::file::Source;
use crate::quant::points::Points;
use crate::quant::random::Random;
use crate::run::walk::original;
use crate::transform;
use crate::types::{Basis, Shape, TensorType, learned};

/// Vectors that are learned from for each point, where the matrices have as many.
const PER_POINT: usize = 50;
/// The same where codes have signs, and points are few.
const PER_SIGNED: usize = 400;
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
/// `progress` is that of [`of_layers`].
///
/// # Errors
/// If a weight is not finite, or there are fewer vectors than points.
pub(super) fn with_points(
    source: &Source,
    options: &Options,
    mut items: Vec<Item>,
    journal: &mut Journal,
    progress: &mut dyn FnMut(&'static str, usize),
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
            None => match of_layers(source, options, &items, kind, progress)? {
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
/// a scale for each row they look alike, and a table costs bytes. `progress` hears of every round,
/// and how many there are.
///
/// # Errors
/// If a weight is not finite.
pub(super) fn of_layers(
    source: &Source,
    options: &Options,
    items: &[Item],
    kind: &'static dyn TensorType,
    progress: &mut dyn FnMut(&'static str, usize),
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
    let wanted = points(shape) * if shape.signs { PER_SIGNED } else { PER_POINT };
    let step = (all / wanted.min(VECTORS_MAX)).max(1);
    let mut vectors = Vec::new();
    let mut random = Random(options.seed);
    for item in &group {
        sample(source, item, shape.v, (step, &mut random), &mut vectors)
            .at(source.path().display())?;
    }
    let found = vectors.len() / shape.v;
    if found < points(shape) {
        return Ok(Err(TooFew { vectors: found, points: points(shape) }));
    }
    let mut done = || progress("learning points", Points::rounds(shape));
    Ok(Ok(Points::learn(shape, &vectors, options.seed, &mut done)))
}

/// Points of the larger table of a type.
fn points(shape: Shape) -> usize {
    1 << shape.bits.max(shape.residual_bits)
}

/// Adds one of every `step` vectors of a matrix, rotated, with rows of unit variance.
fn sample(
    source: &Source,
    item: &Item,
    v: usize,
    (step, random): (usize, &mut Random),
    vectors: &mut Vec<f32>,
) -> Result<()> {
    let tensor = source.tensor(&item.name)?.expect("the plan lists what the source has");
    let signs = transform::signs(item.sign_seed, item.cols);
    let (cols, count) = (item.cols, item.rows / v * item.cols);
    let mut block = vec![0.0; v * cols];
    let mut decoded = None;
    for first in (0..count).step_by(step) {
        // One of the next `step`, whichever: a step may have something in common with a row.
        let at = first + (random.bits() % step.min(count - first) as u64) as usize;
        if decoded != Some(at / cols) {
            decoded = Some(at / cols);
            let rows = at / cols * v..(at / cols + 1) * v;
            original(&tensor, rows, &mut block)?;
            block.chunks_exact_mut(cols).for_each(|row| even_out(item.basis, &signs, row));
        }
        vectors.extend((0..v).map(|t| block[t * cols + at % cols]));
    }
    source.release(&item.name);
    Ok(())
}

/// Rotates a row and divides it by its deviation.
fn even_out(basis: Basis, signs: &[i8], row: &mut [f32]) {
    if basis != Basis::Original {
        transform::forward(basis, signs, row);
    }
    let square: f64 = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
    let scale = (square / row.len() as f64).sqrt();
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    row.iter_mut().for_each(|w| *w = (f64::from(*w) * inverse) as f32);
}
