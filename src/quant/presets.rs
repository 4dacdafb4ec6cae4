//! Short names of types, by how many bits a weight costs.

use crate::bail;
use crate::error::Result;
use crate::types::{self, TYPES, TensorType};

/// Each preset and the type it stands for.
pub const PRESETS: [(&str, &str); 10] = [
    ("higgs2", "HIGGS_P4_N256"),
    ("higgs3", "HIGGS_P2_N64"),
    ("higgs4", "HIGGS_P2_N256"),
    ("higgs8", "HIGGS_P1_N256"),
    ("vptq2", "VPTQ_V8_K512_S"),
    ("vptq2.25", "VPTQ_V8_K2048_S"),
    ("vptq2.5", "VPTQ_V6_K1024_S"),
    ("vptq3", "VPTQ_V4_K512_S"),
    ("vptq4", "VPTQ_V3_K1024_S"),
    ("resq4", "RESQ_P2_N256"),
];

/// A type of 8 bits that is quick to code and needs no transform: for a model that only has to be
/// nearly itself.
pub const NEARLY_EXACT: &str = "Q8_0";

/// The presets of learned points that are worth a place beside grids: those below 3 bits. Above, a
/// grid is nearly as good, and runs without a byte per weight (`benches/results/`).
pub fn learned() -> impl Iterator<Item = &'static dyn TensorType> {
    let kinds = PRESETS.iter().filter_map(|(_, full)| types::by_name(full));
    kinds.filter(|&kind| types::learned(kind).is_some_and(|shape| shape.width() < 3 * shape.v))
}

/// The type that a preset or a full name stands for, in any case, if it can be written.
///
/// # Errors
/// If nothing has this name, or the type can only be read; the message lists what there is.
pub fn by_name(name: &str) -> Result<&'static dyn TensorType> {
    let preset = PRESETS.iter().find(|(preset, _)| preset.eq_ignore_ascii_case(name));
    match types::by_name(preset.map_or(name, |(_, full)| full)) {
        Some(kind) if kind.can_encode() => Ok(kind),
        Some(kind) => bail!("expected a type that can be written, found {}", kind.name()),
        None => {
            let names = TYPES.iter().filter(|kind| kind.can_encode()).map(|kind| kind.name());
            let all: Vec<&str> = PRESETS.iter().map(|(preset, _)| *preset).chain(names).collect();
            bail!("expected one of {}, found `{name}`", all.join(", "))
        }
    }
}
