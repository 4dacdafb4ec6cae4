//! What each matrix could become, what that takes in bytes and what it costs the model.
//!
//! The cost is a coefficient (`sensitivity`) times the error of the rounding. The error is measured
//! on some rows, with the rounding that the conversion would use, in the unit of the noise that the
//! coefficient was measured with.

use std::sync::Arc;

use rayon::prelude::*;

use super::encode::{Errors, trial};
use super::recipe::fit;
use super::{Feedbacks, Item, Options, Recipe, Sensitivity, file_bytes, learn, plan};
use crate::bail;
use crate::error::{At, Error, Result};
use crate::file::Source;
use crate::quant::allocate::{Curve, Offer};
use crate::quant::alpha::Together;
use crate::quant::points::Points;
use crate::quant::presets;
use crate::quant::second_order::LANES;
use crate::run::walk::original;
use crate::types::{PRIVATE_IDS, TYPES, Tensor, TensorType};

/// Runs of rows that are rounded to see the error of a type.
const SAMPLES: usize = 4;

/// Where at least this share of the weights of layers gets fewer than [`FEW_BITS`] bits, learned
/// points are tried, too: they take minutes to learn.
const SHARE: f64 = 0.1;
/// Below so many bits learned points beat grids (`benches/results/`).
const FEW_BITS: f64 = 3.0;

/// How large a conversion may become.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bits per weight of the quantised tensors, with their scales.
    Bits(f64),
    /// Bytes of the whole file.
    Bytes(u64),
}

/// A type, and its points if they are learned.
type Candidate = (&'static dyn TensorType, Option<Arc<Points>>);

/// The matrices of a model and everything they could become.
pub struct Offers {
    items: Vec<Item>,
    kinds: Vec<Vec<&'static dyn TensorType>>,
    offers: Vec<Vec<Offer>>,
    curve: Curve,
    /// What 8-bit activations cost, whatever the weights are.
    activations: f64,
    /// What the losses of single weights come to.
    together: Together,
}

/// What was chosen for a budget.
pub struct Picked {
    /// A type per matrix.
    pub recipe: Recipe,
    /// The KL divergence that the choice should cost, nats per token.
    pub loss: f64,
    /// Bits per weight of the matrices.
    pub bits: f64,
}

impl Offers {
    /// Rounds some rows of every matrix to every grid, and to learned points if there are
    /// statistics and the budget is small; `progress` hears of each step what it is of, and how
    /// many there are of it.
    ///
    /// # Errors
    /// If a weight is not finite, or was not measured.
    pub fn new(
        source: &Source,
        options: &Options,
        feedbacks: &mut Feedbacks,
        sensitivity: &Sensitivity,
        budget: Budget,
        progress: &mut dyn FnMut(&'static str, usize),
    ) -> Result<Offers> {
        let items: Vec<Item> =
            plan(source, options)?.into_iter().filter(|item| is_open(item, options)).collect();
        if items.is_empty() {
            return Err(Error::new("there is no matrix to choose a type for")
                .with_hint("weights in our own types stay as they are; --to codes them again"));
        }
        let grids: Vec<Candidate> =
            TYPES.iter().filter(|kind| kind.can_encode()).map(|&kind| (kind, None)).collect();
        let (activations, together) = (sensitivity.activations(), sensitivity.together());
        let (kinds, offers) = (vec![Vec::new(); items.len()], vec![Vec::new(); items.len()]);
        let curve = Curve::new(&[])?;
        let mut all = Offers { items, kinds, offers, curve, activations, together };
        all.try_out(source, options, feedbacks, sensitivity, (&grids, "trying grids"), progress)?;
        // A budget out of range is for whoever picks.
        let picked = all.pick(source, options, budget);
        if feedbacks.is_calibrated() && picked.is_ok_and(|picked| all.has_few_bits(&picked)) {
            let mut learned: Vec<Candidate> = Vec::new();
            for kind in presets::learned() {
                // A small model has too few vectors for the larger tables.
                if let Ok(points) = learn::of_layers(source, options, &all.items, kind, progress)? {
                    learned.push((kind, Some(Arc::new(points))));
                }
            }
            all.try_out(
                source,
                options,
                feedbacks,
                sensitivity,
                (&learned, "trying points"),
                progress,
            )?;
        }
        Ok(all)
    }

    /// Adds what each matrix would become in some types.
    fn try_out(
        &mut self,
        source: &Source,
        options: &Options,
        feedbacks: &mut Feedbacks,
        sensitivity: &Sensitivity,
        (candidates, what): (&[Candidate], &'static str),
        progress: &mut dyn FnMut(&'static str, usize),
    ) -> Result<()> {
        for (at, item) in self.items.iter().enumerate() {
            let Some(alpha) = sensitivity.alpha(&item.name) else {
                bail!("tensor `{}`: its sensitivity was not measured", item.name);
            };
            let (kinds, offers) =
                of_tensor(source, options, feedbacks, candidates, (item, alpha.value))
                    .at(source.path().display())?;
            self.kinds[at].extend(kinds);
            self.offers[at].extend(offers);
            progress(what, self.items.len());
        }
        self.curve = Curve::new(&self.offers)?;
        Ok(())
    }

    /// Whether enough weights of layers got few bits for learned points to be worth their time.
    fn has_few_bits(&self, picked: &Picked) -> bool {
        let (mut few, mut all) = (0, 0);
        for (i, item) in self.items.iter().enumerate() {
            if !item.role.is_layer_matrix() {
                continue;
            }
            let weights = item.rows * item.cols;
            let kind = picked.recipe.kind(&item.name).expect("a type for every matrix");
            let choice = self.kinds[i].iter().position(|other| other.id() == kind.id());
            let bytes = self.offers[i][choice.expect("it was picked from these")].bytes;
            all += weights;
            few += if 8.0 * (bytes as f64) < FEW_BITS * weights as f64 { weights } else { 0 };
        }
        few as f64 > SHARE * all as f64
    }

    /// Bits per weight and expected loss of every budget that is worth having.
    pub fn points(&self) -> Vec<(f64, f64)> {
        let weights = self.weights();
        let bits = |bytes: u64| 8.0 * bytes as f64 / weights;
        let points = self.curve.points();
        points.iter().map(|&(bytes, sum)| (bits(bytes), self.expected(sum))).collect()
    }

    /// The loss of the whole model, from the sum of the losses of its weights.
    fn expected(&self, sum: f64) -> f64 {
        self.activations + self.together.loss(sum)
    }

    /// The types that cost least within a budget.
    ///
    /// # Errors
    /// If the budget is smaller than the smallest choice or larger than the largest; the message
    /// has both.
    pub fn pick(&self, source: &Source, options: &Options, budget: Budget) -> Result<Picked> {
        let (least, most) = self.curve.range();
        match budget {
            Budget::Bits(bits) => {
                let of = |bytes: u64| 8.0 * bytes as f64 / self.weights();
                if !(of(least)..=of(most)).contains(&bits) {
                    let (low, high) = ((100.0 * of(least)).ceil(), (100.0 * of(most)).floor());
                    let range = format!("{:.2} to {:.2}", low / 100.0, high / 100.0);
                    bail!("--bits: expected {range} bits per weight, found {bits}");
                }
                Ok(self.picked((bits * self.weights() / 8.0) as u64))
            }
            Budget::Bytes(bytes) => {
                let whole = |matrices| -> Result<u64> {
                    let recipe = Some(self.picked(matrices).recipe);
                    file_bytes(source, &Options { recipe, ..options.clone() })
                };
                let (low, high) = (whole(least)?, whole(most)?);
                if !(low..=high).contains(&bytes) {
                    return Err(Error::new(format!(
                        "--size: expected {low} to {high} bytes, found {bytes}"
                    )));
                }
                // What is not a matrix depends on the choice a little: which tables are stored.
                let mut matrices = most.min(bytes - (low - least).min(bytes));
                loop {
                    let found = whole(matrices)?;
                    if found <= bytes {
                        return Ok(self.picked(matrices));
                    }
                    matrices = least.max(matrices.saturating_sub(found - bytes));
                }
            }
        }
    }

    fn picked(&self, bytes: u64) -> Picked {
        let choices = self.curve.pick(bytes).expect("the budget was checked");
        let (mut recipe, mut sum, mut taken) = (Recipe::default(), 0.0, 0);
        for (i, &choice) in choices.iter().enumerate() {
            let offer = self.offers[i][choice];
            recipe.add(&self.items[i].name, self.kinds[i][choice], offer.loss);
            sum += offer.loss;
            taken += offer.bytes;
        }
        let loss = self.expected(sum);
        Picked { recipe, loss, bits: 8.0 * taken as f64 / self.weights() }
    }

    fn weights(&self) -> f64 {
        self.items.iter().map(|item| (item.rows * item.cols) as f64).sum()
    }
}

/// Whether a type is to be chosen: for matrices that are coded at all, and that no flag names.
fn is_open(item: &Item, options: &Options) -> bool {
    let is_vocabulary = item.role.is_vocabulary_matrix();
    let is_matrix = item.role.is_layer_matrix() || is_vocabulary;
    let is_named = options.overrides.iter().any(|(pattern, _)| pattern.is_match(&item.name));
    let has_kind = is_vocabulary && options.vocabulary_kind.is_some();
    is_matrix && !item.keep && !is_named && !has_kind
}

/// Rows of one of the matrices that a tensor holds, in runs.
struct Sample {
    matrix: usize,
    rows: Vec<Vec<f32>>,
}

/// Runs of rows from all over a tensor.
fn samples(item: &Item, tensor: &Tensor) -> Result<Vec<Sample>> {
    let height = item.rows / item.matrices;
    let rows = LANES.min(height);
    let step = (item.rows / SAMPLES).max(rows);
    let mut samples: Vec<Sample> = Vec::new();
    for first in (0..=item.rows - rows).step_by(step) {
        let matrix = first / height;
        // A run lies in one matrix.
        let first = first.min((matrix + 1) * height - rows);
        let mut values = vec![0.0; rows * item.cols];
        original(tensor, first..first + rows, &mut values)?;
        match samples.last_mut().filter(|last| last.matrix == matrix) {
            Some(last) => last.rows.push(values),
            None => samples.push(Sample { matrix, rows: vec![values] }),
        }
    }
    Ok(samples)
}

/// The types that suit one matrix: grids, and for the vocabulary also what other programs use.
fn of_tensor(
    source: &Source,
    options: &Options,
    feedbacks: &mut Feedbacks,
    candidates: &[Candidate],
    (item, alpha): (&Item, f64),
) -> Result<(Vec<&'static dyn TensorType>, Vec<Offer>)> {
    let tensor = source.tensor(&item.name)?.expect("the plan lists what the source has");
    let samples = samples(item, &tensor)?;
    let noise_basis = super::noise_basis(item.cols, feedbacks.has(&item.name));
    let mut units = Vec::new();
    for sample in &samples {
        let weight = (&*item.name, sample.matrix);
        let feedback = feedbacks.get(weight, item.cols, noise_basis, options.seed)?;
        units.push(feedback.map_or(1.0, |feedback| feedback.mean_weight()));
    }
    let is_vocabulary = item.role.is_vocabulary_matrix();
    let (mut kinds, mut offers) = (Vec::new(), Vec::new());
    for (kind, points) in candidates.iter().cloned() {
        let is_stock = kind.id() < PRIVATE_IDS;
        let Ok(choice) = fit(kind, &tensor, options) else { continue };
        if is_stock && !is_vocabulary || points.is_some() && is_vocabulary {
            continue;
        }
        let item = Item {
            kind,
            basis: choice.basis,
            group: choice.group,
            sign_seed: options.seed,
            points,
            ..item.clone()
        };
        let (mut error, mut energy) = (0.0, 0.0);
        for (sample, unit) in samples.iter().zip(&units) {
            let feedback = feedbacks.of_item(&item, sample.matrix)?;
            let errors: Vec<Errors> =
                sample.rows.par_iter().map(|rows| trial(&item, feedback, rows)).collect();
            error += match feedback {
                Some(_) => errors.iter().map(|errors| errors.output_noise).sum::<f64>() / unit,
                None => errors.iter().map(|errors| errors.noise).sum(),
            };
            energy += errors.iter().map(|errors| errors.signal).sum::<f64>();
        }
        let loss = if energy > 0.0 { alpha * error / energy } else { 0.0 };
        kinds.push(kind);
        offers.push(Offer { bytes: item.bytes() as u64, loss });
    }
    Ok((kinds, offers))
}
