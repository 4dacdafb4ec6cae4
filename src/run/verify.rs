//! Two backends side by side, op by op: which slot is the first to differ?
//!
//! Before each op both backends hold the same values, so an error is charged to its op.

use std::collections::BTreeMap;

use crate::backend::{Backend, KvFormat};
use crate::error::Result;
use crate::plan::{Batch, Format, Op};

/// How far one op of the tested backend is from the oracle's.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Where the op stands in the plan.
    pub op: usize,
    /// Its name.
    pub name: &'static str,
    /// The slot it wrote.
    pub slot: &'static str,
    /// RMS of the difference over the RMS of the oracle's values.
    pub error: f64,
    /// The most that rounding explains.
    pub tolerance: f64,
}

impl Difference {
    /// Whether rounding explains it.
    pub fn is_fine(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// The largest difference of every kind of op, in order of first appearance.
pub fn worst(differences: &[Difference]) -> Vec<Difference> {
    let mut worst: BTreeMap<(&str, &str), Difference> = BTreeMap::new();
    for difference in differences {
        let entry = worst.entry((difference.name, difference.slot));
        let kept = entry.or_insert_with(|| difference.clone());
        if difference.error > kept.error || difference.error.is_nan() {
            *kept = difference.clone();
        }
    }
    let mut worst: Vec<Difference> = worst.into_values().collect();
    worst.sort_by_key(|difference| difference.op);
    worst
}

/// Runs a batch on both, op by op; `progress` hears how many ops are done.
///
/// # Errors
/// If either refuses the batch.
pub fn verify(
    oracle: &mut dyn Backend,
    tested: &mut dyn Backend,
    batch: &Batch,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Difference>> {
    let plan = oracle.plan().clone();
    oracle.load(batch)?;
    tested.load(batch)?;
    let mut differences = Vec::new();
    for (i, op) in plan.ops.iter().enumerate() {
        oracle.run_ops(i..i + 1)?;
        tested.run_ops(i..i + 1)?;
        for slot in op.writes() {
            let expected = oracle.read(slot)?;
            let found = tested.read(slot)?;
            differences.push(Difference {
                op: i,
                name: op.name(),
                slot: plan.slots[slot.0].name,
                error: relative_error(&expected.to_f32(), &found.to_f32()),
                tolerance: tolerance(op, plan.slots[slot.0].format, oracle.capacity().kv)
                    + if matches!(op, Op::MatMul { .. }) { tested.product_error() } else { 0.0 },
            });
            tested.write(slot, &expected)?;
        }
        progress(i + 1);
    }
    Ok(differences)
}

/// What a different order of f32 sums explains.
///
/// A sum of a few thousand terms in f32 is off by some 1e-6 of its size; soft caps and exponentials
/// keep that. An activation next to the middle between two codes may take either: one step of
/// 1 / 127 of the peak, or 1 / 15 of the range where it is coarse, on the rare value that stands
/// there. A key that goes into a half-precision cache from next to the middle between two halves
/// may become either, too: they are 2^-11 of its size away, and the cache is no slot that could be
/// made equal. The scale of a group of codes is such a half; and a code next to the middle between
/// two may become either: a step, 1/128 or 1/8 of a group's peak, for one in some thousands.
fn tolerance(op: &Op, format: Format, kv: KvFormat) -> f64 {
    match (op, format) {
        (_, Format::U32) => 0.0,
        (_, Format::Int8 { coarse: 0, .. }) => 1e-3,
        (_, Format::Int8 { .. }) => 1e-2,
        (Op::Attend { .. }, Format::F32) => match kv {
            KvFormat::F32 => 2e-5,
            KvFormat::F16 => 0.5_f64.powi(11),
            KvFormat::Q8 => 0.5_f64.powi(10),
            KvFormat::Q4 | KvFormat::Resq4 => 0.5_f64.powi(9),
        },
        (_, Format::F32) => 1e-5,
    }
}

/// RMS of the difference over the RMS of what is expected.
pub fn relative_error(expected: &[f32], found: &[f32]) -> f64 {
    assert_eq!(expected.len(), found.len(), "both backends ran the same batch");
    let square = |value: f32| f64::from(value).powi(2);
    let signal: f64 = expected.iter().map(|&value| square(value)).sum();
    let noise: f64 = expected.iter().zip(found).map(|(a, b)| square(a - b)).sum();
    if noise == 0.0 { 0.0 } else { (noise / signal.max(f64::MIN_POSITIVE)).sqrt() }
}
