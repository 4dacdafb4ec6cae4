//! What a text does to the inputs of a model's matrices, kept in a GGUF file that every tool can
//! list.
//!
//! A matrix of moments can be as large as a weight, so they stay in the file until they are needed.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::bail;
use crate::error::{At, Error, Result};
use crate::file::{Array, Metadata, NewTensor, Source, Value, Writer, cache};
use crate::model::Model;
use crate::quant::Moments;
use crate::run::walk::{Heard, heard};
use crate::types::raw::{self, RawType};
use crate::types::{Tensor, by_name};

/// `general.type` of such a file.
const TYPE: &str = "gridmill.statistics";
const VERSION: u32 = 1;
/// Of what is counted in single precision, the most that makes sense.
const COUNT_MAX: f32 = 1e15;
const SUFFIX: &str = ".moments";
/// Rows of each expert, where experts have rows of their own.
const COUNTS: &str = ".counts";
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
    /// Rows that were added up, in each of its matrices: one, or one of each expert.
    counts: Vec<u64>,
    /// Whether there are only the squares of an importance matrix.
    is_diagonal: bool,
}

/// Writes a file of statistics, matrix by matrix.
pub(super) struct StatisticsWriter {
    writer: Writer,
    hash: Sha256,
}

impl StatisticsWriter {
    /// For all inputs of a model; each but those of experts adds up `count` rows.
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
        for Heard { name, weights: users, width, experts } in heard(model)? {
            let mut shape = vec![width as u64; 2];
            shape.extend(experts.map(|experts| experts as u64));
            records.push(NewTensor::new(&format!("{name}{SUFFIX}"), &shape, kind)?);
            if let Some(experts) = experts {
                let shape = [experts as u64];
                records.push(NewTensor::new(&format!("{name}{COUNTS}"), &shape, kind)?);
            }
            inputs.extend(users.iter().map(|_| name.clone()));
            weights.extend(users);
        }
        let bytes = raw::find(I8, &[]).expect("plain bytes are always there");
        records.push(NewTensor::new(cache::CHECKSUM, &[32], bytes)?);
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

    /// The matrix of the next input, or those of its experts.
    ///
    /// # Errors
    /// If the disk fails.
    pub(super) fn write(&mut self, matrices: &[Moments]) -> Result<()> {
        for moments in matrices {
            self.put(moments.whole().iter().map(|&moment| moment as f32).collect())?;
        }
        match matrices {
            [_] => Ok(()),
            _ => self.put(matrices.iter().map(|moments| moments.count as f32).collect()),
        }
    }

    fn put(&mut self, values: Vec<f32>) -> Result<()> {
        self.hash.update(bytemuck::cast_slice(&values));
        self.writer.write(bytemuck::cast_slice(&values))
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

    /// Which matrix of an input belongs to the matrix of this number in a weight: the expert's own,
    /// or the one for all.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn matrix(&self, input: usize, number: usize) -> Result<usize> {
        let Input { name, counts, .. } = &self.inputs[input];
        match counts.len() {
            1 => Ok(0),
            count if number < count => Ok(number),
            count => {
                let place = self.source.path().display();
                bail!("{place}: tensor `{name}`: expected those of expert {number}, found {count}")
            }
        }
    }

    /// One of the matrices of moments of an input.
    ///
    /// # Errors
    /// If they are damaged.
    ///
    /// # Panics
    /// If the number is none that [`Statistics::matrix`] gives.
    pub fn moments(&self, input: usize, matrix: usize) -> Result<Moments> {
        self.read_moments(&self.inputs[input], matrix)
    }

    /// Rows that such a matrix is the sum of; none in an importance matrix, which may count texts.
    pub fn rows(&self, input: usize, matrix: usize) -> Option<u64> {
        let Input { counts, is_diagonal, .. } = &self.inputs[input];
        (!is_diagonal).then(|| counts[matrix])
    }

    /// The moments of what no weight uses: `blk.N.keys.H` and `blk.N.values.H` for heads.
    ///
    /// # Errors
    /// If they are damaged or missing, as in an importance matrix.
    pub fn moments_of(&self, what: &str) -> Result<Moments> {
        let (place, name) = (self.source.path().display(), format!("{what}{SUFFIX}"));
        let found = self.source.tensor(&name).at(place)?;
        let Some(tensor) = found.filter(|tensor| tensor.rows == tensor.cols) else {
            let error = Error::new(format!("tensor `{name}`: expected a square, found none"));
            return Err(error.at(self.source.path().display()).with_hint(DIAGONAL));
        };
        let count = self.source.metadata().require_u64("gridmill.statistics.rows")?;
        let (width, counts) = (tensor.cols, vec![count]);
        self.read_moments(&Input { name, width, counts, is_diagonal: false }, 0)
    }

    fn read_moments(&self, input: &Input, matrix: usize) -> Result<Moments> {
        let Input { name, width, counts, is_diagonal } = input;
        let (width, count) = (*width, counts[matrix]);
        let height = if *is_diagonal { 1 } else { width };
        let values = self.values(name, matrix * height..(matrix + 1) * height)?;
        let place = self.source.path().display();
        let diagonal = |i: usize| values[if *is_diagonal { i } else { i * width + i }];
        if let Some(found) = (0..width).map(diagonal).find(|d| !d.is_finite() || *d < 0.0) {
            bail!("{place}: tensor `{name}`: expected sums of squares, found {found}");
        }
        let mut sums = vec![0.0; width * width];
        if *is_diagonal {
            (0..width).for_each(|i| sums[i * width + i] = f64::from(values[i]));
            return Ok(Moments::of(width, count, sums));
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
        Ok(Moments::of(width, count, sums))
    }

    fn values(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        let mut values = vec![0.0; rows.len() * tensor.cols];
        tensor.kind.decode(&tensor.rows(rows), &mut values);
        self.source.release(name);
        Ok(values)
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        match self.source.tensor(name)? {
            Some(tensor) => Ok(tensor),
            None => bail!("tensor `{name}` is missing"),
        }
    }

    /// The rows that were added up by expert; `None` if the tensor is not there.
    fn counts(&self, name: &str) -> Result<Option<Vec<u64>>> {
        let Some(tensor) = self.source.tensor(name)? else { return Ok(None) };
        let counts = self.values(name, 0..tensor.rows)?;
        if let Some(found) = counts.iter().find(|count| !(0.0..=COUNT_MAX).contains(*count)) {
            bail!("tensor `{name}`: expected counts of rows, found {found}");
        }
        Ok(Some(counts.iter().map(|&count| count as u64).collect()))
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
        cache::check_sum(&source)?;
        let fingerprint = metadata.require_str("gridmill.statistics.fingerprint")?.to_string();
        let count = metadata.require_u64("gridmill.statistics.rows")?;
        let weights = metadata.require_strings("gridmill.statistics.weight")?;
        let users = metadata.require_strings("gridmill.statistics.input")?;
        if weights.len() != users.len() {
            let (expected, found) = (weights.len(), users.len());
            bail!("gridmill.statistics.input: expected {expected} inputs, found {found}");
        }
        let names: Vec<(String, String)> =
            weights.iter().cloned().zip(users.iter().cloned()).collect();
        let (inputs, uses) = (Vec::new(), HashMap::new());
        let mut statistics = Statistics { fingerprint, source, inputs, uses };
        for (weight, input) in names {
            let name = format!("{input}{SUFFIX}");
            let known = statistics.inputs.iter().position(|input| input.name == name);
            let index = known.unwrap_or(statistics.inputs.len());
            statistics.uses.insert(weight, index);
            if known.is_none() {
                let counts = statistics.counts(&format!("{input}{COUNTS}"))?;
                let input = statistics.input(name, counts.unwrap_or_else(|| vec![count]))?;
                statistics.inputs.push(input);
            }
        }
        Ok(statistics)
    }

    /// An input with as many matrices as there are counts.
    fn input(&self, name: String, counts: Vec<u64>) -> Result<Input> {
        let tensor = self.tensor(&name)?;
        let (rows, width, matrices) = (tensor.rows, tensor.cols, counts.len());
        if Some(rows) != width.checked_mul(matrices) {
            let expected = if matrices == 1 { "a square" } else { "a square per expert" };
            bail!("tensor `{name}`: expected {expected}, found {rows} x {width}");
        }
        Ok(Input { name, width, counts, is_diagonal: false })
    }

    /// An importance matrix: `NAME.in_sum2` and `NAME.counts` for each weight, with a row and a
    /// count for each of its experts.
    fn diagonal(source: Source) -> Result<Statistics> {
        let fingerprint = String::new();
        let (inputs, uses) = (Vec::new(), HashMap::new());
        let mut statistics = Statistics { fingerprint, source, inputs, uses };
        let names: Vec<String> =
            statistics.source.raw_tensors().map(|raw| raw.info.name.clone()).collect();
        for name in names {
            let Some(weight) = name.strip_suffix(".in_sum2") else { continue };
            let place = format!("{weight}{COUNTS}");
            let Some(counts) = statistics.counts(&place)? else {
                bail!("tensor `{place}` is missing")
            };
            if counts.iter().all(|&count| count == 0) {
                bail!("tensor `{place}`: expected a count above 0, found {counts:?}");
            }
            let tensor = statistics.tensor(&name)?;
            let (rows, width) = (tensor.rows, tensor.cols);
            if rows != counts.len() {
                bail!("tensor `{name}`: expected {} rows, as counts, found {rows}", counts.len());
            }
            statistics.uses.insert(weight.to_string(), statistics.inputs.len());
            statistics.inputs.push(Input { name, width, counts, is_diagonal: true });
        }
        if statistics.inputs.is_empty() {
            bail!("the importance matrix has no `.in_sum2` tensors");
        }
        Ok(statistics)
    }
}
