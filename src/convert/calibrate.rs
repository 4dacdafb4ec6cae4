//! Runs the unquantised model over a text and collects the moments of its inputs.

use std::path::Path;

use super::statistics::Statistics;
use crate::error::Result;
use crate::model::Model;
use crate::run::Options;
use crate::run::walk::{Tap, Walk};

/// Hidden states that stay in memory, in bytes; more go to a file beside the statistics.
const STATES_BYTES_MAX: u64 = 1 << 30;

/// Collects statistics over windows of one length; `progress` hears of layers
/// done, and of the head.
///
/// The first token of each window counts like the others, though its hidden state is enormous in
/// many models and the same in every text: a rounding that has not heard of it breaks the attention
/// of all others to it (`benches/results/`).
///
/// # Errors
/// If the model cannot be run, or a value in it is not finite.
pub fn calibrate(
    model: &Model,
    options: &Options,
    windows: &[Vec<u32>],
    fingerprint: String,
    folder: &Path,
    progress: &mut dyn FnMut(),
) -> Result<Statistics> {
    let mut statistics = Statistics::new(fingerprint);
    let head_len = model.hparams.head_len;
    let mut walk = Walk::new(model, options, windows, STATES_BYTES_MAX, folder)?;
    while walk.step(&mut |tap| take(&mut statistics, head_len, tap))? {
        progress();
    }
    Ok(statistics)
}

fn take(statistics: &mut Statistics, head_len: usize, tap: Tap) {
    match tap {
        Tap::Input { weights, values, width } => statistics.input(&weights, width).add(values),
        Tap::Cache { layer, keys, values, width } => {
            for (what, rows) in [("keys", keys), ("values", values)] {
                for head in 0..width / head_len {
                    let of_head = |row: &[f32]| row[head * head_len..][..head_len].to_vec();
                    let rows: Vec<f32> = rows.chunks_exact(width).flat_map(of_head).collect();
                    let name = format!("blk.{layer}.{what}.{head}");
                    statistics.cache(name, head_len).add(&rows);
                }
            }
        }
    }
}
