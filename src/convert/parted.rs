//! Which inputs of a matrix are loud, for types that keep those in more bits.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Item, Statistics};
use crate::error::{Error, Result};
use crate::quant::random::Random;
use crate::types::Basis;

/// The items, those in a parted basis with their loud inputs: the ones of largest squares in the
/// text. Matrices of one input have the same, and signs of their own.
///
/// # Errors
/// If there are no statistics of an input, or they are damaged.
pub(super) fn with_loud(
    mut items: Vec<Item>,
    statistics: Option<&Statistics>,
) -> Result<Vec<Item>> {
    let mut known: HashMap<usize, (Arc<[bool]>, f32)> = HashMap::new();
    for item in items.iter_mut().filter(|item| !item.keep) {
        let Basis::Parted { high } = item.basis else { continue };
        let input = statistics.and_then(|statistics| statistics.use_of(&item.name));
        let Some((statistics, input)) = statistics.zip(input) else {
            let (name, kind) = (&item.name, item.kind.name());
            let message = format!(
                "tensor `{name}`: expected statistics of its inputs for {kind}, which keeps the \
                 loudest in more bits, found none"
            );
            return Err(Error::new(message).with_hint("--calibrate FILE or --calibrate self"));
        };
        let (loud, capture) = match known.get(&input) {
            Some(known) => known.clone(),
            None => {
                // No weight of experts has such a type, so there is one matrix.
                let matrix = statistics.matrix(input, 0)?;
                let moments = statistics.moments(input, matrix)?;
                if let Some(rows) =
                    statistics.rows(input, matrix).filter(|&rows| rows < high.into())
                {
                    let message = format!(
                        "tensor `{}`: expected a text of at least {high} tokens, as many as inputs \
                         have more bits, found {rows}",
                        item.name
                    );
                    return Err(Error::new(message).with_hint("--calibrate takes a longer text"));
                }
                let loud = moments.loudest(high as usize);
                let share = moments.share(&loud) as f32;
                (loud.into(), share)
            }
        };
        known.insert(input, (loud.clone(), capture));
        item.capture = capture;
        // Signs are stored once for each seed, and these belong to an input.
        item.sign_seed = Random(item.sign_seed ^ (input as u64 + 1) << 32).bits();
        item.loud = Some(loud);
    }
    Ok(items)
}
