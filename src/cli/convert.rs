//! `gridmill convert`: a model to other tensor types.

use std::path::{Path, PathBuf};

use regex::Regex;

use super::calibrate::{CalibrationFlags, Heard, Tokens};
use super::fine_tune;
use super::flags::size;
use super::print;
use super::report::{self, Allocated};
use crate::convert::{
    self, Budget, Event, Item, Line, Offers, Options, Picked, Recipe, Report, Statistics, import,
};
use crate::error::{At, Error, Result};
use crate::file::planes::transform_by_text;
use crate::file::repository::{Access, Repository};
use crate::file::{ShardLimit, Share, Source, prefix};
use crate::quant::presets;
use crate::types::{Basis, TensorType};

#[derive(clap::Args)]
pub(super) struct Args {
    /// A GGUF file, a shard of one, or a Hugging Face folder; left out with --hf
    source: PathBuf,
    /// Where the result goes; replaced only when it is whole
    #[arg(required_unless_present = "hf")]
    target: Option<PathBuf>,
    /// A repository of the Hugging Face hub in place of SOURCE: OWNER/NAME, or OWNER/NAME@REVISION.
    /// HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE count as elsewhere
    #[arg(long, value_name = "REPOSITORY")]
    hf: Option<Repository>,
    /// A type or a preset: higgs2, higgs3, higgs4, higgs8, vptq2, vptq2.25, vptq2.5, vptq3, vptq4,
    /// resq4. Without it, weights in our own types stay as they are, and the others become higgs4
    #[arg(long = "to", value_name = "TYPE", value_parser = presets::by_name)]
    kind: Option<&'static dyn TensorType>,
    /// Bits per weight, scales included: each matrix gets the type that costs the model least
    #[arg(long, value_name = "B", conflicts_with_all = ["kind", "size", "recipe"])]
    bits: Option<f64>,
    /// Bytes of the file, as 70MB; the types are chosen as with --bits
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with_all = ["kind", "recipe"])]
    size: Option<u64>,
    /// A table of tensors and types, as --recipe-out writes it
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Write the chosen types as a table that can be edited
    #[arg(long, value_name = "FILE")]
    recipe_out: Option<PathBuf>,
    /// Write a page about the conversion, for a browser
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Type of the embedding and the head
    #[arg(long, value_name = "TYPE", value_parser = presets::by_name)]
    embedding_type: Option<&'static dyn TensorType>,
    /// A type for the tensors that a pattern matches; the last match counts
    #[arg(long, value_name = "REGEX=TYPE", value_parser = pattern)]
    tensor_type: Vec<(Regex, &'static dyn TensorType)>,
    /// What the random signs are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The rotation, where it fits a row: none, hadamard:64, kronecker:36x16
    #[arg(long, value_name = "NAME:SIZE", value_parser = basis)]
    transform: Option<Basis>,
    /// Weights per scale, where it fits a row; learned points have one for a row
    #[arg(long, value_name = "N")]
    group: Option<usize>,
    #[command(flatten)]
    calibration: CalibrationFlags,
    /// Then change the scales and norms, which stay floats, so that the answers to the calibration
    /// text change least: minutes more, and not a byte
    #[arg(long)]
    fine_tune: bool,
    /// Give our types their own numbers; other tools then refuse the file
    #[arg(long)]
    native_types: bool,
    /// Bytes of a file at most, as 500MB: OUT.gguf becomes OUT-00001-of-00003.gguf and so on
    #[arg(long, value_name = "SIZE", value_parser = size)]
    split_size: Option<u64>,
    /// Convert a part of the tensors, as 2/3, and write that shard alone; other machines write the
    /// others, and `gridmill merge` joins them to what one conversion would have written
    #[arg(long, value_name = "I/N", value_parser = share,
        conflicts_with_all = ["split_size", "fine_tune", "report"])]
    shard: Option<Share>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

fn tell_of_damping(report: &Report) {
    for (weight, damping) in &report.damped {
        print::note(format_args!(
            "{weight}: the moments of its input are not positive definite, so {damping} of their \
             mean was added to the diagonal"
        ));
    }
}

/// Where the model is, fetched if that is wished, and where the result goes.
fn paths(args: &Args) -> anyhow::Result<(PathBuf, PathBuf)> {
    match (&args.hf, &args.target) {
        (None, Some(target)) => Ok((args.source.clone(), target.clone())),
        (Some(repository), None) => {
            let access = Access::new(|name| std::env::var_os(name))?;
            Ok((repository.fetch(&access, &mut print::events())?, args.source.clone()))
        }
        (Some(_), Some(target)) => {
            let target = target.display();
            Err(Error::new(format!("--hf: expected one path, found {target}, too"))
                .with_hint(
                    "the repository is the source: gridmill convert --hf OWNER/NAME OUT.gguf",
                )
                .into())
        }
        (None, None) => unreachable!("clap wants the target"),
    }
}

pub(super) fn convert(args: Args) -> anyhow::Result<()> {
    let (path, whole_target) = paths(&args)?;
    let source = import::open(&path)?;
    let mut options = Options {
        kind: args.kind.map_or_else(|| presets::by_name("higgs4"), Ok)?,
        keep: args.kind.is_none(),
        vocabulary_kind: args.embedding_type,
        recipe: args.recipe.as_deref().map(|path| recipe(path, &source)).transpose()?,
        overrides: args.tensor_type.clone(),
        seed: args.seed,
        whole_rows: false,
        basis: args.transform,
        group: args.group,
        form: convert::form(args.native_types),
        share: args.shard,
    };
    warn_if_coarse(&source, &options);
    let heard = args.calibration.listen(&source, args.seed, Tokens::Weighed)?;
    if args.fine_tune && heard.windows.is_empty() {
        return Err(Error::new("--fine-tune: expected a text to tune on, found none")
            .with_hint("--calibrate FILE or --calibrate self gives one")
            .into());
    }
    options.whole_rows = heard.statistics.is_some();
    let budget = match (args.bits, args.size) {
        (Some(bits), _) => Some(Budget::Bits(bits)),
        (None, size) => size.map(Budget::Bytes),
    };
    let allocated = match budget {
        Some(budget) => Some(allocate(&source, &options, &heard, budget)?),
        None => None,
    };
    if let Some(Allocated { picked, .. }) = &allocated {
        let Picked { recipe, bits, loss } = picked;
        print::note(format_args!("{bits:.3} bits per weight, expected KL divergence {loss:.5}"));
        options.recipe = Some(recipe.clone());
    }
    if let Some(path) = &args.recipe_out {
        let items = convert::plan(&source, &options)?;
        let text = Recipe::of(&items, options.recipe.as_ref()).to_text();
        std::fs::write(path, text).at(path.display())?;
    }
    if args.dry_run {
        let items = convert::plan(&source, &options)?;
        let lines: Vec<Line> =
            items.into_iter().map(|item| Line { item, error: 0.0, output_error: None }).collect();
        return print::data(table(&lines));
    }
    let folder = args.split_size.map(|_| fine_tune::folder_beside(&whole_target)).transpose()?;
    let whole = folder.as_ref().zip(whole_target.file_name());
    let target = whole.map_or(whole_target.clone(), |(folder, name)| folder.path().join(name));
    let report = match args.fine_tune {
        true => fine_tune::convert(&source, (&target, &whole_target), &options, &heard)?,
        false => run(&source, (&target, &whole_target), &options, heard.statistics.as_ref())?,
    };
    tell_of_damping(&report);
    if let Some(path) = &args.report {
        report::write(path, (&source, &target), &options, &report, allocated.as_ref())?;
    }
    print::data(table(&report.lines))?;
    print::line(sizes(&report))?;
    match args.split_size {
        Some(bytes) => split(&source, &target, &whole_target, bytes),
        None => Ok(()),
    }
}

/// Cuts what was converted into shards, beside the name that it would have had.
fn split(source: &Source, whole: &Path, target: &Path, bytes: u64) -> anyhow::Result<()> {
    let prefix = prefix(target);
    let sources: Vec<_> = source.shard_paths().map(Path::to_owned).collect();
    super::split::shards(&Source::open(whole)?, &prefix, ShardLimit::Bytes(bytes), &sources)
}

/// `2/3`.
fn share(text: &str) -> Result<Share> {
    let share = text.split_once('/').and_then(|(number, count)| {
        let (number, count): (u16, u16) = (number.parse().ok()?, count.parse().ok()?);
        (1..=count).contains(&number).then(|| Share { number: number - 1, count })
    });
    share.ok_or_else(|| Error::new(format!("expected a shard as 2/3, found `{text}`")))
}

/// `539.8 MB to 87.6 MB (87599936 bytes) in 3.1 s`.
pub(super) fn sizes(report: &Report) -> String {
    let (from, to) = (print::megabytes(report.source_bytes), print::megabytes(report.file_bytes));
    let (bytes, seconds) = (report.file_bytes, report.time.as_secs_f64());
    format!("{from} to {to} ({bytes} bytes) in {seconds:.1} s")
}

/// Chooses the types that cost the model least.
fn allocate(
    source: &Source,
    options: &Options,
    heard: &Heard,
    budget: Budget,
) -> anyhow::Result<Allocated> {
    let mut feedbacks = convert::feedbacks(source, heard.statistics.as_ref())?;
    let sensitivity = heard.sensitivity(source, &mut feedbacks, options.seed)?;
    let mut stages = print::Stages::default();
    let mut take = |what, steps| stages.step(what, steps);
    let offers = Offers::new(source, options, &mut feedbacks, &sensitivity, budget, &mut take)?;
    let picked = offers.pick(source, options, budget)?;
    Ok(Allocated { budget, picked, sensitivity, points: offers.points() })
}

fn recipe(path: &Path, source: &Source) -> anyhow::Result<Recipe> {
    Ok(Recipe::parse(&super::read_text(path)?, source).at(path.display())?)
}

/// Converts with a progress bar. What is done of a long conversion is kept beside the path that
/// the user named.
pub(super) fn run(
    source: &Source,
    (target, named): (&Path, &Path),
    options: &Options,
    statistics: Option<&Statistics>,
) -> anyhow::Result<Report> {
    let total = source.tensors().map(|tensor| tensor.bytes() as u64).sum();
    let mut progress = print::Progress::new("converting", total);
    let kept = options.share.map_or(named.to_path_buf(), |share| share.path(named));
    let mut kept = kept.into_os_string();
    kept.push(".part");
    let mut stages = print::Stages::default();
    let mut hear = |event| match event {
        Event::Learned(what, rounds) => stages.step(what, rounds),
        Event::Done(bytes) => progress.add(bytes),
        Event::Forgotten(path) => print::note(format_args!(
            "{}: of a conversion with other settings; starting over",
            path.display()
        )),
    };
    let listened = statistics.map(|statistics| (statistics, Path::new(&kept)));
    Ok(convert::convert(source, target, options, listened, &mut hear)?)
}

/// Rounding what was already rounded costs quality twice.
pub(super) fn warn_if_coarse(source: &Source, options: &Options) {
    if let Some(tensor) = convert::is_coarse(source, options) {
        print::note(format_args!(
            "warning: {} holds {} weights: what that cost stays, and this conversion adds to it",
            source.path().display(),
            tensor.kind.name()
        ));
    }
}

/// One row per role and type, and a sum.
pub(super) fn table(lines: &[Line]) -> String {
    let mut groups: Vec<(String, Vec<&Line>)> = Vec::new();
    for line in lines {
        let Item { role, source_kind, kind, .. } = &line.item;
        let name = format!("{role:?}|{}|{}", source_kind.name(), kind.name());
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, group)) => group.push(line),
            None => groups.push((name, vec![line])),
        }
    }
    let head = ["tensors", "", "from", "to", "bits per weight", "error", "output error", "bytes"];
    let mut rows = vec![head.map(str::to_string).to_vec()];
    rows.extend(groups.iter().map(|(_, group)| row(group)));
    let all: Vec<&Line> = lines.iter().collect();
    let mut sum = row(&all);
    (sum[1], sum[2], sum[3]) = ("in all".to_string(), String::new(), String::new());
    rows.push(sum);
    print::table(&rows, &[0, 4, 5, 6, 7])
}

fn row(lines: &[&Line]) -> Vec<String> {
    let first = &lines[0].item;
    let bytes: usize = lines.iter().map(|line| line.item.bytes()).sum();
    let len = |line: &&Line| line.item.rows * line.item.cols;
    let values: usize = lines.iter().map(len).sum();
    // Weighted by size: the error of the whole, if all tensors had one spread.
    let error: f64 = lines.iter().map(|line| line.error * len(line) as f64).sum();
    vec![
        lines.len().to_string(),
        words(&format!("{:?}", first.role)),
        first.source_kind.name().to_string(),
        first.kind.name().to_string(),
        format!("{:.3}", 8.0 * bytes as f64 / values as f64),
        format!("{:.6}", error / values as f64),
        output_error(lines),
        bytes.to_string(),
    ]
}

/// The mean error in the outputs, of the tensors that have one.
fn output_error(lines: &[&Line]) -> String {
    let errors: Vec<f64> = lines.iter().filter_map(|line| line.output_error).collect();
    if errors.is_empty() {
        return String::new();
    }
    format!("{:.6}", errors.iter().sum::<f64>() / errors.len() as f64)
}

/// `AttnQBias` to `attn_q_bias`.
fn words(name: &str) -> String {
    let mut text = String::new();
    for (i, letter) in name.char_indices() {
        if letter.is_uppercase() && i > 0 {
            text.push('_');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

fn pattern(text: &str) -> Result<(Regex, &'static dyn TensorType)> {
    let Some((pattern, kind)) = text.rsplit_once('=') else {
        return Err(Error::new("expected REGEX=TYPE"));
    };
    let regex = Regex::new(pattern).map_err(|error| Error::new(error.to_string()))?;
    Ok((regex, presets::by_name(kind)?))
}

fn basis(text: &str) -> Result<Basis> {
    let known = "none, hadamard:SIZE or kronecker:ORDERxSIZE";
    // Which inputs are loud, only a type that parts rows asks.
    let basis = transform_by_text(text).filter(|basis| !matches!(basis, Basis::Parted { .. }));
    basis.ok_or_else(|| Error::new(format!("no transform `{text}`, expected {known}")))
}
