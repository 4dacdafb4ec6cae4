//! `gridmill kv-basis`: the bases that `--kv-type resq4` keeps keys and values in.

use std::path::PathBuf;

use super::calibrate::{CalibrationFlags, Tokens};
use super::print;
use crate::convert::{self, BasisWishes};
use crate::error::At;
use crate::file::Source;
use crate::model::Model;
use crate::run::kv_basis::{beside, check_head};

/// Windows to listen to. Keys differ with their place: directions of long windows serve short ones,
/// too (`benches/results/`).
const WINDOWS: u32 = 16;
/// Tokens of a window at most.
const LONG: usize = 2048;
/// Tokens of a text that directions serve, unless somebody wants others.
const FAR: usize = 8192;
/// Tokens of a window at least.
const SHORT: usize = 16;

#[derive(clap::Args)]
#[command(after_help = "\
The model reads the text, and what it keeps of each head says which directions need more bits. One \
file serves a model and all its conversions.")]
pub(super) struct Args {
    /// A GGUF file, or the first shard of one; best before it is quantised
    model: PathBuf,
    /// Where the result goes; MODEL.kv-basis.gguf beside the model, where it is looked for
    target: Option<PathBuf>,
    #[command(flatten)]
    calibration: CalibrationFlags,
    /// Tokens of the texts to come: the model's context, 8192 at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    ctx: Option<u32>,
    /// Seed of the rotations, and of a text that the model writes
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(super) fn kv_basis(args: Args) -> anyhow::Result<()> {
    let source = Source::open(&args.model)?;
    let model = Model::new(&source).at(args.model.display())?;
    let hparams = &model.hparams;
    check_head(hparams.head_len).at(args.model.display())?;
    let context = args.ctx.map_or(hparams.context.min(FAR), |ctx| ctx as usize);
    let tokens = hparams.context.clamp(SHORT, LONG) as u32;
    let calibration = args.calibration.or(WINDOWS, tokens);
    let heard = calibration.listen(&source, args.seed, Tokens::Alike)?;
    let Some(statistics) = heard.statistics else {
        anyhow::bail!("expected --calibrate and a text, or self: bases are made of what is heard");
    };
    let target = args.target.unwrap_or_else(|| beside(&args.model));
    let mut progress = print::Progress::new("finding directions", hparams.layers as u64);
    let done = &mut || progress.add(1);
    let wishes = BasisWishes { seed: args.seed, window: calibration.tokens(), context };
    let captured = convert::kv_basis(&statistics, &model, &wishes, &target, done)?;
    drop(progress);
    print::line(format_args!(
        "{}: the directions of 8 bits hold {:.1} % of keys, {:.1} % of values",
        target.display(),
        100.0 * captured.keys,
        100.0 * captured.values
    ))
}
