//! The command line: flags, commands, printing, exit codes.
//!
//! Data goes to stdout, everything else to stderr. Exit code 0: done; 1: failed; 2: wrong usage.

mod bench;
mod calibrate;
mod chat;
mod compare;
mod convert;
mod demo;
mod devices;
mod export;
mod fine_tune;
mod flags;
mod inspect;
mod kv_basis;
mod perplexity;
mod print;
mod repack;
mod report;
mod run;
mod split;
mod tokenize;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{At, Error};

/// Converts language models to GGUF with better weights per byte, and runs them.
#[derive(Parser)]
#[command(name = "gridmill", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch SmolLM2-135M-Instruct, convert it, chat with it
    Demo(demo::Args),
    /// Convert a model to other tensor types
    Convert(convert::Args),
    /// Continue a text
    Run(run::Args),
    /// Talk to a model
    Chat(chat::Args),
    /// Score a text: perplexity, and KL divergence from another model
    Perplexity(perplexity::Args),
    /// Measure tokens per second
    Bench(bench::Args),
    /// Compare two files of one model: weights, sizes, answers
    Compare(compare::Args),
    /// Write a model in a stock type, for llama.cpp and other programs
    Export(export::Args),
    /// Find the directions that --kv-type resq4 keeps in 8 bits
    KvBasis(kv_basis::Args),
    /// Turn our planes into native types, or back
    Repack(repack::Args),
    /// Cut a file into shards
    Split(split::Args),
    /// Join shards
    Merge(split::MergeArgs),
    /// Show what is in a file
    Inspect(inspect::Args),
    /// Turn text into token ids
    Tokenize(tokenize::Args),
    /// List what could run a model
    Devices(devices::Args),
    /// Measure the kernels of a GPU again
    Tune(devices::TuneArgs),
    /// Compare a device with the reference, op by op
    Verify(verify::Args),
}

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::demo(args),
        Command::Convert(args) => convert::convert(args),
        Command::Run(args) => run::run(args),
        Command::Chat(args) => chat::chat(args),
        Command::Perplexity(args) => perplexity::perplexity(args),
        Command::Bench(args) => bench::bench(args),
        Command::Compare(args) => compare::compare(args),
        Command::Export(args) => export::export(args),
        Command::KvBasis(args) => kv_basis::kv_basis(args),
        Command::Repack(args) => repack::repack(args),
        Command::Split(args) => split::split(args),
        Command::Merge(args) => split::merge(args),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Tokenize(args) => tokenize::tokenize(args),
        Command::Devices(args) => devices::devices(args),
        Command::Tune(args) => devices::tune_model(args),
        Command::Verify(args) => verify::verify(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if print::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            print::note(format_args!("error: {error:#}"));
            if let Some(hint) = error.downcast_ref::<Error>().and_then(Error::hint) {
                print::note(format_args!("hint: {hint}"));
            }
            ExitCode::from(1)
        }
    }
}

/// A text file, which must be UTF-8.
fn read_text(path: &std::path::Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).map_err(Error::from).at(path.display())?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::new(format!("{}: expected UTF-8, found byte {at} that is not", path.display()))
            .into()
    })
}

/// Says what the tokenizer found odd in its file.
fn warn(tokenizer: &crate::text::Tokenizer) {
    tokenizer.warnings().iter().for_each(|text| print::note(format_args!("warning: {text}")));
}
