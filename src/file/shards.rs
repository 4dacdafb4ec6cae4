//! The files of a split model: `name-00001-of-00003.gguf` and its fellows.

use std::path::{Path, PathBuf};

use super::gguf::Gguf;
use super::map::Map;
use super::metadata::Metadata;
use crate::Result;
use crate::bail;
use crate::error::{At, Error};
use crate::limits;
use crate::types::TensorType;

/// What the keys of a shard begin with.
pub(super) const PREFIX: &str = "split.";

pub(super) const NUMBER: &str = "split.no";
pub(super) const COUNT: &str = "split.count";
pub(super) const TENSORS: &str = "split.tensors.count";
/// A key of our own: what decided the bytes of shards that were converted apart.
pub(super) const CONVERSION: &str = "split.conversion";

/// One mapped file of a model.
pub(super) struct Shard {
    pub(super) path: PathBuf,
    pub(super) map: Map,
    pub(super) gguf: Gguf,
}

impl Shard {
    fn open(path: &Path, types: &[&'static dyn TensorType]) -> Result<Shard> {
        let map = Map::open(path)?;
        let gguf = Gguf::parse_with(map.as_slice(), types).at(path.display())?;
        Ok(Shard { path: path.to_path_buf(), map, gguf })
    }
}

/// Opens a single file, or every shard of a split model, whichever of them is named.
pub(super) fn open(path: &Path, types: &[&'static dyn TensorType]) -> Result<Vec<Shard>> {
    let named = Shard::open(path, types)?;
    // A merged file says that it has no shards.
    let count = named.gguf.metadata.get_u64(COUNT).at(path.display())?.unwrap_or(0);
    if count <= 1 {
        return Ok(vec![named]);
    }
    if count > u64::from(limits::SHARDS_MAX) {
        bail!("{}: `{COUNT}` is {count}, expected at most {}", path.display(), limits::SHARDS_MAX);
    }
    let number = number(&named.gguf.metadata).at(path.display())?;
    let Some(prefix) = prefix(path, number, count) else {
        let message = format!(
            "{}: shard {} of {count}, but its name does not end in `-{:05}-of-{count:05}.gguf`",
            path.display(),
            number + 1,
            number + 1
        );
        return Err(Error::new(message).with_hint("the other shards are found by their names"));
    };
    let mut named = Some(named);
    let mut shards = Vec::new();
    for expected in 0..count {
        let shard = if expected == number {
            named.take().expect("each number comes once")
        } else {
            open_other(path, &prefix, expected, count, types)?
        };
        shards.push(shard);
    }
    check_tensor_count(&shards)?;
    check_conversion(&shards)?;
    Ok(shards)
}

fn open_other(
    named: &Path,
    prefix: &str,
    expected: u64,
    count: u64,
    types: &[&'static dyn TensorType],
) -> Result<Shard> {
    let path = named.with_file_name(format!("{prefix}{}", suffix(expected, count)));
    if !path.exists() {
        let (place, number) = (path.display(), expected + 1);
        let message = format!("{place}: shard {number} of {count} is missing");
        return Err(Error::new(message).with_hint("all shards must be in one folder"));
    }
    let shard = Shard::open(&path, types)?;
    let place = path.display();
    let found = shard.gguf.metadata.get_u64(COUNT).at(&place)?.unwrap_or(0);
    if found != count {
        bail!("{place}: `{COUNT}` is {found}, but {} says {count}", named.display());
    }
    let found = number(&shard.gguf.metadata).at(path.display())?;
    if found != expected {
        bail!("{}: `{NUMBER}` is {found}, expected {expected}", path.display());
    }
    Ok(shard)
}

/// The total is in the first shard, in practice in all of them.
fn check_tensor_count(shards: &[Shard]) -> Result<()> {
    let found: u64 = shards.iter().map(|shard| shard.gguf.tensors.len() as u64).sum();
    if found > limits::TENSORS_MAX {
        bail!("{found} tensors in all shards, expected at most {}", limits::TENSORS_MAX);
    }
    for shard in shards {
        let expected = shard.gguf.metadata.get_u64(TENSORS).at(shard.path.display())?;
        if let Some(expected) = expected.filter(|&expected| expected != found) {
            let place = shard.path.display();
            bail!("{place}: `{TENSORS}` is {expected}, but the shards have {found} together");
        }
    }
    Ok(())
}

/// Shards of conversions with other settings fit each other, and would be a model that nobody made.
fn check_conversion(shards: &[Shard]) -> Result<()> {
    let of = |shard: &Shard| -> Result<Option<String>> {
        let found = shard.gguf.metadata.get_str(CONVERSION).at(shard.path.display())?;
        Ok(found.map(str::to_string))
    };
    let Some(first) = shards.first() else { return Ok(()) };
    let expected = of(first)?;
    for shard in shards {
        let found = of(shard)?;
        if found != expected {
            let shown = |name: &Option<String>| name.clone().unwrap_or("none".into());
            let (place, expected, found) = (shard.path.display(), shown(&expected), shown(&found));
            let message = format!(
                "{place}: `{CONVERSION}` is {found}, but {} says {expected}",
                first.path.display()
            );
            return Err(Error::new(message)
                .with_hint("all shards must come from one source with the same settings"));
        }
    }
    Ok(())
}

/// `split.no`, from 0.
fn number(metadata: &Metadata) -> Result<u64> {
    metadata.require_u64(NUMBER)
}

/// What the name of a shard ends in, its number from 0.
pub(super) fn suffix(number: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", number + 1)
}

fn prefix(path: &Path, number: u64, count: u64) -> Option<String> {
    if number >= count {
        return None;
    }
    Some(path.file_name()?.to_str()?.strip_suffix(&suffix(number, count))?.to_string())
}
