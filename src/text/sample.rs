//! Choosing the next token from the logits.
//!
//! The chain is llama.cpp's: penalties, top-k, top-p, min-p, temperature, draw. Candidates are
//! ordered by logit, of equal ones the smaller id first, so that a seed gives one text.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};

use crate::bail;
use crate::error::Result;
use crate::limits::REPEAT_LAST_MAX;

/// How to sample. The defaults are llama.cpp's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Divides the logits; 0 or less takes the likeliest token always.
    pub temperature: f32,
    /// Keeps this many of the likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the likeliest tokens until their probabilities add up to this; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens with this share of the likeliest one's probability; 0 keeps all.
    pub min_p: f32,
    /// Divides the positive logits of recent tokens and multiplies the negative ones; 1 is off.
    pub repeat_penalty: f32,
    /// How many tokens back the penalties look, in tokens; 0 turns them off.
    pub repeat_last_n: usize,
    /// Subtracted from the logit of every recent token.
    pub presence_penalty: f32,
    /// Subtracted from the logit of every recent token, times how often it occurred.
    pub frequency_penalty: f32,
    /// Where the random numbers begin.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> SamplerConfig {
        SamplerConfig {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

/// Draws tokens; remembers the recent ones for the penalties.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    random: SplitMix64,
    /// The last `repeat_last_n` tokens, and how often each of them occurs there.
    recent: VecDeque<u32>,
    counts: HashMap<u32, u32>,
    /// Kept between calls, so that a token costs no allocation.
    candidates: Vec<Candidate>,
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token's id.
    pub id: u32,
    /// Its logit after the penalties; finite.
    pub logit: f32,
    /// Its probability among the candidates.
    pub probability: f32,
}

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    ///
    /// # Errors
    ///
    /// When a setting is not finite, a penalty divides by zero or less, or the memory of the
    /// penalties is too long.
    pub fn new(config: SamplerConfig) -> Result<Sampler> {
        let settings = [
            ("temperature", config.temperature),
            ("top-p", config.top_p),
            ("min-p", config.min_p),
            ("repeat penalty", config.repeat_penalty),
            ("presence penalty", config.presence_penalty),
            ("frequency penalty", config.frequency_penalty),
        ];
        for (name, value) in settings {
            if !value.is_finite() {
                bail!("{name} is {value}, expected a finite number");
            }
        }
        if config.repeat_penalty <= 0.0 {
            bail!("repeat penalty is {}, expected more than 0", config.repeat_penalty);
        }
        if config.repeat_last_n > REPEAT_LAST_MAX {
            bail!(
                "the penalties look back {} tokens, at most {REPEAT_LAST_MAX} expected",
                config.repeat_last_n
            );
        }
        Ok(Sampler {
            config,
            random: SplitMix64 { state: config.seed },
            recent: VecDeque::with_capacity(config.repeat_last_n),
            counts: HashMap::with_capacity(config.repeat_last_n),
            candidates: Vec::new(),
        })
    }

    /// Tells the sampler of a token in the text, of the prompt or drawn, for the penalties.
    pub fn accept(&mut self, token: u32) {
        if self.config.repeat_last_n == 0 {
            return;
        }
        if self.recent.len() == self.config.repeat_last_n
            && let Some(oldest) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&oldest)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
        self.recent.push_back(token);
        *self.counts.entry(token).or_insert(0) += 1;
    }

    /// Draws a token. The logits are changed by the penalties.
    ///
    /// A logit that is not a number counts as minus infinity, and one of plus infinity as the
    /// largest number. If nothing remains, the answer is token 0.
    ///
    /// # Panics
    ///
    /// Without logits: a bug of the caller.
    pub fn sample(&mut self, logits: &mut [f32]) -> u32 {
        if self.config.temperature <= 0.0 {
            self.penalise(logits);
            return first_maximum(logits);
        }
        let u = self.random.next_unit();
        draw(self.candidates(logits), u)
    }

    /// How many of the likeliest tokens suffice to draw from, if not all do: see
    /// [`Sampler::sample_top`].
    pub fn top_needed(&self) -> Option<usize> {
        let SamplerConfig { temperature, top_k, .. } = self.config;
        match () {
            () if self.penalises() => None,
            () if temperature <= 0.0 => Some(1),
            () => Some(top_k).filter(|&k| k > 0),
        }
    }

    /// As [`Sampler::sample`], from the likeliest tokens and their logits alone, in order, at least
    /// as many as [`Sampler::top_needed`] says or all there are.
    ///
    /// # Panics
    ///
    /// Without tokens: a bug of the caller.
    pub fn sample_top(&mut self, top: &[(u32, f32)]) -> u32 {
        assert!(!top.is_empty(), "a model has at least one token");
        if self.config.temperature <= 0.0 {
            return top[0].0;
        }
        let u = self.random.next_unit();
        let kept = top.iter().take(self.config.top_k);
        let candidate = |&(id, logit)| Candidate { id, logit: clean(logit), probability: 0.0 };
        self.candidates.clear();
        self.candidates
            .extend(kept.map(candidate).filter(|candidate| candidate.logit > f32::NEG_INFINITY));
        self.finish();
        draw(&self.candidates, u)
    }

    /// What [`Sampler::sample`] would draw from: the tokens that pass the chain, with their
    /// probabilities. At temperature 0 only the likeliest.
    ///
    /// # Panics
    ///
    /// Without logits: a bug of the caller.
    pub fn candidates(&mut self, logits: &mut [f32]) -> &[Candidate] {
        self.penalise(logits);
        if self.config.temperature <= 0.0 {
            let id = first_maximum(logits);
            let best = Candidate { id, logit: clean(logits[id as usize]), probability: 1.0 };
            self.candidates.clear();
            self.candidates.push(best);
            return &self.candidates;
        }
        keep_top_k(logits, self.config.top_k, &mut self.candidates);
        self.finish();
        &self.candidates
    }

    /// The chain after top-k.
    fn finish(&mut self) {
        let SamplerConfig { temperature, top_p, min_p, .. } = self.config;
        let kept = &mut self.candidates;
        if top_p < 1.0 {
            keep_top_p(kept, top_p);
        }
        keep_min_p(kept, min_p);
        softmax(kept, temperature);
    }

    fn penalises(&self) -> bool {
        let SamplerConfig { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.config;
        repeat_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0
    }

    fn penalise(&self, logits: &mut [f32]) {
        assert!(!logits.is_empty(), "a model has at least one token");
        let SamplerConfig { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.config;
        if !self.penalises() {
            return;
        }
        for (&token, &count) in &self.counts {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            if *logit <= 0.0 {
                *logit *= repeat_penalty;
            } else {
                *logit /= repeat_penalty;
            }
            *logit -= count as f32 * frequency_penalty + presence_penalty;
        }
    }
}

/// The candidate at `u` of the way through the probabilities.
fn draw(candidates: &[Candidate], u: f64) -> u32 {
    // The sum is not exactly one: rounding leaves the rest to the last candidate.
    let mut sum = 0.0;
    for candidate in candidates {
        sum += f64::from(candidate.probability);
        if u < sum {
            return candidate.id;
        }
    }
    candidates.last().map_or(0, |candidate| candidate.id)
}

/// The generator SplitMix64 (Steele, Lea, Flood 2014): a counter, well mixed.
#[derive(Clone, Debug)]
struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 up to but not including 1, of 53 random bits.
    fn next_unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

fn clean(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) }
}

fn first_maximum(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if clean(logit) > clean(logits[best]) {
            best = id;
        }
    }
    best as u32
}

/// The likelier first, of equal ones the smaller id.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// The `k` likeliest tokens in order, or all of them in the order of their ids if `k` is 0.
///
/// A buffer of twice `k` collects what exceeds the least logit known to be kept; when it is full,
/// its lower half goes. So 128 thousand logits are compared once each and almost never moved.
fn keep_top_k(logits: &[f32], k: usize, kept: &mut Vec<Candidate>) {
    kept.clear();
    let k = if k == 0 { usize::MAX } else { k };
    let mut least = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        let logit = clean(logit);
        // Later ones of equal logit rank behind, so that they need not be looked at.
        if logit > least {
            kept.push(Candidate { id: id as u32, logit, probability: 0.0 });
            if kept.len() == k.saturating_mul(2) {
                kept.select_nth_unstable_by(k - 1, by_rank);
                kept.truncate(k);
                least = kept[k - 1].logit;
            }
        }
    }
    if k < usize::MAX {
        kept.sort_unstable_by(by_rank);
        kept.truncate(k);
    }
}

/// The likeliest candidates, in order, until their probabilities reach `top_p`; at least one.
fn keep_top_p(kept: &mut Vec<Candidate>, top_p: f32) {
    softmax(kept, 1.0);
    // The first few hundred mostly suffice, so that 128 thousand candidates are not sorted.
    let mut sorted = 0;
    let mut sum = 0.0;
    let mut len = 0;
    while len < kept.len() {
        if len == sorted {
            let rest = &mut kept[sorted..];
            let chunk = (sorted * 4).max(256).min(rest.len());
            if chunk < rest.len() {
                rest.select_nth_unstable_by(chunk, by_rank);
            }
            rest[..chunk].sort_unstable_by(by_rank);
            sorted += chunk;
        }
        sum += kept[len].probability;
        len += 1;
        if sum >= top_p {
            break;
        }
    }
    kept.truncate(len);
}

/// The candidates whose probability is at least `min_p` of the greatest; at least one.
fn keep_min_p(kept: &mut Vec<Candidate>, min_p: f32) {
    if min_p <= 0.0 {
        return;
    }
    let max = greatest(kept);
    // A share above 1 keeps the likeliest ones still.
    let least = max + min_p.min(1.0).ln();
    kept.retain(|candidate| candidate.logit >= least);
}

fn softmax(kept: &mut [Candidate], temperature: f32) {
    let max = greatest(kept);
    let mut sum = 0.0_f64;
    for candidate in kept.iter_mut() {
        candidate.probability = ((candidate.logit - max) / temperature).exp();
        sum += f64::from(candidate.probability);
    }
    for candidate in kept {
        candidate.probability = (f64::from(candidate.probability) / sum) as f32;
    }
}

fn greatest(kept: &[Candidate]) -> f32 {
    kept.iter().map(|candidate| candidate.logit).fold(f32::NEG_INFINITY, f32::max)
}
