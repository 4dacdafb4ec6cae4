//! The files of a Hugging Face folder.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use crate::bail;
use crate::error::{At, Error, Result};
use crate::file::safetensors::{Entry, Safetensors};
use crate::limits;
use crate::model::arch::FolderWords;
use crate::types::Bytes;

const CONFIG: &str = "config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An opened folder: its configuration, and its weights mapped.
pub(super) struct Folder {
    pub(super) path: PathBuf,
    pub(super) config: Map<String, Value>,
    pub(super) files: Vec<Safetensors>,
    /// Index in `files`.
    places: HashMap<String, usize>,
}

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Folder> {
        let place = |name| path.join(name).display().to_string();
        let Some(config) = json(path, CONFIG).at(place(CONFIG))? else {
            let message = format!("{}: the folder has no {CONFIG}", path.display());
            return Err(Error::new(message)
                .with_hint("expected a GGUF file, or a folder as Hugging Face has them"));
        };
        let index = json(path, INDEX).and_then(|index| index.as_ref().map(shard_names).transpose());
        let names = index.at(place(INDEX))?.unwrap_or_else(|| vec![SINGLE.into()]);
        if names == [SINGLE] && !path.join(SINGLE).exists() {
            let message = format!("{}: the folder has no {SINGLE} and no {INDEX}", path.display());
            return Err(Error::new(message).with_hint("weights in other formats are not read"));
        }
        if let Some(name) = names.iter().find(|name| !path.join(name).exists()) {
            let message =
                format!("{}: the folder has no {name}, which {INDEX} names", path.display());
            return Err(Error::new(message).with_hint("the download may be incomplete"));
        }
        let files = names.iter().map(|name| Safetensors::open(&path.join(name)));
        let files = files.collect::<Result<Vec<Safetensors>>>()?;
        let mut places = HashMap::new();
        for (at, file) in files.iter().enumerate() {
            for name in file.names() {
                if places.insert(name.to_string(), at).is_some() {
                    bail!("{}: tensor `{name}` is in two files", path.display());
                }
            }
        }
        Ok(Folder { path: path.to_path_buf(), config, files, places })
    }

    /// Leaves out the tensors of other parts than the text, and gives the text's the names that
    /// they have in a folder of nothing else.
    pub(super) fn keep_text(&mut self, words: &FolderWords) -> Result<()> {
        for (at, file) in self.files.iter_mut().enumerate() {
            for name in file.names().map(str::to_string).collect::<Vec<_>>() {
                let found = words.renames.iter().find_map(|(from, to)| {
                    name.strip_prefix(from.as_str()).map(|rest| format!("{to}{rest}"))
                });
                if words.other_parts.iter().any(|part| name.starts_with(part)) {
                    self.places.remove(&name);
                } else if let Some(new) = found {
                    self.places.remove(&name);
                    file.rename(&name, &new);
                    if self.places.insert(new.clone(), at).is_some() {
                        bail!("tensor `{new}` is there twice, once as `{name}`");
                    }
                }
            }
        }
        Ok(())
    }

    /// A JSON file of the folder, if it is there.
    pub(super) fn json(&self, name: &str) -> Result<Option<Map<String, Value>>> {
        json(&self.path, name).at(name)
    }

    /// A text file of the folder, if it is there.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>> {
        text(&self.path, name).at(name)
    }

    /// A file of the folder, if it is there.
    pub(super) fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        bytes(&self.path, name).at(name)
    }

    /// A tensor and its bytes.
    pub(super) fn get(&self, name: &str) -> Option<(&Entry, Bytes)> {
        self.files[*self.places.get(name)?].get(name)
    }

    /// [`Folder::get`] of a tensor that must be there.
    pub(super) fn require(&self, name: &str) -> Result<(&Entry, Bytes)> {
        self.get(name).ok_or_else(|| Error::new(format!("tensor `{name}` is missing")))
    }

    /// Names of all tensors, sorted.
    pub(super) fn names(&self) -> BTreeSet<&str> {
        self.places.keys().map(String::as_str).collect()
    }
}

/// The files that an index names, each once.
fn shard_names(index: &Map<String, Value>) -> Result<Vec<String>> {
    let Some(places) = index.get("weight_map").and_then(Value::as_object) else {
        bail!("`weight_map` is missing, expected the file of each tensor");
    };
    let mut names = BTreeSet::new();
    for (tensor, file) in places {
        let name = file.as_str().unwrap_or_default();
        let mut parts = Path::new(name).components();
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            bail!("tensor `{tensor}`: expected the name of a file in the folder, found {file}");
        }
        names.insert(name.to_string());
    }
    if names.is_empty() || names.len() > limits::SHARDS_MAX as usize {
        bail!("{} files, expected 1 to {}", names.len(), limits::SHARDS_MAX);
    }
    Ok(names.into_iter().collect())
}

fn json(folder: &Path, name: &str) -> Result<Option<Map<String, Value>>> {
    let Some(text) = text(folder, name)? else { return Ok(None) };
    let value = serde_json::from_str(&text).map_err(|error| Error::new(error.to_string()));
    value.map(Some)
}

fn text(folder: &Path, name: &str) -> Result<Option<String>> {
    let Some(bytes) = bytes(folder, name)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|error| Error::new(error.to_string()))
}

fn bytes(folder: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::metadata(&path)?.len();
    if bytes > limits::FOLDER_JSON_BYTES_MAX {
        let max = limits::FOLDER_JSON_BYTES_MAX;
        bail!("the file has {bytes} bytes, expected at most {max}");
    }
    Ok(Some(fs::read(&path)?))
}
