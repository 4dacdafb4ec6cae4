//! `gridmill split` and `gridmill merge`: one file to shards and back.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use super::flags::size;
use super::print;
use crate::error::At;
use crate::file::{self, ShardLimit, Source};

#[derive(clap::Args)]
#[command(after_help = "\
The shards have the names and keys of llama.cpp's gguf-split, and any of them opens all.")]
pub(super) struct Args {
    /// A GGUF file, or a shard of one
    file: PathBuf,
    /// What the names begin with: PREFIX-00001-of-00003.gguf and so on
    prefix: PathBuf,
    /// Bytes of a file at most, as 500MB; a larger tensor has a file to itself
    #[arg(long, value_parser = size, required_unless_present = "tensors")]
    size: Option<u64>,
    /// Tensors in a file at most
    #[arg(long, value_name = "N", conflicts_with = "size")]
    tensors: Option<NonZeroU64>,
}

#[derive(clap::Args)]
#[command(after_help = "\
Gives the file back that was split, byte for byte.")]
pub(super) struct MergeArgs {
    /// The first shard, or any other
    shard: PathBuf,
    /// Where the result goes; replaced only when it is whole
    target: PathBuf,
}

pub(super) fn split(args: Args) -> anyhow::Result<()> {
    let source = Source::open(&args.file)?;
    let limit = match (args.size, args.tensors) {
        (_, Some(count)) => ShardLimit::Tensors(count.get()),
        (bytes, None) => ShardLimit::Bytes(bytes.unwrap_or(0)),
    };
    shards(&source, &args.prefix, limit, &[])
}

pub(super) fn merge(args: MergeArgs) -> anyhow::Result<()> {
    let source = Source::open(&args.shard)?;
    let mut progress = print::Progress::new("copying", source.file_bytes());
    file::merge(&source, &args.target, &mut |bytes| progress.add(bytes))?;
    drop(progress);
    let count = source.shard_paths().count();
    let bytes = std::fs::metadata(&args.target).at(args.target.display())?.len();
    print::line(format_args!("{count} shards to {} ({bytes} bytes)", args.target.display()))
}

/// Splits with a progress bar, and lists the files.
pub(super) fn shards(
    source: &Source,
    prefix: &Path,
    limit: ShardLimit,
    protected: &[PathBuf],
) -> anyhow::Result<()> {
    let mut progress = print::Progress::new("copying", source.file_bytes());
    let mut take = |bytes| progress.add(bytes);
    let paths = file::split(source, prefix, limit, protected, &mut take)?;
    drop(progress);
    for path in paths {
        let bytes = std::fs::metadata(&path).at(path.display())?.len();
        print::line(format_args!("{} ({bytes} bytes)", path.display()))?;
        if matches!(limit, ShardLimit::Bytes(most) if bytes > most) {
            let place = path.display();
            print::note(format_args!("{place}: larger than asked for: one tensor, or metadata"));
        }
    }
    Ok(())
}
