//! The bases of a cache of few bits: directions in which keys and queries, or values, are large,
//! head by head.

use std::path::Path;

use half::f16;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::Statistics;
use crate::bail;
use crate::error::{Error, Result};
use crate::file::{Array, Metadata, NewTensor, Value, Writer, cache};
use crate::model::{Hparams, Model, Role};
use crate::quant::moments::on_both_sides;
use crate::quant::principal::{principal, random_rotation};
use crate::quant::random::Random;
use crate::run::kv_basis::{CAPTURES, FINE, SAMPLE, TYPE, VERSION, check_head, fine_len, sample};
use crate::run::rotary::Rotary;
use crate::types::by_name;
use crate::types::raw::{self, RawType};

/// Places in a context that windows count as heard from, at most: more would say the same.
const STARTS: usize = 64;

/// ggml's number of plain bytes.
const I8: u32 = 24;

/// The share of their size that the directions of 8 bits hold, of all keys and of all values.
pub struct Captured {
    /// Of keys.
    pub keys: f64,
    /// Of values.
    pub values: f64,
}

/// What bases are made for.
pub struct BasisWishes {
    /// Of the random rotations.
    pub seed: u64,
    /// Tokens of the windows that were heard.
    pub window: usize,
    /// Tokens that texts may have; no fewer than a window is assumed.
    pub context: usize,
}

/// Writes the bases of every head into a file; `progress` hears of layers done.
///
/// Attention is the same wherever in a text it happens, but RoPE turns keys and queries by their
/// place: directions serve all places of a context if the windows count as heard at all of them.
///
/// # Errors
/// If the statistics have no keys and values, the embedding a weight that is not finite, or the
/// file cannot be written.
pub fn kv_basis(
    statistics: &Statistics,
    model: &Model,
    wishes: &BasisWishes,
    path: &Path,
    progress: &mut dyn FnMut(),
) -> Result<Captured> {
    let Hparams { layers, kv_heads, head_len, .. } = model.hparams;
    check_head(head_len)?;
    let kind = RawType::of(by_name("F16").expect("halves are always there"));
    let rotation = rotation(head_len, wishes.seed);
    let step = wishes.window.max(wishes.context.div_ceil(STARTS)).max(1);
    let starts: Vec<usize> = (0..wishes.context.max(1)).step_by(step).collect();
    let plan = model.plan_for(wishes.context);
    let embedding = model.tensors.get(Role::Embedding, None).expect("a model has an embedding");
    let sample = sample(embedding)?;
    let shape = [embedding.cols as u64, (sample.len() / embedding.cols) as u64];
    let mut records = vec![NewTensor::new(SAMPLE, &shape, kind)?];
    let mut halves: Vec<u16> = sample.into_iter().map(|x| f16::from_f32(x).to_bits()).collect();
    let mut shares = Vec::new();
    for layer in 0..layers {
        let places = Places { starts: &starts, rotary: Rotary::of(&plan, layer) };
        for what in ["keys", "values"] {
            let shape = [head_len as u64, (kv_heads * head_len) as u64];
            records.push(NewTensor::new(&format!("blk.{layer}.{what}.basis"), &shape, kind)?);
            let heads = 0..kv_heads;
            let heads: Vec<_> = heads
                .map(|head| heard(statistics, &places, head_len, (layer, what, head)))
                .collect::<Result<_>>()?;
            let of_head = |(stored, matters): &(Vec<f64>, Vec<f64>)| {
                basis(stored, matters.clone(), &rotation)
            };
            let heads: Vec<_> = heads.par_iter().map(of_head).collect();
            shares.push(heads.iter().map(|(share, _)| share).sum::<f64>() / kv_heads as f64);
            halves.extend(heads.into_iter().flat_map(|(_, rows)| rows));
        }
        progress();
    }
    let bytes = raw::find(I8, &[]).expect("plain bytes are always there");
    records.push(NewTensor::new(cache::CHECKSUM, &[32], bytes)?);
    let mut metadata = Metadata::new();
    metadata.set("general.type", Value::String(TYPE.to_string()));
    metadata.set("gridmill.kv_basis.version", Value::U32(VERSION));
    let fingerprint = Value::String(statistics.fingerprint.clone());
    metadata.set("gridmill.kv_basis.fingerprint", fingerprint);
    metadata.set(FINE, Value::U32(fine_len(head_len) as u32));
    let captures = shares.iter().map(|&share| share as f32).collect();
    metadata.set(CAPTURES, Value::Array(Array::F32(captures)));
    let mut writer = Writer::create(path, &[], &metadata, records)?;
    writer.write(bytemuck::cast_slice(&halves))?;
    writer.write(&Sha256::digest(bytemuck::cast_slice::<u16, u8>(&halves)))?;
    writer.finish()?;
    let mean = |first: usize| shares[first..].iter().step_by(2).sum::<f64>() / layers as f64;
    Ok(Captured { keys: mean(0), values: mean(1) })
}

/// The moments of what a head stores, and what its directions are ordered by.
///
/// An error along a direction of keys is multiplied with what queries have there, and its size is
/// that of the keys: of two parts that share a scale each, the loss is the product of their traces,
/// and the directions that are best in 8 bits are those of the largest sums of both, each over its
/// own trace. (`benches/results/` compares.) Errors of values go on as they are.
fn heard(
    statistics: &Statistics,
    places: &Places,
    len: usize,
    (layer, what, head): (usize, &str, usize),
) -> Result<(Vec<f64>, Vec<f64>)> {
    let of = |what: &str| {
        let name = format!("blk.{layer}.{what}.{head}");
        let moments = statistics.moments_of(&name)?;
        match moments.width == len {
            true => Ok(moments),
            false => bail!("moments of `{name}`: expected {len} values, found {}", moments.width),
        }
    };
    let moments = of(what)?;
    let whole = moments.whole();
    if moments.count < len as u64 {
        let found = moments.count;
        let message = format!(
            "expected a text of at least {len} tokens, as many as a head has directions, found \
             {found}"
        );
        return Err(Error::new(message).with_hint("--calibrate takes a longer text"));
    }
    if what != "keys" {
        return Ok((whole.clone(), whole));
    }
    let stored = places.moments(&whole);
    let queries = of("queries");
    let hint = "statistics of the first versions have no queries: delete them to calibrate again";
    let queries = queries.map_err(|error| error.with_hint(hint))?.whole();
    let queries = places.moments(&queries);
    let mut matters = vec![0.0; len * len];
    for moments in [&stored, &queries] {
        let trace: f64 = moments.iter().step_by(len + 1).sum();
        let unit = 1.0 / trace.max(f64::MIN_POSITIVE);
        matters.iter_mut().zip(moments).for_each(|(to, x)| *to += unit * x);
    }
    Ok((stored, matters))
}

/// Where windows may begin, and what that does to the keys and queries of a layer.
struct Places<'a> {
    starts: &'a [usize],
    rotary: Rotary,
}

impl Places<'_> {
    /// The moments of windows at all starts, given those of windows at the first place.
    fn moments(&self, first: &[f64]) -> Vec<f64> {
        let len = first.len().isqrt();
        let mut sum = vec![0.0; first.len()];
        let each = 1.0 / self.starts.len() as f64;
        for &start in self.starts {
            let mut moments = first.to_vec();
            on_both_sides(&mut moments, len, |row| self.rotary.turn(row, start as f64));
            sum.iter_mut().zip(&moments).for_each(|(to, x)| *to += each * x);
        }
        sum
    }
}

/// Rotations of the parts of a head, each with its first direction.
fn rotation(head_len: usize, seed: u64) -> Vec<(usize, Vec<f64>)> {
    let fine = fine_len(head_len);
    let mut random = Random(seed);
    let parts = [(0, fine / 2), (fine / 2, fine - fine / 2), (fine, head_len - fine)];
    parts.into_iter().map(|(first, len)| (first, random_rotation(len, &mut random))).collect()
}

/// The share of what is stored that the directions of 8 bits hold, and the directions, as halves.
fn basis(stored: &[f64], matters: Vec<f64>, rotation: &[(usize, Vec<f64>)]) -> (f64, Vec<u16>) {
    let len = stored.len().isqrt();
    let (_, directions) = principal(matters, len);
    let mut rows = Vec::with_capacity(len * len);
    for (first, part) in rotation {
        for weights in part.chunks_exact(part.len().isqrt()) {
            let mut row = vec![0.0; len];
            for (weight, direction) in weights.iter().zip(directions[first * len..].chunks(len)) {
                row.iter_mut().zip(direction).for_each(|(to, x)| *to += weight * x);
            }
            rows.extend(row.iter().map(|&x| f16::from_f64(x).to_bits()));
        }
    }
    let size = |direction: &[f64]| -> f64 {
        let products = stored
            .chunks_exact(len)
            .zip(direction)
            .map(|(row, x)| x * row.iter().zip(direction).map(|(a, b)| a * b).sum::<f64>());
        products.sum()
    };
    let fine: f64 = directions.chunks_exact(len).take(fine_len(len)).map(size).sum();
    let all: f64 = stored.iter().step_by(len + 1).sum();
    (fine / all.max(f64::MIN_POSITIVE), rows)
}
