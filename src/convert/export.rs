//! Back to a stock type: a file that other programs run.

use std::path::Path;
use std::time::Instant;

use super::recipe::{plain, shape};
use super::{Feedbacks, Item, Job, Line, Report, encode, in_order, records};
use crate::bail;
use crate::error::{At, Result};
use crate::file::planes::{Form, Role as Plane};
use crate::file::{Source, Value, Writer};
use crate::model::{Model, Role};
use crate::types::{Basis, PRIVATE_IDS, TYPES, Tensor, TensorType, raw};

/// The stock type of this name, in any case, if it can be written.
///
/// # Errors
/// If there is none; the message lists what there is.
pub fn stock_by_name(name: &str) -> Result<&'static dyn TensorType> {
    let is_named = |kind: &&dyn TensorType| kind.name().eq_ignore_ascii_case(name);
    match stock().find(is_named) {
        Some(kind) => Ok(kind),
        None => bail!("expected one of {}, found `{name}`", stock_names().join(", ")),
    }
}

/// The names of the stock types that can be written.
pub fn stock_names() -> Vec<&'static str> {
    stock().map(TensorType::name).collect()
}

fn stock() -> impl Iterator<Item = &'static dyn TensorType> {
    TYPES.iter().copied().filter(|kind| kind.id() < PRIVATE_IDS && kind.can_encode())
}

/// Keys of llama.cpp that say how a file was quantised, and from which importance matrix.
const IMATRIX: &str = "quantize.imatrix.";

/// What of a source stays as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Keep {
    /// Weights that have a stock type.
    pub stock: bool,
    /// The keys that say what an importance matrix was made from: they are of the codes that an
    /// export undoes.
    pub imatrix: bool,
}

/// Writes every matrix of a model as `kind`, in the model's own basis, or as its fallback where its
/// block does not divide the rows; what is no matrix becomes plain floats, and keys stay but for
/// those that would be untrue. `progress` hears of the bytes of source that are done.
///
/// # Errors
/// If the model is not one we know; if a weight is not finite; if the target is the source or
/// cannot be written. The target then does not exist, or is what it was before.
pub fn export(
    source: &Source,
    target: &Path,
    kind: &'static dyn TensorType,
    keep: Keep,
    progress: &mut dyn FnMut(u64),
) -> Result<Report> {
    let started = Instant::now();
    let items = items(source, kind, keep.stock).at(source.path().display())?;
    let (mut metadata, new, jobs) = records(source, Form::Planes, items)?;
    if !keep.imatrix {
        metadata.remove_prefix(IMATRIX);
    }
    if let Some(number) = raw::file_type(kind.id()) {
        metadata.set("general.file_type", Value::U32(number));
    }
    let sources: Vec<_> = source.shard_paths().map(Path::to_owned).collect();
    let mut writer = Writer::create(target, &sources, &metadata, new)?;
    let mut lines = Vec::new();
    for Job { item, order, .. } in jobs {
        let tensor = source.tensor(&item.name)?.expect("the items are what the source has");
        let bytes = tensor.bytes() as u64;
        let tensor = in_order(tensor, order).at(source.path().display())?;
        let encoded = encode::encode(&tensor, &item, &mut Feedbacks::none());
        let encoded = encoded.at(source.path().display())?;
        // A stock type has no other plane.
        writer.write(encoded.plane(Plane::Codes))?;
        progress(bytes);
        source.release(&item.name);
        lines.push(Line { item, error: encoded.error, output_error: None });
    }
    let file_bytes = writer.file_bytes();
    writer.finish()?;
    let (source_bytes, time) = (source.file_bytes(), started.elapsed());
    Ok(Report { lines, file_bytes, source_bytes, time, damped: Vec::new() })
}

fn items(source: &Source, kind: &'static dyn TensorType, keep_stock: bool) -> Result<Vec<Item>> {
    let model = Model::new(source)?;
    let item = |tensor: &Tensor| {
        let (role, _) = model.tensors.place(&tensor.name).expect("the model claims every tensor");
        let keep = keep_stock && tensor.kind.id() < PRIVATE_IDS;
        let kind = if keep { tensor.kind } else { kind_for(tensor, role, kind)? };
        Ok(Item {
            name: tensor.name.clone(),
            role,
            shape: shape(source, tensor, &model),
            rows: tensor.rows,
            matrices: model.matrices_in(&tensor.name),
            cols: tensor.cols,
            source_kind: tensor.kind,
            kind,
            basis: Basis::Original,
            group: 0,
            sign_seed: 0,
            keep,
            points: None,
            loud: None,
            capture: 0.0,
        })
    };
    source.tensors().map(item).collect()
}

fn kind_for(
    tensor: &Tensor,
    role: Role,
    kind: &'static dyn TensorType,
) -> Result<&'static dyn TensorType> {
    if !role.is_layer_matrix() && !role.is_vocabulary_matrix() {
        return Ok(plain());
    }
    let mut chain = std::iter::successors(Some(kind), |kind| kind.fallback());
    match chain.find(|kind| kind.row_bytes(tensor.cols).is_some()) {
        Some(kind) => Ok(kind),
        None => bail!(
            "tensor `{}`: expected rows of a multiple of {} values for {}, found {}",
            tensor.name,
            kind.block().len,
            kind.name(),
            tensor.cols
        ),
    }
}
