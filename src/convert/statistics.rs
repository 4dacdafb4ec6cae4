//! What a text does to the inputs of a model's matrices, kept in a GGUF file that any tool can list.

use std::collections::HashMap;
use std::path::Path;

use crate::bail;
use crate::error::{At, Error, Result};
use crate::file::{Array, Metadata, NewTensor, Source, Value, Writer};
use crate::quant::Moments;
use crate::types::by_name;
use crate::types::raw::RawType;

/// `general.type` of such a file.
const TYPE: &str = "gridmill.statistics";
const VERSION: u32 = 1;

/// The moments of every distinct input, and of the heads of keys and values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Says which model, text and settings they are from.
    pub fingerprint: String,
    /// The inputs, by the name of the first weight that uses them.
    inputs: Vec<(String, Moments)>,
    /// Which input a weight uses.
    uses: HashMap<String, usize>,
    /// Keys after RoPE and values, by `blk.N.keys.H` and `blk.N.values.H`.
    caches: Vec<(String, Moments)>,
}

impl Statistics {
    /// Nothing yet.
    pub fn new(fingerprint: String) -> Statistics {
        Statistics { fingerprint, ..Statistics::default() }
    }

    /// The moments that rows of an input are added to; `weights` use it.
    pub fn input(&mut self, weights: &[&str], width: usize) -> &mut Moments {
        let index = *self.uses.entry(weights[0].to_string()).or_insert_with(|| {
            self.inputs.push((weights[0].to_string(), Moments::new(width)));
            self.inputs.len() - 1
        });
        for weight in weights {
            self.uses.insert(weight.to_string(), index);
        }
        &mut self.inputs[index].1
    }

    /// The moments of a head of keys or values.
    pub fn cache(&mut self, name: String, width: usize) -> &mut Moments {
        if self.caches.last().is_none_or(|(last, _)| *last != name) {
            let known = self.caches.iter().position(|(known, _)| *known == name);
            match known {
                Some(at) => return &mut self.caches[at].1,
                None => self.caches.push((name, Moments::new(width))),
            }
        }
        &mut self.caches.last_mut().expect("just there").1
    }

    /// The number of the input that a weight uses.
    pub fn use_of(&self, weight: &str) -> Option<usize> {
        self.uses.get(weight).copied()
    }

    /// The moments of an input.
    pub fn moments(&self, input: usize) -> &Moments {
        &self.inputs[input].1
    }

    /// Writes them, the matrices in single precision.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let kind = RawType::of(by_name("F32").expect("plain floats are always there"));
        let all = || self.inputs.iter().chain(&self.caches);
        let mut records = Vec::new();
        for (name, moments) in all() {
            let width = moments.width as u64;
            records.push(NewTensor::new(&tensor_name(name), &[width, width], kind)?);
        }
        let mut metadata = Metadata::new();
        let mut uses: Vec<_> = self.uses.iter().collect();
        uses.sort();
        let names = uses.iter().map(|(name, _)| name.to_string()).collect();
        let inputs = uses.iter().map(|(_, at)| self.inputs[**at].0.clone()).collect();
        let counts = all().map(|(_, moments)| moments.count).collect();
        metadata.set("general.type", Value::String(TYPE.to_string()));
        metadata.set("gridmill.statistics.version", Value::U32(VERSION));
        metadata.set("gridmill.statistics.fingerprint", Value::String(self.fingerprint.clone()));
        metadata.set("gridmill.statistics.weight", Value::Array(Array::String(names)));
        metadata.set("gridmill.statistics.input", Value::Array(Array::String(inputs)));
        metadata.set("gridmill.statistics.count", Value::Array(Array::U64(counts)));
        let mut writer = Writer::create(path, &[], &metadata, records)?;
        for (_, moments) in all() {
            let whole: Vec<f32> = moments.whole().iter().map(|&moment| moment as f32).collect();
            writer.write(bytemuck::cast_slice(&whole))?;
        }
        writer.finish()
    }

    /// Reads what [`Statistics::save`] wrote.
    ///
    /// # Errors
    /// If the file is something else, or not whole.
    pub fn open(path: &Path) -> Result<Statistics> {
        let source = Source::open(path)?;
        Statistics::read(&source).at(path.display())
    }

    /// Reads statistics, or an importance matrix of llama.cpp, for a model; and what should be
    /// known about them.
    ///
    /// # Errors
    /// If the file is neither, or of another model.
    pub fn import(path: &Path, model: &Source) -> Result<(Statistics, Option<String>)> {
        let source = Source::open(path)?;
        let kind = source.metadata().get_str("general.type").at(path.display())?;
        let (statistics, note) = match kind {
            Some("imatrix") => (imatrix(&source).at(path.display())?, Some(DIAGONAL.to_string())),
            _ => (Statistics::read(&source).at(path.display())?, None),
        };
        statistics.check(model).at(path.display())?;
        Ok((statistics, note))
    }

    /// Fails if they cannot be of this model.
    fn check(&self, model: &Source) -> Result<()> {
        for (weight, &input) in &self.uses {
            let Some(tensor) = model.tensors().find(|tensor| tensor.name == *weight) else {
                bail!("it is of another model: it has `{weight}`, and the model has not");
            };
            let width = self.inputs[input].1.width;
            if tensor.cols != width {
                let expected = tensor.cols;
                bail!(
                    "it is of another model: expected {expected} inputs of `{weight}`, found {width}"
                );
            }
        }
        Ok(())
    }

    fn read(source: &Source) -> Result<Statistics> {
        let metadata = source.metadata();
        let kind = metadata.get_str("general.type")?.unwrap_or("a model");
        if kind != TYPE {
            bail!("expected {TYPE}, found {kind}");
        }
        let version = metadata.require_u32("gridmill.statistics.version")?;
        if version != VERSION {
            bail!("gridmill.statistics.version: expected {VERSION}, found {version}");
        }
        let fingerprint = metadata.require_str("gridmill.statistics.fingerprint")?.to_string();
        let mut statistics = Statistics::new(fingerprint);
        let weights = metadata.require_strings("gridmill.statistics.weight")?;
        let inputs = metadata.require_strings("gridmill.statistics.input")?;
        let counts = metadata.require_u64s("gridmill.statistics.count")?;
        let tensors = source.raw_tensors().count();
        if weights.len() != inputs.len() || counts.len() != tensors {
            bail!("statistics: expected {tensors} counts and as many inputs as weights");
        }
        for (raw, count) in source.raw_tensors().zip(counts) {
            let name = raw.info.name.trim_end_matches(SUFFIX).to_string();
            let moments = read_moments(source, &raw.info.name, count)?;
            let is_input = inputs.contains(&name);
            let list = if is_input { &mut statistics.inputs } else { &mut statistics.caches };
            list.push((name, moments));
        }
        for (weight, input) in weights.iter().zip(inputs) {
            let index = statistics.inputs.iter().position(|(name, _)| name == input);
            let missing = || Error::new(format!("tensor `{}` is missing", tensor_name(input)));
            statistics.uses.insert(weight.clone(), index.ok_or_else(missing)?);
        }
        Ok(statistics)
    }
}

/// What is said of an importance matrix.
const DIAGONAL: &str = "an importance matrix knows how large each input is, and not how inputs go \
                        together: rounding is better with --calibrate TEXT, and what needs keys or \
                        values cannot be made from it";

/// An importance matrix: `NAME.in_sum2` and `NAME.counts` for each weight.
fn imatrix(source: &Source) -> Result<Statistics> {
    let mut statistics = Statistics::new("imatrix".to_string());
    let read = |name: &str| -> Result<Vec<f32>> {
        let Some(tensor) = source.tensor(name)? else { bail!("tensor `{name}` is missing") };
        let mut values = vec![0.0; tensor.len()];
        tensor.kind.decode(&tensor.rows(0..tensor.rows), &mut values);
        match values.iter().find(|value| !value.is_finite() || **value < 0.0) {
            Some(found) => bail!("tensor `{name}`: expected squares, found {found}"),
            None => Ok(values),
        }
    };
    for raw in source.raw_tensors() {
        let Some(weight) = raw.info.name.strip_suffix(".in_sum2") else { continue };
        let squares = read(&raw.info.name)?;
        let counts = read(&format!("{weight}.counts"))?;
        if counts.len() != 1 || counts[0] < 1.0 {
            bail!("tensor `{weight}.counts`: expected one count above zero, found {counts:?}");
        }
        let width = squares.len();
        let mut sums = vec![0.0; width * width];
        squares.iter().enumerate().for_each(|(i, &sum)| sums[i * width + i] = f64::from(sum));
        *statistics.input(&[weight], width) = Moments::of(width, counts[0] as u64, sums);
    }
    if statistics.inputs.is_empty() {
        bail!("the importance matrix has no `.in_sum2` tensors");
    }
    Ok(statistics)
}

const SUFFIX: &str = ".moments";

fn tensor_name(input: &str) -> String {
    format!("{input}{SUFFIX}")
}

fn read_moments(source: &Source, name: &str, count: u64) -> Result<Moments> {
    let Some(tensor) = source.tensor(name)? else { bail!("tensor `{name}` is missing") };
    if tensor.rows != tensor.cols {
        bail!("tensor `{name}`: expected a square, found {} x {}", tensor.rows, tensor.cols);
    }
    let mut values = vec![0.0; tensor.len()];
    tensor.kind.decode(&tensor.rows(0..tensor.rows), &mut values);
    let width = tensor.cols;
    for row in 0..width {
        let diagonal = values[row * width + row];
        if !diagonal.is_finite() || diagonal < 0.0 {
            bail!("tensor `{name}`: expected moments, found {diagonal} on the diagonal");
        }
        for col in 0..row {
            let (low, high) = (values[row * width + col], values[col * width + row]);
            if low != high || !low.is_finite() {
                bail!("tensor `{name}`: expected a symmetric matrix, found {low} and {high}");
            }
        }
    }
    Ok(Moments::of(width, count, values.into_iter().map(f64::from).collect()))
}
