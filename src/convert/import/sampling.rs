//! `generation_config.json`: how the model's makers choose tokens, in the keys of GGUF.

use serde_json::{Map, Value as Json};

use crate::bail;
use crate::error::Result;
use crate::file::{Metadata, Value};

/// Keys below `general.sampling`, and their names in the file: as llama.cpp's converter has it,
/// with those of its own sampler.
const FLOATS: [(&str, &[&str]); 8] = [
    ("top_p", &["top_p"]),
    ("min_p", &["min_p"]),
    ("xtc_probability", &["xtc_probability"]),
    ("xtc_threshold", &["xtc_threshold"]),
    ("temp", &["temperature"]),
    ("penalty_repeat", &["penalty_repeat", "repetition_penalty"]),
    ("mirostat_tau", &["mirostat_tau"]),
    ("mirostat_eta", &["mirostat_eta"]),
];
const INTEGERS: [&str; 3] = ["top_k", "penalty_last_n", "mirostat"];
const TEXT: &str = "sequence";

/// Adds what the file says of sampling.
///
/// # Errors
/// If something has the wrong type.
pub(super) fn add(generation: &Map<String, Json>, metadata: &mut Metadata) -> Result<()> {
    let said = |name: &str| generation.get(name).filter(|value| !value.is_null());
    let mut set = |key: &str, value| metadata.set(format!("general.sampling.{key}"), value);
    if let Some(value) = said(TEXT) {
        let Some(text) = value.as_str() else {
            bail!("`{TEXT}`: expected a text, found {value}");
        };
        set(TEXT, Value::String(text.to_string()));
    }
    for key in INTEGERS {
        let Some(value) = said(key) else { continue };
        let number = value.as_i64().and_then(|number| i32::try_from(number).ok());
        let Some(number) = number else { bail!("`{key}`: expected an integer, found {value}") };
        set(key, Value::I32(number));
    }
    for (key, names) in FLOATS {
        let Some((name, value)) = names.iter().find_map(|name| Some((name, said(name)?))) else {
            continue;
        };
        let Some(number) = value.as_f64() else {
            bail!("`{name}`: expected a number, found {value}");
        };
        set(key, Value::F32(number as f32));
    }
    Ok(())
}
