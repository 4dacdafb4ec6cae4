//! One file to shards and back, by the names and keys of llama.cpp's gguf-split: all metadata is in
//! the first shard, and every shard knows its number, how many there are, and the tensors of all.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::ALIGNMENT;
use super::metadata::{Metadata, Value};
use super::shards::{self, CONVERSION, COUNT, NUMBER, PREFIX, TENSORS};
use super::source::{RawTensor, Source};
use super::writer::{NewTensor, Writer, head_bytes};
use crate::Result;
use crate::bail;
use crate::error::At;

/// How much goes into a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardLimit {
    /// Bytes of the file; a tensor that is larger has a file to itself.
    Bytes(u64),
    /// Tensors.
    Tensors(u64),
}

/// Writes a model as `<prefix>-00001-of-00003.gguf` and so on, and returns the names. No file may
/// be one of the source's, or one of `protected`.
///
/// # Errors
/// If the limit is zero or asks for too many files, the prefix is not the beginning of a file name,
/// or a file cannot be written; then none of the new files stays.
pub fn split(
    source: &Source,
    prefix: &Path,
    limit: ShardLimit,
    protected: &[PathBuf],
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<PathBuf>> {
    let (ShardLimit::Bytes(least) | ShardLimit::Tensors(least)) = limit;
    if least == 0 {
        bail!("the limit of a shard is 0, expected at least 1");
    }
    let name = prefix.file_name().and_then(|name| name.to_str());
    let is_folder = prefix.to_str().is_some_and(|text| text.ends_with(std::path::is_separator));
    let Some(name) = name.filter(|_| !is_folder) else {
        bail!("{}: expected the beginning of a file name", prefix.display());
    };
    let raws: Vec<RawTensor> = source.raw_tensors().collect();
    let new = |raw: &RawTensor| NewTensor::new(&raw.info.name, &raw.info.shape, raw.info.kind);
    let tensors = raws.iter().map(new).collect::<Result<Vec<NewTensor>>>()?;
    let mut metadata = source.metadata().clone();
    metadata.remove_prefix(PREFIX);
    let ranges = divide(&metadata, &tensors, limit)?;
    let Ok(count) = u16::try_from(ranges.len()) else {
        let (found, most) = (ranges.len(), u16::MAX);
        bail!("{}: {found} shards, expected at most {most}", prefix.display());
    };
    let sources = source.shard_paths().map(Path::to_owned);
    let sources: Vec<PathBuf> = sources.chain(protected.iter().cloned()).collect();
    let mut made = Made(Vec::new());
    for (number, range) in ranges.into_iter().enumerate() {
        let number = number as u16;
        let suffix = shards::suffix(number.into(), count.into());
        let path = prefix.with_file_name(format!("{name}{suffix}"));
        let metadata = with_keys(&metadata, number, count, tensors.len() as u32);
        let mut writer =
            Writer::create(&path, &sources, &metadata, tensors[range.clone()].to_vec())?;
        copy(source, raws[range].iter().copied(), &mut writer, progress)?;
        writer.finish()?;
        made.0.push(path);
    }
    Ok(std::mem::take(&mut made.0))
}

/// One of several programs that write the shards of a model, each its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// From 0 on.
    pub number: u16,
    /// How many there are.
    pub count: u16,
}

impl Share {
    /// The file of this share: `model.gguf` is in `model-00001-of-00003.gguf` and so on.
    pub fn path(&self, target: &Path) -> PathBuf {
        let prefix = prefix(target);
        let name = prefix.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let suffix = shards::suffix(self.number.into(), self.count.into());
        prefix.with_file_name(name + &suffix)
    }

    /// The metadata of this share's file, for a model of so many tensors in all. All shares of a
    /// model have one `conversion`, a word for what decides their bytes.
    pub fn metadata(&self, whole: &Metadata, tensors: usize, conversion: String) -> Metadata {
        let mut whole = whole.clone();
        whole.remove_prefix(PREFIX);
        let mut metadata = with_keys(&whole, self.number, self.count, tensors as u32);
        metadata.set(CONVERSION, Value::String(conversion));
        metadata
    }
}

/// What the names of a model's shards begin with.
pub fn prefix(target: &Path) -> PathBuf {
    let is_gguf = target.extension().is_some_and(|ending| ending == "gguf");
    if is_gguf { target.with_extension("") } else { target.to_path_buf() }
}

/// Writes all shards of a model as one file: the file that was split.
///
/// # Errors
/// If the source is no shard; if the target is one of its shards or cannot be written.
pub fn merge(source: &Source, target: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let place = source.path().display();
    if source.metadata().get_u64(COUNT).at(&place)?.unwrap_or(0) == 0 {
        bail!("{place}: expected a shard of a split model, found a whole one (no `{COUNT}`)");
    }
    let new = |raw: RawTensor| NewTensor::new(&raw.info.name, &raw.info.shape, raw.info.kind);
    let tensors = source.raw_tensors().map(new).collect::<Result<Vec<NewTensor>>>()?;
    let mut metadata = source.metadata().clone();
    metadata.remove_prefix(PREFIX);
    let sources: Vec<_> = source.shard_paths().map(Path::to_owned).collect();
    let mut writer = Writer::create(target, &sources, &metadata, tensors)?;
    copy(source, source.raw_tensors(), &mut writer, progress)?;
    writer.finish()
}

/// Writes the bytes of some tensors as they are.
pub(super) fn copy<'a>(
    source: &Source,
    raws: impl Iterator<Item = RawTensor<'a>>,
    writer: &mut Writer,
    progress: &mut dyn FnMut(u64),
) -> Result<()> {
    for raw in raws {
        writer.write(&source.raw_bytes(&raw))?;
        progress(raw.info.bytes);
        source.release(&raw.info.name);
    }
    Ok(())
}

/// Files that go away again unless all of them are there: a part of a model is of no use.
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        self.0.iter().for_each(|path| drop(fs::remove_file(path)));
    }
}

/// The metadata of a shard, with the integer types of gguf-split.
fn with_keys(metadata: &Metadata, number: u16, count: u16, tensors: u32) -> Metadata {
    let mut metadata = if number == 0 { metadata.clone() } else { Metadata::new() };
    metadata.set(NUMBER, Value::U16(number));
    metadata.set(COUNT, Value::U16(count));
    metadata.set(TENSORS, Value::I32(tensors as i32));
    metadata
}

/// Which tensors each shard has; at least one, but for a model without tensors.
fn divide(
    metadata: &Metadata,
    tensors: &[NewTensor],
    limit: ShardLimit,
) -> Result<Vec<Range<usize>>> {
    let head = |number| head_bytes(&with_keys(metadata, number, 0, 0));
    let (first_head, other_head) = (head(0)?, head(1)?);
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let (mut records, mut data) = (0, 0);
    for (index, tensor) in tensors.iter().enumerate() {
        let padded = tensor.bytes().next_multiple_of(ALIGNMENT);
        let head = if ranges.len() <= 1 { first_head } else { other_head };
        let head = (head + records + tensor.record_bytes()).next_multiple_of(ALIGNMENT);
        let fits = |range: &Range<usize>| match limit {
            ShardLimit::Bytes(most) => head + data + padded <= most,
            ShardLimit::Tensors(most) => (range.len() as u64) < most,
        };
        match ranges.last_mut().filter(|range| fits(range)) {
            Some(range) => range.end = index + 1,
            None => {
                ranges.push(index..index + 1);
                (records, data) = (0, 0);
            }
        }
        records += tensor.record_bytes();
        data += padded;
    }
    if ranges.is_empty() {
        ranges.push(0..0);
    }
    Ok(ranges)
}
