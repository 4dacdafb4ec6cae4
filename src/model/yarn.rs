//! RoPE for texts longer than those a model was first trained on: YaRN, arXiv 2309.00071.
//!
//! Pairs that turn often within the first context stay as they are, pairs that turn less than once
//! are slowed down by a factor, and those between by something between. Slower turns make attention
//! flatter, for which queries and keys become louder.

use std::f64::consts::TAU;

/// Turns within the first context above which a pair stays, and below which it is slowed down,
/// where nothing else is said.
pub const TURNS: [f32; 2] = [32.0, 1.0];

/// How angles are scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// How much longer texts may be.
    pub factor: f32,
    /// Tokens the model was first trained to see at once.
    pub context: usize,
    /// Turns above which a pair stays, and below which it is slowed down.
    pub turns: [f32; 2],
}

impl Yarn {
    /// What the frequency of a pair of `len` rotated values is multiplied by.
    pub fn scale(&self, pair: usize, base: f32, len: usize) -> f64 {
        let [low, high] = self.between(base, len);
        // Programs agree on how to leave a range of nothing.
        let slow = ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        1.0 - slow + slow / f64::from(self.factor)
    }

    /// The last pair that stays, and the first that is slowed down in full.
    fn between(&self, base: f32, len: usize) -> [f64; 2] {
        let len = len as f64;
        let place = |turns: f32| {
            let longest = self.context as f64 / (f64::from(turns) * TAU);
            len * longest.ln() / (2.0 * f64::from(base).ln())
        };
        let [many, few] = self.turns;
        [place(many).floor().max(0.0), place(few).ceil().min(len - 1.0)]
    }

    /// What turned values are multiplied by.
    pub fn amplitude(factor: f64) -> f64 {
        1.0 + 0.1 * factor.max(1.0).ln()
    }
}
