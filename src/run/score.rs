//! Perplexity and KL divergence in llama.cpp's convention: the text is cut into windows of
//! `context` tokens, each read from nothing, and the second half of each is scored.

use std::ops::Range;

use crate::bail;
use crate::error::{Error, Result};
use crate::run::Session;
use crate::run::logits_file::{Reader, Writer};
use crate::text::Tokenizer;

/// What to compare with, or to leave for others to compare with.
pub enum Base {
    /// Perplexity alone.
    None,
    /// Write the distributions.
    Save(Writer),
    /// Compare with distributions written before.
    Against(Reader),
}

/// A mean with its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error.
    pub error: f64,
}

/// The divergence from a base.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// KL divergence, nats per token.
    pub kl: Estimate,
    /// Its median.
    pub kl_median: f64,
    /// Its 99th percentile.
    pub kl_p99: f64,
    /// Share of tokens whose likeliest continuation is the same.
    pub same_top1: Estimate,
}

/// The result of scoring a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// `exp` of the mean negative log-likelihood.
    pub perplexity: Estimate,
    /// Scored tokens.
    pub tokens: usize,
    /// The comparison with a base, if there was one.
    pub divergence: Option<Divergence>,
}

/// The windows of a text.
pub struct Windows {
    /// Every token of every window, `(windows, context)`, begin-of-text in place where the model
    /// wants one.
    pub tokens: Vec<u32>,
    /// Tokens per window.
    pub context: usize,
    /// What each window begins with instead of its own first token.
    bos: Option<u32>,
}

impl Windows {
    /// Cuts a text, at most `limit` windows of it.
    ///
    /// # Errors
    /// If the text fills no window.
    pub fn new(
        tokenizer: &Tokenizer,
        text: &str,
        context: usize,
        limit: Option<usize>,
    ) -> Result<Windows> {
        if context < 4 {
            bail!("--ctx: expected at least 4 tokens per window, found {context}");
        }
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let mut tokens: Vec<u32> = bos.into_iter().collect();
        tokens.extend(tokenizer.encode(text, false)?);
        let windows = (tokens.len() / context).min(limit.unwrap_or(usize::MAX));
        if windows == 0 {
            let found = tokens.len();
            return Err(Error::new(format!(
                "text: expected at least {context} tokens, found {found}"
            ))
            .with_hint("--ctx sets the size of a window"));
        }
        tokens.truncate(windows * context);
        Ok(Windows { tokens, context, bos })
    }

    /// The windows as a model reads them: each begins with begin-of-text where the model wants one.
    pub fn inputs(&self) -> impl Iterator<Item = Vec<u32>> {
        self.tokens.chunks_exact(self.context).map(|window| {
            let mut inputs = window.to_vec();
            inputs[0] = self.bos.unwrap_or(inputs[0]);
            inputs
        })
    }

    /// The positions of a window that are scored. Each predicts the next token; the first half is
    /// context only.
    pub fn scored(&self) -> Range<usize> {
        self.context / 2..self.context - 1
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.tokens.len() / self.context
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

/// Scores every window; `progress` hears of each one that is done, with the estimate so far.
///
/// # Errors
/// If the base belongs to another text or vocabulary, or cannot be written.
pub fn score(
    session: &mut Session,
    windows: &Windows,
    base: &mut Base,
    progress: &mut dyn FnMut(usize, Estimate),
) -> Result<Score> {
    let (context, scored) = (windows.context, windows.scored());
    let mut losses = Vec::new();
    let mut divergences = Divergences::default();
    let both = windows.tokens.chunks_exact(context).zip(windows.inputs());
    for (i, (window, inputs)) in both.enumerate() {
        session.truncate(0, 0);
        let mut failure = None;
        let mut take = |row: usize, logits: &[f32]| {
            let target = window[row + 1] as usize;
            let normaliser = log_sum_exp(logits);
            losses.push(normaliser - f64::from(logits[target]));
            let result = match base {
                Base::None => Ok(()),
                Base::Save(writer) => writer.write(logits, normaliser),
                Base::Against(reader) => {
                    reader.read().map(|base| divergences.add(logits, normaliser, base))
                }
            };
            failure = failure.take().or(result.err());
        };
        session.feed_rows(0, &inputs, &mut |row| scored.contains(&row), &mut take)?;
        if let Some(error) = failure {
            return Err(error);
        }
        progress(i + 1, perplexity(&losses));
    }
    if let Base::Save(writer) = base {
        writer.finish()?;
    }
    let divergence = matches!(base, Base::Against(_)).then(|| divergences.finish());
    Ok(Score { perplexity: perplexity(&losses), tokens: losses.len(), divergence })
}

/// `ln(sum(exp(logits)))`.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let peak = logits.iter().fold(f32::NEG_INFINITY, |peak, &logit| peak.max(logit));
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - peak).exp())).sum();
    f64::from(peak) + sum.ln()
}

pub(super) fn perplexity(losses: &[f64]) -> Estimate {
    let Estimate { mean, error } = estimate(losses);
    Estimate { mean: mean.exp(), error: error * mean.exp() }
}

fn estimate(values: &[f64]) -> Estimate {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
    Estimate { mean, error: if n > 1.0 { (variance / (n - 1.0)).sqrt() } else { 0.0 } }
}

/// Collects the divergence, position by position.
#[derive(Default)]
pub(super) struct Divergences {
    kl: Vec<f64>,
    same: Vec<f64>,
}

impl Divergences {
    /// `base` holds log-probabilities; those below e^-16 carry no weight, as in llama.cpp.
    pub(super) fn add(&mut self, logits: &[f32], normaliser: f64, base: &[f32]) {
        let mut kl = 0.0;
        for (&logit, &base) in logits.iter().zip(base) {
            if base > -16.0 {
                let base = f64::from(base);
                kl += base.exp() * (base - f64::from(logit) + normaliser);
            }
        }
        self.kl.push(kl);
        self.same.push(f64::from(u8::from(first_max(logits) == first_max(base))));
    }

    pub(super) fn finish(self) -> Divergence {
        let mut sorted = self.kl.clone();
        sorted.sort_by(f64::total_cmp);
        Divergence {
            kl: estimate(&self.kl),
            kl_median: percentile(&sorted, 0.5),
            kl_p99: percentile(&sorted, 0.99),
            same_top1: estimate(&self.same),
        }
    }
}

/// Where the largest value first stands.
pub fn first_max(values: &[f32]) -> usize {
    let better = |best: usize, i: usize| if values[i] > values[best] { i } else { best };
    (0..values.len()).fold(0, better)
}

/// Linear between the neighbours.
fn percentile(sorted: &[f64], fraction: f64) -> f64 {
    let at = fraction * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}
