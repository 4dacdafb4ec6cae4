//! How much the model loses per unit of error in each weight: Gaussian noise of several sizes, one
//! weight at a time, and the KL divergence that it causes.
//!
//! With statistics the noise has the shape that second-order rounding gives its errors, so the
//! coefficient is in the metric of the moments; without, it is white, as the paper has it. Its size
//! follows the rows, as that of a rounding with a scale per row does.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use rayon::prelude::*;

use super::{Feedbacks, noise_basis, row_basis};
use crate::bail;
use crate::error::{At, Error, Result};
use crate::limits;
use crate::model::Model;
use crate::quant::alpha::{Alpha, Together};
use crate::quant::random::Random;
use crate::quant::{Feedback, presets, second_order};
use crate::run::Options;
use crate::run::probe::{Probe, cost_together};
use crate::run::walk::{float, floats, of_floats};
use crate::transform;
use crate::types::{Basis, Tensor, norm_bytes, part_name, whole_name};

/// Squared error of the noise over the squared weights: about what 4.5 and 2.5 bits leave. Two tell
/// as much as more: what noise costs is linear in it over a range of 20 (`benches/results/`).
pub const LEVELS: [f64; 2] = [0.005, 0.04];

/// The errors at which all weights are changed at once: about what 6, 5 and 3 bits leave.
pub const TOGETHER: [f64; 3] = [0.001, 0.006, 0.036];

/// What stands for all weights in a file of measurements.
const ALL: &str = "*";
/// What stands for activations there.
const ACTIVATIONS: &str = "activations";

/// The first line of a file of measurements, before the fingerprint.
const HEADING: &str = "gridmill sensitivity 3";

/// What noise cost.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sensitivity {
    /// By weight: errors and losses.
    pairs: HashMap<String, Vec<(f64, f64)>>,
    /// Errors of [`TOGETHER`], and the losses with all weights changed so, in other windows.
    together: Vec<(f64, f64)>,
    /// The loss with 8-bit activations, and the same weights on both sides, in the same windows.
    activations: Option<f64>,
}

impl Sensitivity {
    /// The coefficient of a weight: nats per token for a relative squared error of 1.
    pub fn alpha(&self, weight: &str) -> Option<Alpha> {
        if let Some(pairs) = self.pairs.get(weight) {
            return Some(Alpha::fit(pairs));
        }
        // Parts of a matrix are measured one by one, and what they lose adds up.
        let parts = (0..).map_while(|number| self.pairs.get(&part_name(weight, number)));
        let sum = |a: Alpha, b: Alpha| Alpha { value: a.value + b.value, r2: a.r2.min(b.r2) };
        parts.map(|pairs| Alpha::fit(pairs)).reduce(sum)
    }

    /// What 8-bit activations cost, whatever the weights are.
    pub fn activations(&self) -> f64 {
        self.activations.unwrap_or_default()
    }

    /// From the sum of what each weight costs to what they cost together. The few windows in which
    /// weights are measured one by one say which matters more than which; how much all of them
    /// matter, more windows tell.
    pub fn together(&self) -> Together {
        let alphas = self.pairs.values().map(|pairs| Alpha::fit(pairs).value);
        let mut alphas: Vec<f64> = alphas.collect();
        // A map has no order, and the sum of floats has one.
        alphas.sort_unstable_by(f64::total_cmp);
        let sum: f64 = alphas.iter().sum();
        let mut points = self.together.clone();
        points.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        Together::new(points.into_iter().map(|(error, loss)| (error * sum, loss)))
    }

    /// Weights that were measured.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

/// What a measurement works with.
pub struct Subject<'a> {
    /// The model.
    pub model: &'a Model,
    /// How it is run.
    pub options: &'a Options,
    /// The text, in windows of one length.
    pub windows: &'a [Vec<u32>],
    /// Other windows, in which all weights are changed at once, perhaps none: each kind of text by
    /// itself. What is lost is the geometric mean of what is lost in each.
    pub others: &'a [Vec<Vec<u32>>],
    /// Says that kept measurements are of the same model, text and settings.
    pub fingerprint: &'a str,
    /// What the noise is made from.
    pub seed: u64,
}

impl Subject<'_> {
    fn cost_together(&self, model: &Model, changed: &Model) -> Result<f64> {
        let kinds = self.others.iter().filter(|windows| !windows.is_empty());
        let costs = kinds.map(|windows| cost_together(model, changed, self.options, windows));
        let costs: Vec<f64> = costs.collect::<Result<_>>()?;
        if let [cost] = costs[..] {
            return Ok(cost);
        }
        let logs: f64 = costs.iter().map(|cost| cost.max(f64::MIN_POSITIVE).ln()).sum();
        Ok((logs / costs.len() as f64).exp())
    }
}

/// Measures every weight that `kept`, a file, does not hold yet, and adds it there at once, so that
/// an interrupted measurement goes on where it was. `progress` hears of weights done.
///
/// # Errors
/// If the file is of other settings or damaged, or the model cannot be run.
pub fn measure(
    subject: &Subject,
    feedbacks: &mut Feedbacks,
    kept: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<Sensitivity> {
    let (mut sensitivity, mut file) = open(kept, subject.fingerprint).at(kept.display())?;
    let mut probe = Probe::new(subject.model, subject.options, subject.windows)?;
    loop {
        let weights = probe.weights()?;
        if weights.is_empty() {
            break;
        }
        for weight in weights {
            if let Entry::Vacant(entry) = sensitivity.pairs.entry(weight.name.clone()) {
                let pairs = losses(subject, feedbacks, &probe, &weight)?;
                let shown: Vec<String> = pairs.iter().map(|(e, l)| format!("{e}:{l}")).collect();
                let line = format!("{}\t{}\n", weight.name, shown.join("\t"));
                file.write_all(line.as_bytes()).at(kept.display())?;
                entry.insert(pairs);
            }
            progress(1);
        }
        probe.step()?;
    }
    drop(probe);
    if subject.others.iter().all(Vec::is_empty) {
        return Ok(sensitivity);
    }
    let mut keep = |name: &str, cell: &str| {
        file.write_all(format!("{name}\t{cell}\n").as_bytes()).at(kept.display())
    };
    for error in TOGETHER {
        if sensitivity.together.iter().any(|known| known.0 == error) {
            continue;
        }
        let size = error.sqrt() as f32;
        let changed = changed(subject, &sensitivity, &mut |weight| {
            let (values, noise) = weight_and_noise(subject, feedbacks, weight)?;
            let changed = values.iter().zip(&noise).map(|(w, n)| w + size * n).collect();
            Ok(of_floats(weight, changed))
        })?;
        let loss = subject.cost_together(subject.model, &changed)?;
        keep(ALL, &format!("{error}:{loss}"))?;
        sensitivity.together.push((error, loss));
    }
    if sensitivity.activations.is_none() {
        // The weights of both are the same, those of the one decoded.
        let fine = changed(subject, &sensitivity, &mut |weight| Ok(finest(subject.seed, weight)))?;
        let loss = subject.cost_together(&fine, &fine)?;
        keep(ACTIVATIONS, &loss.to_string())?;
        sensitivity.activations = Some(loss);
    }
    Ok(sensitivity)
}

/// The model with all measured weights changed.
fn changed(
    subject: &Subject,
    sensitivity: &Sensitivity,
    change: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Model> {
    let plan = floats(subject.model, |_| true, float)?;
    let mut changed = HashMap::new();
    for weight in plan.weights.iter().filter(|w| sensitivity.pairs.contains_key(&w.name)) {
        // An embedding that is not the head is no plain float yet.
        changed.insert(weight.name.clone(), change(&float(weight)?)?);
    }
    Ok(subject.model.with(&changed))
}

/// A weight of plain floats in a type of 8 bits that runs with 8-bit activations, where it fits.
fn finest(seed: u64, weight: &Tensor) -> Tensor {
    let kind = presets::by_name("higgs8").expect("a preset");
    let Tensor { rows, cols, .. } = *weight;
    let Some(row_bytes) = kind.row_bytes(cols) else { return weight.clone() };
    let (basis, signs) = (row_basis(cols), transform::signs(seed, cols));
    let mut values = vec![0.0; weight.len()];
    weight.kind.decode(&weight.rows(0..rows), &mut values);
    let (mut codes, mut norms) =
        (vec![0; rows * row_bytes], vec![0; rows * norm_bytes(cols, cols)]);
    let planes = codes.par_chunks_mut(row_bytes).zip(norms.par_chunks_mut(norm_bytes(cols, cols)));
    values.par_chunks_mut(cols).zip(planes).for_each(|(row, (codes, norms))| {
        transform::forward(basis, &signs, row);
        kind.encode(row, cols, cols, codes, norms);
    });
    let signs: Vec<u8> = bytemuck::cast_slice(&signs).to_vec();
    let (codes, norms, signs) = (codes.into(), norms.into(), signs.into());
    Tensor { kind, basis, group: cols, codes, norms, signs, ..weight.clone() }
}

fn losses(
    subject: &Subject,
    feedbacks: &mut Feedbacks,
    probe: &Probe,
    weight: &Tensor,
) -> Result<Vec<(f64, f64)>> {
    let (values, noise) = weight_and_noise(subject, feedbacks, weight)?;
    let mut pairs = Vec::new();
    for error in LEVELS {
        let size = error.sqrt() as f32;
        let changed = values.iter().zip(&noise).map(|(w, n)| w + size * n).collect();
        pairs.push((error, probe.cost(&of_floats(weight, changed))?));
    }
    Ok(pairs)
}

fn weight_and_noise(
    subject: &Subject,
    feedbacks: &mut Feedbacks,
    weight: &Tensor,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let mut values = vec![0.0; weight.len()];
    weight.kind.decode(&weight.rows(0..weight.rows), &mut values);
    let name = whole_name(&weight.name);
    let basis = noise_basis(weight.cols, feedbacks.has(name));
    let matrices = subject.model.matrices_in(&weight.name);
    let mut all = Vec::new();
    for (matrix, values) in values.chunks_exact(values.len() / matrices).enumerate() {
        let feedback = feedbacks.get((name, matrix), weight.cols, basis, subject.seed)?;
        let seed = stream(subject.seed, &weight.name, matrix);
        let signs = transform::signs(subject.seed, weight.cols);
        all.extend(noise(seed, values, (basis, &signs), feedback));
    }
    Ok((values, all))
}

/// What the noise of one matrix is made from.
fn stream(seed: u64, name: &str, matrix: usize) -> u64 {
    let add = |hash: u64, more: u64| (hash ^ more).wrapping_mul(0x0000_0100_0000_01b3); // FNV-1a's
    let hash = name.bytes().fold(seed, |hash, byte| add(hash, u64::from(byte)));
    // The first is that of a weight of one matrix.
    if matrix == 0 { hash } else { add(hash, matrix as u64) }
}

/// Noise as large as the weights, `(rows, cols)`, in the model's own basis.
fn noise(
    stream: u64,
    values: &[f32],
    (basis, signs): (Basis, &[i8]),
    feedback: Option<&Feedback>,
) -> Vec<f32> {
    let cols = signs.len();
    let mut noise = vec![0.0; values.len()];
    let piece = second_order::LANES * cols;
    let pieces = noise.par_chunks_mut(piece).zip(values.par_chunks(piece)).enumerate();
    pieces.for_each(|(at, (noise, values))| {
        let mut random = Random(stream.wrapping_add(at as u64));
        for (row, values) in noise.chunks_exact_mut(cols).zip(values.chunks_exact(cols)) {
            let square: f64 = values.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
            let size = (square / cols as f64).sqrt();
            for pair in row.chunks_mut(2) {
                let normal = random.normal();
                pair.iter_mut().zip(normal).for_each(|(to, n)| *to = (size * n) as f32);
            }
        }
        if let Some(feedback) = feedback {
            feedback.shape(noise);
        }
        for row in noise.chunks_exact_mut(cols) {
            transform::inverse(basis, signs, row);
        }
    });
    noise
}

/// Reads what is kept, and leaves the file open for more. A last line that was cut off is dropped.
fn open(path: &Path, fingerprint: &str) -> Result<(Sensitivity, File)> {
    let mut options = OpenOptions::new();
    let mut file = options.read(true).append(true).create(true).open(path)?;
    let bytes = file.metadata()?.len();
    if bytes > limits::SENSITIVITY_BYTES_MAX {
        bail!("expected at most {} bytes, found {bytes}", limits::SENSITIVITY_BYTES_MAX);
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    file.set_len(whole as u64)?;
    let heading = format!("{HEADING} {fingerprint}");
    let mut lines = text[..whole].lines();
    match lines.next() {
        None => file.write_all(format!("{heading}\n").as_bytes())?,
        Some(found) if found == heading => {}
        Some(found) => {
            return Err(Error::new(format!("expected `{heading}`, found `{found}`"))
                .with_hint("it was measured with other settings: delete it to measure again"));
        }
    }
    let mut sensitivity = Sensitivity::default();
    for (number, line) in lines.enumerate() {
        add(&mut sensitivity, line).ok_or_else(|| damaged(number))?;
    }
    Ok((sensitivity, file))
}

fn damaged(line: usize) -> Error {
    Error::new(format!("line {}: expected a weight and its losses", line + 2))
        .with_hint("the file is damaged: delete it to measure again")
}

/// Takes what a line says; `None` if it says nothing that was measured.
fn add(sensitivity: &mut Sensitivity, line: &str) -> Option<()> {
    let (name, cells) = line.split_once('\t').filter(|(name, _)| !name.is_empty())?;
    let number = |text: &str| text.parse::<f64>().ok().filter(|value| value.is_finite());
    if name == ACTIVATIONS {
        sensitivity.activations = Some(number(cells)?);
        return Some(());
    }
    let pair = |cell: &str| {
        let (error, loss) = cell.split_once(':')?;
        Some((number(error).filter(|&error| error > 0.0)?, number(loss)?))
    };
    let pairs: Vec<(f64, f64)> = cells.split('\t').map(pair).collect::<Option<_>>()?;
    match &pairs[..] {
        &[pair] if name == ALL && TOGETHER.contains(&pair.0) => sensitivity.together.push(pair),
        pairs if name != ALL && pairs.len() == LEVELS.len() => {
            sensitivity.pairs.insert(name.to_string(), pairs.to_vec());
        }
        _ => return None,
    }
    Some(())
}
