//! The basis that a cache is kept in: what a format wants, and the matrices in a file beside the
//! model. Page: `formats/kv.md`.

use std::path::{Path, PathBuf};

use crate::backend::KvFormat;
use crate::backend::kv::Wants;
pub use crate::backend::kv::fine_len;
use crate::bail;
use crate::error::{At, Error, Result};
use crate::file::{Source, cache};
use crate::plan::{Op, Plan, Turn, Weight};
use crate::run::verify::relative_error;
use crate::run::walk::original;
use crate::transform;
use crate::types::{Basis, Tensor};

/// `general.type` of a file of bases.
pub const TYPE: &str = "gridmill.kv_basis";
/// Its version.
pub const VERSION: u32 = 2;

/// Some rows of the embedding: whose bases they are.
pub const SAMPLE: &str = "embedding.sample";
/// How many, spread over the vocabulary.
const SAMPLES: usize = 16;
/// Squared difference from the sample, over its square, up to which a model is the same, however it
/// was coded. Two bits lose a quarter; the embeddings of two models differ by about two.
const UNLIKE: f64 = 0.5;

/// The directions of a head that have 8 bits.
pub const FINE: &str = "gridmill.kv_basis.fine";
/// For keys and values of each layer the share of their squares that those hold.
pub const CAPTURES: &str = "gridmill.kv_basis.captures";

/// What a file of bases says of one of its tensors: directions in 8 bits, and the share of squares
/// that they hold; none of other tensors and other files.
pub fn about(source: &Source, tensor: &str) -> Option<(usize, f32)> {
    let fine = source.metadata().get_u32(FINE).ok()??;
    let captures = source.metadata().get_f32s(CAPTURES).ok()??;
    let (layer, what) = tensor.strip_prefix("blk.")?.strip_suffix(".basis")?.split_once('.')?;
    let at = ["keys", "values"].into_iter().position(|known| known == what)?;
    let layer: usize = layer.parse().ok()?;
    let capture = layer.checked_mul(2).and_then(|first| captures.get(first + at))?;
    Some((fine as usize, *capture))
}

/// Where the bases of a model are looked for: `model.kv-basis.gguf` beside `model.gguf`
/// or a folder `model`.
pub fn beside(model: &Path) -> PathBuf {
    // A folder may be `.`, and a point within its name is part of it.
    let whole = if model.file_name().is_none() { model.canonicalize().ok() } else { None };
    let model = whole.as_deref().unwrap_or(model);
    let name = model.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    model.with_file_name(format!("{stem}.kv-basis.gguf"))
}

/// Fails if heads of this length cannot be kept in bases.
///
/// # Errors
/// If they cannot.
pub fn check_head(head_len: usize) -> Result<()> {
    KvFormat::Resq4.check_head(head_len)
}

/// Gives the caches of a plan the basis that a format wants; `file` holds the matrices, if it
/// wants some.
///
/// # Errors
/// If the format has no basis for heads of this length, or the file is missing or another model's.
pub fn fit(plan: &mut Plan, kv: KvFormat, file: &Path) -> Result<()> {
    let name = kv.name();
    for info in &plan.caches {
        kv.check_head(info.head_len)?;
    }
    match kv.wants() {
        Wants::Own => {}
        Wants::Hadamard => {
            for info in &mut plan.caches {
                let Some(basis) = whole(info.head_len) else {
                    let found = info.head_len;
                    let expected = "expected heads of a length that has a Hadamard transform";
                    let error = Error::new(format!("cache type {name}: {expected}, found {found}"));
                    return Err(error.with_hint("--kv-type q8 takes heads as they are"));
                };
                info.turn = Some(Turn::Hadamard(basis));
            }
        }
        Wants::Matrices => {
            if !file.exists() {
                let message = format!("cache type {name}: expected the bases of its heads");
                let hint = "`gridmill kv-basis MODEL --calibrate TEXT` makes them; q4 needs none";
                return Err(Error::new(message)
                    .at(format_args!("{} is missing", file.display()))
                    .with_hint(hint));
            }
            matrices(plan, file).at(file.display())?;
        }
    }
    Ok(())
}

/// The transform of all values of a head together.
fn whole(head_len: usize) -> Option<Basis> {
    transform::choices(head_len).into_iter().find(|basis| match basis {
        Basis::Original | Basis::Parted { .. } => false,
        Basis::Hadamard { block } => *block as usize == head_len,
        Basis::Kronecker { .. } => true,
    })
}

fn matrices(plan: &mut Plan, file: &Path) -> Result<()> {
    let source = Source::open(file)?;
    let metadata = source.metadata();
    let kind = metadata.get_str("general.type")?.unwrap_or("a model").to_string();
    if kind != TYPE {
        bail!("expected {TYPE}, found {kind}");
    }
    let version = metadata.require_u32("gridmill.kv_basis.version")?;
    if version != VERSION {
        bail!("gridmill.kv_basis.version: expected {VERSION}, found {version}");
    }
    cache::check_sum(&source)?;
    check_model(plan, &source)?;
    for layer in 0..plan.caches.len() {
        let info = plan.caches[layer];
        let expected = (info.heads * info.head_len, info.head_len);
        let mut weight = |what: &str| -> Result<Weight> {
            let tensor = matrix(&source, &format!("blk.{layer}.{what}.basis"), expected)?;
            plan.weights.push(tensor);
            Ok(Weight(plan.weights.len() - 1))
        };
        let (keys, values) = (weight("keys")?, weight("values")?);
        plan.caches[layer].turn = Some(Turn::Matrices { keys, values });
    }
    Ok(())
}

/// The rows that say which model an embedding is of, `(rows, width)`.
///
/// # Errors
/// If a weight is not finite.
pub fn sample(embedding: &Tensor) -> Result<Vec<f32>> {
    let count = SAMPLES.min(embedding.rows);
    let mut values = vec![0.0; count * embedding.cols];
    for (i, row) in values.chunks_exact_mut(embedding.cols).enumerate() {
        let at = i * embedding.rows / count;
        original(embedding, at..at + 1, row)?;
    }
    Ok(values)
}

/// Fails if the bases are those of another model, whatever its shape.
fn check_model(plan: &Plan, source: &Source) -> Result<()> {
    let table = plan.ops.iter().find_map(|op| match op {
        Op::Embed { table, .. } => Some(*table),
        _ => None,
    });
    let table = table.expect("a plan begins with an embedding");
    let own = sample(&plan.weights[table.0])?;
    let Some(tensor) = source.tensor(SAMPLE)?.filter(|tensor| tensor.len() == own.len()) else {
        bail!("it is of another model: expected {SAMPLE} of {} values", own.len());
    };
    let mut known = vec![0.0; own.len()];
    tensor.kind.decode(&tensor.rows(0..tensor.rows), &mut known);
    // What is not a number is unlike everything.
    match relative_error(&known, &own).powi(2) <= UNLIKE {
        true => Ok(()),
        false => bail!("it is of another model: its embedding has other rows"),
    }
}

/// Orthogonal matrices, one below the other.
fn matrix(source: &Source, name: &str, (rows, cols): (usize, usize)) -> Result<Tensor> {
    let Some(tensor) = source.tensor(name)? else {
        bail!("it is of another model: tensor `{name}` is missing");
    };
    if (tensor.rows, tensor.cols) != (rows, cols) {
        let found = (tensor.rows, tensor.cols);
        bail!("it is of another model: `{name}`: expected {:?}, found {found:?}", (rows, cols));
    }
    let mut values = vec![0.0; tensor.len()];
    tensor.kind.decode(&tensor.rows(0..rows), &mut values);
    for (at, row) in values.chunks_exact(cols).enumerate() {
        let size: f32 = row.iter().map(|x| x * x).sum();
        if !(0.99..1.01).contains(&size) {
            bail!("tensor `{name}`: row {at}: expected a direction of length 1, found {size}");
        }
    }
    for (head, matrix) in values.chunks_exact(cols * cols).enumerate() {
        if !is_orthogonal(matrix, cols) {
            bail!("tensor `{name}`: head {head}: expected directions at right angles");
        }
    }
    Ok(tensor)
}

/// Whether a vector that is turned there and back is what it was: of all that are not orthogonal,
/// few matrices leave this one alone.
fn is_orthogonal(matrix: &[f32], len: usize) -> bool {
    let x: Vec<f32> = (1..=len).map(|i| (i as f32 * 0.618_034).fract() - 0.5).collect();
    let mut back = vec![0.0_f32; len];
    for row in matrix.chunks_exact(len) {
        let there: f32 = row.iter().zip(&x).map(|(a, b)| a * b).sum();
        back.iter_mut().zip(row).for_each(|(to, a)| *to += there * a);
    }
    let square = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
    let lost: Vec<f32> = x.iter().zip(&back).map(|(a, b)| a - b).collect();
    square(&lost) < 1e-4 * square(&x)
}
