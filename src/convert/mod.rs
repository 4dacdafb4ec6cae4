//! The converter: choose a type for every tensor, encode, write.
//!
//! Memory is bounded by the largest tensor: rows are decoded, rotated and coded in pieces, each
//! tensor is written before the next is begun, and its source pages are let go.

mod calibrate;
mod encode;
pub mod export;
mod feedbacks;
pub mod fine_tune;
pub mod import;
mod journal;
mod kv_basis;
mod learn;
mod offers;
mod order;
mod parted;
mod recipe;
mod recipe_file;
pub mod report;
pub mod sensitivity;
pub mod shape;
pub mod statistics;

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use calibrate::calibrate;
pub use encode::Encoded;
pub use feedbacks::Feedbacks;
pub use kv_basis::{BasisWishes, Captured, kv_basis};
pub use offers::{Budget, Offers, Picked};
pub use recipe::{Choice, Item, Options, choose};
pub use recipe_file::Recipe;
pub use sensitivity::Sensitivity;
pub use statistics::Statistics;

use import::tensors::Order;
use journal::Journal;
use order::{Restored, in_order};

use crate::bail;
use crate::error::{At, Result};
use crate::file::planes::{Form, PlanesBuilder, Record, Role as Plane};
use crate::file::{Metadata, NewTensor, Share, Source, Writer};
use crate::model::{Model, Role};
use crate::run::reverse::Factors;
use crate::transform;
use crate::types::raw::RawType;
use crate::types::{Basis, PRIVATE_IDS, Tensor, part_name};

/// What became of one tensor.
#[derive(Clone)]
pub struct Line {
    /// What it is and what was chosen for it.
    pub item: Item,
    /// Squared error over squared values; 0 where nothing changed.
    pub error: f64,
    /// The same in the output of the calibration text, if there was one.
    pub output_error: Option<f64>,
}

/// What a conversion did.
#[derive(Clone)]
pub struct Report {
    /// One per tensor, in the file's order.
    pub lines: Vec<Line>,
    /// Bytes of the target.
    pub file_bytes: u64,
    /// Bytes of the source.
    pub source_bytes: u64,
    /// How long it took.
    pub time: Duration,
    /// Weights whose moments had to be damped further to be positive definite, and the damping.
    pub damped: Vec<(String, f64)>,
}

/// What a conversion would do: every tensor with the type chosen for it.
///
/// # Errors
/// If the model is not one we know, or a type does not fit a tensor.
pub fn plan(source: &Source, options: &Options) -> Result<Vec<Item>> {
    let place = source.path().display();
    let model = Model::new(source).map_err(|error| error.at(&place))?;
    choose(source, &model, options).at(place)
}

/// What a conversion hears of.
pub enum Event {
    /// One of so many rounds of learning points is done.
    Learned(&'static str, usize),
    /// So many more bytes of source are done.
    Done(u64),
    /// What is done of an interrupted conversion with other settings, in this file, was forgotten.
    Forgotten(PathBuf),
}

/// Converts a model. Statistics make it long, so they come with the path of a file that keeps what
/// is done until the target is whole: the same conversion goes on there.
///
/// # Errors
/// As [`plan`]; if a weight is not finite; if the target is the source or cannot be written. The
/// target then does not exist, or is what it was before.
pub fn convert(
    source: &Source,
    target: &Path,
    options: &Options,
    listened: Option<(&Statistics, &Path)>,
    hear: &mut dyn FnMut(Event),
) -> Result<Report> {
    let statistics = listened.map(|(statistics, _)| statistics);
    let items = parted::with_loud(plan(source, options)?, statistics)?;
    // An importance matrix does not say what it is of.
    let Some((known, kept)) = listened.filter(|(known, _)| !known.fingerprint.is_empty()) else {
        let none = &mut Journal::none();
        return with_journal(source, target, options, (items, statistics), none, hear);
    };
    let mut journal = Journal::open(kept, &journal::fingerprint(source, &items, known)?)?;
    if journal.is_anew {
        hear(Event::Forgotten(kept.to_path_buf()));
    }
    let report = with_journal(source, target, options, (items, statistics), &mut journal, hear);
    if report.is_ok() || journal.is_empty() {
        journal.remove();
        return report;
    }
    report.map_err(|error| match error.hint() {
        Some(_) => error,
        None => error.with_hint(format!("what is done is kept in {}", kept.display())),
    })
}

fn with_journal(
    source: &Source,
    target: &Path,
    options: &Options,
    (items, statistics): (Vec<Item>, Option<&Statistics>),
    journal: &mut Journal,
    hear: &mut dyn FnMut(Event),
) -> Result<Report> {
    let started = Instant::now();
    let mut learned = |what, rounds| hear(Event::Learned(what, rounds));
    let items = learn::with_points(source, options, items, journal, &mut learned)?;
    let mut feedbacks = feedbacks(source, statistics)?;
    feedbacks.damped = journal.damped();
    let (mut writer, jobs) = lay_out(source, target, options, items, statistics)?;
    let mut lines = Vec::new();
    for Job { item, order, planes } in jobs {
        let tensor = source.tensor(&item.name)?.expect("the plan lists what the source has");
        let bytes = tensor.bytes() as u64;
        let encoded = match Encoded::kept(journal, &item)? {
            Some(encoded) => encoded,
            None => {
                let tensor = in_order(tensor, order)?;
                let known = feedbacks.damped.len();
                let encoded = encode::encode(&tensor, &item, &mut feedbacks);
                let encoded = encoded.at(source.path().display())?;
                journal.add_damped(&feedbacks.damped[known..])?;
                encoded.keep(journal, &item)?;
                encoded
            }
        };
        for plane in planes {
            writer.write(encoded.plane(plane))?;
        }
        hear(Event::Done(bytes));
        source.release(&item.name);
        let Encoded { error, output_error, .. } = encoded;
        lines.push(Line { item, error, output_error });
    }
    let file_bytes = writer.file_bytes();
    writer.finish()?;
    let (source_bytes, time) = (source.file_bytes(), started.elapsed());
    Ok(Report { lines, file_bytes, source_bytes, time, damped: feedbacks.damped })
}

/// Writes a file of ours again, with factors on its scales and norms.
///
/// # Errors
/// As [`plan`]; if the target is the source or cannot be written.
pub fn retune(source: &Source, target: &Path, options: &Options, factors: &Factors) -> Result<()> {
    let stay = Options { keep: true, recipe: None, overrides: Vec::new(), ..options.clone() };
    let mut items = plan(source, &stay)?;
    items.iter_mut().for_each(|item| item.keep = true);
    let (mut writer, jobs) = lay_out(source, target, &stay, items, None)?;
    for Job { item, planes, .. } in jobs {
        let tensor = source.tensor(&item.name)?.expect("the plan lists what the source has");
        let encoded = encode::encode(&tensor, &item, &mut Feedbacks::none());
        let mut encoded = encoded.at(source.path().display())?;
        if let Some(factors) = whole_factors(factors, &item.name) {
            encoded.scale(&tensor, &factors);
        }
        for plane in planes {
            writer.write(encoded.plane(plane))?;
        }
        source.release(&item.name);
    }
    writer.finish()
}

/// The factors of a weight; those of its parts lie in the order of its rows.
fn whole_factors<'a>(factors: &'a Factors, name: &str) -> Option<Cow<'a, [f32]>> {
    if let Some(factors) = factors.get(name) {
        return Some(Cow::Borrowed(factors));
    }
    let parts = (0..).map_while(|number| factors.get(&part_name(name, number)));
    let all: Vec<f32> = parts.flatten().copied().collect();
    (!all.is_empty()).then_some(Cow::Owned(all))
}

/// Bytes of the file that a conversion would write.
///
/// # Errors
/// As [`plan`].
pub fn file_bytes(source: &Source, options: &Options) -> Result<u64> {
    let (metadata, records, _) = records(source, options.form, plan(source, options)?)?;
    Writer::measure(&metadata, &records)
}

/// Matrices of a model, the embedding among them.
pub fn matrices(source: &Source, model: &Model) -> usize {
    let is_matrix = |tensor: &&Tensor| {
        let place = model.tensors.place(&tensor.name);
        place.is_some_and(|(role, _)| role.is_layer_matrix() || role.is_vocabulary_matrix())
    };
    source.tensors().filter(is_matrix).count()
}

/// What statistics say to the rounding of a model's tensors.
///
/// # Errors
/// If the model is not one we know.
pub fn feedbacks<'a>(source: &Source, statistics: Option<&'a Statistics>) -> Result<Feedbacks<'a>> {
    let model = Model::new(source).at(source.path().display())?;
    let embedding = model.tensors.get(Role::Embedding, None);
    let is_tied = model.tensors.get(Role::Head, None).is_none();
    let tied = embedding.filter(|_| is_tied).map(|tensor| tensor.name.clone());
    Ok(Feedbacks::new(statistics, tied))
}

/// A tensor to code, in which order of its rows, and which of its planes to write.
struct Job {
    item: Item,
    order: Order,
    planes: Vec<Plane>,
}

/// Opens the target with the records of everything that will be written, in order.
fn lay_out(
    source: &Source,
    target: &Path,
    options: &Options,
    items: Vec<Item>,
    statistics: Option<&Statistics>,
) -> Result<(Writer, Vec<Job>)> {
    let conversion = options.share.map(|_| journal::conversion(&items, statistics));
    let (metadata, mut records, mut jobs) = records(source, options.form, items)?;
    let sources: Vec<_> = source.shard_paths().map(Path::to_owned).collect();
    let Some((share, conversion)) = options.share.zip(conversion) else {
        return Ok((Writer::create(target, &sources, &metadata, records)?, jobs));
    };
    let metadata = share.metadata(&metadata, records.len(), conversion);
    let mine = shared_out(&jobs, share)?;
    let planes = |jobs: &[Job]| jobs.iter().map(|job| job.planes.len()).sum::<usize>();
    let (before, own) = (planes(&jobs[..mine.start]), planes(&jobs[mine.clone()]));
    records = records.drain(before..before + own).collect();
    jobs = jobs.drain(mine).collect();
    Ok((Writer::create(&share.path(target), &sources, &metadata, records)?, jobs))
}

/// The tensors of one share, next to each other: about as many weights in each, and at least one
/// tensor.
fn shared_out(jobs: &[Job], share: Share) -> Result<Range<usize>> {
    let (number, count) = (usize::from(share.number), usize::from(share.count));
    if count > jobs.len() {
        bail!("--shard: expected at most {} shards, one per tensor, found {count}", jobs.len());
    }
    let sizes = jobs.iter().scan(0, |sum, job| {
        *sum += job.item.rows * job.item.cols;
        Some(*sum)
    });
    let sums: Vec<usize> = sizes.collect();
    let all = sums[sums.len() - 1];
    let (mut start, mut end) = (0, 0);
    for share in 0..=number {
        start = end;
        // Up to the tensor that this share's part of all weights ends in.
        let target = all as u128 * (share as u128 + 1) / count as u128;
        let full = sums.iter().take_while(|&&sum| (sum as u128) <= target).count();
        end = full.clamp(start + 1, jobs.len() - (count - 1 - share));
    }
    Ok(start..end)
}

/// What a file with these items holds.
fn records(
    source: &Source,
    form: Form,
    items: Vec<Item>,
) -> Result<(Metadata, Vec<NewTensor>, Vec<Job>)> {
    let mut builder = PlanesBuilder::new(form);
    let mut records = Vec::new();
    let mut jobs = Vec::new();
    let restored = Restored::of(source, &items)?;
    for item in items {
        let mut planes = Vec::new();
        if item.kind.id() < PRIVATE_IDS {
            let kind = RawType::of(item.kind);
            records.push(NewTensor::new(&item.name, &item.shape, kind)?);
            planes.push(Plane::Codes);
        } else {
            let record = Record {
                name: item.name.clone(),
                kind: item.kind,
                rows: item.rows as u64,
                cols: item.cols as u64,
                basis: item.basis,
                group: item.group as u32,
                sign_seed: item.sign_seed,
                capture: item.capture,
            };
            let new = match source.tensor(&item.name)?.filter(|_| item.keep) {
                Some(tensor) => builder.add_with_table(record, &tensor.table)?,
                None => builder.add_with_table(record, &learn::table(&item))?,
            };
            for plane in new {
                planes.push(plane.role);
                records.push(plane.tensor);
            }
        }
        let order = restored.as_ref().map_or(Order::Same, |restored| restored.order(item.role));
        jobs.push(Job { item, order, planes });
    }
    let mut metadata = source.metadata().clone();
    if let Some(restored) = restored {
        metadata.remove(&restored.key);
    }
    builder.finish(&mut metadata);
    Ok((metadata, records, jobs))
}

/// What the registry says of a weight in one of our types.
fn record(tensor: &Tensor, sign_seed: u64) -> Record {
    Record {
        name: tensor.name.clone(),
        kind: tensor.kind,
        rows: tensor.rows as u64,
        cols: tensor.cols as u64,
        basis: tensor.basis,
        group: tensor.group as u32,
        sign_seed,
        capture: 0.0,
    }
}

/// Whether matrices of a source that do not stay as they are are so coarse that converting them
/// costs quality twice: stored in fewer than 8 bits a weight.
pub fn is_coarse<'a>(source: &'a Source, options: &Options) -> Option<&'a Tensor> {
    let stays = |tensor: &Tensor| options.keep && tensor.kind.id() >= PRIVATE_IDS;
    let bits = |tensor: &Tensor| 8.0 * tensor.bytes() as f64 / tensor.len() as f64;
    source.tensors().find(|tensor| tensor.rows > 1 && bits(tensor) < 8.0 && !stays(tensor))
}

/// The form of the written file.
pub fn form(native_types: bool) -> Form {
    if native_types { Form::Native } else { Form::Planes }
}

/// The transform that suits every width: signs and a Hadamard transform on blocks of 64 values, or
/// of the largest power of two that divides the row.
///
/// Blocks of 64 lose least with rounding to nearest, and a larger transform spreads the loudest
/// inputs' weights over more of the row (`benches/results/`).
pub fn default_basis(cols: usize) -> Basis {
    Basis::Hadamard { block: 1 << cols.trailing_zeros().min(6) }
}

/// The transform that covers a whole row where one is known. With second-order rounding it is as
/// good as small blocks, and then a whole row can share a scale (`benches/results/`).
pub fn row_basis(cols: usize) -> Basis {
    transform::choices(cols).pop().unwrap_or(Basis::Original)
}

/// The basis in which noise stands for the errors of a rounding.
fn noise_basis(cols: usize, is_calibrated: bool) -> Basis {
    if is_calibrated { row_basis(cols) } else { default_basis(cols) }
}
