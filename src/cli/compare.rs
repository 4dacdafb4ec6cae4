//! `gridmill compare`: two files of one model side by side.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::flags::RunFlags;
use super::perplexity::WINDOW;
use super::print;
use crate::file::Source;
use crate::run::compare::{Answers, Weight, answers, weights};
use crate::run::score::Windows;
use crate::run::tokenizer::tokenizer;

#[derive(clap::Args)]
#[command(after_help = "\
Lists for every weight its type, its bytes and the error of B: the squared difference from A \
over the squares of A, both in the model's own basis. With --text, both models read a text in \
llama.cpp's convention.")]
pub(super) struct Args {
    /// What to compare with: a GGUF file, or a shard of one
    a: PathBuf,
    /// What is compared: another file of the same model
    b: PathBuf,
    /// A text for both to read
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Windows of the text at most
    #[arg(long, value_name = "N", requires = "text")]
    chunks: Option<usize>,
    /// Print JSON: `tensors` (`name`, `type_a`, `type_b`, `bytes_a`, `bytes_b`, `error`), and
    /// `bytes_a`, `bytes_b` of the files; with --text also `perplexity_a`, `perplexity_b`,
    /// `kl_mean`, `kl_mean_se`, `same_top1`, `tokens` scored, and `tps_a`, `tps_b`, tokens read
    /// per second
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunFlags,
}

pub(super) fn compare(args: Args) -> anyhow::Result<()> {
    let (a, b) = (Source::open(&args.a)?, Source::open(&args.b)?);
    let total = a.tensors().map(|tensor| tensor.len() as u64).sum();
    let mut progress = print::Progress::new("comparing", total);
    let weights = weights(&a, &b, &mut |values| progress.add(values))?;
    drop(progress);
    let answers = read(&args, &a, &b)?;
    let bytes = [a.file_bytes(), b.file_bytes()];
    match args.json {
        true => print::json(&as_json(&weights, bytes, answers.as_ref())),
        false => print::data(as_text(&weights, bytes, answers.as_ref())),
    }
}

/// What both say to the text, if there is one.
fn read(args: &Args, a: &Source, b: &Source) -> anyhow::Result<Option<Answers>> {
    let Some(path) = &args.text else { return Ok(None) };
    let text = super::read_text(path)?;
    let tokenizer = tokenizer(a)?;
    let mut options = args.run.options();
    let context = options.context.unwrap_or(WINDOW);
    options.context = Some(context);
    let windows = Windows::new(&tokenizer, &text, context, args.chunks);
    let windows = windows.with_context(|| path.display().to_string())?;
    let (mut a, mut b) = (args.run.open_with(a, &options)?, args.run.open_with(b, &options)?);
    let mut progress = print::Progress::new("reading", windows.len() as u64);
    let mut take = |so_far: crate::run::score::Estimate| {
        progress.add(1);
        progress.say(format!("{:.4}", so_far.mean));
    };
    Ok(Some(answers(&mut a, &mut b, &windows, &mut take)?))
}

fn as_json(weights: &[Weight], bytes: [u64; 2], answers: Option<&Answers>) -> Value {
    let tensor = |weight: &Weight| {
        json!({
            "name": weight.name,
            "type_a": weight.kinds[0],
            "type_b": weight.kinds[1],
            "bytes_a": weight.bytes[0],
            "bytes_b": weight.bytes[1],
            "error": weight.error,
        })
    };
    let mut object = Map::new();
    let mut set = |key: &str, value: Value| object.insert(key.to_string(), value);
    set("tensors", weights.iter().map(tensor).collect());
    set("bytes_a", json!(bytes[0]));
    set("bytes_b", json!(bytes[1]));
    if let Some(Answers { scores: [a, b], tokens_per_second: [tps_a, tps_b] }) = answers {
        set("perplexity_a", json!(a.perplexity.mean));
        set("perplexity_a_se", json!(a.perplexity.error));
        set("perplexity_b", json!(b.perplexity.mean));
        set("perplexity_b_se", json!(b.perplexity.error));
        if let Some(divergence) = b.divergence {
            set("kl_mean", json!(divergence.kl.mean));
            set("kl_mean_se", json!(divergence.kl.error));
            set("same_top1", json!(divergence.same_top1.mean));
            set("same_top1_se", json!(divergence.same_top1.error));
        }
        set("tokens", json!(a.tokens));
        set("tps_a", json!(tps_a));
        set("tps_b", json!(tps_b));
    }
    Value::Object(object)
}

fn as_text(weights: &[Weight], bytes: [u64; 2], answers: Option<&Answers>) -> String {
    let head = ["tensor", "A", "B", "bytes of A", "bytes of B", "error"];
    let mut rows = vec![head.map(str::to_string).to_vec()];
    for Weight { name, kinds, bytes, error } in weights {
        let [a, b] = kinds.map(str::to_string);
        let error = format!("{error:.3e}");
        rows.push(vec![name.clone(), a, b, bytes[0].to_string(), bytes[1].to_string(), error]);
    }
    let [a, b] = bytes.map(|bytes| bytes.to_string());
    rows.push(vec!["files".to_string(), String::new(), String::new(), a, b]);
    let mut text = print::table(&rows, &[3, 4, 5]);
    let Some(Answers { scores, tokens_per_second }) = answers else { return text };
    let cells = |what: &str, value: String| vec![what.to_string(), value];
    let mut rows = Vec::new();
    for ((name, score), tps) in ["A", "B"].iter().zip(scores).zip(tokens_per_second) {
        let (mean, error) = (score.perplexity.mean, score.perplexity.error);
        rows.push(cells(&format!("perplexity of {name}"), format!("{mean:.4} ± {error:.4}")));
        rows.push(cells("  tokens per second", format!("{tps:.1}")));
    }
    if let Some(divergence) = scores[1].divergence {
        let (kl, same) = (divergence.kl, divergence.same_top1);
        rows.push(cells("KL divergence", format!("{:.6} ± {:.6}", kl.mean, kl.error)));
        let (mean, error) = (100.0 * same.mean, 100.0 * same.error);
        rows.push(cells("same top token", format!("{mean:.2} ± {error:.2} %")));
    }
    rows.push(cells("tokens", scores[0].tokens.to_string()));
    text.push('\n');
    text + &print::table(&rows, &[])
}
