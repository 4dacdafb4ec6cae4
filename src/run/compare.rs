//! Two files of one model side by side: what became of each weight, and of the answers.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::score::{Divergences, Estimate, Score, Windows, log_sum_exp, perplexity};
use super::session::Session;
use super::walk::original;
use crate::bail;
use crate::error::{At, Result};
use crate::file::Source;
use crate::types::Tensor;

/// Rows that are decoded at a time.
const ROWS: usize = 64;

/// The key of the vocabulary.
const TOKENS: &str = "tokenizer.ggml.tokens";

/// One weight of both files.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Its name.
    pub name: String,
    /// The type it has in each.
    pub kinds: [&'static str; 2],
    /// Bytes of it in each, but for tables and signs that weights share.
    pub bytes: [u64; 2],
    /// The squared difference over the squares of the first file, both in the model's own basis;
    /// infinite where the first has zeros only and the second has not.
    pub error: f64,
}

/// What two models say to a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answers {
    /// Of each; the second one with its divergence from the first.
    pub scores: [Score; 2],
    /// Tokens that each read per second.
    pub tokens_per_second: [f64; 2],
}

/// Compares every weight, in the order of the first file; `progress` hears of values done.
///
/// # Errors
/// If the files are not of one model: a weight that one of them lacks, another shape, another
/// vocabulary; or if a weight is not finite.
pub fn weights(a: &Source, b: &Source, progress: &mut dyn FnMut(u64)) -> Result<Vec<Weight>> {
    let pairs = pairs(a, b)?;
    check_vocabulary(a, b)?;
    let mut weights = Vec::new();
    for (first, second) in pairs {
        weights.push(Weight {
            name: first.name.clone(),
            kinds: [first.kind.name(), second.kind.name()],
            bytes: [first.bytes() as u64, second.bytes() as u64],
            error: error(a, b, first, second)?,
        });
        progress(first.len() as u64);
        a.release(&first.name);
        b.release(&second.name);
    }
    Ok(weights)
}

/// Every weight of the first file with that of the second.
fn pairs<'a>(a: &'a Source, b: &'a Source) -> Result<Vec<(&'a Tensor, &'a Tensor)>> {
    let other = |source: &'a Source, name: &str| source.tensors().find(|other| other.name == name);
    let mut pairs = Vec::new();
    for first in a.tensors() {
        let name = &first.name;
        let Some(second) = other(b, name) else { return missing(name, a, b) };
        let (expected, found) = ([first.rows, first.cols], [second.rows, second.cols]);
        if expected != found {
            bail!(
                "{}: tensor `{name}`: expected shape {expected:?} as in {}, found {found:?} \
                 (outputs first)",
                b.path().display(),
                a.path().display()
            );
        }
        pairs.push((first, second));
    }
    if let Some(surplus) = b.tensors().find(|second| other(a, &second.name).is_none()) {
        return missing(&surplus.name, b, a);
    }
    Ok(pairs)
}

fn missing<T>(name: &str, there: &Source, here: &Source) -> Result<T> {
    let (there, here) = (there.path().display(), here.path().display());
    bail!("{here}: tensor `{name}` is missing, but {there} has it: expected two files of one model")
}

fn check_vocabulary(a: &Source, b: &Source) -> Result<()> {
    let tokens = |source: &'_ Source| -> Result<Option<Vec<String>>> {
        let tokens = source.metadata().get_strings(TOKENS).at(source.path().display())?;
        Ok(tokens.map(<[String]>::to_vec))
    };
    // A file without a tokenizer can still be compared weight by weight.
    let (Some(first), Some(second)) = (tokens(a)?, tokens(b)?) else { return Ok(()) };
    let place = b.path().display();
    if first.len() != second.len() {
        let (expected, found) = (first.len(), second.len());
        bail!("{place}: expected a vocabulary of {expected} tokens as in the other, found {found}");
    }
    if let Some(at) = first.iter().zip(&second).position(|(a, b)| a != b) {
        let (expected, found) = (&first[at], &second[at]);
        bail!("{place}: the vocabulary differs: expected token {at} `{expected}`, found `{found}`");
    }
    Ok(())
}

/// Sums run in one order, however many threads there are.
fn error(a: &Source, b: &Source, first: &Tensor, second: &Tensor) -> Result<f64> {
    first.codes.prepare();
    second.codes.prepare();
    let pieces = first.rows.div_ceil(ROWS);
    let squares = |piece: usize| -> Result<(f64, f64)> {
        let rows = piece * ROWS..((piece + 1) * ROWS).min(first.rows);
        let mut values = [(); 2].map(|()| vec![0.0; rows.len() * first.cols]);
        original(first, rows.clone(), &mut values[0]).at(a.path().display())?;
        original(second, rows, &mut values[1]).at(b.path().display())?;
        let [first, second] = values;
        Ok(first.iter().zip(second).fold((0.0, 0.0), |(noise, signal), (&a, b)| {
            let (a, b) = (f64::from(a), f64::from(b));
            (noise + (b - a).powi(2), signal + a.powi(2))
        }))
    };
    let squares: Result<Vec<(f64, f64)>> = (0..pieces).into_par_iter().map(squares).collect();
    let (noise, signal) =
        squares?.into_iter().fold((0.0, 0.0), |sum, piece| (sum.0 + piece.0, sum.1 + piece.1));
    Ok(if noise == 0.0 { 0.0 } else { noise / signal })
}

/// Lets two models read every window; `progress` hears of each one that is done.
///
/// Needs memory for the logits of half a window.
///
/// # Errors
/// If the vocabularies have not one size, or a model cannot be run.
pub fn answers(
    a: &mut Session,
    b: &mut Session,
    windows: &Windows,
    progress: &mut dyn FnMut(Estimate),
) -> Result<Answers> {
    let vocabulary = a.vocabulary();
    if b.vocabulary() != vocabulary {
        let found = b.vocabulary();
        bail!("expected logits of a vocabulary of {vocabulary} as of the other, found {found}");
    }
    let mut losses = [Vec::new(), Vec::new()];
    let mut times = [Duration::ZERO; 2];
    let mut divergences = Divergences::default();
    let mut base = vec![0.0; windows.scored().len() * vocabulary];
    let both = windows.tokens.chunks_exact(windows.context).zip(windows.inputs());
    for (window, inputs) in both {
        let target = |row: usize| window[row + 1] as usize;
        let mut rows = base.chunks_exact_mut(vocabulary);
        times[0] += read(a, windows, &inputs, &mut |row, logits| {
            let normaliser = log_sum_exp(logits);
            losses[0].push(normaliser - f64::from(logits[target(row)]));
            let base = rows.next().expect("room for every scored position");
            let pairs = base.iter_mut().zip(logits);
            pairs.for_each(|(base, &logit)| *base = (f64::from(logit) - normaliser) as f32);
        })?;
        let mut rows = base.chunks_exact(vocabulary);
        times[1] += read(b, windows, &inputs, &mut |row, logits| {
            let normaliser = log_sum_exp(logits);
            losses[1].push(normaliser - f64::from(logits[target(row)]));
            let base = rows.next().expect("a row for every scored position");
            divergences.add(logits, normaliser, base);
        })?;
        progress(perplexity(&losses[1]));
    }
    let [first, second] = losses.map(|losses| Score {
        perplexity: perplexity(&losses),
        tokens: losses.len(),
        divergence: None,
    });
    let second = Score { divergence: Some(divergences.finish()), ..second };
    let tokens = windows.tokens.len() as f64;
    let tokens_per_second = times.map(|time| tokens / time.as_secs_f64());
    Ok(Answers { scores: [first, second], tokens_per_second })
}

/// Reads a window; the result is the time without that of `take`.
fn read(
    session: &mut Session,
    windows: &Windows,
    inputs: &[u32],
    take: &mut dyn FnMut(usize, &[f32]),
) -> Result<Duration> {
    let (started, mut idle) = (Instant::now(), Duration::ZERO);
    session.truncate(0, 0);
    let scored = windows.scored();
    session.feed_rows(0, inputs, &mut |row| scored.contains(&row), &mut |row, logits| {
        let started = Instant::now();
        take(row, logits);
        idle += started.elapsed();
    })?;
    Ok(started.elapsed().saturating_sub(idle))
}
