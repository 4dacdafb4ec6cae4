//! The bases of a cache of few bits: principal directions of keys and values, head by head.

use std::path::Path;

use half::f16;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::Statistics;
use crate::error::Result;
use crate::file::{Metadata, NewTensor, Value, Writer, cache};
use crate::model::Hparams;
use crate::quant::principal::{principal, random_rotation};
use crate::quant::random::Random;
use crate::run::kv_basis::{TYPE, VERSION, fine_len};
use crate::types::by_name;
use crate::types::raw::{self, RawType};

/// ggml's number of plain bytes.
const I8: u32 = 24;

/// The share of their size that the directions of 8 bits hold, of all keys and of all values.
pub struct Captured {
    /// Of keys.
    pub keys: f64,
    /// Of values.
    pub values: f64,
}

/// Writes the bases of every head into a file; `progress` hears of layers done.
///
/// # Errors
/// If the statistics have no keys and values, or the file cannot be written.
pub fn kv_basis(
    statistics: &Statistics,
    hparams: &Hparams,
    seed: u64,
    path: &Path,
    progress: &mut dyn FnMut(),
) -> Result<Captured> {
    let Hparams { layers, kv_heads, head_len, .. } = *hparams;
    let kind = RawType::of(by_name("F16").expect("halves are always there"));
    let mut records = Vec::new();
    for layer in 0..layers {
        for what in ["keys", "values"] {
            let shape = [head_len as u64, (kv_heads * head_len) as u64];
            records.push(NewTensor::new(&format!("blk.{layer}.{what}.basis"), &shape, kind)?);
        }
    }
    let bytes = raw::find(I8, &[]).expect("plain bytes are always there");
    records.push(NewTensor::new(cache::CHECKSUM, &[32], bytes)?);
    let mut metadata = Metadata::new();
    metadata.set("general.type", Value::String(TYPE.to_string()));
    metadata.set("gridmill.kv_basis.version", Value::U32(VERSION));
    let fingerprint = Value::String(statistics.fingerprint.clone());
    metadata.set("gridmill.kv_basis.fingerprint", fingerprint);
    let mut writer = Writer::create(path, &[], &metadata, records)?;
    let rotation = rotation(head_len, seed);
    let mut hash = Sha256::new();
    let mut captured = [0.0; 2];
    for layer in 0..layers {
        for (what, captured) in ["keys", "values"].into_iter().zip(&mut captured) {
            let moments = |head| statistics.moments_of(&format!("blk.{layer}.{what}.{head}"));
            let moments: Vec<_> = (0..kv_heads).map(moments).collect::<Result<_>>()?;
            let of_head = |moments: &crate::quant::Moments| basis(moments.whole(), &rotation);
            for (share, rows) in moments.par_iter().map(of_head).collect::<Vec<_>>() {
                *captured += share / (layers * kv_heads) as f64;
                let halves: Vec<u16> = rows.iter().map(|&x| f16::from_f64(x).to_bits()).collect();
                hash.update(bytemuck::cast_slice(&halves));
                writer.write(bytemuck::cast_slice(&halves))?;
            }
        }
        progress();
    }
    writer.write(&hash.finalize())?;
    writer.finish()?;
    let [keys, values] = captured;
    Ok(Captured { keys, values })
}

/// Rotations of the parts of a head, each with its first direction.
fn rotation(head_len: usize, seed: u64) -> Vec<(usize, Vec<f64>)> {
    let fine = fine_len(head_len);
    let mut random = Random(seed);
    let parts = [(0, fine / 2), (fine / 2, fine - fine / 2), (fine, head_len - fine)];
    parts.into_iter().map(|(first, len)| (first, random_rotation(len, &mut random))).collect()
}

/// The share that the directions of 8 bits hold, and the directions.
fn basis(moments: Vec<f64>, rotation: &[(usize, Vec<f64>)]) -> (f64, Vec<f64>) {
    let len = moments.len().isqrt();
    let (sizes, directions) = principal(moments, len);
    let mut rows = Vec::with_capacity(len * len);
    for (first, part) in rotation {
        for weights in part.chunks_exact(part.len().isqrt()) {
            let mut row = vec![0.0; len];
            for (weight, direction) in weights.iter().zip(directions[first * len..].chunks(len)) {
                row.iter_mut().zip(direction).for_each(|(to, x)| *to += weight * x);
            }
            rows.extend(row);
        }
    }
    let fine: f64 = sizes[..fine_len(len)].iter().sum();
    (fine / sizes.iter().sum::<f64>().max(f64::MIN_POSITIVE), rows)
}
