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
    session.read(0, prompt)?;
    let greedy = sampler.top_needed() == Some(1) && !request.ignore_end;
    let first = match greedy {
        true => session.top(1)?[0].0,
        false => choose(session, tokenizer, sampler, request)?,
    };
    let prompt_time = started.elapsed();

    let started = Instant::now();
    let stream = TextStream::new(request.stop.clone())?;
    let mut answer =
        Answer { tokenizer, sampler, request, print, stream, tokens: Vec::new(), cells: 0 };
    answer.cells = session.context() - session.len(0);
    let mut ending = None;
    if greedy {
        // The device chooses the tokens itself; each is heard of while the next one is computed.
        let steps = answer.cells + 1;
        session.greedy(0, steps, &mut |token| {
            ending = answer.take(token);
            if ending.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
    } else {
        let mut next = first;
        loop {
            ending = answer.take(next);
            if ending.is_some() {
                break;
            }
            session.read(0, &[next])?;
            next = choose(session, tokenizer, answer.sampler, request)?;
        }
    }
    let generate_time = started.elapsed();
    let _ = (answer.print)(&answer.stream.finish());
    let (tokens, prompt_tokens) = (answer.tokens, prompt.len());
    let ending = ending.unwrap_or(Ending::ContextFull);
    Ok(Outcome { tokens, ending, prompt_tokens, prompt_time, generate_time })
}

/// The next token, from as few logits as the sampler can do with.
fn choose(
    session: &mut Session,
    tokenizer: &Tokenizer,
    sampler: &mut Sampler,
    request: &Request,
) -> Result<u32> {
    if let Some(needed) = sampler.top_needed() {
        let banned = if request.ignore_end { tokenizer.ends_of_generation().count() } else { 0 };
        let mut top = session.top(needed + banned)?;
        if top.len() == (needed + banned).min(session.vocabulary()) {
            top.retain(|&(id, _)| banned == 0 || !tokenizer.is_end_of_generation(id));
            if !top.is_empty() {
                return Ok(sampler.sample_top(&top));
            }
        }
    }
    let logits = session.logits()?;
    if request.ignore_end {
        tokenizer.ends_of_generation().for_each(|id| logits[id as usize] = f32::NEG_INFINITY);
    }
    Ok(sampler.sample(logits))
}

/// An answer that grows token by token.
struct Answer<'a> {
    tokenizer: &'a Tokenizer,
    sampler: &'a mut Sampler,
    request: &'a Request,
    print: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
    stream: TextStream,
    tokens: Vec<u32>,
    /// Free cells of the context when the answer began.
    cells: usize,
}

impl Answer<'_> {
    /// Takes the next token; the reason to stop, if there is one.
    fn take(&mut self, next: u32) -> Option<Ending> {
        let is_long =
            |answer: &Self| answer.request.tokens_max.is_some_and(|max| answer.tokens.len() >= max);
        if is_long(self) {
            return Some(Ending::Length);
        }
        if self.tokenizer.is_end_of_generation(next) {
            return Some(Ending::EndOfGeneration);
        }
        self.tokens.push(next);
        self.sampler.accept(next);
        let text = self.stream.push(self.tokenizer.piece(next, false));
        if (self.print)(&text).is_break() {
            return Some(Ending::Interrupted);
        }
        if self.stream.stopped().is_some() {
            return Some(Ending::StopText);
        }
        if is_long(self) {
            return Some(Ending::Length);
        }
        (self.tokens.len() > self.cells).then_some(Ending::ContextFull)
    }
}
