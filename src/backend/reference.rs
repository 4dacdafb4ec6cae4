//! Plain loops, one function per op, one thread, f32 and integers: the oracle.
//!
//! Sums run in f64 so that an error here cannot hide one elsewhere. Int8 activations obey the rule
//! of `formats/activations.md`, so that `verify` compares like with like.

use std::ops::Range;
use std::sync::Arc;

use super::levels::levels;
use super::{Backend, Capacity, Values, check, kv, uses_cache};
use crate::error::Result;
use crate::plan::{
    Activation, Batch, CacheInfo, ExpertPart, Format, Input, Norm, Op, Pairing, Part, Plan, Slot,
    Transform, Turn, Weight,
};
use crate::transform::plain;
use crate::types::Tensor;

/// The oracle.
pub struct Reference {
    plan: Arc<Plan>,
    capacity: Capacity,
    slots: Vec<Values>,
    /// Keys and values per layer, `(sequence, cell, heads * head_len)`.
    caches: Vec<(Vec<f32>, Vec<f32>)>,
    rows: usize,
    logit_rows: usize,
}

impl Reference {
    /// Reserves the cache; slots grow as they are written.
    pub fn new(plan: Arc<Plan>, capacity: Capacity) -> Reference {
        let ops = 0..plan.ops.len();
        Reference::with_ops(plan, capacity, ops)
    }

    /// As [`Reference::new`], to run some of the ops only.
    pub fn with_ops(plan: Arc<Plan>, capacity: Capacity, ops: Range<usize>) -> Reference {
        let cells = capacity.sequences * capacity.context;
        let uses = uses_cache(&plan, ops);
        let cache = |(layer, info): (usize, &CacheInfo)| {
            let width = if uses[layer] { info.heads * info.head_len } else { 0 };
            (vec![0.0; cells * width], vec![0.0; cells * width])
        };
        let caches = plan.caches.iter().enumerate().map(cache).collect();
        let slots = vec![Values::F32(Vec::new()); plan.slots.len()];
        Reference { plan, capacity, slots, caches, rows: 0, logit_rows: 0 }
    }

    fn f32(&self, slot: Slot) -> &[f32] {
        match &self.slots[slot.0] {
            Values::F32(values) => values,
            other => panic!("slot {} holds {other:?}, not floats", slot.0),
        }
    }

    fn u32(&self, slot: Slot) -> Vec<usize> {
        match &self.slots[slot.0] {
            Values::U32(values) => values.iter().map(|&value| value as usize).collect(),
            other => panic!("slot {} holds {other:?}, not indices", slot.0),
        }
    }

    fn extent(&self, slot: Slot) -> usize {
        self.plan.slots[slot.0].extent.rows(self.rows, self.logit_rows)
    }

    fn vector(&self, norm: Norm) -> Vec<f32> {
        decode(&self.plan.weights[norm.weight.0], 0)
    }

    /// The heads of queries, of keys (which use their matrices, too) or of values, row after row,
    /// in the basis of a layer's cache, or from it.
    fn turn(&self, layer: usize, of: Of, is_back: bool, rows: &mut [f32]) {
        let CacheInfo { heads: kv_heads, head_len, turn } = self.plan.caches[layer];
        let heads = rows.len() / self.rows / head_len;
        let matrix = match (turn, of) {
            (Some(Turn::Matrices { keys, .. }), Of::Keys) => self.rows_of(keys),
            (Some(Turn::Matrices { values, .. }), Of::Values) => self.rows_of(values),
            (Some(Turn::Hadamard(_)) | None, _) => Vec::new(),
        };
        for (i, head) in rows.chunks_exact_mut(head_len).enumerate() {
            match turn {
                None => {}
                Some(Turn::Hadamard(basis)) if is_back => plain::inverse(basis, &[], head),
                Some(Turn::Hadamard(basis)) => plain::forward(basis, &[], head),
                Some(Turn::Matrices { .. }) => {
                    let first = i % heads / (heads / kv_heads) * head_len;
                    let rows = &matrix[first..first + head_len];
                    head.copy_from_slice(&turned(rows, is_back, head));
                }
            }
        }
    }

    fn rows_of(&self, weight: Weight) -> Vec<Vec<f32>> {
        let weight = &self.plan.weights[weight.0];
        (0..weight.rows).map(|row| decode(weight, row)).collect()
    }

    fn op(&mut self, op: &Op) {
        match op {
            Op::Embed { tokens, table, transform, scale, out } => {
                let tokens = self.u32(*tokens);
                let table = &self.plan.weights[table.0];
                let rows = tokens.iter().flat_map(|&token| {
                    let mut row = decode(table, token);
                    if let Some(Transform { basis, signs }) = transform {
                        let signs = signs_of(&self.plan, *signs);
                        plain::inverse(*basis, signs, &mut row);
                    }
                    row.into_iter().map(|value| value * scale)
                });
                self.slots[out.0] = Values::F32(rows.collect());
            }
            Op::Angles { positions, frequencies, amplitude, out } => {
                let frequencies = decode(&self.plan.weights[frequencies.0], 0);
                let angles = self.u32(*positions).into_iter().flat_map(|position| {
                    frequencies.iter().flat_map(move |&frequency| {
                        let (sin, cos) = (position as f64 * f64::from(frequency)).sin_cos();
                        [cos as f32 * amplitude, sin as f32 * amplitude]
                    })
                });
                self.slots[out.0] = Values::F32(angles.collect());
            }
            Op::Prepare { input, rows, norm, transform, out } => {
                self.prepare(*input, *rows, *norm, *transform, *out);
            }
            Op::MatMul { input, parts } => {
                let x = self.slots[input.0].to_f32();
                for part in parts {
                    self.mat_mul(&x, self.extent(*input), part);
                }
            }
            Op::Route { scores, chosen, shares } => self.route(*scores, *chosen, *shares),
            Op::ExpertMatMul { input, chosen, parts } => {
                let x = self.slots[input.0].to_f32();
                for part in parts {
                    self.expert_mat_mul(&x, &self.u32(*chosen), part);
                }
            }
            Op::Mix { x, y, shares } => self.mix(*x, *y, *shares),
            Op::Rope { .. } => self.rope(op),
            Op::Attend { .. } => self.attend(op),
            Op::AddNorm { x, y, norm } => {
                let weight = self.vector(*norm);
                let mut sum = self.f32(*x).to_vec();
                let addends = self.f32(*y).chunks_exact(weight.len());
                for (x, y) in sum.chunks_exact_mut(weight.len()).zip(addends) {
                    let mut y = y.to_vec();
                    rms_norm(&mut y, &weight, norm.epsilon);
                    x.iter_mut().zip(&y).for_each(|(x, y)| *x += y);
                }
                self.slots[x.0] = Values::F32(sum);
            }
            Op::SoftCap { x, cap } => {
                let capped = self.f32(*x).iter().map(|x| cap * (x / cap).tanh());
                self.slots[x.0] = Values::F32(capped.collect());
            }
        }
    }

    fn prepare(
        &mut self,
        input: Input,
        rows: Option<Slot>,
        norm: Option<Norm>,
        transform: Option<Transform>,
        out: Slot,
    ) {
        let width = self.plan.slots[out.0].width;
        let all: Vec<f32> = match input {
            Input::Rows(slot) => self.f32(slot).to_vec(),
            Input::Gated { gate, up, activation } => {
                let pairs = self.f32(gate).iter().zip(self.f32(up));
                pairs.map(|(&gate, up)| activate(activation, gate) * up).collect()
            }
        };
        let mut values = match rows {
            None => all,
            Some(rows) => {
                let row = |row: usize| all[row * width..(row + 1) * width].to_vec();
                self.u32(rows).into_iter().flat_map(row).collect()
            }
        };
        for row in values.chunks_exact_mut(width) {
            if let Some(norm) = norm {
                rms_norm(row, &self.vector(norm), norm.epsilon);
            }
            if let Some(Transform { basis, signs }) = transform {
                plain::forward(basis, signs_of(&self.plan, signs), row);
            }
        }
        self.slots[out.0] = match self.plan.slots[out.0].format {
            Format::Int8 { group, coarse: 0 } => quantise(&values, group),
            Format::Int8 { group, coarse } => {
                let (mut codes, mut scales) = (vec![0; values.len()], Vec::new());
                for (row, codes) in values.chunks_exact(width).zip(codes.chunks_exact_mut(width)) {
                    let [low, high] = levels(row, coarse, codes);
                    scales.extend(
                        (0..width).step_by(group).map(|at| if at < coarse { low } else { high }),
                    );
                }
                Values::Int8 { codes, scales }
            }
            Format::F32 => Values::F32(values),
            Format::U32 => unreachable!("activations are not indices"),
        };
    }

    fn mat_mul(&mut self, x: &[f32], tokens: usize, part: &Part) {
        let plan = self.plan.clone();
        let weight = &plan.weights[part.weight.0];
        let bias = part.bias.map(|bias| decode(&plan.weights[bias.0], 0));
        let mut out = match part.add {
            true => self.f32(part.out).to_vec(),
            false => vec![0.0; tokens * weight.rows],
        };
        for r in 0..weight.rows {
            let row = decode(weight, r);
            let bias = bias.as_ref().map_or(0.0, |bias| bias[r]);
            for (t, x) in x.chunks_exact(weight.cols).enumerate() {
                out[t * weight.rows + r] += (dot(&row, x) + f64::from(bias)) as f32;
            }
        }
        self.slots[part.out.0] = Values::F32(out);
    }

    fn route(&mut self, scores: Slot, chosen: Slot, shares: Slot) {
        let [experts, used] = [scores, chosen].map(|slot| self.plan.slots[slot.0].width);
        let (mut all_chosen, mut all_shares) = (Vec::new(), Vec::new());
        for scores in self.f32(scores).chunks_exact(experts) {
            let mut order: Vec<usize> = (0..experts).collect();
            // A stable sort: of equal scores the smaller number stays first.
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            order.truncate(used);
            let score = |&expert: &usize| f64::from(scores[expert]);
            let powers = order.iter().map(|expert| (score(expert) - score(&order[0])).exp());
            let powers: Vec<f64> = powers.collect();
            let total: f64 = powers.iter().sum();
            all_shares.extend(powers.iter().map(|power| (power / total) as f32));
            all_chosen.extend(order.iter().map(|&expert| expert as u32));
        }
        self.slots[chosen.0] = Values::U32(all_chosen);
        self.slots[shares.0] = Values::F32(all_shares);
    }

    fn expert_mat_mul(&mut self, x: &[f32], chosen: &[usize], part: &ExpertPart) {
        let plan = self.plan.clone();
        let weight = &plan.weights[part.weight.0];
        let rows = plan.slots[part.out.0].width;
        // Choices that share an input.
        let sharing = chosen.len() * weight.cols / x.len();
        let mut out = Vec::with_capacity(chosen.len() * rows);
        for (i, &expert) in chosen.iter().enumerate() {
            let x = &x[i / sharing * weight.cols..][..weight.cols];
            let product = |r| dot(&decode(weight, expert * rows + r), x) as f32;
            out.extend((0..rows).map(product));
        }
        self.slots[part.out.0] = Values::F32(out);
    }

    fn mix(&mut self, x: Slot, y: Slot, shares: Slot) {
        let [width, used] = [x, shares].map(|slot| self.plan.slots[slot.0].width);
        let mut sums = self.f32(x).to_vec();
        let rows = self.f32(shares).chunks_exact(used).zip(self.f32(y).chunks_exact(used * width));
        for (sum, (shares, y)) in sums.chunks_exact_mut(width).zip(rows) {
            for (i, sum) in sum.iter_mut().enumerate() {
                let terms = shares.iter().zip(y.chunks_exact(width));
                let mixed: f64 = terms.map(|(&share, y)| f64::from(share) * f64::from(y[i])).sum();
                *sum = (f64::from(*sum) + mixed) as f32;
            }
        }
        self.slots[x.0] = Values::F32(sums);
    }

    fn rope(&mut self, op: &Op) {
        let Op::Rope { q, k, v, angles, q_norm, k_norm, pairing, head_len, .. } = op else {
            unreachable!()
        };
        let Op::Rope { positions, sequences, layer, .. } = op else { unreachable!() };
        let width = self.plan.slots[angles.0].width;
        let angles = self.f32(*angles).to_vec();
        for (slot, norm) in [(*q, q_norm), (*k, k_norm)] {
            let mut values = self.f32(slot).to_vec();
            let heads = self.plan.slots[slot.0].width / head_len;
            for (i, head) in values.chunks_exact_mut(*head_len).enumerate() {
                if let Some(norm) = norm {
                    rms_norm(head, &self.vector(*norm), norm.epsilon);
                }
                rotate(head, &angles[i / heads * width..][..width], *pairing);
            }
            self.turn(*layer, Of::Keys, false, &mut values);
            self.slots[slot.0] = Values::F32(values);
        }
        let info = self.plan.caches[*layer];
        let width = info.heads * info.head_len;
        let keys = self.f32(*k).to_vec();
        let mut values = self.f32(*v).to_vec();
        self.turn(*layer, Of::Values, false, &mut values);
        let kv = self.capacity.kv;
        let stored = |rows: &[f32]| -> Vec<f32> {
            rows.chunks_exact(info.head_len).flat_map(|head| kv::stored(kv, head)).collect()
        };
        let cells = self.u32(*sequences).into_iter().zip(self.u32(*positions));
        for (t, (sequence, position)) in cells.enumerate() {
            let cell = (sequence * self.capacity.context + position) * width;
            let row = t * width..(t + 1) * width;
            let cache = &mut self.caches[*layer];
            cache.0[cell..cell + width].copy_from_slice(&stored(&keys[row.clone()]));
            cache.1[cell..cell + width].copy_from_slice(&stored(&values[row]));
        }
    }

    fn attend(&mut self, op: &Op) {
        let Op::Attend { q, positions, sequences, layer, heads, scale, window, soft_cap, out } = op
        else {
            unreachable!()
        };
        let info = self.plan.caches[*layer];
        let (len, width) = (info.head_len, info.heads * info.head_len);
        let (keys, values) = &self.caches[*layer];
        let queries = self.f32(*q);
        let mut result = vec![0.0; queries.len()];
        let rows = self.u32(*sequences).into_iter().zip(self.u32(*positions));
        for (t, (sequence, position)) in rows.enumerate() {
            let first = window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
            for head in 0..*heads {
                let at = (t * heads + head) * len;
                let kv_head = head / (heads / info.heads);
                let cell = |cell: usize| {
                    let start = (sequence * self.capacity.context + cell) * width + kv_head * len;
                    start..start + len
                };
                let score = |c: usize| {
                    let score = dot(&queries[at..at + len], &keys[cell(c)]) * f64::from(*scale);
                    soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                };
                let scores: Vec<f64> = (first..=position).map(score).collect();
                let peak = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let weights: Vec<f64> = scores.iter().map(|score| (score - peak).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..len {
                    let terms = (first..=position).zip(&weights);
                    let sum: f64 =
                        terms.map(|(c, weight)| weight * f64::from(values[cell(c)][i])).sum();
                    result[at + i] = (sum / total) as f32;
                }
            }
        }
        self.turn(*layer, Of::Values, true, &mut result);
        self.slots[out.0] = Values::F32(result);
    }
}

/// Which of the matrices of a cache.
#[derive(Clone, Copy)]
enum Of {
    Keys,
    Values,
}

/// A matrix, or its transpose, times a head.
fn turned(rows: &[Vec<f32>], is_back: bool, head: &[f32]) -> Vec<f32> {
    let column = |i: usize| rows.iter().map(|row| row[i]).collect::<Vec<f32>>();
    let products = (0..head.len()).map(|i| match is_back {
        true => dot(&column(i), head) as f32,
        false => dot(&rows[i], head) as f32,
    });
    products.collect()
}

impl Backend for Reference {
    fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn load(&mut self, batch: &Batch) -> Result<()> {
        check(batch, &self.plan, self.capacity)?;
        self.rows = batch.len();
        self.logit_rows = batch.logit_rows.len();
        self.slots[self.plan.tokens.0] = Values::U32(batch.tokens.clone());
        self.slots[self.plan.positions.0] = Values::U32(batch.positions.clone());
        self.slots[self.plan.sequences.0] = Values::U32(batch.sequences.clone());
        self.slots[self.plan.logit_rows.0] = Values::U32(batch.logit_rows.clone());
        Ok(())
    }

    fn run_ops(&mut self, ops: Range<usize>) -> Result<()> {
        let plan = self.plan.clone();
        plan.ops[ops].iter().for_each(|op| self.op(op));
        Ok(())
    }

    fn logits(&mut self) -> Result<&mut [f32]> {
        match &mut self.slots[self.plan.logits.0] {
            Values::F32(values) => Ok(values),
            other => panic!("logits are {other:?}, not floats"),
        }
    }

    fn read(&mut self, slot: Slot) -> Result<Values> {
        Ok(self.slots[slot.0].clone())
    }

    fn write(&mut self, slot: Slot, values: &Values) -> Result<()> {
        self.slots[slot.0] = values.clone();
        Ok(())
    }
}

fn decode(weight: &Tensor, row: usize) -> Vec<f32> {
    let mut values = vec![0.0; weight.cols];
    weight.kind.decode(&weight.rows(row..row + 1), &mut values);
    values
}

fn signs_of(plan: &Plan, weight: Weight) -> &[i8] {
    bytemuck::cast_slice(&plan.weights[weight.0].signs)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn rms_norm(row: &mut [f32], weight: &[f32], epsilon: f32) {
    let mean = dot(row, row) / row.len() as f64;
    let factor = 1.0 / (mean + f64::from(epsilon)).sqrt();
    let scaled = row.iter_mut().zip(weight);
    scaled.for_each(|(x, &weight)| *x = (f64::from(*x) * factor * f64::from(weight)) as f32);
}

fn activate(activation: Activation, x: f32) -> f32 {
    let x = f64::from(x);
    let y = match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
    };
    y as f32
}

/// The rule of `formats/activations.md`.
fn quantise(values: &[f32], group: usize) -> Values {
    let mut codes = Vec::with_capacity(values.len());
    let mut scales = Vec::with_capacity(values.len() / group);
    for group in values.chunks_exact(group) {
        let peak = group.iter().fold(0.0f32, |peak, value| peak.max(value.abs()));
        let inverse = if peak == 0.0 { 0.0 } else { 127.0 / peak };
        scales.push(peak / 127.0);
        codes.extend(
            group
                .iter()
                .map(|value| (value * inverse).clamp(-127.0, 127.0).round_ties_even() as i8),
        );
    }
    Values::Int8 { codes, scales }
}

/// Turns the pairs of one head by the angles `(cos, sin, cos, sin, ...)`.
fn rotate(head: &mut [f32], angles: &[f32], pairing: Pairing) {
    let pairs = angles.len() / 2;
    for (i, angle) in angles.chunks_exact(2).enumerate() {
        let (a, b) = pairing.values(i, pairs);
        let (x, y) = (f64::from(head[a]), f64::from(head[b]));
        let (cos, sin) = (f64::from(angle[0]), f64::from(angle[1]));
        head[a] = (x * cos - y * sin) as f32;
        head[b] = (x * sin + y * cos) as f32;
    }
}
