//! Fine-tuning: the floats that a quantised file keeps, scales of rows and norms, are changed so
//! that its answers come nearer to those of the model it was made from.
//!
//! The gradient is that of the KL divergence on a text, the steps are Adam's (arXiv 1412.6980).
//! Published methods tune the same last (VPTQ, arXiv 2409.17066, section 3.4; AQLM, 2401.06118).

use crate::error::Result;
use crate::model::Model;
use crate::quant::random::Random;
use crate::run::Options;
use crate::run::reverse::{Factors, Student, Taught, zeros};

/// How a model is tuned.
///
/// Every window is read once: a second time teaches the text more than the language, and so do
/// larger steps (`benches/results/`).
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// The size of the first steps, as a share of a factor; it falls to zero.
    pub rate: f32,
    /// What the order of the windows is made from.
    pub seed: u64,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning { rate: 0.003, seed: 1 }
    }
}

/// Weights of the running means of the gradient and its square, and what keeps steps finite.
const MEAN: f32 = 0.9;
const SQUARE: f32 = 0.99;
const TINY: f32 = 1e-10;

/// What tuning found.
pub struct Tuned {
    /// What scales and norms are to be multiplied with.
    pub factors: Factors,
    /// The loss before each step, nats per token.
    pub losses: Vec<f64>,
}

impl Tuned {
    /// The mean loss of the first and of the last quarter of the steps; they are other windows.
    pub fn change(&self) -> Option<(f64, f64)> {
        let count = self.losses.len().div_ceil(4);
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        let (first, last) = (self.losses.get(..count)?, self.losses.len().checked_sub(count)?);
        (count > 0).then(|| (mean(first), mean(&self.losses[last..])))
    }
}

/// Finds factors for the scales and norms of a coded model, the second of `models`, from the first,
/// which it was made from. `progress` hears of every window twice, the second time with its loss.
///
/// # Errors
/// If a model cannot be run, or the windows do not have one length.
pub fn fine_tune(
    models: (&Model, &Model),
    options: &Options,
    windows: &[Vec<u32>],
    tuning: Tuning,
    progress: &mut dyn FnMut(Option<f64>),
) -> Result<Tuned> {
    let taught = Taught::new(models.0, options, windows, &mut || progress(None))?;
    let mut student = Student::new(models.1, &taught, options, windows[0].len())?;
    let mut descent = Descent::new(student.factors(), tuning.rate, windows.len());
    let mut losses = Vec::new();
    for at in order(windows.len(), &mut Random(tuning.seed)) {
        let slope = student.slope(&taught, (at, &windows[at]), &descent.factors)?;
        descent.step(&slope.gradient);
        losses.push(slope.loss);
        progress(Some(slope.loss));
    }
    Ok(Tuned { factors: descent.factors, losses })
}

/// Adam, with steps that fall to zero.
struct Descent {
    factors: Factors,
    means: Factors,
    squares: Factors,
    rate: f32,
    steps: usize,
    done: usize,
}

impl Descent {
    fn new(factors: &Factors, rate: f32, steps: usize) -> Descent {
        let (means, squares) = (zeros(factors), zeros(factors));
        Descent { factors: factors.clone(), means, squares, rate, steps, done: 0 }
    }

    fn step(&mut self, gradient: &Factors) {
        let rate = self.rate * (1.0 - self.done as f32 / self.steps as f32);
        self.done += 1;
        let whole = |weight: f32| 1.0 - weight.powi(self.done as i32);
        let (whole_mean, whole_square) = (whole(MEAN), whole(SQUARE));
        let all = self.factors.values_mut().zip(self.means.values_mut());
        let all = all.zip(self.squares.values_mut()).zip(gradient.values());
        for (((factors, means), squares), gradient) in all {
            let each = factors.iter_mut().zip(means).zip(squares).zip(gradient);
            for (((factor, mean), square), &slope) in each {
                *mean = MEAN * *mean + (1.0 - MEAN) * slope;
                *square = SQUARE * *square + (1.0 - SQUARE) * slope * slope;
                let size = (*square / whole_square).sqrt() + TINY;
                *factor -= rate * (*mean / whole_mean) / size;
            }
        }
    }
}

/// The numbers below `count`, shuffled.
fn order(count: usize, random: &mut Random) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for i in (1..count).rev() {
        order.swap(i, (random.bits() % (i as u64 + 1)) as usize);
    }
    order
}
