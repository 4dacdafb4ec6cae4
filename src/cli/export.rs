//! `gridmill export`: a model in a stock type, for other programs.

use std::path::PathBuf;

use super::convert::{sizes, table};
use super::print;
use crate::convert::Item;
use crate::convert::export::{Keep, export as write, stock_by_name, stock_names};
use crate::file::Source;
use crate::types::TensorType;

#[derive(clap::Args)]
#[command(after_help = "\
Every matrix gets the type of --to, turned back into the model's own basis; norms and biases \
become F32. Rows that the type's blocks do not divide get the type that llama.cpp would give \
them, which is said. All keys stay, but for ours and those of --keep-imatrix.")]
pub(super) struct Args {
    /// A GGUF file, or a shard of one
    model: PathBuf,
    /// Where the result goes; replaced only when it is whole
    target: PathBuf,
    #[arg(long = "to", value_name = "TYPE", value_parser = stock_by_name)]
    #[arg(help = format!("Of the matrices: {}", stock_names().join(", ")))]
    kind: &'static dyn TensorType,
    /// Leave weights as they are that have a stock type already, whatever --to says
    #[arg(long)]
    keep_stock: bool,
    /// Keep the keys quantize.imatrix.*, which say what the codes of the source were fitted to
    #[arg(long)]
    keep_imatrix: bool,
}

pub(super) fn export(args: Args) -> anyhow::Result<()> {
    let source = Source::open(&args.model)?;
    let total = source.tensors().map(|tensor| tensor.bytes() as u64).sum();
    let mut progress = print::Progress::new("exporting", total);
    let mut take = |bytes| progress.add(bytes);
    let keep = Keep { stock: args.keep_stock, imatrix: args.keep_imatrix };
    let report = write(&source, &args.target, args.kind, keep, &mut take)?;
    drop(progress);
    let items: Vec<&Item> = report.lines.iter().map(|line| &line.item).collect();
    fallbacks(&items, args.kind).iter().for_each(print::note);
    print::data(table(&report.lines))?;
    print::line(sizes(&report))
}

/// A sentence for each width that the type does not fit.
fn fallbacks(items: &[&Item], kind: &'static dyn TensorType) -> Vec<String> {
    let mut widths: Vec<(usize, &str, usize)> = Vec::new();
    for item in items {
        if item.keep || item.rows == 1 || kind.row_bytes(item.cols).is_some() {
            continue;
        }
        let name = item.kind.name();
        match widths.iter_mut().find(|(cols, known, _)| (*cols, *known) == (item.cols, name)) {
            Some((_, _, count)) => *count += 1,
            None => widths.push((item.cols, name, 1)),
        }
    }
    let sentence = |(cols, name, count): (usize, &str, usize)| {
        let (len, kind) = (kind.block().len, kind.name());
        let written = format!("written as {name} instead of {kind}");
        format!("{count} tensors have rows of {cols}, no multiple of {len}: {written}")
    };
    widths.into_iter().map(sentence).collect()
}
