//! `config.json` to the keys of GGUF.

use serde_json::{Map, Value as Json};

use super::config::find;
use super::folder::Folder;
use super::rope::Rope;
use crate::bail;
use crate::error::{Error, Result};
use crate::file::{Metadata, Value};
use crate::model::Arch;
use crate::model::arch::FolderWords;

/// What the folder says about the model, without its tokenizer.
pub(super) fn of(folder: &Folder, arch: &Arch) -> Result<Metadata> {
    let config = &folder.config;
    let words = words(arch);
    check_complete(config, words)?;
    let mut metadata = Metadata::new();
    let mut set = |key: &str, value| metadata.set(key, value);
    set("general.architecture", Value::String(arch.name.clone()));
    set("general.type", Value::String("model".to_string()));
    if let Some(name) = folder
        .path
        .canonicalize()
        .ok()
        .and_then(|path| path.file_name().and_then(|name| name.to_str()).map(str::to_string))
    {
        set("general.name", Value::String(name));
    }
    for (key, name) in &words.integers {
        if let Some(value) = find(config, name) {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            let Some(number) = number else {
                bail!("`{name}`: expected an integer from 0 to 4294967295, found {value}");
            };
            set(&format!("{}.{key}", arch.name), Value::U32(number));
        }
    }
    for (key, name) in &words.floats {
        if let Some(value) = find(config, name) {
            let Some(number) = value.as_f64() else {
                bail!("`{name}`: expected a number, found {value}");
            };
            set(&format!("{}.{key}", arch.name), Value::F32(number as f32));
        }
    }
    if let Some(share) = find(config, &words.rope_share) {
        let Some(number) = share.as_f64().filter(|share| (0.0..=1.0).contains(share)) else {
            bail!("`{}`: expected a number from 0 to 1, found {share}", words.rope_share);
        };
        let number = number * head_len(config)? as f64;
        set(&format!("{}.rope.dimension_count", arch.name), Value::U32(number as u32));
    }
    for (key, value) in Rope::read(config)?.keys() {
        set(&format!("{}.rope.scaling.{key}", arch.name), value);
    }
    Ok(metadata)
}

/// Refuses a configuration without a number that no model can do without.
fn check_complete(config: &Map<String, Json>, words: &FolderWords) -> Result<()> {
    for (key, name) in words.integers.iter().chain(&words.floats) {
        if NEEDED.contains(&key.as_str()) && find(config, name).is_none() {
            bail!("`{name}` is missing, expected a number");
        }
    }
    Ok(())
}

/// Keys without which no model is whole.
const NEEDED: [&str; 6] = [
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
];

/// Values of a head.
fn head_len(config: &Map<String, Json>) -> Result<u64> {
    let number = |name: &str| find(config, name).and_then(Json::as_u64);
    let parted = || number("hidden_size")?.checked_div(number("num_attention_heads")?);
    let missing = || Error::new("neither `head_dim` nor `hidden_size` and `num_attention_heads`");
    number("head_dim").or_else(parted).ok_or_else(missing)
}

/// The words of an architecture that was found by its class.
pub(super) fn words(arch: &Arch) -> &FolderWords {
    arch.huggingface.as_ref().expect("the class is one of its words")
}
