//! `config.json` in one form, whatever version of `transformers` wrote it; what it must not say.

use serde_json::{Map, Value};

use super::metadata;
use super::rope::Rope;
use crate::bail;
use crate::error::Result;
use crate::model::arch::FolderWords;
use crate::model::{Arch, Hparams};

/// Brings a configuration into the form that the descriptions know: numbers of the text lie at the
/// top, RoPE's of layers with a window have a name of their own, and nothing is left to a default.
pub(super) fn normalise(config: &mut Map<String, Value>, words: &FolderWords) -> Result<()> {
    if let Some(text) = config.remove("text_config").filter(|text| !text.is_null()) {
        let Value::Object(text) = text else {
            bail!("`text_config`: expected an object, found {text}");
        };
        // The class was found already, and the text's own is not always there.
        let said =
            text.into_iter().filter(|(key, value)| key != "architectures" && !value.is_null());
        config.extend(said);
    }
    part_ropes(config)?;
    for (name, value) in &words.defaults {
        if find(config, name).is_none() {
            config.insert(name.clone(), value.clone());
        }
    }
    for (name, allowed) in &words.fixed {
        let Some(found) = find(config, name) else { continue };
        if !allowed.iter().any(|value| is_same(value, found)) {
            let allowed: Vec<String> = allowed.iter().map(Value::to_string).collect();
            bail!("`{name}`: {found} is not supported, expected {}", allowed.join(" or "));
        }
    }
    Ok(())
}

/// Newer configurations have RoPE's numbers once for each kind of layer.
fn part_ropes(config: &mut Map<String, Value>) -> Result<()> {
    let Some(Value::Object(ropes)) = config.get_mut("rope_parameters") else { return Ok(()) };
    let Some(wide) = ropes.remove("full_attention") else { return Ok(()) };
    let local = ropes.remove("sliding_attention");
    if let Some(kind) = ropes.keys().next() {
        bail!("`rope_parameters`: layers of kind `{kind}` are not supported");
    }
    config.insert("rope_parameters".to_string(), wide);
    let Some(local) = local else { return Ok(()) };
    let kind = local.get("rope_type").and_then(Value::as_str).unwrap_or("default");
    if kind != "default" {
        bail!(
            "`rope_parameters.sliding_attention`: rope type `{kind}` is not supported, expected \
             default"
        );
    }
    if let Some(base) = local.get("rope_theta") {
        config.insert("rope_local_base_freq".to_string(), base.clone());
    }
    Ok(())
}

/// Refuses a configuration that contradicts what the architecture does in every layer.
pub(super) fn check(config: &Map<String, Value>, arch: &Arch, hparams: &Hparams) -> Result<()> {
    if let Some(kinds) = find(config, "layer_types") {
        let kinds = kinds.as_array().map(Vec::as_slice).unwrap_or_default();
        if kinds.len() != hparams.layers {
            bail!("`layer_types`: expected {} kinds, found {}", hparams.layers, kinds.len());
        }
        for (layer, found) in kinds.iter().enumerate() {
            let is_local = hparams.is_local(arch, layer);
            let expected = if is_local { "sliding_attention" } else { "full_attention" };
            if found != expected {
                bail!("`layer_types`: layer {layer} is {found}, expected \"{expected}\"");
            }
        }
    }
    if let Some(found) = find(config, "no_rope_layers") {
        // One for each layer that has rope, zero for the others.
        let has_rope = |layer| u64::from(hparams.has_rope(arch, layer));
        let expected: Vec<u64> = (0..hparams.layers).map(has_rope).collect();
        if *found != serde_json::json!(expected) {
            bail!("`no_rope_layers`: expected {expected:?}, found {found}");
        }
    }
    for (role, _) in Rope::read(config)?.factors(config, hparams.rope_len)? {
        if !arch.tensors.iter().any(|words| words.role == role) {
            bail!("rope of this type is not supported in architecture `{}`", arch.name);
        }
    }
    let words = metadata::words(arch);
    let scale = find(config, &words.query_scale);
    let expected = hparams.query_scale.powi(-2);
    if let Some(found) = scale
        && !found.as_f64().is_some_and(|found| (found as f32 / expected - 1.0).abs() < 1e-4)
    {
        bail!("`{}`: expected {expected:.0}, found {found}", words.query_scale);
    }
    Ok(())
}

/// A value of the configuration; newer versions keep those of RoPE together.
pub(super) fn find<'a>(config: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let value = |value: &&Value| !value.is_null();
    let nested = || config.get("rope_parameters")?.get(name).filter(value);
    config.get(name).filter(value).or_else(nested)
}

/// Whether two values are the same; numbers may be written as integers or not.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}
