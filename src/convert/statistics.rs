//! What a text does to the inputs of a model's matrices, kept in a GGUF file that every tool can
//! list.
//!
//! A matrix of moments can be as large as a weight, so they stay in the file until they are needed.

use std::collections::HashMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::bail;
use crate::error::{At, Error, Result};
use crate::file::{Array, Metadata, NewTensor, Source, Value, Writer};
use crate::model::Model;
use crate::quant::Moments;
use crate::run::walk::{Heard, heard};
use crate::types::by_name;
use crate::types::raw::{self, RawType};

/// `general.type` of such a file.
const TYPE: &str = "gridmill.statistics";
const VERSION: u32 = 1;
const SUFFIX: &str = ".moments";
/// The SHA-256 of all matrices, in the order of the file.
const CHECKSUM: &str = "sha256";
/// ggml's number of plain bytes.
const I8: u32 = 24;

/// What is said of an importance matrix.
const DIAGONAL: &str = "an importance matrix knows how large each input is, and not how inputs go \
                        together: rounding is better with --calibrate TEXT, and what needs keys or \
                        values cannot be made from it";

/// The moments of every distinct input, and of the heads of keys and values.
pub struct Statistics {
    /// Says which model, text and settings they are from.
    pub fingerprint: String,
    source: Source,
    inputs: Vec<Input>,
    /// Which input a weight uses.
    uses: HashMap<String, usize>,
}

/// Where the moments of an input are.
struct Input {
    /// Of the tensor.
    name: String,
    width: usize,
    /// Rows that were added up.
    count: u64,
    /// Whether there are only the squares of an importance matrix.
    is_diagonal: bool,
}

/// Writes a file of statistics, matrix by matrix.
pub(super) struct StatisticsWriter {
    writer: Writer,
    hash: Sha256,
}

impl StatisticsWriter {
    /// For all inputs of a model; each adds up `count` rows.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn create(
        path: &Path,
        model: &Model,
        count: usize,
        fingerprint: &str,
    ) -> Result<StatisticsWriter> {
        let kind = RawType::of(by_name("F32").expect("plain floats are always there"));
        let (mut records, mut weights, mut inputs) = (Vec::new(), Vec::new(), Vec::new());
        for Heard { name, weights: users, width } in heard(model)? {
            let shape = [width as u64, width as u64];
            records.push(NewTensor::new(&format!("{name}{SUFFIX}"), &shape, kind)?);
            inputs.extend(users.iter().map(|_| name.clone()));
            weights.extend(users);
        }
        let bytes = raw::find(I8, &[]).expect("plain bytes are always there");
        records.push(NewTensor::new(CHECKSUM, &[32], bytes)?);
        let strings = |strings| Value::Array(Array::String(strings));
        let mut metadata = Metadata::new();
        metadata.set("general.type", Value::String(TYPE.to_string()));
        metadata.set("gridmill.statistics.version", Value::U32(VERSION));
        metadata.set("gridmill.statistics.fingerprint", Value::String(fingerprint.to_string()));
        metadata.set("gridmill.statistics.rows", Value::U64(count as u64));
        metadata.set("gridmill.statistics.weight", strings(weights));
        metadata.set("gridmill.statistics.input", strings(inputs));
        let writer = Writer::create(path, &[], &metadata, records)?;
        Ok(StatisticsWriter { writer, hash: Sha256::new() })
    }

    /// The next matrix.
    ///
    /// # Errors
    /// If the disk fails.
    pub(super) fn write(&mut self, moments: &Moments) -> Result<()> {
        let whole: Vec<f32> = moments.whole().iter().map(|&moment| moment as f32).collect();
        self.hash.update(bytemuck::cast_slice(&whole));
        self.writer.write(bytemuck::cast_slice(&whole))
    }

    /// Puts the whole file in its place.
    ///
    /// # Errors
    /// If a matrix is missing, or the disk fails.
    pub(super) fn finish(mut self) -> Result<()> {
        self.writer.write(&self.hash.finalize())?;
        self.writer.finish()
    }
}

impl Statistics {
    /// Reads statistics, or an importance matrix of llama.cpp, for a model; and what should be
    /// known about them.
    ///
    /// # Errors
    /// If the file is neither, is damaged, or is of another model.
    pub fn open(path: &Path, model: &Source) -> Result<(Statistics, Option<&'static str>)> {
        let source = Source::open(path)?;
        let kind = source.metadata().get_str("general.type").at(path.display())?;
        let kind = kind.unwrap_or("a model").to_string();
        let (statistics, note) = match &*kind {
            TYPE => (Statistics::read(source).at(path.display())?, None),
            "imatrix" => (Statistics::diagonal(source).at(path.display())?, Some(DIAGONAL)),
            _ => {
                let message = format!("expected {TYPE}, an imatrix or a text, found {kind}");
                return Err(Error::new(message).at(path.display()));
            }
        };
        statistics.check(model).at(path.display())?;
        Ok((statistics, note))
    }

    /// The number of the input that a weight uses.
    pub fn use_of(&self, weight: &str) -> Option<usize> {
        self.uses.get(weight).copied()
    }

    /// The moments of an input.
    ///
    /// # Errors
    /// If they are damaged.
    pub fn moments(&self, input: usize) -> Result<Moments> {
        let Input { name, width, count, is_diagonal } = &self.inputs[input];
        let (width, values) = (*width, self.values(name)?);
        let place = self.source.path().display();
        let diagonal = |i: usize| values[if *is_diagonal { i } else { i * width + i }];
        if let Some(found) = (0..width).map(diagonal).find(|d| !d.is_finite() || *d < 0.0) {
            bail!("{place}: tensor `{name}`: expected sums of squares, found {found}");
        }
        let mut sums = vec![0.0; width * width];
        if *is_diagonal {
            (0..width).for_each(|i| sums[i * width + i] = f64::from(values[i]));
            return Ok(Moments::of(width, *count, sums));
        }
        for row in 0..width {
            for col in 0..row {
                let (low, high) = (values[row * width + col], values[col * width + row]);
                if low != high || !low.is_finite() {
                    let expected = "expected a symmetric matrix";
                    bail!("{place}: tensor `{name}`: {expected}, found {low} and {high}");
                }
            }
        }
        sums.iter_mut().zip(&values).for_each(|(to, &value)| *to = f64::from(value));
        Ok(Moments::of(width, *count, sums))
    }

    fn values(&self, name: &str) -> Result<Vec<f32>> {
        let Some(tensor) = self.source.tensor(name)? else { bail!("tensor `{name}` is missing") };
        let mut values = vec![0.0; tensor.len()];
        tensor.kind.decode(&tensor.rows(0..tensor.rows), &mut values);
        self.source.release(name);
        Ok(values)
    }

    /// Fails if they cannot be of this model.
    fn check(&self, model: &Source) -> Result<()> {
        for (weight, &input) in &self.uses {
            let Some(tensor) = model.tensors().find(|tensor| tensor.name == *weight) else {
                bail!("it is of another model: it has `{weight}`, and the model has not");
            };
            let (expected, found) = (tensor.cols, self.inputs[input].width);
            if expected != found {
                let other = "it is of another model";
                bail!("{other}: expected {expected} inputs of `{weight}`, found {found}");
            }
        }
        Ok(())
    }

    fn read(source: Source) -> Result<Statistics> {
        let metadata = source.metadata();
        let version = metadata.require_u32("gridmill.statistics.version")?;
        if version != VERSION {
            bail!("gridmill.statistics.version: expected {VERSION}, found {version}");
        }
        check_sum(&source)?;
        let fingerprint = metadata.require_str("gridmill.statistics.fingerprint")?.to_string();
        let count = metadata.require_u64("gridmill.statistics.rows")?;
        let weights = metadata.require_strings("gridmill.statistics.weight")?;
        let users = metadata.require_strings("gridmill.statistics.input")?;
        if weights.len() != users.len() {
            let (expected, found) = (weights.len(), users.len());
            bail!("gridmill.statistics.input: expected {expected} inputs, found {found}");
        }
        let (mut inputs, mut uses) = (Vec::<Input>::new(), HashMap::new());
        for (weight, input) in weights.iter().zip(users) {
            let name = format!("{input}{SUFFIX}");
            let known = inputs.iter().position(|input| input.name == name);
            let index = known.unwrap_or(inputs.len());
            uses.insert(weight.clone(), index);
            if known.is_some() {
                continue;
            }
            let Some(tensor) = source.tensor(&name)? else { bail!("tensor `{name}` is missing") };
            if tensor.rows != tensor.cols {
                bail!(
                    "tensor `{name}`: expected a square, found {} x {}",
                    tensor.rows,
                    tensor.cols
                );
            }
            inputs.push(Input { name, width: tensor.cols, count, is_diagonal: false });
        }
        Ok(Statistics { fingerprint, source, inputs, uses })
    }

    /// An importance matrix: `NAME.in_sum2` and `NAME.counts` for each weight.
    fn diagonal(source: Source) -> Result<Statistics> {
        let fingerprint = String::new();
        let (inputs, uses) = (Vec::new(), HashMap::new());
        let mut statistics = Statistics { fingerprint, source, inputs, uses };
        let names: Vec<String> =
            statistics.source.raw_tensors().map(|raw| raw.info.name.clone()).collect();
        for name in names {
            let Some(weight) = name.strip_suffix(".in_sum2") else { continue };
            let counts = statistics.values(&format!("{weight}.counts"))?;
            let count = match counts[..] {
                [count] if count >= 1.0 => count as u64,
                _ => bail!("tensor `{weight}.counts`: expected a count above 0, found {counts:?}"),
            };
            let width = statistics.values(&name)?.len();
            statistics.uses.insert(weight.to_string(), statistics.inputs.len());
            statistics.inputs.push(Input { name, width, count, is_diagonal: true });
        }
        if statistics.inputs.is_empty() {
            bail!("the importance matrix has no `.in_sum2` tensors");
        }
        Ok(statistics)
    }
}

/// Fails if a matrix is not what was written.
fn check_sum(source: &Source) -> Result<()> {
    let mut hash = Sha256::new();
    let mut expected = None;
    for raw in source.raw_tensors() {
        match raw.info.name.as_str() {
            CHECKSUM => expected = Some(source.raw_bytes(&raw)),
            _ => hash.update(&*source.raw_bytes(&raw)),
        }
    }
    let Some(expected) = expected else { bail!("tensor `{CHECKSUM}` is missing") };
    let found = hash.finalize();
    if *expected != found[..] {
        bail!("tensor `{CHECKSUM}`: the matrices are not those that were written");
    }
    Ok(())
}
