//! The registry of weights in our own types, each a set of planes: ordinary tensors that every
//! tool lists, copies and splits. Page: `formats/planes.md`.

use std::collections::{HashMap, HashSet};

use super::metadata::{Array, Metadata, Value};
use super::writer::NewTensor;
use crate::Result;
use crate::bail;
use crate::error::{At, Error};
use crate::limits;
use crate::types::raw::{self, RawType};
use crate::types::{Basis, Kernel, PRIVATE_IDS, SUB, TensorType, by_name};

pub use crate::types::Role;

/// The version of the registry that is written, and the only one that is read.
pub const FORMAT_VERSION: u32 = 1;

const VERSION: &str = "gridmill.format_version";
const TENSOR_NAME: &str = "gridmill.tensor.name";
const TENSOR_TYPE: &str = "gridmill.tensor.type";
const TENSOR_ROWS: &str = "gridmill.tensor.rows";
const TENSOR_COLS: &str = "gridmill.tensor.cols";
const TENSOR_TRANSFORM: &str = "gridmill.tensor.transform";
const TENSOR_GROUP: &str = "gridmill.tensor.group";
const TENSOR_SIGN_SEED: &str = "gridmill.tensor.sign_seed";
const TENSOR_CAPTURE: &str = "gridmill.tensor.capture";
const PLANE_TENSOR: &str = "gridmill.plane.tensor";
const PLANE_ROLE: &str = "gridmill.plane.role";
const PLANE_NAME: &str = "gridmill.plane.name";
const NOTICE: &str = "gridmill.needs_runtime";
const NOTICE_TEXT: &str = "some weights are in Gridmill's own tensor types: run this file with \
                           gridmill, or turn it back with `gridmill export --to F16`";

/// Endings that tools take for a weight of their own.
const FORBIDDEN_ENDINGS: [&str; 3] = ["weight", "bias", "scale"];

/// How code planes are declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Form {
    /// As bytes, which every tool reads.
    #[default]
    Planes,
    /// With the type's own number, which only tools that know it read.
    Native,
}

/// One weight of the registry.
#[derive(Clone)]
pub struct Record {
    /// The logical name: `blk.3.ffn_up.weight`.
    pub name: String,
    /// How its values are stored.
    pub kind: &'static dyn TensorType,
    /// Outputs.
    pub rows: u64,
    /// Inputs.
    pub cols: u64,
    /// What its inputs go through first.
    pub basis: Basis,
    /// Weights per norm.
    pub group: u32,
    /// What the signs were made from, 0 if all are +1; they are stored, so no reader needs it.
    pub sign_seed: u64,
    /// The share of the input's squares in the calibration text that its loud part had; 0 where
    /// there is none. No reader needs it.
    pub capture: f32,
}

impl Record {
    /// The roles that its planes must have, no more and no fewer.
    pub fn roles(&self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |&role| self.plane(role).is_some())
    }

    fn plane(&self, role: Role) -> Option<(RawType, Vec<u64>)> {
        match role {
            Role::Signs => (self.basis != Basis::Original).then(|| (raw::I8, vec![self.cols])),
            role => self.kind.plane(role, self.rows, self.cols, self.group.into()),
        }
    }

    /// Layout and shape (contiguous dimension first) of a plane, codes in the given form. Codes
    /// that rows share have one form.
    ///
    /// # Errors
    /// If the type has no such plane, or its block does not divide a row.
    pub fn layout(&self, role: Role, form: Form) -> Result<(RawType, Vec<u64>)> {
        let own = RawType::of(self.kind);
        if !self.cols.is_multiple_of(own.block_len) {
            let (cols, len, name) = (self.cols, own.block_len, own.name);
            bail!("{cols} columns, expected a multiple of {len} for type {name}");
        }
        if role == Role::Codes && form == Form::Native && self.kind.has_number() {
            return Ok((own, vec![self.cols, self.rows]));
        }
        match self.plane(role) {
            Some(plane) => Ok(plane),
            None => bail!("type {} has no plane in the role `{}`", own.name, role.name()),
        }
    }

    /// The tensor name of a plane: `blk.3.ffn_up.codes`, `gridmill.signs.576`.
    pub fn plane_name(&self, role: Role) -> String {
        match role {
            Role::Table if self.shares(role) => {
                format!("gridmill.table.{}", self.kind.name().to_lowercase())
            }
            Role::Signs => format!("gridmill.signs.{}", self.cols),
            role => {
                let stem = self.name.strip_suffix(".weight").unwrap_or(&self.name);
                format!("{stem}.{}", role.name())
            }
        }
    }

    /// Whether other weights may have the plane, too. A table of floats comes from a checkpoint,
    /// which has one for each weight.
    fn shares(&self, role: Role) -> bool {
        match role {
            Role::Signs => true,
            Role::Table => self.plane(role).is_some_and(|(kind, _)| kind == raw::I8),
            _ => false,
        }
    }

    /// Everything that can be wrong with a record by itself.
    fn check(&self) -> Result<()> {
        let Record { name, kind, rows, cols, basis, group, .. } = self;
        if name.is_empty() || name.len() > limits::TENSOR_NAME_BYTES_MAX {
            bail!("the name has {} bytes, expected 1 to 63", name.len());
        }
        if kind.id() < PRIVATE_IDS {
            bail!("type {} is a stock type, which has no planes", kind.name());
        }
        let len = rows.checked_mul(*cols).filter(|&len| len <= limits::TENSOR_LEN_MAX);
        if len.is_none_or(|len| len == 0) {
            let max = limits::TENSOR_LEN_MAX;
            bail!("{rows} rows of {cols} columns, expected 1 to {max} values");
        }
        let fits =
            *group > 0 && group.is_multiple_of(SUB as u32) && cols.is_multiple_of((*group).into());
        match kind.kernel() {
            Kernel::Float if *group != 0 => {
                bail!("group {group}, expected 0 for type {}, which has no norms", kind.name());
            }
            Kernel::Int8 { .. } if !fits => {
                bail!("group {group}, expected a multiple of {SUB} that divides {cols} columns");
            }
            _ => {}
        }
        if *basis != Basis::Original && kind.kernel() == Kernel::Float {
            bail!("a transform, expected none for type {}", kind.name());
        }
        crate::transform::check(*basis, *cols as usize)
            .at(format_args!("transform `{}`", transform_text(*basis)))?;
        self.layout(Role::Codes, Form::Planes).map(|_| ())
    }
}

/// The registry: records, and the tensor name of each of their planes.
#[derive(Clone, Default)]
pub struct Registry {
    records: Vec<Record>,
    planes: Vec<HashMap<Role, String>>,
}

impl Registry {
    /// Records, each with the tensor name of every plane that it must have.
    pub fn iter(&self) -> impl Iterator<Item = (&Record, &HashMap<Role, String>)> {
        self.records.iter().zip(&self.planes)
    }

    /// Records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Reads the registry of a file; one without records if the file has none.
    ///
    /// # Errors
    /// If the registry has another version, or contradicts itself.
    pub fn read(metadata: &Metadata, types: &[&'static dyn TensorType]) -> Result<Registry> {
        let Some(version) = metadata.get_u64(VERSION)? else { return Ok(Registry::default()) };
        if version != u64::from(FORMAT_VERSION) {
            let message = format!("`{VERSION}` is {version}, expected {FORMAT_VERSION}");
            return Err(Error::new(message).with_hint("a newer version of gridmill may read it"));
        }
        let records = read_records(metadata, types)?;
        let planes = read_planes(metadata, &records)?;
        Ok(Registry { records, planes })
    }

    fn write(&self, metadata: &mut Metadata) {
        let records = &self.records;
        let mut set = |key: &str, array| metadata.set(key, Value::Array(array));
        let texts =
            |text: &dyn Fn(&Record) -> String| Array::String(records.iter().map(text).collect());
        set(TENSOR_NAME, texts(&|record| record.name.clone()));
        set(TENSOR_TYPE, texts(&|record| record.kind.name().to_string()));
        set(TENSOR_ROWS, Array::U64(records.iter().map(|record| record.rows).collect()));
        set(TENSOR_COLS, Array::U64(records.iter().map(|record| record.cols).collect()));
        set(TENSOR_TRANSFORM, texts(&|record| transform_text(record.basis)));
        set(TENSOR_GROUP, Array::U32(records.iter().map(|record| record.group).collect()));
        set(TENSOR_SIGN_SEED, Array::U64(records.iter().map(|record| record.sign_seed).collect()));
        if records.iter().any(|record| record.capture != 0.0) {
            set(TENSOR_CAPTURE, Array::F32(records.iter().map(|record| record.capture).collect()));
        }
        let (mut tensors, mut roles, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (record, planes)) in self.iter().enumerate() {
            for role in record.roles() {
                tensors.push(index as u32);
                roles.push(role.name().to_string());
                names.push(planes[&role].clone());
            }
        }
        set(PLANE_TENSOR, Array::U32(tensors));
        set(PLANE_ROLE, Array::String(roles));
        set(PLANE_NAME, Array::String(names));
    }
}

/// A plane to write: its bytes follow in this order.
#[derive(Clone, Debug)]
pub struct NewPlane {
    /// What it holds.
    pub role: Role,
    /// The tensor that carries it.
    pub tensor: NewTensor,
}

/// Collects the weights of a file that is to be written.
pub struct PlanesBuilder {
    form: Form,
    registry: Registry,
    written: HashSet<String>,
    /// What signs of a width are known by, in the order of their planes: the seed that they were
    /// made from, and the loud inputs among them.
    signs: HashMap<u64, Vec<(u64, u32)>>,
    /// The tables of a type, the type's own among them, in the order of their planes.
    tables: HashMap<u32, Vec<Vec<u8>>>,
}

impl PlanesBuilder {
    /// A builder without weights.
    pub fn new(form: Form) -> PlanesBuilder {
        PlanesBuilder {
            form,
            registry: Registry::default(),
            written: HashSet::new(),
            signs: HashMap::new(),
            tables: HashMap::new(),
        }
    }

    /// Adds a weight with the type's own table; the result is the planes to write for it, shared
    /// ones only the first time: codes, norms, then table and signs where they are new.
    ///
    /// # Errors
    /// If the record is not valid, or a plane's name is taken or too long.
    pub fn add(&mut self, record: Record) -> Result<Vec<NewPlane>> {
        let own = record.kind.table().unwrap_or_default();
        self.add_with_table(record, bytemuck::cast_slice(own))
    }

    /// [`PlanesBuilder::add`] of a weight whose table may differ from the type's own.
    ///
    /// # Errors
    /// As [`PlanesBuilder::add`], or if the table has not the length of the type's.
    pub fn add_with_table(&mut self, record: Record, table: &[u8]) -> Result<Vec<NewPlane>> {
        let place = format!("tensor `{}`", record.name);
        record.check().at(&place)?;
        if self.registry.records.iter().any(|other| other.name == record.name) {
            bail!("{place} is written twice");
        }
        let expected = match record.plane(Role::Table) {
            Some((kind, shape)) => kind.bytes(shape[0], shape[1]).unwrap_or_default(),
            None => 0,
        };
        if expected != table.len() as u64 {
            bail!("{place}: a table of {} bytes, expected {expected}", table.len());
        }
        let mut planes = HashMap::new();
        let mut new = Vec::new();
        for role in record.roles() {
            // The first plane of its kind has the plain name, another one a number behind it.
            let name = record.plane_name(role);
            let name = match self.number(&record, role, table) {
                0 => name,
                number => format!("{name}.{number}"),
            };
            check_plane_name(&name).at(&place)?;
            let shared = record.shares(role);
            if self.written.insert(name.clone()) {
                let (kind, shape) = record.layout(role, self.form).at(&place)?;
                new.push(NewPlane { role, tensor: NewTensor::new(&name, &shape, kind)? });
            } else if !shared {
                bail!("{place}: the plane name `{name}` is taken");
            }
            planes.insert(role, name);
        }
        self.registry.records.push(record);
        self.registry.planes.push(planes);
        Ok(new)
    }

    /// Which of the planes that differ in content alone this is.
    fn number(&mut self, record: &Record, role: Role, table: &[u8]) -> usize {
        match role {
            Role::Table if record.shares(role) => {
                let own = record.kind.table().map(|own| bytemuck::cast_slice(own).to_vec());
                let own = || own.into_iter().collect();
                place(self.tables.entry(record.kind.id()).or_insert_with(own), table.to_vec())
            }
            Role::Signs => {
                let high = match record.basis {
                    Basis::Parted { high } => high,
                    Basis::Original | Basis::Hadamard { .. } | Basis::Kronecker { .. } => 0,
                };
                place(self.signs.entry(record.cols).or_default(), (record.sign_seed, high))
            }
            _ => 0,
        }
    }

    /// Turns the metadata of the source into that of the file: what no longer holds goes, the
    /// registry comes.
    pub fn finish(self, metadata: &mut Metadata) {
        metadata.remove_prefix("gridmill.");
        metadata.remove_prefix("split.");
        metadata.remove("general.file_type");
        metadata.remove(super::gguf::ALIGNMENT_KEY);
        metadata.set("general.quantization_version", Value::U32(2));
        if !self.registry.is_empty() {
            metadata.set(VERSION, Value::U32(FORMAT_VERSION));
            metadata.set(NOTICE, Value::String(NOTICE_TEXT.to_string()));
            self.registry.write(metadata);
        }
    }
}

/// Where a value stands in a list, at whose end it is put if it is new.
fn place<T: PartialEq>(list: &mut Vec<T>, value: T) -> usize {
    list.iter().position(|known| *known == value).unwrap_or_else(|| {
        list.push(value);
        list.len() - 1
    })
}

/// `none`, `hadamard:64`, `kronecker:36x16`, `parted:64`.
pub fn transform_text(basis: Basis) -> String {
    match basis {
        Basis::Original => "none".to_string(),
        Basis::Hadamard { block } => format!("hadamard:{block}"),
        Basis::Kronecker { order, block } => format!("kronecker:{order}x{block}"),
        Basis::Parted { high } => format!("parted:{high}"),
    }
}

/// The inverse of [`transform_text`].
pub fn transform_by_text(text: &str) -> Option<Basis> {
    if text == "none" {
        return Some(Basis::Original);
    }
    let basis = match text.split_once(':')? {
        ("hadamard", block) => Basis::Hadamard { block: block.parse().ok()? },
        ("parted", high) => Basis::Parted { high: high.parse().ok()? },
        ("kronecker", sizes) => {
            let (order, block) = sizes.split_once('x')?;
            Basis::Kronecker { order: order.parse().ok()?, block: block.parse().ok()? }
        }
        _ => return None,
    };
    // Parsing is lenient (`+64`, `064`); one spelling per transform is enough.
    (transform_text(basis) == text).then_some(basis)
}

fn check_plane_name(name: &str) -> Result<()> {
    let max = limits::TENSOR_NAME_BYTES_MAX;
    if name.is_empty() || name.len() > max {
        bail!("the plane name `{name}` has {} bytes, expected 1 to {max}", name.len());
    }
    if let Some(ending) = FORBIDDEN_ENDINGS.iter().find(|ending| name.ends_with(*ending)) {
        bail!("the plane name `{name}` ends in `{ending}`, which other programs take for a weight");
    }
    Ok(())
}

fn read_records(metadata: &Metadata, types: &[&'static dyn TensorType]) -> Result<Vec<Record>> {
    let names = metadata.require_strings(TENSOR_NAME)?;
    let kinds = column(metadata.require_strings(TENSOR_TYPE)?, TENSOR_TYPE, names.len())?;
    let rows = column(metadata.require_u64s(TENSOR_ROWS)?, TENSOR_ROWS, names.len())?;
    let cols = column(metadata.require_u64s(TENSOR_COLS)?, TENSOR_COLS, names.len())?;
    let transforms = metadata.require_strings(TENSOR_TRANSFORM)?;
    let transforms = column(transforms, TENSOR_TRANSFORM, names.len())?;
    let groups = column(metadata.require_u64s(TENSOR_GROUP)?, TENSOR_GROUP, names.len())?;
    let seeds = metadata.require_u64s(TENSOR_SIGN_SEED)?;
    let seeds = column(seeds, TENSOR_SIGN_SEED, names.len())?;
    let captures = metadata.get_f32s(TENSOR_CAPTURE)?.unwrap_or(vec![0.0; names.len()]);
    let captures = column(captures, TENSOR_CAPTURE, names.len())?;
    let mut seen = HashSet::new();
    let mut records = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let place = format_args!("registry: tensor `{name}`");
        if !seen.insert(name) {
            bail!("{place} occurs twice");
        }
        let (kind, transform) = (&kinds[index], &transforms[index]);
        let known = types.iter().copied().find(|known| known.name().eq_ignore_ascii_case(kind));
        let Some(known) = known.or_else(|| by_name(kind)) else {
            return Err(Error::new(format!("unknown type `{kind}`"))
                .at(place)
                .with_hint("a newer version of gridmill may read it"));
        };
        let Some(basis) = transform_by_text(transform) else {
            bail!("{place}: unknown transform `{transform}`");
        };
        let record = Record {
            name: name.clone(),
            kind: known,
            rows: rows[index],
            cols: cols[index],
            basis,
            group: u32::try_from(groups[index]).unwrap_or(0),
            sign_seed: seeds[index],
            capture: captures[index],
        };
        record.check().at(place)?;
        records.push(record);
    }
    Ok(records)
}

/// The tensor name of each plane, for each record; every record has exactly its roles.
fn read_planes(metadata: &Metadata, records: &[Record]) -> Result<Vec<HashMap<Role, String>>> {
    let names = metadata.require_strings(PLANE_NAME)?;
    let roles = column(metadata.require_strings(PLANE_ROLE)?, PLANE_ROLE, names.len())?;
    let tensors = column(metadata.require_u64s(PLANE_TENSOR)?, PLANE_TENSOR, names.len())?;
    let mut planes = vec![HashMap::new(); records.len()];
    let mut uses: HashMap<&str, (Role, usize)> = HashMap::new();
    for ((name, role), &tensor) in names.iter().zip(roles).zip(&tensors) {
        let index = usize::try_from(tensor).unwrap_or(usize::MAX);
        let Some(record) = records.get(index) else {
            let count = records.len();
            bail!("registry: plane `{name}` belongs to tensor {tensor}, but there are {count}");
        };
        let place = format_args!("registry: tensor `{}`", record.name);
        let Some(known) = Role::by_name(role) else { bail!("{place}: unknown role `{role}`") };
        if !record.roles().any(|allowed| allowed == known) {
            bail!("{place}: type and transform allow no plane in the role `{role}`");
        }
        if planes[index].insert(known, name.clone()).is_some() {
            bail!("{place}: two planes in the role `{role}`");
        }
        let first = *uses.entry(name).or_insert((known, index));
        let shared = record.shares(known);
        if first.0 != known || (!shared && first.1 != index) {
            bail!("{place}: plane `{name}` is used twice");
        }
    }
    for (record, planes) in records.iter().zip(&planes) {
        if let Some(role) = record.roles().find(|role| !planes.contains_key(role)) {
            bail!("registry: tensor `{}`: no plane in the role `{}`", record.name, role.name());
        }
    }
    Ok(planes)
}

/// One of several parallel arrays.
fn column<T: AsRef<[E]>, E>(values: T, key: &str, expected: usize) -> Result<T> {
    match values.as_ref().len() {
        len if len == expected => Ok(values),
        len => bail!("`{key}` has {len} elements, expected {expected}"),
    }
}
