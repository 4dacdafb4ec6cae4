//! Runs the unquantised model over a text and collects the moments of its inputs.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use super::statistics::StatisticsWriter;
use crate::error::Result;
use crate::model::Model;
use crate::quant::Moments;
use crate::run::Options;
use crate::run::reverse::TokenWeights;
use crate::run::walk::{CACHED, Tap, Walk};

/// Hidden states that stay in memory, in bytes; more go to a file beside the statistics.
const STATES_BYTES_MAX: u64 = 1 << 30;

/// Collects statistics over windows of one length into a file, layer by layer; `progress` hears of
/// layers done, and of the head. Tokens count by their weights (`run/reverse/tokens.rs`), but in
/// what the cache takes.
///
/// The first token of each window counts like the others, though its hidden state is enormous in
/// many models and the same in every text: a rounding that has not heard of it breaks the attention
/// of all others to it (`benches/results/`).
///
/// # Errors
/// If the model cannot be run, a value in it is not finite, or the file cannot be written.
pub fn calibrate(
    model: &Model,
    options: &Options,
    (windows, weights): (&[Vec<u32>], &TokenWeights),
    fingerprint: &str,
    path: &Path,
    progress: &mut dyn FnMut(),
) -> Result<()> {
    let count = windows.iter().map(Vec::len).sum();
    let mut writer = StatisticsWriter::create(path, model, count, fingerprint)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let mut walk = Walk::new(model, options, windows, STATES_BYTES_MAX, folder)?;
    let (head_len, experts) = (model.hparams.head_len, model.hparams.experts);
    let experts = experts.map_or(0, |experts| experts.count);
    let mut layer =
        Layer { head_len, experts, weights, heard: HashMap::new(), moments: Vec::new() };
    while walk.step(&mut |tap| layer.take(tap))? {
        for (_, moments) in layer.moments.drain(..) {
            writer.write(&moments)?;
        }
        progress();
    }
    writer.finish()
}

/// The moments of one layer, in the order of their first rows.
///
/// Those of experts take up to a quarter of what the layer's plain weights do: `ffn^2` doubles for
/// each expert beside `3 * ffn * embed` floats.
struct Layer<'a> {
    head_len: usize,
    experts: usize,
    weights: &'a TokenWeights,
    /// Rows that were heard of an input, by its first weight.
    heard: HashMap<String, usize>,
    /// Of each expert, or one.
    moments: Vec<(String, Vec<Moments>)>,
}

impl Layer<'_> {
    fn take(&mut self, tap: Tap) {
        match tap {
            Tap::Input { weights, values, width } => {
                let values = self.weighted(weights[0], values, width);
                self.get(weights[0], width, 1)[0].add(&values);
            }
            Tap::Experts { weights, values, width, chosen } => {
                let values = self.weighted(weights[0], values, width);
                let mut rows = vec![Vec::new(); self.experts];
                for (row, &expert) in values.chunks_exact(width).zip(chosen) {
                    rows[expert as usize].extend_from_slice(row);
                }
                let moments = self.get(weights[0], width, rows.len());
                moments.iter_mut().zip(&rows).for_each(|(moments, rows)| moments.add(rows));
            }
            Tap::Cache { queries, keys, values, width } => {
                let heads = width / self.head_len;
                for (what, rows) in CACHED.into_iter().zip([keys, values, queries]) {
                    // Several queries to a key: each is a row.
                    let all = rows.len() / (keys.len() / width);
                    for head in 0..heads {
                        let of_head =
                            |row: &[f32]| row[head * all / heads..][..all / heads].to_vec();
                        let rows: Vec<f32> = rows.chunks_exact(all).flat_map(of_head).collect();
                        self.get(&format!("{what}.{head}"), self.head_len, 1)[0].add(&rows);
                    }
                }
            }
        }
    }

    /// The next rows of an input, with the roots of their weights.
    fn weighted<'v>(&mut self, name: &str, values: &'v [f32], width: usize) -> Cow<'v, [f32]> {
        let Some(weights) = self.weights.get(name) else { return Cow::Borrowed(values) };
        let heard = self.heard.entry(name.to_string()).or_default();
        let weights = &weights[*heard..][..values.len() / width];
        *heard += weights.len();
        let mut values = values.to_vec();
        for (row, weight) in values.chunks_exact_mut(width).zip(weights) {
            let root = weight.sqrt();
            row.iter_mut().for_each(|value| *value *= root);
        }
        Cow::Owned(values)
    }

    /// The moments of an input so far.
    fn get(&mut self, name: &str, width: usize, experts: usize) -> &mut [Moments] {
        let known = self.moments.iter().position(|(known, _)| known == name);
        let at = known.unwrap_or_else(|| {
            self.moments.push((name.to_string(), vec![Moments::new(width); experts]));
            self.moments.len() - 1
        });
        &mut self.moments[at].1
    }
}
