//! Experts, there and back. Who is chosen does not change with a small step, so the way back leads
//! through the chosen experts and their shares alone.

use rayon::prelude::*;

use super::pass::Pass;
use super::{Make, Product, RAW, Way, put_product, slot, turned};
use crate::backend::{Backend, Values};
use crate::error::Result;
use crate::plan::{ExpertPart, Extent, Op, Plan, Slot};

/// Puts a product without factors behind the plan's ops, and the ways back.
pub(super) fn add_product(
    plan: &mut Plan,
    (input, chosen): (Slot, Slot),
    parts: &[ExpertPart],
    make: Make,
) -> Result<Product> {
    let (mut ways, mut plain) = (Vec::new(), Vec::new());
    for (part, name) in parts.iter().zip(RAW) {
        let weight = plan.weights[part.weight.0].clone();
        let rows = plan.slots[part.out.0].width;
        let each = Extent::Chosen(plan.slots[chosen.0].width);
        let [raw, slopes, back] = [
            slot(plan, name, each, rows),
            slot(plan, "slopes", each, rows),
            slot(plan, "back", each, weight.cols),
        ];
        let turned = make(&turned(&weight, weight.rows / rows)?)?;
        let ops = put_product(plan, slopes, turned, |input, weight| Op::ExpertMatMul {
            input,
            chosen,
            parts: vec![ExpertPart { weight, out: back }],
        });
        ways.push(Way { raw, slopes, ops, back });
        plain.push(ExpertPart { out: raw, ..*part });
    }
    plan.ops.push(Op::ExpertMatMul { input, chosen, parts: plain });
    Ok(Product { op: plan.ops.len() - 1, ways })
}

impl Pass<'_> {
    /// What a slot of indices holds now.
    pub(super) fn indices(&mut self, slot: Slot) -> Result<Vec<u32>> {
        let Values::U32(values) = self.backend.read(slot)? else { unreachable!("indices") };
        Ok(values)
    }

    /// The products of an op, with the factors of the chosen experts' rows.
    pub(super) fn expert_mat_mul(
        &mut self,
        at: usize,
        chosen: &[u32],
        parts: &[ExpertPart],
    ) -> Result<Vec<Vec<f32>>> {
        let Product { op, ways } = &self.products[&at];
        self.backend.run_ops(*op..*op + 1)?;
        let mut products = Vec::new();
        for (part, way) in parts.iter().zip(ways) {
            let raw = self.backend.read(way.raw)?.to_f32();
            let mut out = raw.clone();
            let factors = self.factors.get(&self.plan.weights[part.weight.0].name);
            if let Some(factors) = factors {
                let rows = self.plan.slots[part.out.0].width;
                out.par_chunks_exact_mut(rows).zip(chosen).for_each(|(out, &expert)| {
                    let factors = &factors[expert as usize * rows..][..rows];
                    out.iter_mut().zip(factors).for_each(|(y, factor)| *y *= factor);
                });
            }
            products.push(if factors.is_some() { raw } else { Vec::new() });
            self.put(part.out, out)?;
        }
        Ok(products)
    }

    /// From the gradient of an op's outputs to that of its input.
    pub(super) fn expert_products(
        &mut self,
        at: usize,
        (input, chosen): (Slot, Slot),
        parts: &[ExpertPart],
        (products, experts): (&[Vec<f32>], Vec<u32>),
    ) -> Result<()> {
        let (ways, plan) = (&self.products[&at].ways, self.plan.clone());
        for ((part, way), raw) in parts.iter().zip(ways).zip(products) {
            let mut d = self.take(part.out);
            let name = &plan.weights[part.weight.0].name;
            if let Some(factors) = self.factors.get(name) {
                let gradient = self.gradient.get_mut(name).expect("as the factors");
                factored(raw, (factors, &experts), &mut d, gradient);
            }
            let sharing = match plan.slots[input.0].extent {
                Extent::Chosen(_) => 1,
                Extent::Tokens | Extent::LogitRows => plan.slots[chosen.0].width,
            };
            if let Some(squares) = &mut self.squares {
                let shape = (plan.slots[part.out.0].width, sharing);
                squares.add(&plan.weights[parts[0].weight.0], &d, shape);
            }
            // The layers share the slot: those chosen here are written once more.
            self.backend.write(chosen, &Values::U32(experts.clone()))?;
            self.backend.write(way.slopes, &Values::F32(d))?;
            self.backend.run_ops(way.ops.clone())?;
            let back = self.backend.read(way.back)?.to_f32();
            let width = plan.slots[input.0].width;
            self.add(input, summed(&back, width, sharing));
        }
        Ok(())
    }
}

/// Sums of so many neighbouring rows.
fn summed(rows: &[f32], width: usize, count: usize) -> Vec<f32> {
    let mut sums = vec![0.0; rows.len() / count];
    let all = sums.par_chunks_exact_mut(width).zip(rows.par_chunks_exact(count * width));
    all.for_each(|(sum, rows)| {
        for row in rows.chunks_exact(width) {
            sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
    });
    sums
}

/// From the gradient of factored outputs to that of the products, in place; adds that of the
/// factors, row by row, so that sums do not depend on how many threads there are.
fn factored(raw: &[f32], (factors, chosen): (&[f32], &[u32]), d: &mut [f32], sums: &mut [f32]) {
    let width = raw.len() / chosen.len();
    let rows = raw.chunks_exact(width).zip(d.chunks_exact_mut(width));
    for ((raw, d), &expert) in rows.zip(chosen) {
        let own = expert as usize * width..(expert as usize + 1) * width;
        let sums = sums[own.clone()].iter_mut();
        for (((raw, d), factor), sum) in raw.iter().zip(d).zip(&factors[own]).zip(sums) {
            *sum += raw * *d;
            *d *= factor;
        }
    }
}

/// From the gradient of the shares to that of the scores, of which those of the chosen count.
pub(super) fn route(
    chosen: &[u32],
    shares: &[f32],
    d_shares: &[f32],
    (experts, used): (usize, usize),
) -> Vec<f32> {
    let mut d_scores = vec![0.0; chosen.len() / used * experts];
    let rows = chosen.chunks_exact(used).zip(shares.chunks_exact(used));
    let rows = rows.zip(d_shares.chunks_exact(used)).zip(d_scores.chunks_exact_mut(experts));
    for (((chosen, shares), d_shares), d_scores) in rows {
        let mean: f32 = shares.iter().zip(d_shares).map(|(share, d)| share * d).sum();
        for ((&expert, share), d) in chosen.iter().zip(shares).zip(d_shares) {
            d_scores[expert as usize] = share * (d - mean);
        }
    }
    d_scores
}

/// From the gradient of the sum to those of what each expert said, and of its share.
pub(super) fn mix(y: &[f32], shares: &[f32], d: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let used = shares.len() / (d.len() / width);
    let mut d_y = vec![0.0; y.len()];
    let mut d_shares = vec![0.0; shares.len()];
    let each = d_y.par_chunks_exact_mut(width).zip(&mut d_shares).zip(y.par_chunks_exact(width));
    each.zip(shares).enumerate().for_each(|(at, (((d_y, d_share), y), share))| {
        let d = &d[at / used * width..][..width];
        *d_share = y.iter().zip(d).map(|(y, d)| y * d).sum();
        d_y.iter_mut().zip(d).for_each(|(to, d)| *to = share * d);
    });
    (d_y, d_shares)
}
