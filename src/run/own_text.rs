//! `--calibrate self`: the model writes the text that it is calibrated on.

use super::tokenizer::{chat_template, tokenizer};
use super::{Options, Session};
use crate::bail;
use crate::error::Result;
use crate::file::Source;
use crate::plan::Batch;
use crate::text::{Message, Sampler, SamplerConfig};

/// Windows that are written side by side.
const SEQUENCES: usize = 32;

/// Stands for what a user would say, to find where that begins in a chat.
const MARK: &str = "\u{2}MARK\u{2}";

/// Windows of `len` tokens in the model's own words: every other one from begin-of-text, the others
/// from where a user speaks in its chat template. `progress` hears of tokens written.
///
/// # Errors
/// If the model cannot be run, or has neither begin-of-text nor a template.
pub fn own_text(
    source: &Source,
    options: &Options,
    (windows, len): (usize, usize),
    seed: u64,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<u32>>> {
    let beginnings = beginnings(source)?;
    if beginnings.is_empty() {
        bail!("--calibrate self: the model has neither begin-of-text nor a chat template");
    }
    let sequences = SEQUENCES.min(windows.max(1));
    let options =
        Options { context: Some(len), sequences, rows: Some(sequences), ..options.clone() };
    let mut session = Session::open(source, &options)?;
    let vocabulary = session.vocabulary();
    let mut text = Vec::new();
    while text.len() < windows {
        let count = sequences.min(windows - text.len());
        let mut group: Vec<Vec<u32>> = Vec::new();
        let mut samplers = Vec::new();
        for i in 0..count {
            let number = text.len() + i;
            let beginning = &beginnings[number % beginnings.len()];
            group.push(beginning[..beginning.len().min(len)].to_vec());
            let seed = seed.wrapping_add(number as u64);
            samplers.push(Sampler::new(SamplerConfig {
                temperature: 1.0,
                seed,
                ..SamplerConfig::default()
            })?);
        }
        for position in 0..len {
            let mut batch = Batch::default();
            for (sequence, window) in group.iter().enumerate() {
                batch.push(window[position], position as u32, sequence as u32, true);
            }
            let backend = session.backend();
            backend.run(&batch)?;
            let rows = backend.logits()?.chunks_exact_mut(vocabulary);
            for ((window, sampler), logits) in group.iter_mut().zip(&mut samplers).zip(rows) {
                if window.len() == position + 1 && window.len() < len {
                    window.push(sampler.sample(logits));
                }
            }
            progress(count);
        }
        text.extend(group);
    }
    Ok(text)
}

/// Whether a model has something that a text begins with.
///
/// # Errors
/// If it has no tokenizer, or a chat template that cannot be used.
pub fn can_begin(source: &Source) -> Result<bool> {
    Ok(!beginnings(source)?.is_empty())
}

/// What a window may begin with.
fn beginnings(source: &Source) -> Result<Vec<Vec<u32>>> {
    let tokenizer = tokenizer(source)?;
    let mut beginnings: Vec<Vec<u32>> = tokenizer.bos().map(|bos| vec![bos]).into_iter().collect();
    if let Ok(template) = chat_template(source, &tokenizer) {
        let chat = template.render(&[Message::new("user", MARK)], false)?;
        if let Some((before, _)) = chat.split_once(MARK) {
            let tokens = tokenizer.encode(before, true)?;
            beginnings.extend((!tokens.is_empty()).then_some(tokens));
        }
    }
    Ok(beginnings)
}
