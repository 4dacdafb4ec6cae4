//! What RoPE does to the heads of a layer, for those who know what they were at one place and want
//! to know what they would be at another.

use crate::plan::{Op, Pairing, Plan};

/// How keys and queries of a layer turn with their place.
pub struct Rotary {
    /// Radians by which a pair of values turns from a place to the next.
    frequencies: Vec<f64>,
    pairing: Pairing,
}

impl Rotary {
    /// That of a layer of a plan.
    ///
    /// # Panics
    /// If the plan has no such layer.
    pub fn of(plan: &Plan, layer: usize) -> Rotary {
        let rope = plan.ops.iter().find_map(|op| match op {
            Op::Rope { angles, pairing, layer: of, .. } if *of == layer => {
                Some((*angles, *pairing))
            }
            _ => None,
        });
        let (angles, pairing) = rope.expect("every layer writes keys");
        let frequencies = plan.ops.iter().find_map(|op| match op {
            Op::Angles { frequencies, out, .. } if *out == angles => Some(*frequencies),
            _ => None,
        });
        let tensor = &plan.weights[frequencies.expect("angles have frequencies").0];
        let mut frequencies = vec![0.0; tensor.len()];
        tensor.kind.decode(&tensor.rows(0..tensor.rows), &mut frequencies);
        Rotary { frequencies: frequencies.into_iter().map(f64::from).collect(), pairing }
    }

    /// Turns one head of a key or query by so many places.
    pub fn turn(&self, head: &mut [f64], places: f64) {
        let pairs = self.frequencies.len();
        for (i, frequency) in self.frequencies.iter().enumerate() {
            let (a, b) = self.pairing.values(i, pairs);
            let (sin, cos) = (places * frequency).sin_cos();
            (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
        }
    }
}
