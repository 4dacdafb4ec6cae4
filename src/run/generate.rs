//! Session, tokenizer and sampler to a stream of text.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::run::Session;
use crate::text::{Sampler, TextStream, Tokenizer};

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Tokens at most; until the context is full if there is no number.
    pub tokens_max: Option<usize>,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Whether tokens that end generation are never chosen, as llama.cpp's `--ignore-eos` has it.
    pub ignore_end: bool,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The model said so.
    EndOfGeneration,
    /// A stop text appeared.
    StopText,
    /// As many tokens as were asked for.
    Length,
    /// No cell is left.
    ContextFull,
    /// Whoever listened had enough.
    Interrupted,
}

/// What was generated.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The tokens, the end of generation left out.
    pub tokens: Vec<u32>,
    /// Why no more.
    pub ending: Ending,
    /// Tokens of the prompt that were read now.
    pub prompt_tokens: usize,
    /// Time to read them.
    pub prompt_time: Duration,
    /// Time from the first to the last token.
    pub generate_time: Duration,
}

impl Outcome {
    /// Prompt tokens per second.
    pub fn prompt_tps(&self) -> f64 {
        rate(self.prompt_tokens, self.prompt_time)
    }

    /// Generated tokens per second; the first one belongs to the prompt's time.
    pub fn generate_tps(&self) -> f64 {
        rate(self.tokens.len().saturating_sub(1), self.generate_time)
    }
}

fn rate(count: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

/// Reads a prompt into sequence 0, then generates; `print` gets the text as it becomes certain and
/// may stop it.
///
/// Every generated token but the last is in the cache afterwards.
///
/// # Errors
/// If the prompt does not fit the context.
pub fn generate(
    session: &mut Session,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    prompt: &[u32],
    request: &Request,
    print: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Outcome> {
    let started = Instant::now();
    prompt.iter().for_each(|&token| sampler.accept(token));
    let choose = |sampler: &mut Sampler, logits: &mut [f32]| {
        if request.ignore_end {
            tokenizer.ends_of_generation().for_each(|id| logits[id as usize] = f32::NEG_INFINITY);
        }
        sampler.sample(logits)
    };
    let mut next = choose(sampler, session.feed(0, prompt)?);
    let prompt_time = started.elapsed();

    let started = Instant::now();
    let mut stream = TextStream::new(request.stop.clone())?;
    let mut tokens = Vec::new();
    let ending = loop {
        if request.tokens_max.is_some_and(|max| tokens.len() >= max) {
            break Ending::Length;
        }
        if tokenizer.is_end_of_generation(next) {
            break Ending::EndOfGeneration;
        }
        tokens.push(next);
        sampler.accept(next);
        let text = stream.push(tokenizer.piece(next, false));
        if print(&text).is_break() {
            break Ending::Interrupted;
        }
        if stream.stopped().is_some() {
            break Ending::StopText;
        }
        if request.tokens_max.is_some_and(|max| tokens.len() >= max) {
            break Ending::Length;
        }
        if session.len(0) >= session.context() {
            break Ending::ContextFull;
        }
        next = choose(sampler, session.feed(0, &[next])?);
    };
    let generate_time = started.elapsed();
    let _ = print(&stream.finish());
    let prompt_tokens = prompt.len();
    Ok(Outcome { tokens, ending, prompt_tokens, prompt_time, generate_time })
}
