//! `gridmill bench`: tokens per second.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::flags::RunFlags;
use super::print;
use crate::file::Source;
use crate::run::{Options, Session};

#[derive(clap::Args)]
pub(super) struct Args {
    /// A GGUF file, or the first shard of one
    model: PathBuf,
    /// Tokens of the prompt; 0 leaves it out
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens to generate; 0 leaves it out
    #[arg(short, long, value_name = "N", default_value_t = 128)]
    n: usize,
    /// Measured rounds, after one that is not
    #[arg(short, long, default_value_t = 5)]
    rounds: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunFlags,
}

pub(super) fn bench(args: Args) -> anyhow::Result<()> {
    let source = Source::open(&args.model)?;
    let mut options = args.run.options();
    options.context = options.context.or(Some((args.prompt + args.n).max(1)));
    let mut session = Session::open(&source, &options)?;
    let mut progress = print::Progress::new("measuring", args.rounds as u64 + 1);
    let (mut prompts, mut generates) = (Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        let prompt = measure(&mut session, args.prompt, args.prompt)?;
        let generate = measure(&mut session, args.n, 1)?;
        if round > 0 {
            prompts.push(prompt);
            generates.push(generate);
        }
        progress.add(1);
    }
    drop(progress);
    report(&args, &source, &options, Rates::of(prompts), Rates::of(generates))
}

fn report(
    args: &Args,
    source: &Source,
    options: &Options,
    prompt: Rates,
    generate: Rates,
) -> anyhow::Result<()> {
    if args.json {
        return print::json(&json!({
            "prompt_tps": prompt.median,
            "generate_tps": generate.median,
            "prompt_tokens": args.prompt,
            "generate_tokens": args.n,
            "prompt_tps_rounds": prompt.rounds,
            "generate_tps_rounds": generate.rounds,
            "threads": options.threads,
            "device": args.run.device_name(),
            "model_bytes": source.file_bytes(),
        }));
    }
    let line = |what: String, rates: Rates| {
        let Rates { median, min, max, .. } = rates;
        let cells = [median, min, max].map(|rate| format!("{rate:.1}"));
        [vec![what], cells.to_vec()].concat()
    };
    let head = ["tokens per second", "median", "min", "max"].map(str::to_string).to_vec();
    let rows = [
        head,
        line(format!("prompt of {}", args.prompt), prompt),
        line(format!("generate {}", args.n), generate),
    ];
    print::data(print::table(&rows, &[1, 2, 3]))?;
    let bytes = print::megabytes(source.file_bytes());
    print::line(format_args!("{}, {} threads, {bytes}", args.run.device_name(), options.threads))
}

/// Tokens per second of `count` arbitrary tokens, fed in runs of `run` after an empty context.
fn measure(session: &mut Session, count: usize, run: usize) -> anyhow::Result<f64> {
    if count == 0 {
        return Ok(0.0);
    }
    session.truncate(0, 0);
    let vocabulary = session.vocabulary() as u64;
    // Any spread of tokens will do; a linear congruence keeps it the same every time.
    let token = |i: usize| ((i as u64 * 2_654_435_761 + 12345) % vocabulary) as u32;
    let tokens: Vec<u32> = (0..count).map(token).collect();
    let started = Instant::now();
    for tokens in tokens.chunks(run) {
        session.feed(0, tokens)?;
    }
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

struct Rates {
    median: f64,
    min: f64,
    max: f64,
    rounds: Vec<f64>,
}

impl Rates {
    fn of(rounds: Vec<f64>) -> Rates {
        let mut sorted = rounds.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(0.0);
        Rates {
            median: at(sorted.len() / 2),
            min: at(0),
            max: at(sorted.len().saturating_sub(1)),
            rounds,
        }
    }
}
