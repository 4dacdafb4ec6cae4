//! Which type each tensor gets.

use std::sync::Arc;

use regex::Regex;

use super::{Recipe, default_basis, row_basis};
use crate::bail;
use crate::error::{Error, Result};
use crate::file::planes::Form;
use crate::file::{Share, Source};
use crate::model::{Model, Role};
use crate::quant::points::Points;
use crate::quant::presets;
use crate::types::{self, Basis, Kernel, PRIVATE_IDS, Resq, SUB, Tensor, TensorType, resq};

/// The user's wishes.
#[derive(Clone)]
pub struct Options {
    /// Of the matrices of the layers.
    pub kind: &'static dyn TensorType,
    /// Whether weights in one of our own types stay as they are, where no other field names them.
    pub keep: bool,
    /// Of the embedding and the head; chosen by what `kind` is, if there is none.
    pub vocabulary_kind: Option<&'static dyn TensorType>,
    /// Types of single tensors.
    pub recipe: Option<Recipe>,
    /// The last pattern that matches a tensor's name decides its type, whatever the recipe says.
    pub overrides: Vec<(Regex, &'static dyn TensorType)>,
    /// What the signs are made from.
    pub seed: u64,
    /// Whether a transform and a norm cover a whole row, where no other field says more.
    pub whole_rows: bool,
    /// The transform instead of the default one, where it fits the width.
    pub basis: Option<Basis>,
    /// Weights per norm instead of the default.
    pub group: Option<usize>,
    /// Planes or native types.
    pub form: Form,
    /// The part of the tensors that is converted and written, if not all.
    pub share: Option<Share>,
}

/// A type, and the transform and group that go with it.
#[derive(Clone, Copy)]
pub struct Choice {
    /// The type.
    pub kind: &'static dyn TensorType,
    /// The transform.
    pub basis: Basis,
    /// Weights per norm; 0 for stock types.
    pub group: usize,
}

/// One tensor and what it will be.
#[derive(Clone)]
pub struct Item {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// As the file has it, the contiguous dimension first.
    pub shape: Vec<u64>,
    /// Outputs, those of all experts where it holds their matrices.
    pub rows: usize,
    /// Experts that it holds a matrix of, or 1.
    pub matrices: usize,
    /// Inputs.
    pub cols: usize,
    /// The type it has.
    pub source_kind: &'static dyn TensorType,
    /// The type it gets.
    pub kind: &'static dyn TensorType,
    /// The transform it gets.
    pub basis: Basis,
    /// Weights per norm; 0 for stock types.
    pub group: usize,
    /// What the signs are made from.
    pub sign_seed: u64,
    /// Whether all planes stay as they are.
    pub keep: bool,
    /// What codes stand for, where that is learned from the model.
    pub points: Option<Arc<Points>>,
    /// Which inputs are loud, where a parted basis asks for it and a text was listened to.
    pub loud: Option<Arc<[bool]>>,
    /// The share of all squares that those have; 0 if there are none.
    pub capture: f32,
}

impl Item {
    /// Bytes of its codes and norms.
    pub fn bytes(&self) -> usize {
        let codes = self.kind.row_bytes(self.cols).expect("the choice fits");
        let norms = types::norm_bytes(self.cols, self.group);
        self.rows.div_ceil(self.kind.row_block()) * codes + self.rows * norms
    }

    /// Bits per value.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.bytes() as f64 / (self.rows * self.cols) as f64
    }
}

/// Chooses for every tensor of a model, in the order of the file.
///
/// # Errors
/// If a type does not fit a tensor, cannot be written, or a pattern matches nothing.
pub fn choose(source: &Source, model: &Model, options: &Options) -> Result<Vec<Item>> {
    for (pattern, _) in &options.overrides {
        if !source.tensors().any(|tensor| pattern.is_match(&tensor.name)) {
            bail!("--tensor-type: `{pattern}` matches no tensor");
        }
    }
    source.tensors().map(|tensor| item(source, tensor, model, options)).collect()
}

fn item(source: &Source, tensor: &Tensor, model: &Model, options: &Options) -> Result<Item> {
    let (role, _) = model.tensors.place(&tensor.name).expect("the model claims every tensor");
    let matching = options.overrides.iter().rev().find(|(p, _)| p.is_match(&tensor.name));
    let listed = || options.recipe.as_ref().and_then(|recipe| recipe.kind(&tensor.name));
    let named = matching.map(|&(_, kind)| kind).or_else(listed);
    let keep = named.is_none() && stays(tensor, role, options);
    let fit = |kind| {
        if role.is_of_experts() {
            refuse_for_experts(tensor, kind)?;
        }
        fit(kind, tensor, options)
    };
    let choice = match named {
        Some(kind) => fit(kind)?,
        None if keep => Choice { kind: tensor.kind, basis: tensor.basis, group: tensor.group },
        None if role.is_layer_matrix() => fit(options.kind)?,
        None if role.is_vocabulary_matrix() => fit(vocabulary_kind(options))?,
        None => Choice { kind: plain(), basis: Basis::Original, group: 0 },
    };
    Ok(Item {
        name: tensor.name.clone(),
        role,
        shape: shape(source, tensor, model),
        rows: tensor.rows,
        matrices: model.matrices_in(&tensor.name),
        cols: tensor.cols,
        source_kind: tensor.kind,
        kind: choice.kind,
        basis: choice.basis,
        group: choice.group,
        points: None,
        loud: None,
        capture: if keep { source.capture(&tensor.name) } else { 0.0 },
        sign_seed: if keep { source.sign_seed(&tensor.name) } else { options.seed },
        keep,
    })
}

/// As the file has it, the contiguous dimension first; that of a weight in planes is the model's.
pub(super) fn shape(source: &Source, tensor: &Tensor, model: &Model) -> Vec<u64> {
    match source.raw_tensor(&tensor.name) {
        Some(raw) => raw.info.shape.clone(),
        None => model.shape(tensor).iter().rev().map(|&size| size as u64).collect(),
    }
}

/// Loud inputs are those of a whole weight, and every expert has its own.
fn refuse_for_experts(tensor: &Tensor, kind: &'static dyn TensorType) -> Result<()> {
    if resq(kind).is_none() {
        return Ok(());
    }
    let name = &tensor.name;
    let message = format!(
        "tensor `{name}`: expected a type that treats all inputs alike, as it holds several \
         experts, found {}, which keeps loud ones in more bits",
        kind.name()
    );
    Err(Error::new(message).with_hint(format!("--tensor-type '{name}=F16' gives it another type")))
}

/// What was coded once is not coded again without need: it would lose twice.
fn stays(tensor: &Tensor, role: Role, options: &Options) -> bool {
    let is_named = role.is_vocabulary_matrix() && options.vocabulary_kind.is_some();
    options.keep && tensor.kind.id() >= PRIVATE_IDS && !is_named
}

/// Norms, biases and factors stay plain floats: they are small and every token meets them.
pub(super) fn plain() -> &'static dyn TensorType {
    types::by_name("F32").expect("plain floats are always there")
}

/// A grid of few bits keeps the vocabulary in the 8-bit one, which costs next to nothing in quality
/// (`benches/results/`); a stock type is used throughout.
fn vocabulary_kind(options: &Options) -> &'static dyn TensorType {
    let is_grid = options.kind.id() >= PRIVATE_IDS;
    let finest = || presets::by_name("higgs8").expect("a preset");
    options.vocabulary_kind.unwrap_or_else(|| if is_grid { finest() } else { options.kind })
}

/// The type with the transform and group that its rows allow.
pub(super) fn fit(
    kind: &'static dyn TensorType,
    tensor: &Tensor,
    options: &Options,
) -> Result<Choice> {
    if !kind.can_encode() {
        bail!("type {} is read, not written", kind.name());
    }
    let cols = tensor.cols;
    let misfit = |lengths: &str| {
        let (name, kind) = (&tensor.name, kind.name());
        let message = format!(
            "tensor `{name}`: expected rows of a multiple of {lengths} values for {kind}, found \
             {cols}"
        );
        Error::new(message).with_hint(format!("--tensor-type '{name}=F16' gives it another type"))
    };
    if resq(kind).is_some() {
        if resq(tensor.kind).is_some() {
            let (name, kind) = (&tensor.name, kind.name());
            let message = format!("tensor `{name}`: expected one that is not {kind} already");
            let hint = "convert the model that it was made from: what was rounded away stays away";
            return Err(Error::new(message).with_hint(hint));
        }
        let (basis, group) = Resq::form(cols).ok_or_else(|| misfit("64 and at least 128"))?;
        return Ok(Choice { kind, basis, group });
    }
    if kind.row_bytes(cols).is_none() {
        return Err(misfit(&kind.block().len.to_string()));
    }
    if !matches!(kind.kernel(), Kernel::Int8 { group: 0, .. }) {
        return Ok(Choice { kind, basis: Basis::Original, group: 0 });
    }
    // Rows that share codes have one scale each.
    let shares = kind.row_block() > 1;
    let whole_rows = options.whole_rows || shares;
    let group = options.group.filter(|_| !shares).or_else(|| whole_rows.then_some(cols));
    let group = match group.filter(|&group| cols.is_multiple_of(group)) {
        Some(group) => group,
        None => 1 << cols.trailing_zeros().min(6),
    };
    if group < SUB {
        return Err(misfit(&SUB.to_string()));
    }
    let wish = options.basis.filter(|&basis| crate::transform::check(basis, cols).is_ok());
    let default = || if whole_rows { row_basis(cols) } else { default_basis(cols) };
    Ok(Choice { kind, basis: wish.unwrap_or_else(default), group })
}
