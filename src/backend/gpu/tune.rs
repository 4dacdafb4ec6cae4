//! What a device runs fastest: variants of the kernels, measured once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How a matrix meets one row of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// Threads of a workgroup.
    pub threads: usize,
    /// Rows of weights that a team takes at once.
    pub rows: usize,
    /// Rounds of a workgroup: how often its teams take rows.
    pub rounds: usize,
    /// Copies of a grid's table in workgroup memory.
    pub copies: usize,
}

impl Variant {
    /// What does well on most devices.
    pub const DEFAULT: Variant = Variant { threads: 128, rows: 2, rounds: 2, copies: 8 };
}

/// The best variants known, by kind of matrix and device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning(pub BTreeMap<String, Variant>);
