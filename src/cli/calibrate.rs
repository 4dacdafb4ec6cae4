//! The text that a conversion listens to, how it is measured, and where what is heard is kept.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::print;
use crate::convert::sensitivity::{self, Subject};
use crate::convert::{self, Feedbacks, Sensitivity, Statistics};
use crate::error::{At, Error, Result};
use crate::file::{Source, cache};
use crate::model::Model;
use crate::quant::presets;
use crate::quant::random::Random;
use crate::run::own_text::{can_begin, own_text};
use crate::run::reverse::{TokenWeights, token_weights};
use crate::run::score::Windows;
use crate::run::tokenizer::tokenizer;
use crate::run::{Device, Options};

/// Tokens of a window, unless somebody wants others.
const WINDOW: usize = 512;
/// Windows to listen to, unless somebody wants others.
const WINDOWS: usize = 64;
/// Windows in which sensitivities are measured, and which calibration does not see: what a rounding
/// has listened to, it harms less than other text.
const MEASURED: usize = 3;
/// Tokens of such a window where there is no text: twice as many windows are measured in.
const SHORT: usize = WINDOW / 2;
/// Windows in which all weights are changed at once, at most, and which calibration does not see.
const TOGETHER: usize = 16;
/// Both.
const HELD_OUT: usize = MEASURED + TOGETHER;

/// Windows past those that fine-tuning reads, too, at most: each is read once.
const READ_ONCE: usize = 128;

/// Weights of the largest model whose tokens are weighed: that has the whole model in memory,
/// twice, in 8 bits. In larger ones tokens count alike.
const WEIGHED_MAX: u64 = 1 << 31;

/// How tokens count.
pub(super) enum Tokens {
    /// By what the gradient says, where the model is small enough.
    Weighed,
    Alike,
}

#[derive(clap::Args)]
pub(super) struct CalibrationFlags {
    /// What to calibrate on: a text, statistics or an importance matrix in a file; self, and the
    /// model writes the text; or none
    #[arg(long, value_name = "FILE|self|none", default_value = "none", value_parser = by_name)]
    calibrate: Calibration,
    /// Windows to calibrate on: 64, or 16 longer ones for the directions of a cache
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536))]
    calibration_windows: Option<u32>,
    /// Tokens of a window: 512, or 2048 for the directions of a cache
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(16..=65536))]
    calibration_ctx: Option<u32>,
}

/// What `--calibrate` says.
#[derive(Clone)]
enum Calibration {
    None,
    Own,
    File(PathBuf),
}

fn by_name(name: &str) -> Result<Calibration, std::convert::Infallible> {
    Ok(match name {
        "none" => Calibration::None,
        "self" => Calibration::Own,
        path => Calibration::File(PathBuf::from(path)),
    })
}

/// Windows that calibration does not see.
#[derive(Default)]
struct HeldOut {
    /// In which weights are changed one by one.
    apart: Vec<Vec<u32>>,
    /// In which all are changed at once: each kind of text by itself.
    together: Vec<Vec<Vec<u32>>>,
}

/// What is known of a model's inputs.
pub(super) struct Heard {
    /// Moments, if there was something to listen to.
    pub(super) statistics: Option<Statistics>,
    /// The text to tune on, if it is there: what was listened to, and what follows on the text that
    /// is held out.
    pub(super) windows: Vec<Vec<u32>>,
    /// Text that was not listened to, if there was a text.
    held_out: HeldOut,
    /// Of the model and what was listened to, if there was something.
    fingerprint: Option<String>,
}

impl CalibrationFlags {
    /// The same with other windows, unless somebody wants some.
    pub(super) fn or(mut self, windows: u32, tokens: u32) -> CalibrationFlags {
        self.calibration_windows.get_or_insert(windows);
        self.calibration_ctx.get_or_insert(tokens);
        self
    }

    /// Listens, or takes what was heard before from beside the model.
    pub(super) fn listen(
        &self,
        source: &Source,
        seed: u64,
        tokens: Tokens,
    ) -> anyhow::Result<Heard> {
        // A read of the whole model, which a conversion without a text does not need.
        let model = match self.calibrate {
            Calibration::None => String::new(),
            Calibration::File(_) | Calibration::Own => model_hash(source)?,
        };
        let mut windows = match &self.calibrate {
            Calibration::None => {
                return Ok(Heard {
                    statistics: None,
                    windows: Vec::new(),
                    held_out: HeldOut::default(),
                    fingerprint: None,
                });
            }
            Calibration::File(path) if is_gguf(path)? => return ready(source, path, &model),
            Calibration::File(path) => self.read(source, path)?,
            Calibration::Own => own_windows(source, &model, (self.windows(), self.tokens()), seed)?,
        };
        let more = windows.split_off(windows.len().min(self.windows()));
        let (windows, held_out) = split(windows, self.heard());
        let all = [&windows[..], &more].concat();
        let mut hash = Sha256::new_with_prefix(&model);
        windows.iter().for_each(|window| hash.update(bytemuck::cast_slice(window)));
        let weigh = matches!(tokens, Tokens::Weighed) && weights_of(source) <= WEIGHED_MAX;
        let weigh = weigh.then_some(seed);
        if let Some(seed) = weigh {
            hash.update(format!("tokens weighed {seed}"));
        }
        let fingerprint = short(hash);
        let kept = kept_at(source, &fingerprint, "statistics.gguf");
        if kept.exists() {
            let hint = "delete the file to calibrate again";
            let opened = Statistics::open(&kept, source);
            let (statistics, _) = opened.map_err(|error| error.with_hint(hint))?;
            if statistics.fingerprint != fingerprint {
                let found = &statistics.fingerprint;
                let message = format!("expected statistics {fingerprint}, found {found}");
                return Err(Error::new(message).at(kept.display()).with_hint(hint).into());
            }
            return Ok(Heard::new(statistics, all, held_out, fingerprint));
        }
        collect(source, (&windows, weigh), &fingerprint, &kept)?;
        let (statistics, _) = Statistics::open(&kept, source)?;
        Ok(Heard::new(statistics, all, held_out, fingerprint))
    }

    /// Those to listen to, and those that are held out.
    fn windows(&self) -> usize {
        self.heard() + HELD_OUT
    }

    /// To listen to.
    fn heard(&self) -> usize {
        self.calibration_windows.map_or(WINDOWS, |count| count as usize)
    }

    /// Of a window.
    pub(super) fn tokens(&self) -> usize {
        self.calibration_ctx.map_or(WINDOW, |tokens| tokens as usize)
    }

    fn read(&self, source: &Source, path: &Path) -> anyhow::Result<Vec<Vec<u32>>> {
        let text = super::read_text(path)?;
        let count = self.windows() + READ_ONCE;
        let windows = Windows::new(&tokenizer(source)?, &text, self.tokens(), Some(count));
        let windows = windows.map_err(|error| {
            let hint = "a text to calibrate on should have tens of thousands of tokens";
            error.at(path.display()).with_hint(hint)
        })?;
        Ok(windows.inputs().collect())
    }
}

impl Heard {
    fn new(
        statistics: Statistics,
        windows: Vec<Vec<u32>>,
        held_out: HeldOut,
        fingerprint: String,
    ) -> Heard {
        let (statistics, fingerprint) = (Some(statistics), Some(fingerprint));
        Heard { statistics, windows, held_out, fingerprint }
    }

    /// How much each weight matters, on some of the text; without one, see [`unheard`].
    pub(super) fn sensitivity(
        &self,
        source: &Source,
        feedbacks: &mut Feedbacks,
        seed: u64,
    ) -> anyhow::Result<Sensitivity> {
        let model = Model::new(source).at(source.path().display())?;
        let hash = model_hash(source)?;
        let written = match self.held_out.apart.is_empty() {
            true => Some(unheard(source, &hash, model.hparams.vocabulary, seed)?),
            false => None,
        };
        let HeldOut { apart: windows, together } = written.as_ref().unwrap_or(&self.held_out);
        let fingerprint = match &self.fingerprint {
            Some(fingerprint) => fingerprint.clone(),
            None => short(Sha256::new_with_prefix(hash)),
        };
        let mut hash = Sha256::new_with_prefix(fingerprint);
        let all = windows.iter().chain(together.iter().flatten());
        all.for_each(|window| hash.update(bytemuck::cast_slice(window)));
        if together.len() > 1 {
            hash.update(format!("{} kinds", together.len()));
        }
        hash.update(format!("{:?} {:?} {seed}", sensitivity::LEVELS, sensitivity::TOGETHER));
        let fingerprint = short(hash);
        let kept = kept_at(source, &fingerprint, "sensitivity.tsv");
        let options = cpu();
        let (model, windows, fingerprint) = (&model, &windows[..], &*fingerprint);
        let others = &together[..];
        let subject = Subject { model, options: &options, windows, others, fingerprint, seed };
        let matrices = convert::matrices(source, model);
        let mut progress = print::Progress::new("measuring", matrices as u64);
        Ok(sensitivity::measure(&subject, feedbacks, &kept, &mut |done| progress.add(done as u64))?)
    }
}

/// What is listened to, and what is not: windows evenly spaced among the first ones, and what is
/// left after those. A text of few windows is both.
fn split(mut windows: Vec<Vec<u32>>, wanted: usize) -> (Vec<Vec<u32>>, HeldOut) {
    let together = windows.split_off(windows.len().min(wanted + MEASURED));
    let count = windows.len();
    if count <= 2 * MEASURED {
        let apart = windows.iter().take(MEASURED).cloned().collect();
        return (windows, HeldOut { apart, together: vec![together] });
    }
    let (mut heard, mut apart) = (Vec::new(), Vec::new());
    for (at, window) in windows.into_iter().enumerate() {
        let is_held_out = (1..=MEASURED).any(|i| i * count / (MEASURED + 1) == at);
        if is_held_out { &mut apart } else { &mut heard }.push(window);
    }
    (heard, HeldOut { apart, together: vec![together] })
}

pub(super) fn cpu() -> Options {
    Options { device: Device::Cpu, ..Options::default() }
}

/// Of a model's matrices.
fn weights_of(source: &Source) -> u64 {
    source.tensors().filter(|tensor| tensor.rows > 1).map(|tensor| tensor.len() as u64).sum()
}

/// Listens to windows, with tokens weighed if there is a seed for that.
fn collect(
    source: &Source,
    (windows, weigh): (&[Vec<u32>], Option<u64>),
    fingerprint: &str,
    kept: &Path,
) -> anyhow::Result<()> {
    let model = Model::new(source).at(source.path().display())?;
    let weights = match weigh {
        Some(seed) => {
            let mut progress = print::Progress::new("weighing tokens", windows.len() as u64 + 1);
            let kind = presets::by_name(presets::NEARLY_EXACT)?;
            let mut random = Random(seed);
            let (draw, done) = (&mut || random.unit(), &mut || heard(source, &mut progress));
            token_weights(&model, &cpu(), windows, kind, draw, done).at(source.path().display())?
        }
        None => TokenWeights::new(),
    };
    let mut progress = print::Progress::new("calibrating", model.hparams.layers as u64 + 1);
    let mut done = || heard(source, &mut progress);
    convert::calibrate(&model, &cpu(), (windows, &weights), fingerprint, kept, &mut done)
        .at(source.path().display())?;
    Ok(())
}

/// A step done. What of the file it read was put into other forms, and need not stay in memory.
fn heard(source: &Source, progress: &mut print::Progress) {
    source.release_all();
    progress.add(1);
}

/// Statistics or an importance matrix that somebody has already.
fn ready(source: &Source, path: &Path, model: &str) -> anyhow::Result<Heard> {
    let (statistics, note) = Statistics::open(path, source)?;
    if let Some(note) = note {
        print::note(format_args!("{}: {note}", path.display()));
    }
    let mut hash = Sha256::new_with_prefix(model);
    hash.update(cache::sha256(path, &mut |_, _| ())?);
    Ok(Heard::new(statistics, Vec::new(), HeldOut::default(), short(hash)))
}

/// Windows of the model's own text, `count` of so many tokens. It takes a while, so it is kept.
fn own_windows(
    source: &Source,
    model: &str,
    (count, tokens): (usize, usize),
    seed: u64,
) -> anyhow::Result<Vec<Vec<u32>>> {
    let mut hash = Sha256::new_with_prefix(model);
    hash.update(format!("own text {count} {tokens} {seed}"));
    let kept = kept_at(source, &short(hash), "own-text.tokens");
    if let Ok(bytes) = std::fs::read(&kept)
        && bytes.len() == 4 * count * tokens
    {
        let all = bytes.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes));
        return Ok(all.collect::<Vec<u32>>().chunks(tokens).map(<[u32]>::to_vec).collect());
    }
    let mut progress = print::Progress::new("writing a text", (count * tokens) as u64);
    let mut take = |done| progress.add(done as u64);
    let windows =
        own_text(source, &cpu(), (count, tokens), seed, &mut take).at(source.path().display())?;
    let bytes: Vec<u8> = windows.iter().flatten().flat_map(|token| token.to_le_bytes()).collect();
    std::fs::write(&kept, bytes).at(kept.display())?;
    Ok(windows)
}

/// Windows to measure in where no text is given: half of them the model's own, where it has
/// something to begin with, the others tokens that mean nothing. What others write is less
/// predictable than the former and more than the latter, and what a rounding costs there lies
/// between the two, which may be far apart: near their geometric mean (`benches/results/`).
fn unheard(source: &Source, model: &str, vocabulary: usize, seed: u64) -> anyhow::Result<HeldOut> {
    let bos = tokenizer(source)?.bos();
    let mut random = Random(seed);
    let mut token = || (random.bits() % vocabulary as u64) as u32;
    let mut noise = || {
        let mut window: Vec<u32> = (0..WINDOW).map(|_| token()).collect();
        window[0] = bos.unwrap_or(window[0]);
        window
    };
    let can_begin = can_begin(source)?;
    let all = if can_begin { TOGETHER / 2 } else { TOGETHER };
    let mut apart: Vec<Vec<u32>> = (0..MEASURED).map(|_| noise()).collect();
    let mut together: Vec<Vec<Vec<u32>>> = vec![(0..all).map(|_| noise()).collect()];
    if can_begin {
        let mut written = own_windows(source, model, (MEASURED + all, WINDOW), seed)?;
        together.push(written.split_off(MEASURED));
        apart.extend(written);
    }
    apart.iter_mut().for_each(|window| window.truncate(SHORT));
    Ok(HeldOut { apart, together })
}

fn is_gguf(path: &Path) -> anyhow::Result<bool> {
    use std::io::Read;
    let mut magic = Vec::new();
    let file = std::fs::File::open(path).at(path.display())?;
    file.take(4).read_to_end(&mut magic).at(path.display())?;
    Ok(magic == b"GGUF")
}

/// Of all that decides what the model computes: its weights, and in a folder its numbers.
fn model_hash(source: &Source) -> Result<String> {
    let hash = |path: &Path| cache::sha256(path, &mut |_, _| ());
    let numbers = source.path().is_dir().then(|| source.path().join("config.json"));
    source.shard_paths().chain(numbers.as_deref()).map(hash).collect()
}

fn short(hash: Sha256) -> String {
    cache::hexadecimal(&hash.finalize()[..8])
}

/// Beside the model: `model.gguf` to `model.0123456789abcdef.statistics.gguf`.
fn kept_at(source: &Source, fingerprint: &str, what: &str) -> PathBuf {
    let stem = source.path().file_stem().unwrap_or_default().to_string_lossy().into_owned();
    source.path().with_file_name(format!("{stem}.{fingerprint}.{what}"))
}
