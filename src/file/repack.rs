//! The two forms of a file of ours, turned into each other: planes that every tool lists, and types
//! with numbers of their own. Only the records of code planes differ; no byte of a tensor does.

use std::collections::HashMap;
use std::path::Path;

use super::planes::{Form, Record, Registry, Role};
use super::source::Source;
use super::writer::{NewTensor, Writer};
use crate::Result;
use crate::error::{At, Error};
use crate::types::TYPES;

/// Writes a file of ours in this form; shards become one file. The result is how many weights had
/// the other form. There and back gives the same bytes.
///
/// # Errors
/// If no weight has a type of our own; if the target is the source or cannot be written.
pub fn repack(
    source: &Source,
    target: &Path,
    form: Form,
    progress: &mut dyn FnMut(u64),
) -> Result<usize> {
    let registry = Registry::read(source.metadata(), TYPES).at(source.path().display())?;
    if registry.is_empty() {
        let place = source.path().display();
        return Err(Error::new(format!("{place}: no weight has a type that could be repacked"))
            .with_hint("`gridmill convert` makes a file with our own types"));
    }
    let codes: HashMap<&str, &Record> =
        registry.iter().map(|(record, planes)| (planes[&Role::Codes].as_str(), record)).collect();
    let (mut tensors, mut changed) = (Vec::new(), 0);
    for raw in source.raw_tensors() {
        let info = raw.info;
        let (kind, shape) = match codes.get(info.name.as_str()) {
            Some(record) => record.layout(Role::Codes, form)?,
            None => (info.kind, info.shape.clone()),
        };
        changed += usize::from(kind != info.kind);
        tensors.push(NewTensor::new(&info.name, &shape, kind)?);
    }
    let mut metadata = source.metadata().clone();
    metadata.remove_prefix(super::shards::PREFIX);
    let sources: Vec<_> = source.shard_paths().map(Path::to_owned).collect();
    let mut writer = Writer::create(target, &sources, &metadata, tensors)?;
    super::split::copy(source, source.raw_tensors(), &mut writer, progress)?;
    writer.finish()?;
    Ok(changed)
}
