//! Norm of heads, rotation by position, and writing the cache.

use super::rows::RmsNorm;
use super::{State, Worker};
use crate::plan::{Norm, Op, Pairing};

impl State {
    /// # Safety
    /// As [`State::op`].
    pub(super) unsafe fn rope(&self, worker: &Worker, op: &Op) {
        let Op::Rope { q, k, v, angles, q_norm, k_norm, pairing, head_len, .. } = op else {
            unreachable!("called for this op")
        };
        let Op::Rope { positions, sequences, layer, .. } = op else { unreachable!() };
        let (len, width) = (*head_len, self.width(*angles));
        let (heads, kv_heads) = (self.width(*q) / len, self.width(*k) / len);
        // SAFETY: a head of a row is one worker's, and so is the line; angles, values and indices
        // are not written.
        unsafe {
            let (positions, sequences) = (self.indices(*positions), self.indices(*sequences));
            let line = self.lines[worker.index()].get_mut(0..len);
            for piece in worker.share(positions.len() * (heads + kv_heads)) {
                let (row, head) = (piece / (heads + kv_heads), piece % (heads + kv_heads));
                let angles = self.floats(*angles).get(row * width..(row + 1) * width);
                if head < heads {
                    let at = (row * heads + head) * len;
                    let (q, kv_head) =
                        (self.floats(*q).get_mut(at..at + len), head * kv_heads / heads);
                    self.turn(q, *q_norm, angles, *pairing);
                    self.turns[*layer].keys(self.level, kv_head, q, line);
                } else {
                    let head = head - heads;
                    let at = (row * kv_heads + head) * len;
                    let key = self.floats(*k).get_mut(at..at + len);
                    self.turn(key, *k_norm, angles, *pairing);
                    self.turns[*layer].keys(self.level, head, key, line);
                    let value = self.floats(*v).get(at..at + len);
                    let value = self.turns[*layer].values(self.level, head, value, line);
                    let cell = (sequences[row] as usize, head, positions[row] as usize);
                    self.caches[*layer].write(cell, key, value);
                }
            }
        }
    }

    fn turn(&self, head: &mut [f32], norm: Option<Norm>, angles: &[f32], pairing: Pairing) {
        if let Some(norm) = norm {
            let weight = self.vector(norm.weight);
            self.level.dispatch(RmsNorm { row: head, weight, epsilon: norm.epsilon });
        }
        let angles = angles.as_chunks::<2>().0;
        match pairing {
            Pairing::Interleaved => {
                for (pair, &[cos, sin]) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                    let [x, y] = *pair;
                    *pair = [x * cos - y * sin, x * sin + y * cos];
                }
            }
            Pairing::Halves => {
                let (first, second) = head.split_at_mut(angles.len());
                for ((a, b), &[cos, sin]) in first.iter_mut().zip(second).zip(angles) {
                    let (x, y) = (*a, *b);
                    (*a, *b) = (x * cos - y * sin, x * sin + y * cos);
                }
            }
        }
    }
}
