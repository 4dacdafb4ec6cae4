//! `gridmill perplexity`: score a text in llama.cpp's convention.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::flags::RunFlags;
use super::print;
use crate::file::Source;
use crate::run::logits_file::{Reader, Writer};
use crate::run::score::{Base, Score, Windows, score};
use crate::run::tokenizer::tokenizer;

#[derive(clap::Args)]
pub(super) struct Args {
    /// A GGUF file, or the first shard of one
    model: PathBuf,
    /// The text to score
    text: PathBuf,
    /// Windows to score at most
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    /// Write the distributions, in llama.cpp's layout
    #[arg(long, value_name = "FILE", conflicts_with = "against")]
    save_logits: Option<PathBuf>,
    /// Measure the divergence from distributions written before
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunFlags,
}

/// llama.cpp's window.
pub(super) const WINDOW: usize = 512;

pub(super) fn perplexity(args: Args) -> anyhow::Result<()> {
    let text = super::read_text(&args.text)?;
    let source = Source::open(&args.model)?;
    let tokenizer = tokenizer(&source)?;
    let mut options = args.run.options();
    let context = options.context.unwrap_or(WINDOW);
    let place = || args.text.display().to_string();
    let mut windows = args.chunks;
    options.context = Some(context);
    let mut session = args.run.open_with(&source, &options)?;
    let vocabulary = session.vocabulary();
    let base = match &args.against {
        Some(path) => Some(Reader::open(path, vocabulary)?),
        None => None,
    };
    if let Some(reader) = &base {
        windows = Some(windows.map_or(reader.windows(), |windows| windows.min(reader.windows())));
    }
    let windows = Windows::new(&tokenizer, &text, context, windows).with_context(place)?;
    let mut base = match (base, &args.save_logits) {
        (Some(reader), _) => {
            reader.check(&windows).with_context(place)?;
            Base::Against(reader)
        }
        (None, Some(path)) => Base::Save(Writer::create(path, &windows, vocabulary)?),
        (None, None) => Base::None,
    };
    let mut progress = print::Progress::new("scoring", windows.len() as u64);
    let score = score(&mut session, &windows, &mut base, &mut |_, so_far| {
        progress.add(1);
        progress.say(format!("{:.4}", so_far.mean));
    })?;
    drop(progress);
    if args.json { print::json(&as_json(&score)) } else { print::data(as_text(&score)) }
}

fn as_json(score: &Score) -> Value {
    let mut object = Map::new();
    let mut set = |key: &str, value: f64| object.insert(key.to_string(), json!(value));
    set("perplexity", score.perplexity.mean);
    set("perplexity_se", score.perplexity.error);
    if let Some(divergence) = &score.divergence {
        set("kl_mean", divergence.kl.mean);
        set("kl_mean_se", divergence.kl.error);
        set("kl_median", divergence.kl_median);
        set("kl_p99", divergence.kl_p99);
        set("same_top1", divergence.same_top1.mean);
        set("same_top1_se", divergence.same_top1.error);
    }
    object.insert("tokens".to_string(), json!(score.tokens));
    Value::Object(object)
}

fn as_text(score: &Score) -> String {
    let cells = |what: &str, value: String| vec![what.to_string(), value];
    let perplexity = &score.perplexity;
    let mut rows =
        vec![cells("perplexity", format!("{:.4} ± {:.4}", perplexity.mean, perplexity.error))];
    if let Some(divergence) = &score.divergence {
        let (kl, same) = (divergence.kl, divergence.same_top1);
        rows.push(cells("KL divergence", format!("{:.6} ± {:.6}", kl.mean, kl.error)));
        rows.push(cells("  median", format!("{:.6}", divergence.kl_median)));
        rows.push(cells("  99th percentile", format!("{:.6}", divergence.kl_p99)));
        let (mean, error) = (100.0 * same.mean, 100.0 * same.error);
        rows.push(cells("same top token", format!("{mean:.2} ± {error:.2} %")));
    }
    rows.push(cells("tokens", score.tokens.to_string()));
    print::table(&rows, &[])
}
