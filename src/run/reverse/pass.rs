//! One window there and back.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::attention::{Gradients, Head};
use super::tokens::Squares;
use super::{Factors, Product, experts, local, vector, zeros};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Values};
use crate::error::Result;
use crate::plan::{Input, Norm, Op, Part, Plan, Slot};
use crate::simd::Level;

type Shared = Arc<Vec<f32>>;

/// A pass under way.
pub(super) struct Pass<'a> {
    pub(super) backend: Cpu,
    pub(super) plan: Arc<Plan>,
    pub(super) products: &'a HashMap<usize, Product>,
    level: Level,
    pub(super) factors: &'a Factors,
    pub(super) gradient: Factors,
    /// Of the gradients of products, where they are wanted.
    pub(super) squares: Option<Squares>,
    /// What slots hold now.
    values: HashMap<Slot, Shared>,
    /// How the loss changes with what they hold.
    slopes: HashMap<Slot, Vec<f32>>,
    /// By op.
    saved: Vec<Saved>,
}

/// What an op's way back needs.
enum Saved {
    Nothing,
    /// What a norm was taken of.
    Rows(Shared),
    Gated(Shared, Shared),
    /// The products alone, of weights that have factors; nothing of others.
    Products(Vec<Vec<f32>>),
    /// The same, and the expert of each row.
    Experts(Vec<Vec<f32>>, Vec<u32>),
    /// Which experts, and their shares.
    Routed(Vec<u32>, Shared),
    /// What experts said, and their shares.
    Mixed(Shared, Shared),
    Rope {
        /// Queries and keys before the norm.
        before: [Shared; 2],
        /// Queries, keys and values as the cache takes them.
        after: [Shared; 3],
    },
}

impl<'a> Pass<'a> {
    pub(super) fn new(
        backend: Cpu,
        plan: Arc<Plan>,
        products: &'a HashMap<usize, Product>,
        level: Level,
        factors: &'a Factors,
    ) -> Pass<'a> {
        Pass {
            backend,
            plan,
            products,
            level,
            factors,
            gradient: zeros(factors),
            squares: None,
            values: HashMap::new(),
            slopes: HashMap::new(),
            saved: Vec::new(),
        }
    }

    /// What a slot holds now.
    pub(super) fn value(&mut self, slot: Slot) -> Result<Shared> {
        if let Some(value) = self.values.get(&slot) {
            return Ok(value.clone());
        }
        let value = Arc::new(self.backend.read(slot)?.to_f32());
        self.values.insert(slot, value.clone());
        Ok(value)
    }

    /// Runs ops, and keeps what the way back needs.
    pub(super) fn forward(&mut self, ops: Range<usize>) -> Result<()> {
        let plan = self.plan.clone();
        for at in ops {
            let op = &plan.ops[at];
            let before = match op {
                Op::Prepare { input: Input::Rows(x), norm: Some(_), .. } => {
                    Saved::Rows(self.value(*x)?)
                }
                Op::Prepare { input: Input::Gated { gate, up, .. }, .. } => {
                    Saved::Gated(self.value(*gate)?, self.value(*up)?)
                }
                Op::AddNorm { y, .. } => Saved::Rows(self.value(*y)?),
                Op::Mix { y, shares, .. } => Saved::Mixed(self.value(*y)?, self.value(*shares)?),
                Op::Rope { q, k, v, .. } => {
                    let before = [self.value(*q)?, self.value(*k)?];
                    let v = self.value(*v)?;
                    let after = [before[0].clone(), before[1].clone(), v];
                    Saved::Rope { before, after }
                }
                Op::Embed { .. }
                | Op::Angles { .. }
                | Op::Prepare { .. }
                | Op::MatMul { .. }
                | Op::Route { .. }
                | Op::ExpertMatMul { .. }
                | Op::Attend { .. }
                | Op::SoftCap { .. } => Saved::Nothing,
            };
            if let Op::MatMul { parts, .. } = op {
                let products = self.mat_mul(at, parts)?;
                self.saved.push(Saved::Products(products));
                continue;
            }
            if let Op::ExpertMatMul { chosen, parts, .. } = op {
                let chosen = self.indices(*chosen)?;
                let products = self.expert_mat_mul(at, &chosen, parts)?;
                self.saved.push(Saved::Experts(products, chosen));
                continue;
            }
            self.backend.run_ops(at..at + 1)?;
            op.writes().iter().for_each(|slot| drop(self.values.remove(slot)));
            let saved = match (op, before) {
                (Op::Rope { q, k, .. }, Saved::Rope { before, after: [_, _, v] }) => {
                    Saved::Rope { before, after: [self.value(*q)?, self.value(*k)?, v] }
                }
                (Op::Route { chosen, shares, .. }, _) => {
                    Saved::Routed(self.indices(*chosen)?, self.value(*shares)?)
                }
                (_, before) => before,
            };
            self.saved.push(saved);
        }
        Ok(())
    }

    /// The products of an op, with what the plan and the factors want done to them.
    fn mat_mul(&mut self, at: usize, parts: &[Part]) -> Result<Vec<Vec<f32>>> {
        let Product { op, ways } = &self.products[&at];
        self.backend.run_ops(*op..*op + 1)?;
        let mut products = Vec::new();
        for (part, way) in parts.iter().zip(ways) {
            let raw = self.backend.read(way.raw)?.to_f32();
            let plan = self.plan.clone();
            let weight = &plan.weights[part.weight.0];
            let ones = vec![1.0; weight.rows];
            let factors = self.factors.get(&weight.name);
            let is_kept = factors.is_some();
            let factors = factors.unwrap_or(&ones);
            let mut out = match part.add {
                true => self.value(part.out)?.to_vec(),
                false => vec![0.0; raw.len()],
            };
            let bias = part.bias.map(|bias| vector(&plan.weights[bias.0]));
            let rows = out.par_chunks_exact_mut(weight.rows);
            rows.zip(raw.par_chunks_exact(weight.rows)).for_each(|(out, raw)| {
                for ((y, raw), factor) in out.iter_mut().zip(raw).zip(factors) {
                    *y += raw * factor;
                }
                if let Some(bias) = &bias {
                    out.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
                }
            });
            self.put(part.out, out)?;
            products.push(if is_kept { raw } else { Vec::new() });
        }
        Ok(products)
    }

    pub(super) fn put(&mut self, slot: Slot, values: Vec<f32>) -> Result<()> {
        let values = Values::F32(values);
        self.backend.write(slot, &values)?;
        let Values::F32(values) = values else { unreachable!("floats") };
        self.values.insert(slot, Arc::new(values));
        Ok(())
    }

    /// Finds the gradient of every factor, from that of what goes into the op `end`.
    pub(super) fn back(&mut self, end: usize, input: Slot, d_input: Vec<f32>) -> Result<()> {
        let plan = self.plan.clone();
        self.add(input, d_input);
        for at in (0..end).rev() {
            let saved = std::mem::replace(&mut self.saved[at], Saved::Nothing);
            match (&plan.ops[at], saved) {
                // Every row of a window wants logits, so nothing is gathered.
                (Op::Prepare { input, norm, out, .. }, saved) => {
                    self.prepare(*input, *norm, *out, &saved);
                }
                (Op::MatMul { input, parts }, Saved::Products(products)) => {
                    self.products(at, *input, parts, &products)?;
                }
                (Op::ExpertMatMul { input, chosen, parts }, Saved::Experts(products, experts)) => {
                    let (input, chosen) = (*input, *chosen);
                    self.expert_products(at, (input, chosen), parts, (&products, experts))?;
                }
                (Op::Route { scores, shares, .. }, Saved::Routed(chosen, values)) => {
                    let d_shares = self.take(*shares);
                    let experts = plan.slots[scores.0].width;
                    let used = plan.slots[shares.0].width;
                    let d = experts::route(&chosen, &values, &d_shares, (experts, used));
                    self.add(*scores, d);
                }
                (Op::Mix { x, y, shares }, Saved::Mixed(ys, values)) => {
                    let width = plan.slots[x.0].width;
                    let (d_y, d_shares) = experts::mix(&ys, &values, &self.slopes[x], width);
                    self.add(*y, d_y);
                    self.add(*shares, d_shares);
                }
                (op @ Op::Rope { .. }, Saved::Rope { before, after }) => {
                    self.rope(op, &before)?;
                    drop(after);
                }
                (op @ Op::Attend { .. }, _) => self.attend(op),
                (Op::AddNorm { x, y, norm }, Saved::Rows(rows)) => {
                    let d_x = self.slopes[x].clone();
                    let d_y = self.norm(*norm, &rows, d_x);
                    self.add(*y, d_y);
                }
                (Op::Embed { .. } | Op::Angles { .. }, _) => {}
                (op, _) => unreachable!("{} before the head", op.name()),
            }
        }
        Ok(())
    }

    pub(super) fn add(&mut self, slot: Slot, values: Vec<f32>) {
        match self.slopes.get_mut(&slot) {
            Some(slopes) => slopes.iter_mut().zip(values).for_each(|(slope, d)| *slope += d),
            None => drop(self.slopes.insert(slot, values)),
        }
    }

    pub(super) fn take(&mut self, slot: Slot) -> Vec<f32> {
        self.slopes.remove(&slot).expect("every result is used")
    }

    fn prepare(&mut self, input: Input, norm: Option<Norm>, out: Slot, saved: &Saved) {
        let mut d = self.take(out);
        match (input, saved) {
            (Input::Rows(x), Saved::Rows(values)) => {
                let norm = norm.expect("only norms keep rows");
                d = self.norm(norm, values, d);
                self.add(x, d);
            }
            (Input::Rows(x), _) => self.add(x, d),
            (Input::Gated { gate, up, activation }, Saved::Gated(gates, ups)) => {
                self.add(gate, local::gated(activation, gates, ups, &mut d));
                self.add(up, d);
            }
            (Input::Gated { .. }, _) => unreachable!("gates are kept"),
        }
    }

    /// The gradient of a norm's input; adds to that of its factors.
    fn norm(&mut self, norm: Norm, rows: &[f32], mut d: Vec<f32>) -> Vec<f32> {
        let tensor = &self.plan.weights[norm.weight.0];
        let d_factors = local::norm(rows, &vector(tensor), norm.epsilon, &mut d);
        if let Some(gradient) = self.gradient.get_mut(&tensor.name) {
            let factors = &self.factors[&tensor.name];
            for ((gradient, d), factor) in gradient.iter_mut().zip(d_factors).zip(factors) {
                *gradient += d / factor;
            }
        }
        d
    }

    fn products(
        &mut self,
        at: usize,
        input: Slot,
        parts: &[Part],
        products: &[Vec<f32>],
    ) -> Result<()> {
        let ways = &self.products[&at].ways;
        for ((part, way), raw) in parts.iter().zip(ways).zip(products) {
            let mut d = match part.add {
                true => self.slopes[&part.out].clone(),
                false => self.take(part.out),
            };
            let weight = &self.plan.weights[part.weight.0];
            if let Some(factors) = self.factors.get(&weight.name) {
                let gradient = self.gradient.get_mut(&weight.name).expect("as the factors");
                let sums = local::factored(raw, factors, &mut d);
                gradient.iter_mut().zip(sums).for_each(|(gradient, d)| *gradient += d);
            }
            if let Some(squares) = &mut self.squares {
                squares.add(&self.plan.weights[parts[0].weight.0], &d, (weight.rows, 1));
            }
            self.backend.write(way.slopes, &Values::F32(d))?;
            self.backend.run_ops(way.ops.clone())?;
            let back = self.backend.read(way.back)?.to_f32();
            self.add(input, back);
        }
        Ok(())
    }

    fn rope(&mut self, op: &Op, before: &[Shared; 2]) -> Result<()> {
        let Op::Rope { q, k, angles, q_norm, k_norm, pairing, head_len, .. } = op else {
            unreachable!("rope")
        };
        let angles = self.value(*angles)?;
        let width = self.plan.slots[q.0].width;
        let rows = before[0].len() / width;
        for ((slot, norm), before) in [(*q, q_norm), (*k, k_norm)].into_iter().zip(before) {
            let mut d = self.take(slot);
            local::turn_back(&mut d, *head_len, &angles, (rows, *pairing));
            if let Some(norm) = norm {
                d = self.norm(*norm, before, d);
            }
            self.slopes.insert(slot, d);
        }
        Ok(())
    }

    /// From the attention's output to queries, keys and values.
    fn attend(&mut self, op: &Op) {
        let Op::Attend { q, layer, heads, scale, window, soft_cap, out, .. } = op else {
            unreachable!("attend")
        };
        let d_out = self.take(*out);
        let of_layer = |(op, saved): (&Op, &'_ Saved)| match (op, saved) {
            (Op::Rope { k, v, layer: of, head_len, .. }, Saved::Rope { after, .. })
                if of == layer =>
            {
                Some((*k, *v, *head_len, after.clone()))
            }
            _ => None,
        };
        let found = self.plan.ops.iter().zip(&self.saved).find_map(of_layer);
        let (k, v, len, [queries, keys, values]) = found.expect("keys are cached before");
        let kv_heads = self.plan.slots[k.0].width / len;
        let rows = keys.len() / (kv_heads * len);
        let back = |head: usize| {
            let kv = head / (heads / kv_heads);
            let (q, d_out) = (part(&queries, *heads, len, head), part(&d_out, *heads, len, head));
            let (k, v) = (part(&keys, kv_heads, len, kv), part(&values, kv_heads, len, kv));
            let (scale, window, soft_cap) = (*scale, *window, *soft_cap);
            let head = Head { q: &q, k: &k, v: &v, len, scale, window, soft_cap };
            head.back(self.level, &d_out)
        };
        let gradients: Vec<Gradients> = (0..*heads).into_par_iter().map(back).collect();
        let mut d_q = vec![0.0; rows * heads * len];
        let mut d_k = vec![0.0; rows * kv_heads * len];
        let mut d_v = d_k.clone();
        for (head, gradient) in gradients.iter().enumerate() {
            let kv = head / (heads / kv_heads);
            add_part(&mut d_q, &gradient.q, *heads, len, head);
            add_part(&mut d_k, &gradient.k, kv_heads, len, kv);
            add_part(&mut d_v, &gradient.v, kv_heads, len, kv);
        }
        self.add(*q, d_q);
        self.add(k, d_k);
        self.add(v, d_v);
    }
}

/// One head of rows `(rows, heads * len)`.
fn part(values: &[f32], heads: usize, len: usize, head: usize) -> Vec<f32> {
    let rows = values.chunks_exact(heads * len);
    rows.flat_map(|row| &row[head * len..(head + 1) * len]).copied().collect()
}

fn add_part(values: &mut [f32], part: &[f32], heads: usize, len: usize, head: usize) {
    for (row, part) in values.chunks_exact_mut(heads * len).zip(part.chunks_exact(len)) {
        row[head * len..][..len].iter_mut().zip(part).for_each(|(to, from)| *to += from);
    }
}
