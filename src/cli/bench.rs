//! `gridmill bench`: tokens per second.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::flags::RunFlags;
use super::print;
use crate::convert::shape::{self, Shape};
use crate::file::Source;
use crate::model::{Model, Role};
use crate::quant::presets;
use crate::run::{Options, Session};
use crate::types::{Tensor, TensorType};

#[derive(clap::Args)]
pub(super) struct Args {
    /// A GGUF file, or the first shard of one
    #[arg(required_unless_present = "shape", conflicts_with = "shape")]
    model: Option<PathBuf>,
    /// Random weights of this shape instead of a model: 8b, 1b or 0.5b
    #[arg(long, value_name = "NAME", value_parser = Shape::by_name)]
    shape: Option<&'static Shape>,
    /// Type of every matrix of the shape, the vocabulary's too
    #[arg(long = "to", value_name = "TYPE", default_value = "higgs4", conflicts_with = "model")]
    #[arg(value_parser = presets::by_name)]
    kind: &'static dyn TensorType,
    /// Weights per norm of a grid type
    #[arg(long, value_name = "N", conflicts_with = "model")]
    group: Option<usize>,
    /// Write the shape's model, so that loading can be measured
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    save: Option<PathBuf>,
    /// Tokens of the prompt; 0 leaves it out
    #[arg(short, long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens to generate; 0 leaves it out
    #[arg(short, long, value_name = "N", default_value_t = 128)]
    n: usize,
    /// Tokens in the cache before the first one is generated
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// Measured rounds, after one that is not
    #[arg(short, long, default_value_t = 5)]
    rounds: usize,
    /// Say what each kernel of a GPU takes, for one token at the depth and for the prompt
    #[arg(long)]
    profile: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunFlags,
}

pub(super) fn bench(args: Args) -> anyhow::Result<()> {
    let mut started = Instant::now();
    let source = match (&args.model, args.shape) {
        (Some(model), _) => Source::open(model)?,
        (None, Some(shape)) => shape.make(args.kind, args.group)?,
        (None, None) => unreachable!("clap asks for one of them"),
    };
    if args.shape.is_some() {
        if let Some(target) = &args.save {
            shape::save(&source, target)?;
        }
        // What was made in memory has no file to open.
        started = Instant::now();
    }
    let mut options = args.run.options();
    options.context = options.context.or(Some(args.prompt.max(args.depth.max(1) + args.n + 1)));
    let mut session = Session::open(&source, &options)?;
    let load_seconds = started.elapsed().as_secs_f64();
    RunFlags::ready(&mut session)?;
    if args.profile {
        return profile(&mut session, args.depth, args.prompt);
    }
    let mut progress = print::Progress::new("measuring", args.rounds as u64 + 1);
    let (mut prompts, mut generates) = (Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        let prompt = prompt(&mut session, args.prompt)?;
        let generate = generate(&mut session, args.depth, args.n)?;
        if round > 0 {
            prompts.push(prompt);
            generates.push(generate);
        }
        progress.add(1);
    }
    drop(progress);
    let report = Report {
        device: session.device().to_string(),
        prompt: Rates::of(prompts),
        generate: Rates::of(generates),
        model_bytes: source.file_bytes(),
        token_bytes: token_bytes(&source)?,
        kv: options.kv.name(),
        kv_token_bytes: session.kv_token_bytes(),
        kv_bytes: session.kv_bytes(),
        load_seconds,
    };
    report.print(&args, &options)
}

struct Report {
    device: String,
    prompt: Rates,
    generate: Rates,
    model_bytes: u64,
    token_bytes: u64,
    kv: &'static str,
    kv_token_bytes: u64,
    kv_bytes: u64,
    load_seconds: f64,
}

impl Report {
    fn print(self, args: &Args, options: &Options) -> anyhow::Result<()> {
        let Report { device, prompt, generate, model_bytes, token_bytes, load_seconds, .. } = self;
        let Report { kv, kv_token_bytes, kv_bytes, .. } = self;
        if args.json {
            return print::json(&json!({
                "prompt_tps": prompt.median,
                "generate_tps": generate.median,
                "prompt_tokens": args.prompt,
                "generate_tokens": args.n,
                "depth": args.depth,
                "prompt_tps_rounds": prompt.rounds,
                "generate_tps_rounds": generate.rounds,
                "threads": options.threads,
                "device": device,
                "model_bytes": model_bytes,
                "token_bytes": token_bytes,
                "kv_type": kv,
                "kv_token_bytes": kv_token_bytes,
                "kv_bytes": kv_bytes,
                "load_seconds": load_seconds,
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
            line(format!("generate {} after {}", args.n, args.depth), generate),
        ];
        print::data(print::table(&rows, &[1, 2, 3]))?;
        print::line(format_args!(
            "{}, {} threads, {model_bytes} bytes, {token_bytes} of them for each token, loaded in \
             {load_seconds:.2} s",
            device, options.threads
        ))?;
        print::line(format_args!("{kv} cache: {kv_bytes} bytes, {kv_token_bytes} for each token"))
    }
}

/// Bytes of the weights that every token meets: all but the embedding, unless it is the head too.
fn token_bytes(source: &Source) -> anyhow::Result<u64> {
    let model = Model::new(source)?;
    let head = model.tensors.get(Role::Head, None);
    let embedding = model.tensors.get(Role::Embedding, None).filter(|_| head.is_some());
    let all: usize = source.tensors().map(Tensor::bytes).sum();
    Ok((all - embedding.map_or(0, Tensor::bytes)) as u64)
}

/// What each kernel takes: once for a token after `depth` others, once for a prompt.
fn profile(session: &mut Session, depth: usize, count: usize) -> anyhow::Result<()> {
    for (depth, count) in [(depth, 1), (0, count)] {
        session.truncate(0, 0);
        let tokens = tokens(session, depth + count);
        if depth > 0 {
            session.read(0, &tokens[..depth])?;
        }
        session.read(0, &tokens[depth..])?;
        // The second run of the same batch: everything is warm.
        session.backend().profile()?;
        let Some(timings) = session.backend().profile()? else {
            anyhow::bail!("this device has no clock for its kernels");
        };
        let head = ["kernel", "dispatches", "microseconds", "each", "GB/s"].map(str::to_string);
        let mut rows = vec![head.to_vec()];
        for timing in &timings {
            let each = timing.micros / timing.count as f64;
            let rate = timing.bytes as f64 / timing.micros / 1e3;
            let rate = if timing.bytes > 0 { format!("{rate:.0}") } else { String::new() };
            let (micros, count) = (format!("{:.1}", timing.micros), timing.count.to_string());
            rows.push(vec![timing.name.clone(), count, micros, format!("{each:.2}"), rate]);
        }
        let dispatches: usize = timings.iter().map(|timing| timing.count).sum();
        let micros: f64 = timings.iter().map(|timing| timing.micros).sum();
        rows.push(vec![
            format!("{count} tokens after {depth}"),
            dispatches.to_string(),
            format!("{micros:.1}"),
            String::new(),
            String::new(),
        ]);
        print::data(print::table(&rows, &[1, 2, 3, 4]))?;
    }
    Ok(())
}

/// Arbitrary tokens: a linear congruence keeps them the same every time.
fn tokens(session: &Session, count: usize) -> Vec<u32> {
    let vocabulary = session.vocabulary() as u64;
    (0..count as u64).map(|i| ((i * 2_654_435_761 + 12345) % vocabulary) as u32).collect()
}

/// Tokens per second of a prompt, up to the choice of the token after it.
fn prompt(session: &mut Session, count: usize) -> anyhow::Result<f64> {
    if count == 0 {
        return Ok(0.0);
    }
    let tokens = tokens(session, count);
    session.truncate(0, 0);
    let started = Instant::now();
    session.read(0, &tokens)?;
    session.top(1)?;
    Ok(count as f64 / started.elapsed().as_secs_f64())
}

/// Tokens per second after `depth` others, each the likeliest after the one before.
fn generate(session: &mut Session, depth: usize, count: usize) -> anyhow::Result<f64> {
    if count == 0 {
        return Ok(0.0);
    }
    let tokens = tokens(session, depth.max(1));
    session.truncate(0, 0);
    session.read(0, &tokens)?;
    session.top(1)?;
    let started = Instant::now();
    session.greedy(0, count + 1, &mut |_| ControlFlow::Continue(()))?;
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
