//! `gridmill repack`: planes to native types and back.

use std::path::PathBuf;

use super::print;
use crate::convert::form;
use crate::file::{Source, repack as write};

#[derive(clap::Args)]
#[command(after_help = "\
The weights stay what they are, byte for byte; only the way they are declared changes, and there \
and back gives the same file. Shards become one file.")]
pub(super) struct Args {
    /// A GGUF file with weights in our own types, or a shard of one
    file: PathBuf,
    /// Where the result goes; replaced only when it is whole
    target: PathBuf,
    /// Give our types their own numbers; other tools then refuse the file
    #[arg(long, required_unless_present = "planes", conflicts_with = "planes")]
    native_types: bool,
    /// Declare weights in our types as bytes, which every tool lists and copies
    #[arg(long)]
    planes: bool,
}

pub(super) fn repack(args: Args) -> anyhow::Result<()> {
    let source = Source::open(&args.file)?;
    let mut progress = print::Progress::new("copying", source.file_bytes());
    let form = form(args.native_types);
    let changed = write(&source, &args.target, form, &mut |bytes| progress.add(bytes))?;
    drop(progress);
    let all = source.tensors().filter(|tensor| source.raw_tensor(&tensor.name).is_none()).count();
    if changed == 0 {
        print::note(format_args!("no weight has another form that way: the tensors are as before"));
    }
    print::line(format_args!("{changed} of {all} weights have another form now"))
}
