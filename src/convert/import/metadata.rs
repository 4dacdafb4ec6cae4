//! `config.json` to the keys of GGUF.

use serde_json::{Map, Value as Json};

use super::folder::Folder;
use crate::bail;
use crate::error::{Error, Result};
use crate::file::{Metadata, Value};
use crate::model::Arch;
use crate::model::arch::FolderWords;

/// What the folder says about the model, without its tokenizer.
pub(super) fn of(folder: &Folder, arch: &Arch) -> Result<Metadata> {
    let config = &folder.config;
    let words = words(arch);
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
    for (name, expected) in &words.fixed {
        let found = find(config, name).unwrap_or(&Json::Null);
        if found.as_bool() != Some(*expected) {
            bail!("`{name}`: expected {expected}, found {found}");
        }
    }
    if let Rope::Linear { factor } = rope(config)? {
        let key = |key: &str| format!("{}.rope.scaling.{key}", arch.name);
        set(&key("type"), Value::String("linear".to_string()));
        set(&key("factor"), Value::F32(factor as f32));
    }
    Ok(metadata)
}

/// The words of an architecture that was found by its class.
pub(super) fn words(arch: &Arch) -> &FolderWords {
    arch.huggingface.as_ref().expect("the class is one of its words")
}

/// What each pair's frequency is divided by, where a folder scales as Llama 3.1 does.
pub(super) fn rope_factors(config: &Map<String, Json>, len: usize) -> Result<Option<Vec<f32>>> {
    let Rope::Bands { factor, low, high, original } = rope(config)? else { return Ok(None) };
    let base = find(config, "rope_theta").and_then(Json::as_f64).unwrap_or(10_000.0);
    let factors = (0..len / 2).map(|i| {
        // Turns over the context the model was first trained on.
        let wave = 2.0 * std::f64::consts::PI * base.powf(2.0 * i as f64 / len as f64);
        let turns = original / wave;
        if turns > high {
            return 1.0;
        }
        if turns < low {
            return factor as f32;
        }
        let smooth = (turns - low) / (high - low);
        (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
    });
    Ok(Some(factors.collect()))
}

/// How angles are scaled.
enum Rope {
    Plain,
    Linear {
        factor: f64,
    },
    /// The slow pairs by a factor, the fast ones not, those between by something between.
    Bands {
        factor: f64,
        low: f64,
        high: f64,
        original: f64,
    },
}

fn rope(config: &Map<String, Json>) -> Result<Rope> {
    let scaling = ["rope_scaling", "rope_parameters"]
        .into_iter()
        .find_map(|name| config.get(name).and_then(Json::as_object).map(|scaling| (name, scaling)));
    let Some((name, scaling)) = scaling else { return Ok(Rope::Plain) };
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Json::as_str);
    let number = |key: &str| {
        let value = scaling.get(key).and_then(Json::as_f64);
        value.filter(|value| value.is_finite() && *value > 0.0).ok_or_else(|| {
            let found = scaling.get(key).unwrap_or(&Json::Null);
            Error::new(format!("`{name}.{key}`: expected a number above 0, found {found}"))
        })
    };
    match kind {
        None | Some("default") => Ok(Rope::Plain),
        Some("linear") => Ok(Rope::Linear { factor: number("factor")? }),
        // The name of the method, whatever the model is.
        Some(kind) if kind == BANDS => {
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if low >= high {
                bail!("`{name}.low_freq_factor`: expected less than {high}, found {low}");
            }
            let original = number("original_max_position_embeddings")?;
            Ok(Rope::Bands { factor: number("factor")?, low, high, original })
        }
        Some(kind) => bail!(
            "`{name}`: rope type `{kind}` is not supported, expected default, linear or {BANDS}"
        ),
    }
}

/// As `config.json` has it.
const BANDS: &str = "llama3";

/// A value of the configuration; newer versions keep those of RoPE together.
fn find<'a>(config: &'a Map<String, Json>, name: &str) -> Option<&'a Json> {
    let value = |value: &&Json| !value.is_null();
    let nested = || config.get("rope_parameters")?.get(name).filter(value);
    config.get(name).filter(value).or_else(nested)
}
