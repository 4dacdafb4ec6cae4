//! Attention of one head, back.

use crate::simd::Level;
use crate::simd::products::{LANES, Lanes, add_products};

/// One query head over one key head, all rows of one sequence from position 0 on.
pub(super) struct Head<'a> {
    /// `(rows, len)`, contiguous.
    pub(super) q: &'a [f32],
    /// `(rows, len)`.
    pub(super) k: &'a [f32],
    /// `(rows, len)`.
    pub(super) v: &'a [f32],
    /// Values per row.
    pub(super) len: usize,
    /// What scores are multiplied by.
    pub(super) scale: f32,
    /// Cells seen, the row's own among them.
    pub(super) window: Option<u32>,
    /// `cap * tanh(score / cap)`.
    pub(super) soft_cap: Option<f32>,
}

/// Gradients of a head, `(rows, len)` each.
pub(super) struct Gradients {
    pub(super) q: Vec<f32>,
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
}

impl Head<'_> {
    /// Gradients of queries, keys and values from that of the output, `(rows, len)`.
    pub(super) fn back(&self, level: Level, d_out: &[f32]) -> Gradients {
        let (len, rows) = (self.len, self.q.len() / self.len);
        let (chances, slopes) = self.chances(level);
        let (k, v) = (Spread::new(self.k, len), Spread::new(self.v, len));
        let (q, d) = (Spread::new(self.q, len), Spread::new(d_out, len));
        // What every chance is worth; its mean over a row drops out of the softmax.
        let mut worth = self.products(level, d_out, &v);
        let mut means = vec![0.0; rows];
        for (block, (chances, worth)) in chances.iter().zip(&worth).enumerate() {
            for (t, mean) in means.iter_mut().enumerate().skip(block * LANES) {
                *mean += chances[t].iter().zip(&worth[t]).map(|(p, w)| p * w).sum::<f32>();
            }
        }
        for (block, worth) in worth.iter_mut().enumerate() {
            let (chances, slopes) = (&chances[block], &slopes[block]);
            for t in block * LANES..rows {
                for c in 0..LANES {
                    let slope = slopes[t][c] * self.scale;
                    worth[t][c] = chances[t][c] * (worth[t][c] - means[t]) * slope;
                }
            }
        }
        let d_scores = worth;
        let (mut d_q, mut d_k, mut d_v) = (q.zeros(), k.zeros(), v.zeros());
        for (block, (d_scores, chances)) in d_scores.iter().zip(&chances).enumerate() {
            let cells = block * LANES..((block + 1) * LANES).min(rows);
            let turned = transposed(d_scores);
            let later = cells.start..rows;
            for part in 0..q.parts.len() {
                let keys = &k.parts[part][cells.clone()];
                let out = &mut d_q.parts[part];
                add_products(level, (&turned, rows), 0, keys, later.clone(), out);
                for (scores, from, to) in [(d_scores, &q, &mut d_k), (chances, &d, &mut d_v)] {
                    let matrix = (scores.as_flattened(), LANES);
                    let values = &from.parts[part][later.clone()];
                    let out = &mut to.parts[part][cells.clone()];
                    add_products(level, matrix, cells.start, values, 0..cells.len(), out);
                }
            }
        }
        Gradients { q: d_q.gather(), k: d_k.gather(), v: d_v.gather() }
    }

    /// Softmax of the scores in blocks of cells, `(rows)` each, and the slope of the cap.
    fn chances(&self, level: Level) -> (Vec<Vec<Lanes>>, Vec<Vec<Lanes>>) {
        let rows = self.q.len() / self.len;
        let mut scores = self.products(level, self.q, &Spread::new(self.k, self.len));
        let mut slopes = vec![vec![[1.0; LANES]; rows]; scores.len()];
        for t in 0..rows {
            let first = self.window.map_or(0, |window| (t + 1).saturating_sub(window as usize));
            let (mut peak, seen) = (f32::NEG_INFINITY, t / LANES + 1);
            for (block, scores) in scores[..seen].iter_mut().enumerate() {
                for (c, score) in scores[t].iter_mut().enumerate() {
                    let cell = block * LANES + c;
                    *score *= self.scale;
                    if let Some(cap) = self.soft_cap {
                        let share = (*score / cap).tanh();
                        (*score, slopes[block][t][c]) = (cap * share, 1.0 - share * share);
                    }
                    if cell < first || cell > t {
                        *score = f32::NEG_INFINITY;
                    }
                    peak = peak.max(*score);
                }
            }
            let mut sum = 0.0;
            for scores in &mut scores[..seen] {
                for score in &mut scores[t] {
                    *score = (*score - peak).exp();
                    sum += *score;
                }
            }
            let factor = 1.0 / sum;
            scores[..seen].iter_mut().for_each(|scores| {
                scores[t].iter_mut().for_each(|chance| *chance *= factor);
            });
        }
        (scores, slopes)
    }

    /// Products of rows `(rows, len)` with cells, in blocks of cells; those of cells past a row's
    /// own, of whole blocks, are zero.
    fn products(&self, level: Level, values: &[f32], cells: &Spread) -> Vec<Vec<Lanes>> {
        let (len, rows) = (self.len, values.len() / self.len);
        let mut turned = vec![0.0; len * rows];
        for (t, row) in values.chunks_exact(len).enumerate() {
            row.iter().enumerate().for_each(|(i, &value)| turned[i * rows + t] = value);
        }
        let block = |first: usize| {
            let mut out = vec![[0.0; LANES]; rows];
            let lanes: Vec<Lanes> = (0..len).map(|i| cells.column(first, i)).collect();
            add_products(level, (&turned, rows), 0, &lanes, first..rows, &mut out);
            out
        };
        (0..rows).step_by(LANES).map(block).collect()
    }
}

/// Rows of `len` values in parts of one vector each, the last filled up with zeros.
struct Spread {
    len: usize,
    /// `(parts, rows)`.
    parts: Vec<Vec<Lanes>>,
}

impl Spread {
    fn new(values: &[f32], len: usize) -> Spread {
        let mut spread = Spread { len, parts: Vec::new() };
        for first in (0..len).step_by(LANES) {
            let count = LANES.min(len - first);
            let lanes =
                |row: &[f32]| std::array::from_fn(|i| if i < count { row[first + i] } else { 0.0 });
            spread.parts.push(values.chunks_exact(len).map(lanes).collect());
        }
        spread
    }

    fn zeros(&self) -> Spread {
        let rows = self.parts[0].len();
        Spread { len: self.len, parts: vec![vec![[0.0; LANES]; rows]; self.parts.len()] }
    }

    /// Value `i` of a run of rows; zeros past the last.
    fn column(&self, first: usize, i: usize) -> Lanes {
        let part = &self.parts[i / LANES];
        std::array::from_fn(|row| part.get(first + row).map_or(0.0, |lanes| lanes[i % LANES]))
    }

    fn gather(&self) -> Vec<f32> {
        let rows = self.parts[0].len();
        let mut values = Vec::with_capacity(rows * self.len);
        for row in 0..rows {
            values.extend((0..self.len).map(|i| self.parts[i / LANES][row][i % LANES]));
        }
        values
    }
}

/// `(LANES, rows)`.
fn transposed(rows: &[Lanes]) -> Vec<f32> {
    let mut turned = vec![0.0; rows.len() * LANES];
    for (t, lanes) in rows.iter().enumerate() {
        lanes.iter().enumerate().for_each(|(c, &value)| turned[c * rows.len() + t] = value);
    }
    turned
}
