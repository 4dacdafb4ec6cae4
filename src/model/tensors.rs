//! The tensors of a model: each expected one found with the right shape, each found one expected.

use std::collections::{HashMap, HashSet};

use super::arch::{Arch, Need, Role, TensorWords};
use super::hparams::Hparams;
use crate::bail;
use crate::error::Result;
use crate::file::Source;
use crate::types::Tensor;

/// Every tensor of a model, by what it is for.
pub struct Tensors {
    by_place: HashMap<(Role, Option<usize>), Tensor>,
}

impl Tensors {
    /// Claims every tensor of a file.
    ///
    /// # Errors
    /// If one is missing, has the wrong shape, or belongs to nothing.
    pub fn new(arch: &Arch, hparams: &Hparams, source: &Source) -> Result<Tensors> {
        let mut by_place = HashMap::new();
        for words in &arch.tensors {
            let layers: Vec<Option<usize>> = match words.name.contains("{layer}") {
                true => (0..hparams.layers).map(Some).collect(),
                false => vec![None],
            };
            for layer in layers {
                let Some(tensor) = claim(words, layer, hparams, source)? else { continue };
                for (role, part) in parted(words.role, hparams, &tensor) {
                    by_place.insert((role, layer), part);
                }
                by_place.insert((words.role, layer), tensor);
            }
        }
        let known: HashSet<&str> = by_place.values().map(|tensor| &*tensor.name).collect();
        let others = source.other_tensors().map(|raw| raw.info.name.as_str());
        let mut names = source.tensors().map(|tensor| tensor.name.as_str()).chain(others);
        if let Some(surplus) = names.find(|name| !known.contains(name)) {
            bail!("tensor `{surplus}` is not part of architecture `{}`", arch.name);
        }
        Ok(Tensors { by_place })
    }

    /// The same tensors but for some, by name.
    pub(super) fn with(&self, others: &HashMap<String, Tensor>) -> Tensors {
        let choose = |tensor: &Tensor| others.get(&tensor.name).unwrap_or(tensor).clone();
        let chosen = self.by_place.iter().map(|(&place, tensor)| (place, choose(tensor)));
        Tensors { by_place: chosen.collect() }
    }

    /// A tensor that a description says may be missing.
    pub fn get(&self, role: Role, layer: Option<usize>) -> Option<&Tensor> {
        self.by_place.get(&(role, layer))
    }

    /// What a tensor is for, and in which layer.
    pub fn place(&self, name: &str) -> Option<(Role, Option<usize>)> {
        let found = self.by_place.iter().find(|(_, tensor)| tensor.name == name);
        found.map(|(&place, _)| place)
    }
}

/// The matrices that lie in one.
fn parted(role: Role, hparams: &Hparams, tensor: &Tensor) -> Vec<(Role, Tensor)> {
    let mut start = 0;
    let mut parts = Vec::new();
    for &(role, dim) in role.parts() {
        let rows = start..start + hparams.dim(dim);
        start = rows.end;
        parts.push((role, tensor.part(parts.len(), rows)));
    }
    parts
}

fn claim(
    words: &TensorWords,
    layer: Option<usize>,
    hparams: &Hparams,
    source: &Source,
) -> Result<Option<Tensor>> {
    let name =
        layer.map_or(words.name.clone(), |layer| words.name.replace("{layer}", &layer.to_string()));
    let Some(tensor) = source.tensor(&name)? else {
        match words.need {
            Need::Sometimes => return Ok(None),
            Need::Always => bail!("tensor `{name}` is missing"),
        }
    };
    let expected: Vec<usize> = words.shape.iter().map(|&dim| hparams.dim(dim)).collect();
    let found = match expected[..] {
        [_] if tensor.rows == 1 => vec![tensor.cols],
        [experts, ..] if expected.len() == 3 => of_experts(&tensor, experts, source),
        _ => vec![tensor.rows, tensor.cols],
    };
    if found != expected {
        bail!("tensor `{name}`: expected shape {expected:?}, found {found:?} (outputs first)");
    }
    Ok(Some(tensor))
}

/// The shape of a weight that holds a matrix per expert: as the file has it, where the file has the
/// weight whole. Planes and folders have the rows of all experts one after the other.
fn of_experts(tensor: &Tensor, experts: usize, source: &Source) -> Vec<usize> {
    match source.raw_tensor(&tensor.name) {
        Some(raw) => raw.info.shape.iter().rev().map(|&size| size as usize).collect(),
        None if tensor.rows.is_multiple_of(experts) => {
            vec![experts, tensor.rows / experts, tensor.cols]
        }
        None => vec![tensor.rows, tensor.cols],
    }
}
