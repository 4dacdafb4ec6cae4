//! What `config.json` says of RoPE, in the words of GGUF: a few keys, and vectors of factors.

use serde_json::{Map, Value as Json};

use super::config::find;
use crate::bail;
use crate::error::{Error, Result};
use crate::file::Value;
use crate::model::Role;
use crate::model::hparams::YARN;
use crate::model::yarn::Yarn;

/// How angles are scaled.
pub(super) enum Rope {
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
    /// Each pair by a factor of its own, of which there are two: for texts within the context that
    /// the model was first trained on, and for longer ones.
    Long {
        short: Vec<f32>,
        long: Vec<f32>,
        /// What turned values are multiplied by.
        amplitude: f64,
    },
    /// The fast pairs not, the slow ones by a factor, by how often they turn in the context that
    /// the model was first trained on.
    Yarn {
        factor: f64,
        original: u32,
        /// Turns, where they are said: many and few.
        turns: [Option<f64>; 2],
        /// What turned values are multiplied by beyond what the method has.
        louder: f64,
    },
}

/// As `config.json` has them.
const BANDS: &str = "llama3";
const LONG: [&str; 2] = ["longrope", "su"];

impl Rope {
    /// What a configuration says.
    ///
    /// # Errors
    /// If it is of a kind that is not known, or a number is missing or impossible.
    pub(super) fn read(config: &Map<String, Json>) -> Result<Rope> {
        let said =
            |name| config.get(name).filter(|value| !value.is_null()).map(|value| (name, value));
        let Some((name, scaling)) = said("rope_scaling").or_else(|| said("rope_parameters")) else {
            return Ok(Rope::Plain);
        };
        if !scaling.is_object() {
            bail!("`{name}`: expected an object, found {scaling}");
        }
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type"));
        let kind = match kind.filter(|kind| !kind.is_null()) {
            Some(Json::String(kind)) => Some(kind.as_str()),
            Some(other) => bail!("`{name}.rope_type`: expected a text, found {other}"),
            None => None,
        };
        let number = |key: &str| positive(name, key, scaling.get(key));
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
            Some(kind) if LONG.contains(&kind) => Rope::long(config, name, scaling),
            Some(kind) if kind == YARN => Rope::yarn(config, name, scaling),
            Some(kind) => bail!(
                "`{name}`: rope type `{kind}` is not supported, expected default, linear, {BANDS}, \
                 {} or {YARN}",
                LONG[0]
            ),
        }
    }

    /// The amplitude is given, or made from how much longer texts may be, as `transformers` does.
    fn long(config: &Map<String, Json>, name: &str, scaling: &Json) -> Result<Rope> {
        let list = |key: &str| -> Result<Vec<f32>> {
            let list = scaling.get(key).and_then(Json::as_array);
            let Some(list) = list else { bail!("`{name}.{key}`: expected a list of numbers") };
            let value = |value| positive(name, key, Some(value)).map(|value| value as f32);
            list.iter().map(value).collect()
        };
        let own = |key: &str| scaling.get(key).filter(|value| !value.is_null());
        let amplitude = match own("attention_factor") {
            Some(given) => positive(name, "attention_factor", Some(given))?,
            None => {
                let length = |key: &str| positive("", key, find(config, key));
                let original = length("original_max_position_embeddings")?;
                let factor = match own("factor") {
                    Some(given) => positive(name, "factor", Some(given))?,
                    None => length("max_position_embeddings")? / original,
                };
                if factor > 1.0 { (1.0 + factor.ln() / original.ln()).sqrt() } else { 1.0 }
            }
        };
        Ok(Rope::Long { short: list("short_factor")?, long: list("long_factor")?, amplitude })
    }

    /// As `transformers` reads it; how much louder is given, or a ratio of two amplitudes, or that
    /// of the method.
    fn yarn(config: &Map<String, Json>, name: &str, scaling: &Json) -> Result<Rope> {
        let own = |key: &str| scaling.get(key).filter(|value| !value.is_null());
        let said = |key: &str| own(key).map(|value| positive(name, key, Some(value))).transpose();
        if let Some(found) = own("truncate").filter(|found| **found != Json::Bool(true)) {
            bail!("`{name}.truncate`: {found} is not supported, expected true");
        }
        let (key, longest) = ("original_max_position_embeddings", "max_position_embeddings");
        // The top's is meant before RoPE's own.
        let top = config.get(key).filter(|value| !value.is_null());
        let said_original = top.or_else(|| own(key)).map(|value| (key, value));
        let all = || find(config, longest).map(|value| (longest, value));
        let Some((key, value)) = said_original.or_else(all) else {
            bail!("`{name}.{key}` is missing, expected a number");
        };
        let whole = value.as_u64().and_then(|number| u32::try_from(number).ok());
        let Some(original) = whole.filter(|&number| number > 0) else {
            bail!("`{key}`: expected an integer from 1 to 4294967295, found {value}");
        };
        let factor = match said("factor")? {
            Some(factor) => factor,
            None => positive("", longest, find(config, longest))? / f64::from(original),
        };
        let usual = Yarn::amplitude(factor);
        let scaled = |scale: f64| 1.0 + scale * (usual - 1.0);
        let scales = said("mscale")?.zip(said("mscale_all_dim")?);
        let of_scales = scales.map(|(of, over)| scaled(of) / scaled(over));
        let amplitude = said("attention_factor")?.or(of_scales).unwrap_or(usual);
        let turns = [said("beta_fast")?, said("beta_slow")?];
        Ok(Rope::Yarn { factor, original, turns, louder: amplitude / usual })
    }

    /// Keys below `rope.scaling`.
    pub(super) fn keys(&self) -> Vec<(&'static str, Value)> {
        match self {
            Rope::Plain | Rope::Bands { .. } => Vec::new(),
            Rope::Linear { factor } => vec![
                ("type", Value::String("linear".to_string())),
                ("factor", Value::F32(*factor as f32)),
            ],
            Rope::Long { amplitude, .. } => vec![("attn_factor", Value::F32(*amplitude as f32))],
            Rope::Yarn { factor, original, turns, louder } => {
                let mut keys = vec![
                    ("type", Value::String(YARN.to_string())),
                    ("factor", Value::F32(*factor as f32)),
                    ("original_context_length", Value::U32(*original)),
                ];
                let names = ["yarn_beta_fast", "yarn_beta_slow"].into_iter();
                let said = names.zip(turns).filter_map(|(name, turns)| Some((name, (*turns)?)));
                keys.extend(said.map(|(name, turns)| (name, Value::F32(turns as f32))));
                // llama.cpp's converter writes another key, which llama.cpp reads in few
                // architectures; this one it multiplies by in all.
                if (louder - 1.0).abs() > 1e-6 {
                    keys.push(("attn_factor", Value::F32(*louder as f32)));
                }
                keys
            }
        }
    }

    /// What each pair's frequency is divided by, where `len` values of a head are rotated.
    ///
    /// # Errors
    /// If there are not as many factors as pairs.
    pub(super) fn factors(
        &self,
        config: &Map<String, Json>,
        len: usize,
    ) -> Result<Vec<(Role, Vec<f32>)>> {
        match self {
            Rope::Plain | Rope::Linear { .. } | Rope::Yarn { .. } => Ok(Vec::new()),
            Rope::Bands { factor, low, high, original } => {
                let base = find(config, "rope_theta").and_then(Json::as_f64).unwrap_or(10_000.0);
                let turns = |i: usize| {
                    // Turns over the context the model was first trained on.
                    let wave = 2.0 * std::f64::consts::PI * base.powf(2.0 * i as f64 / len as f64);
                    original / wave
                };
                let of = |i| band(turns(i), *factor, *low, *high);
                Ok(vec![(Role::RopeFactors, (0..len / 2).map(of).collect())])
            }
            Rope::Long { short, long, .. } => {
                for (key, list) in [("short_factor", short), ("long_factor", long)] {
                    if list.len() != len / 2 {
                        bail!("`{key}`: expected {} numbers, found {}", len / 2, list.len());
                    }
                }
                let (short, long) = (short.clone(), long.clone());
                Ok(vec![(Role::RopeFactorsLong, long), (Role::RopeFactorsShort, short)])
            }
        }
    }
}

fn band(turns: f64, factor: f64, low: f64, high: f64) -> f32 {
    if turns > high {
        return 1.0;
    }
    if turns < low {
        return factor as f32;
    }
    let smooth = (turns - low) / (high - low);
    (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
}

fn positive(place: &str, key: &str, value: Option<&Json>) -> Result<f64> {
    let number = value.and_then(Json::as_f64);
    number.filter(|value| value.is_finite() && *value > 0.0).ok_or_else(|| {
        let found = value.unwrap_or(&Json::Null);
        let dot = if place.is_empty() { "" } else { "." };
        Error::new(format!("`{place}{dot}{key}`: expected a number above 0, found {found}"))
    })
}
