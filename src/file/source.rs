//! A model to read: its metadata, its tensors as they lie in the file, and its weights with their
//! planes put together.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::gguf::{Gguf, TensorInfo};
use super::map::Map;
use super::metadata::Metadata;
use super::planes::{Form, Record, Registry, Role};
use super::shards::{self, Shard};
use crate::Result;
use crate::bail;
use crate::error::{At, Error};
use crate::transform;
use crate::types::raw::RawType;
use crate::types::{Basis, Bytes, ColumnPlanes, TYPES, Tensor, TensorType};

/// An opened model. Every plane of every weight has been checked, so that a weight it hands out
/// is whole.
pub struct Source {
    path: PathBuf,
    shards: Vec<Shard>,
    /// Shard, and index in it.
    places: HashMap<String, (usize, usize)>,
    /// Logical weights in file order.
    weights: Vec<Tensor>,
    /// Index in `weights`.
    names: HashMap<String, usize>,
    /// What the signs of weights with planes were made from.
    sign_seeds: HashMap<String, u64>,
    /// What shares of squares loud parts had, of weights with planes.
    captures: HashMap<String, f32>,
    /// Tensors that are no weights and no planes.
    others: Vec<(usize, usize)>,
    /// The metadata of a model that lies in no GGUF file.
    made: Option<Metadata>,
}

/// A tensor as it lies in a file.
#[derive(Clone, Copy, Debug)]
pub struct RawTensor<'a> {
    /// Name, shape, layout and bytes.
    pub info: &'a TensorInfo,
    /// Which file, from 0.
    pub shard: usize,
    /// Where its data starts, in bytes from the start of that file.
    pub offset: u64,
}

impl Source {
    /// Opens a GGUF file, or all shards of a split model given any of them.
    ///
    /// # Errors
    /// If a file cannot be read, breaks a rule of the format, or its planes do not fit together.
    pub fn open(path: impl AsRef<Path>) -> Result<Source> {
        Source::open_with(path, TYPES)
    }

    /// [`Source::open`] where weights are of these types.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn open_with(path: impl AsRef<Path>, types: &[&'static dyn TensorType]) -> Result<Source> {
        let path = path.as_ref();
        let shards = shards::open(path, types)?;
        let mut places = HashMap::new();
        for (shard, file) in shards.iter().enumerate() {
            for (index, tensor) in file.gguf.tensors.iter().enumerate() {
                if places.insert(tensor.name.clone(), (shard, index)).is_some() {
                    bail!("{}: tensor `{}` occurs twice", file.path.display(), tensor.name);
                }
            }
        }
        let nothing = Source::made(String::new(), Metadata::new(), Vec::new());
        let path = path.to_path_buf();
        let mut source = Source { path, shards, places, made: None, ..nothing };
        source.assemble(types).at(source.path.display())?;
        Ok(source)
    }

    /// A model that lies in no file: its name for messages, its metadata, its weights.
    pub fn made(name: String, metadata: Metadata, weights: Vec<Tensor>) -> Source {
        let names = weights.iter().enumerate();
        Source {
            path: PathBuf::from(name),
            shards: Vec::new(),
            places: HashMap::new(),
            names: names.map(|(index, weight)| (weight.name.clone(), index)).collect(),
            weights,
            sign_seeds: HashMap::new(),
            captures: HashMap::new(),
            others: Vec::new(),
            made: Some(metadata),
        }
    }

    /// A model that was read from files of another format: the path that was opened, the files, and
    /// what they are as a GGUF file.
    pub fn imported(
        path: PathBuf,
        files: impl IntoIterator<Item = (PathBuf, Map)>,
        metadata: Metadata,
        weights: Vec<Tensor>,
    ) -> Source {
        let shard = |(path, map)| Shard { path, map, gguf: Gguf::default() };
        let shards = files.into_iter().map(shard).collect();
        Source { path, shards, ..Source::made(String::new(), metadata, weights) }
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in order.
    pub fn shard_paths(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    /// Bytes of all files together; of the weights, where there is no file.
    pub fn file_bytes(&self) -> u64 {
        if self.shards.is_empty() {
            return self.weights.iter().map(|weight| weight.bytes() as u64).sum();
        }
        self.shards.iter().map(|shard| shard.map.len() as u64).sum()
    }

    /// The metadata of the model, which is all in the first file.
    pub fn metadata(&self) -> &Metadata {
        self.made.as_ref().unwrap_or_else(|| &self.shards[0].gguf.metadata)
    }

    /// `general.architecture`.
    ///
    /// # Errors
    /// If it is missing or no string.
    pub fn architecture(&self) -> Result<&str> {
        self.metadata().require_str("general.architecture")
    }

    /// Every tensor as it lies in the files, planes one by one.
    pub fn raw_tensors(&self) -> impl Iterator<Item = RawTensor<'_>> {
        self.shards.iter().enumerate().flat_map(move |(shard, file)| {
            (0..file.gguf.tensors.len()).map(move |index| self.raw_at((shard, index)))
        })
    }

    /// One tensor as it lies in a file.
    pub fn raw_tensor(&self, name: &str) -> Option<RawTensor<'_>> {
        self.places.get(name).map(|&place| self.raw_at(place))
    }

    /// The bytes of a tensor of this model.
    ///
    /// # Panics
    /// If the tensor is another model's and lies outside these files.
    pub fn raw_bytes(&self, tensor: &RawTensor) -> Bytes {
        // The parser has found the whole range inside the file, whose length is a usize.
        let start = tensor.offset as usize;
        self.shards[tensor.shard].map.bytes(start..start + tensor.info.bytes as usize)
    }

    /// A weight with all its planes, or `None` if the model has no tensor of this name.
    ///
    /// # Errors
    /// If the tensor is there, but its type is not one to compute with.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        if let Some(&index) = self.names.get(name) {
            return Ok(Some(self.weights[index].clone()));
        }
        let Some(raw) = self.raw_tensor(name) else { return Ok(None) };
        let info = raw.info;
        if info.shape.contains(&0) {
            bail!("tensor `{name}` has shape {:?}, which holds no values", info.shape);
        }
        let RawType { name: kind, id, .. } = info.kind;
        bail!(
            "tensor `{name}` has type {kind} (number {id}, {} bytes), which is not supported",
            info.bytes
        )
    }

    /// What the signs of a weight were made from; 0 where they are all +1, or there are none.
    pub fn sign_seed(&self, name: &str) -> u64 {
        self.sign_seeds.get(name).copied().unwrap_or(0)
    }

    /// The share of the squares of a weight's input that its loud part had; 0 where there is none.
    pub fn capture(&self, name: &str) -> f32 {
        self.captures.get(name).copied().unwrap_or(0.0)
    }

    /// Every weight, planes put together, in file order.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.weights.iter()
    }

    /// Tensors that are neither weights nor planes: integers, and types that are not supported.
    /// They can be listed and copied.
    pub fn other_tensors(&self) -> impl Iterator<Item = RawTensor<'_>> {
        self.others.iter().map(|&place| self.raw_at(place))
    }

    /// Asks the system to read the files ahead.
    pub fn prefetch(&self) {
        self.shards.iter().for_each(|shard| shard.map.prefetch());
    }

    /// Tells the system that a stock tensor will not be read again soon.
    pub fn release(&self, name: &str) {
        let Some(tensor) = self.raw_tensor(name) else { return };
        let start = tensor.offset as usize;
        self.shards[tensor.shard].map.release(start..start + tensor.info.bytes as usize);
    }

    /// The same of everything.
    pub fn release_all(&self) {
        self.shards.iter().for_each(|shard| shard.map.release(0..shard.map.len()));
    }

    /// Sorts the tensors of the files into weights, planes and others.
    fn assemble(&mut self, types: &[&'static dyn TensorType]) -> Result<()> {
        let registry = Registry::read(self.metadata(), types)?;
        let mut weights = HashMap::new();
        let mut planes = HashSet::new();
        for (record, names) in registry.iter() {
            if self.places.contains_key(&record.name) {
                bail!("tensor `{}` is in the file twice: whole, and as planes", record.name);
            }
            let weight = self.join(record, names).at(format_args!("tensor `{}`", record.name))?;
            self.sign_seeds.insert(record.name.clone(), record.sign_seed);
            self.captures.insert(record.name.clone(), record.capture);
            weights.insert(self.places[&names[&Role::Codes]], weight);
            planes.extend(names.values().map(|name| self.places[name]));
        }
        let (mut ordered, mut others) = (Vec::new(), Vec::new());
        for (shard, file) in self.shards.iter().enumerate() {
            for (index, info) in file.gguf.tensors.iter().enumerate() {
                let place = (shard, index);
                let kind = types.iter().copied().find(|kind| kind.id() == info.kind.id);
                if let Some(weight) = weights.remove(&place) {
                    ordered.push(weight);
                } else if planes.contains(&place) {
                    continue;
                } else if let Some(kind) = kind.filter(|_| !info.shape.contains(&0)) {
                    ordered.push(self.stock(place, kind)?);
                } else {
                    others.push(place);
                }
            }
        }
        let names = ordered.iter().enumerate();
        self.names = names.map(|(index, weight)| (weight.name.clone(), index)).collect();
        (self.weights, self.others) = (ordered, others);
        Ok(())
    }

    /// A weight of a stock type: its blocks as they are.
    fn stock(&self, place: (usize, usize), kind: &'static dyn TensorType) -> Result<Tensor> {
        let raw = self.raw_at(place);
        if kind.id() >= crate::types::PRIVATE_IDS {
            bail!("tensor `{}` has type {}, but no record", raw.info.name, kind.name());
        }
        Ok(Tensor {
            name: raw.info.name.clone(),
            kind,
            rows: size(raw.info.rows())?,
            cols: size(raw.info.cols())?,
            first: 0,
            basis: Basis::Original,
            group: 0,
            codes: self.raw_bytes(&raw),
            norms: Bytes::empty(),
            table: Bytes::empty(),
            signs: Bytes::empty(),
            columns: ColumnPlanes::default(),
        })
    }

    /// A weight from its planes, each checked against the record.
    fn join(&self, record: &Record, names: &HashMap<Role, String>) -> Result<Tensor> {
        let plane = |role| match names.get(&role) {
            Some(name) => self.plane(record, role, name),
            None => Ok(Bytes::empty()),
        };
        let signs = plane(Role::Signs)?;
        if record.basis != Basis::Original {
            transform::check_signs(record.basis, bytemuck::cast_slice(&signs))
                .at(format_args!("plane `{}`", names[&Role::Signs]))?;
        }
        let tensor = Tensor {
            name: record.name.clone(),
            kind: record.kind,
            rows: size(record.rows)?,
            cols: size(record.cols)?,
            first: 0,
            basis: record.basis,
            group: size(record.group.into())?,
            codes: plane(Role::Codes)?,
            norms: plane(Role::Norms)?,
            table: plane(Role::Table)?,
            signs,
            columns: ColumnPlanes {
                norms: plane(Role::ColumnNorms)?,
                means: plane(Role::ColumnMeans)?,
                groups: plane(Role::ColumnGroups)?,
                outlier_codes: plane(Role::OutlierCodes)?,
                outlier_table: plane(Role::OutlierTable)?,
            },
        };
        tensor.kind.check(&tensor).map_err(Error::new)?;
        Ok(tensor)
    }

    fn plane(&self, record: &Record, role: Role, name: &str) -> Result<Bytes> {
        let Some(raw) = self.raw_tensor(name) else {
            bail!("plane `{name}` is not in the file");
        };
        let found = raw.info;
        let (as_bytes, shape) = record.layout(role, Form::Planes)?;
        if (found.kind, &found.shape) == (as_bytes, &shape) {
            return Ok(self.raw_bytes(&raw));
        }
        // Tools may drop the outer dimension of a single row, and a table is one run of points.
        let equal = squeezed(&found.shape) == squeezed(&shape)
            || (role == Role::Table
                && found.shape.iter().product::<u64>() == shape.iter().product::<u64>());
        if found.kind == as_bytes && equal {
            return Ok(self.raw_bytes(&raw));
        }
        let (own, native_shape) = record.layout(role, Form::Native)?;
        if found.kind.id == own.id && squeezed(&found.shape) == squeezed(&native_shape) {
            return Ok(self.raw_bytes(&raw));
        }
        let RawType { name: expected, .. } = as_bytes;
        let (kind, found) = (found.kind.name, &found.shape);
        Err(Error::new(format!(
            "plane `{name}` has type {kind} and shape {found:?}, expected {expected} and {shape:?}"
        )))
    }

    fn raw_at(&self, (shard, index): (usize, usize)) -> RawTensor<'_> {
        let gguf = &self.shards[shard].gguf;
        let info = &gguf.tensors[index];
        RawTensor { info, shard, offset: gguf.data_start + info.offset }
    }
}

/// A shape without its outer dimensions of one.
fn squeezed(shape: &[u64]) -> &[u64] {
    let outer = shape.iter().rposition(|&size| size != 1).map_or(1, |last| last + 1);
    &shape[..outer.min(shape.len())]
}

fn size(value: u64) -> Result<usize> {
    usize::try_from(value).map_err(|_| Error::new(format!("{value} does not fit this machine")))
}
