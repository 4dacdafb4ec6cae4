//! Tensors of a folder, under their names in GGUF and in its order of rows.

use std::collections::BTreeSet;

use super::config;
use super::floats;
use super::folder::Folder;
use super::metadata;
use super::quantised::Quantised;
use super::rope::Rope;
use crate::bail;
use crate::error::{At, Error, Result};
use crate::file::safetensors::Entry;
use crate::file::{Metadata, Source};
use crate::model::arch::{Need, TensorWords};
use crate::model::{Arch, Hparams, Role};
use crate::types::{self, Basis, Bytes, ColumnPlanes, Tensor};

/// Endings of tensors that older versions stored and nothing needs.
const NEEDLESS: [&str; 2] = [".rotary_emb.inv_freq", ".attn.masked_bias"];

/// What stands for the number of an expert in the names of its tensors.
const EXPERT: &str = "{expert}";

/// Every tensor of the model, the embedding first, then layer by layer.
pub(super) fn all(
    folder: &Folder,
    arch: &Arch,
    quantised: Option<Quantised>,
    metadata: &Metadata,
) -> Result<Vec<Tensor>> {
    let embedding = embedding(folder, arch, quantised.as_ref())?;
    let known = Source::made(String::new(), metadata.clone(), vec![embedding.clone()]);
    let hparams = Hparams::new(arch, &known).at("config.json")?;
    config::check(&folder.config, arch, &hparams).at("config.json")?;
    let mut build = Build { folder, arch, quantised, hparams, used: BTreeSet::new() };
    let mut tensors = vec![embedding];
    for words in arch.tensors.iter().filter(|words| !is_of_layers(words)) {
        tensors.extend(build.tensor(words, None)?.filter(|_| words.role != Role::Embedding));
    }
    for layer in 0..build.hparams.layers {
        for words in arch.tensors.iter().filter(|words| is_of_layers(words)) {
            tensors.extend(build.tensor(words, Some(layer))?);
        }
    }
    build.check_all_used()?;
    Ok(tensors)
}

/// The method of a quantised module, by the name of its weight.
fn quantised_module<'a>(
    quantised: Option<&'a Quantised>,
    folder: &Folder,
    name: &str,
) -> Option<(&'a Quantised, String)> {
    let (quantised, module) = (quantised?, name.strip_suffix(".weight")?);
    quantised.has(folder, module).then(|| (quantised, module.to_string()))
}

fn is_of_layers(words: &TensorWords) -> bool {
    words.name.contains("{layer}")
}

fn embedding(folder: &Folder, arch: &Arch, quantised: Option<&Quantised>) -> Result<Tensor> {
    let words = arch.tensors.iter().find(|words| words.role == Role::Embedding);
    let words = words.expect("every architecture has an embedding");
    let name = words.huggingface.as_ref().expect("every folder has an embedding");
    if let Some((_, module)) = quantised_module(quantised, folder, name) {
        bail!("module `{module}`: expected an embedding of floats, found a quantised one");
    }
    let (entry, bytes) = folder.require(name)?;
    let [rows, cols] = entry.shape[..] else {
        bail!("tensor `{name}`: expected two dimensions, found shape {:?}", entry.shape);
    };
    stock(&words.name, name, entry, bytes, &[rows, cols])
}

struct Build<'a> {
    folder: &'a Folder,
    arch: &'a Arch,
    quantised: Option<Quantised>,
    hparams: Hparams,
    /// Names in the folder.
    used: BTreeSet<String>,
}

impl Build<'_> {
    fn tensor(&mut self, words: &TensorWords, layer: Option<usize>) -> Result<Option<Tensor>> {
        let numbered = |text: &str| match layer {
            Some(layer) => text.replace("{layer}", &layer.to_string()),
            None => text.to_string(),
        };
        let name = numbered(&words.name);
        if words.role.is_rope_factors() {
            let factors = self.rope_factors(words.role).at("config.json")?;
            return Ok(factors.map(|factors| vector(name, &factors)));
        }
        let Some(other) = words.huggingface.as_deref().map(numbered) else { return Ok(None) };
        let shape: Vec<u64> = words.shape.iter().map(|&dim| self.hparams.dim(dim) as u64).collect();
        if other.contains(EXPERT) {
            return self.experts(&name, &other, &shape).map(Some);
        }
        self.used.insert(other.clone());
        // A head that is the embedding may still be stored.
        let is_tied = words.role == Role::Head && self.is_tied();
        let order = self.order(words.role);
        if let Some((quantised, module)) = self.quantised_module(&other) {
            let tensor = quantised.tensor(self.folder, &module, name, &shape, order)?;
            let parts = quantised.parts(&module);
            self.used.extend(parts);
            return Ok(Some(tensor));
        }
        let Some((entry, bytes)) = self.folder.get(&other).filter(|_| !is_tied) else {
            match words.need {
                Need::Always => bail!("tensor `{other}` is missing"),
                Need::Sometimes => return Ok(None),
            }
        };
        let tensor = order.apply(stock(&name, &other, entry, bytes, &shape)?);
        let shift = metadata::words(self.arch).norm_shift;
        match words.role.is_norm() && shift != 0.0 {
            true => Ok(Some(shifted(&tensor, shift))),
            false => Ok(Some(tensor)),
        }
    }

    fn rope_factors(&self, role: Role) -> Result<Option<Vec<f32>>> {
        let config = &self.folder.config;
        let factors = Rope::read(config)?.factors(config, self.hparams.rope_len)?;
        Ok(factors.into_iter().find(|(of, _)| *of == role).map(|(_, factors)| factors))
    }

    /// One weight of the matrices of all experts, which a folder has one by one.
    fn experts(&mut self, name: &str, pattern: &str, shape: &[u64]) -> Result<Tensor> {
        let mut all: Vec<Tensor> = Vec::new();
        for expert in 0..shape[0] {
            let other = pattern.replace(EXPERT, &expert.to_string());
            if let Some((_, module)) = self.quantised_module(&other) {
                bail!("module `{module}`: expected an expert of floats, found a quantised one");
            }
            let (entry, bytes) = self.folder.require(&other)?;
            let tensor = stock(name, &other, entry, bytes, &shape[1..])?;
            if let Some(first) = all.first().filter(|first| first.kind.id() != tensor.kind.id()) {
                let (expected, found) = (first.kind.name(), tensor.kind.name());
                bail!("tensor `{other}`: expected {expected}, as expert 0 has, found {found}");
            }
            self.used.insert(other);
            all.push(tensor);
        }
        let rows = all.iter().map(|tensor| tensor.rows).sum();
        let bytes = all.iter().map(|tensor| tensor.codes.len()).sum();
        let parts: Vec<Bytes> = all.iter().map(|tensor| tensor.codes.clone()).collect();
        let codes =
            Bytes::made(bytes, move || parts.iter().flat_map(|part| part.to_vec()).collect());
        let first = all.into_iter().next().expect("a model has at least one expert");
        Ok(Tensor { rows, codes, ..first })
    }

    fn is_tied(&self) -> bool {
        self.folder.config.get("tie_word_embeddings").and_then(|tied| tied.as_bool()) == Some(true)
    }

    /// `transformers` rotates the halves of a head with each other. Where a GGUF file of this
    /// architecture pairs neighbours, the rows of queries and keys are put beside their partners.
    fn order(&self, role: Role) -> Order {
        let stays = self.quantised.as_ref().is_some_and(Quantised::keeps_order);
        match self.arch.pairs_neighbours() && role.is_rotated() && !stays {
            true => Order::Pairs { head_len: self.hparams.head_len },
            false => Order::Same,
        }
    }

    fn quantised_module(&self, name: &str) -> Option<(&Quantised, String)> {
        quantised_module(self.quantised.as_ref(), self.folder, name)
    }

    fn check_all_used(&self) -> Result<()> {
        let is_needless = |name: &str| NEEDLESS.iter().any(|ending| name.ends_with(ending));
        let names = self.folder.names();
        let mut names = names.into_iter().filter(|name| !is_needless(name));
        match names.find(|name| !self.used.contains(*name)) {
            Some(name) => {
                bail!("tensor `{name}` is not part of architecture `{}`", self.arch.name)
            }
            None => Ok(()),
        }
    }
}

/// The order of a weight's rows.
#[derive(Clone, Copy)]
pub(in crate::convert) enum Order {
    /// As they are.
    Same,
    /// In each head, row i of the first half, row i of the second half, and so on.
    Pairs {
        /// Rows of a head.
        head_len: usize,
    },
}

impl Order {
    /// Where a row comes from.
    pub(super) fn source(self, row: usize) -> usize {
        match self {
            Order::Same => row,
            Order::Pairs { head_len } => {
                let (head, at) = (row / head_len, row % head_len);
                head * head_len + at % 2 * (head_len / 2) + at / 2
            }
        }
    }

    /// A stock tensor in this order; the values of a vector are its rows.
    pub(in crate::convert) fn apply(self, tensor: Tensor) -> Tensor {
        if matches!(self, Order::Same) {
            return tensor;
        }
        let is_vector = tensor.rows == 1;
        let rows = if is_vector { tensor.cols } else { tensor.rows };
        let (bytes, codes) = (tensor.codes.len() / rows, tensor.codes.clone());
        let make = move || {
            let row = |row| &codes[self.source(row) * bytes..][..bytes];
            (0..rows).flat_map(row).copied().collect()
        };
        Tensor { codes: Bytes::made(rows * bytes, make), ..tensor }
    }
}

/// A tensor as it lies in the file.
fn stock(name: &str, other: &str, entry: &Entry, bytes: Bytes, expected: &[u64]) -> Result<Tensor> {
    let Entry { dtype, shape, .. } = entry;
    let Some((kind, codes)) = floats::held(dtype, bytes) else {
        bail!("tensor `{other}`: expected floats, found {dtype}");
    };
    if shape != expected || shape.contains(&0) {
        bail!("tensor `{other}`: expected shape {expected:?}, found {shape:?} (outputs first)");
    }
    let size = |size: u64| usize::try_from(size).map_err(|error| Error::new(error.to_string()));
    let (rows, cols) = match shape[..] {
        [cols] => (1, size(cols)?),
        [rows, cols] => (size(rows)?, size(cols)?),
        _ => bail!("tensor `{other}`: expected one or two dimensions, found shape {shape:?}"),
    };
    Ok(Tensor {
        name: name.to_string(),
        kind,
        rows,
        cols,
        first: 0,
        basis: Basis::Original,
        group: 0,
        codes,
        norms: Bytes::empty(),
        table: Bytes::empty(),
        signs: Bytes::empty(),
        columns: ColumnPlanes::default(),
    })
}

/// Some architectures multiply by more than the weight of a norm.
fn shifted(tensor: &Tensor, shift: f32) -> Tensor {
    let mut values = vec![0.0; tensor.cols];
    tensor.kind.decode(&tensor.rows(0..1), &mut values);
    values.iter_mut().for_each(|value| *value += shift);
    vector(tensor.name.clone(), &values)
}

fn vector(name: String, values: &[f32]) -> Tensor {
    Tensor {
        name,
        kind: types::by_name("F32").expect("plain floats are always there"),
        rows: 1,
        cols: values.len(),
        first: 0,
        basis: Basis::Original,
        group: 0,
        codes: Bytes::from(
            values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>(),
        ),
        norms: Bytes::empty(),
        table: Bytes::empty(),
        signs: Bytes::empty(),
        columns: ColumnPlanes::default(),
    }
}
