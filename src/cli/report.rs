//! `convert --report`: the page, with what both models say to three prompts.

use std::ops::ControlFlow;
use std::path::Path;

use super::print;
use crate::convert::report::{Page, Sample, page};
use crate::convert::{Budget, Options, Report};
use crate::convert::{Picked, Sensitivity};
use crate::error::At;
use crate::file::Source;
use crate::run::generate::{Request, generate};
use crate::run::tokenizer::tokenizer;
use crate::run::{self, Session};
use crate::text::{Sampler, SamplerConfig};

/// What both models go on from.
const PROMPTS: [&str; 3] = [
    "The difference between a river and a lake is",
    "Once upon a time there was a miller who",
    "def is_prime(n):\n    \"\"\"Whether n is a prime number.\"\"\"\n",
];
/// Tokens of an answer.
const TOKENS: usize = 48;

/// What an allocation leaves for the page.
pub(super) struct Allocated {
    pub(super) budget: Budget,
    pub(super) picked: Picked,
    pub(super) sensitivity: Sensitivity,
    pub(super) points: Vec<(f64, f64)>,
}

pub(super) fn write(
    path: &Path,
    (source, target): (&Source, &Path),
    options: &Options,
    report: &Report,
    allocated: Option<&Allocated>,
) -> anyhow::Result<()> {
    let result = Source::open(target)?;
    let mut progress = print::Progress::new("asking both", 2);
    let before = answers(source)?;
    progress.add(1);
    let after = answers(&result)?;
    drop(progress);
    let texts = PROMPTS.iter().zip(before.into_iter().zip(after));
    let samples: Vec<Sample> = texts
        .map(|(prompt, (before, after))| Sample { prompt: prompt.to_string(), before, after })
        .collect();
    let alphas: Vec<_> = report
        .lines
        .iter()
        .map(|line| {
            let alpha = allocated?.sensitivity.alpha(&line.item.name)?;
            let loss = options.recipe.as_ref()?.loss(&line.item.name)?;
            Some((alpha.value, alpha.r2, loss))
        })
        .collect();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let html = page(&Page {
        source: &name(source.path()),
        target: &name(target),
        bytes: (report.source_bytes, report.file_bytes),
        lines: &report.lines,
        curve: allocated.map_or(&[], |allocated| &allocated.points),
        chosen: allocated.map(|it| (it.budget, it.picked.bits, it.picked.loss)),
        alphas: &alphas,
        samples: &samples,
    });
    std::fs::write(path, html).at(path.display())?;
    Ok(())
}

/// What a model says, the likeliest token each time.
fn answers(source: &Source) -> anyhow::Result<Vec<String>> {
    let tokenizer = tokenizer(source)?;
    let mut session = Session::open(source, &run::Options::default())?;
    let request = Request { tokens_max: Some(TOKENS), ..Request::default() };
    let mut texts = Vec::new();
    for prompt in PROMPTS {
        let mut tokens: Vec<u32> =
            tokenizer.bos().filter(|_| tokenizer.add_bos()).into_iter().collect();
        tokens.extend(tokenizer.encode(prompt, false)?);
        let greedy = SamplerConfig { temperature: 0.0, ..SamplerConfig::default() };
        let mut sampler = Sampler::new(greedy)?;
        session.truncate(0, 0);
        let mut text = String::new();
        generate(&mut session, &tokenizer, &mut sampler, &tokens, &request, &mut |piece| {
            text += piece;
            ControlFlow::Continue(())
        })?;
        texts.push(text);
    }
    Ok(texts)
}
