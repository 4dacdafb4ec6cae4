//! `gridmill tokenize`: text to token ids.

use std::io::Read;
use std::path::PathBuf;

use serde_json::json;

use super::print;
use crate::file::Source;
use crate::run::tokenizer::tokenizer;

#[derive(clap::Args)]
pub(super) struct Args {
    /// A GGUF file; one with a vocabulary alone will do
    model: PathBuf,
    /// The text
    #[arg(long, conflicts_with = "file")]
    text: Option<String>,
    /// A file with the text; standard input if neither is given
    #[arg(long)]
    file: Option<PathBuf>,
    /// Begin with the begin-of-text token, if the model wants one
    #[arg(long)]
    bos: bool,
    /// Parse special tokens in the text
    #[arg(long)]
    special: bool,
    /// Print `{"ids": [...]}`
    #[arg(long)]
    json: bool,
}

pub(super) fn tokenize(args: Args) -> anyhow::Result<()> {
    let source = Source::open(&args.model)?;
    let tokenizer = tokenizer(&source)?;
    super::warn(&tokenizer);
    let text = match (args.text, &args.file) {
        (Some(text), _) => text,
        (None, Some(path)) => super::read_text(path)?,
        (None, None) => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text
        }
    };
    let bos = tokenizer.bos().filter(|_| args.bos && tokenizer.add_bos());
    let mut ids: Vec<u32> = bos.into_iter().collect();
    ids.extend(tokenizer.encode(&text, args.special)?);
    if args.json {
        return print::json(&json!({ "ids": ids }));
    }
    let mut lines = String::new();
    for &id in &ids {
        let piece = String::from_utf8_lossy(tokenizer.piece(id, true)).into_owned();
        lines += &format!("{id:>7}  {piece:?}\n");
    }
    print::data(lines)
}
