//! `gridmill run`: continue a text.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::bail;

use super::flags::{RunFlags, SamplerFlags};
use super::print;
use crate::file::Source;
use crate::run::generate::{Request, generate};
use crate::run::tokenizer::tokenizer;
use crate::text::Sampler;

#[derive(clap::Args)]
pub(super) struct Args {
    /// A GGUF file, or the first shard of one
    model: PathBuf,
    /// The text to continue; special tokens in it are parsed
    #[arg(short, long, required_unless_present = "file")]
    prompt: Option<std::ffi::OsString>,
    /// A file with the text to continue
    #[arg(short, long, conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Tokens to generate at most; until the model ends or the context is full unless said
    #[arg(short, long, value_name = "N")]
    n: Option<usize>,
    /// End at this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Never choose a token that ends generation
    #[arg(long)]
    ignore_eos: bool,
    /// Print tokens per second at the end, on stderr
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    run: RunFlags,
    #[command(flatten)]
    sampler: SamplerFlags,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    let prompt = prompt(&args)?;
    let source = Source::open(&args.model)?;
    let tokenizer = tokenizer(&source)?;
    super::warn(&tokenizer);
    let mut session = args.run.open(&source)?;
    let mut tokens: Vec<u32> =
        tokenizer.bos().filter(|_| tokenizer.add_bos()).into_iter().collect();
    tokens.extend(tokenizer.encode(&prompt, true)?);
    if tokens.is_empty() {
        bail!("the prompt is empty, and the model has no token to begin with");
    }
    let mut sampler = Sampler::new(args.sampler.config())?;
    let request =
        Request { tokens_max: args.n, stop: args.stop.clone(), ignore_end: args.ignore_eos };
    let mut failure = None;
    let mut print = |text: &str| match print::data(text) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failure = Some(error);
            ControlFlow::Break(())
        }
    };
    let outcome = generate(&mut session, &tokenizer, &mut sampler, &tokens, &request, &mut print)?;
    if let Some(error) = failure {
        return Err(error);
    }
    print::line("")?;
    if args.stats {
        print::note(format_args!(
            "{} prompt tokens at {:.1} per second, {} generated at {:.1} per second",
            outcome.prompt_tokens,
            outcome.prompt_tps(),
            outcome.tokens.len(),
            outcome.generate_tps(),
        ));
    }
    Ok(())
}

fn prompt(args: &Args) -> anyhow::Result<String> {
    if let Some(path) = &args.file {
        return super::read_text(path);
    }
    let prompt = args.prompt.clone().unwrap_or_default();
    match prompt.into_string() {
        Ok(prompt) => Ok(prompt),
        Err(bytes) => bail!("the prompt is not UTF-8: {bytes:?}"),
    }
}
