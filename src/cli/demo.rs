//! `gridmill demo`: fetch a small model, convert it, talk to it.

use std::path::{Path, PathBuf};

use super::chat::{ChatFlags, converse};
use super::{convert as conversion, print};
use crate::convert::{Options, form};
use crate::file::Source;
use crate::file::cache;
use crate::file::download::Demo;
use crate::file::repository::Access;
use crate::quant::presets;
use crate::run::Session;
use crate::run::logits_file::{Reader, Writer};
use crate::run::score::{Base, Score, Windows, score};
use crate::run::tokenizer::tokenizer;
use crate::types::TensorType;

/// A text of our own to measure the conversion on; far too short for a figure to quote.
const SAMPLE: &str = include_str!("../../models/sample.txt");

/// Tokens per window of the sample.
const WINDOW: usize = 256;

#[derive(clap::Args)]
pub(super) struct Args {
    /// A type or a preset: higgs2, higgs3, higgs4, higgs8
    #[arg(long = "to", value_name = "TYPE", default_value = "higgs4")]
    #[arg(value_parser = presets::by_name)]
    kind: &'static dyn TensorType,
    /// Where the model is kept; the user's cache folder unless said
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Get the model ready and leave
    #[arg(long)]
    no_chat: bool,
    #[command(flatten)]
    chat: ChatFlags,
}

pub(super) fn demo(args: Args) -> anyhow::Result<()> {
    let folder = match &args.cache {
        Some(folder) => folder.clone(),
        None => cache::folder(|name| std::env::var_os(name))?,
    };
    let model = ready(&folder, args.kind)?;
    if args.no_chat {
        return print::line(model.display());
    }
    converse(&Source::open(&model)?, &args.chat)
}

/// The converted model, from the cache if it is there.
fn ready(folder: &Path, kind: &'static dyn TensorType) -> anyhow::Result<PathBuf> {
    let demo = Demo::new();
    let target = folder.join(format!("{}.{}.gguf", demo.name, kind.name()));
    if target.is_file() {
        print::note(format_args!("using {}", target.display()));
        return Ok(target);
    }
    let source = fetch(&demo, folder)?;
    print::note(format_args!("converting {} to {}", source.display(), kind.name()));
    let source = Source::open(&source)?;
    let options = Options {
        kind,
        keep: false,
        vocabulary_kind: None,
        overrides: Vec::new(),
        seed: 1,
        basis: None,
        group: None,
        recipe: None,
        whole_rows: false,
        form: form(false),
        share: None,
    };
    conversion::warn_if_coarse(&source, &options);
    let report = conversion::run(&source, (&target, &target), &options, None)?;
    let (from, to) = (print::megabytes(report.source_bytes), print::megabytes(report.file_bytes));
    print::note(format_args!("{from} became {to} in {:.1} s", report.time.as_secs_f64()));
    print::note(cost(folder, &source, &Source::open(&target)?)?);
    Ok(target)
}

fn fetch(demo: &Demo, folder: &Path) -> anyhow::Result<PathBuf> {
    let access = Access::new(|name| std::env::var_os(name))?;
    Ok(demo.fetch(folder, &access, &mut print::events())?)
}

/// What the conversion cost, measured on the sample.
fn cost(folder: &Path, source: &Source, target: &Source) -> anyhow::Result<String> {
    let tokenizer = tokenizer(source)?;
    let windows = Windows::new(&tokenizer, SAMPLE, WINDOW, None)?;
    let options = crate::run::Options { context: Some(WINDOW), ..Default::default() };
    let path = folder.join(format!("sample.{}.logits", std::process::id()));
    let mut progress = print::Progress::new("measuring", 2 * windows.len() as u64);
    let mut measure = |session: &mut Session, base: &mut Base| -> crate::Result<Score> {
        score(session, &windows, base, &mut |_, _| progress.add(1))
    };
    let mut session = Session::open(source, &options)?;
    let vocabulary = session.vocabulary();
    let mut base = Base::Save(Writer::create(&path, &windows, vocabulary)?);
    let before = measure(&mut session, &mut base)?;
    let mut base = Base::Against(Reader::open(&path, vocabulary)?);
    let after = measure(&mut Session::open(target, &options)?, &mut base);
    std::fs::remove_file(&path)?;
    let after = after?;
    let divergence = after.divergence.expect("there was a base");
    Ok(format!(
        "cost, on {} tokens of sample text: perplexity {:.2} to {:.2}, KL divergence {:.3}, \
         {:.0}% of the likeliest tokens the same",
        after.tokens,
        before.perplexity.mean,
        after.perplexity.mean,
        divergence.kl.mean,
        100.0 * divergence.same_top1.mean
    ))
}
