//! How the cache keeps keys and values. Page: `formats/kv.md`.
//!
//! A coded head is cut into groups, each of small unsigned integers under one scale:
//! `value = scale * (code - middle)`. Every backend codes by [`Grid`], so that all keep the same
//! values; how the codes lie in memory is a backend's own affair.

use std::ops::Range;

use half::f16;

use super::{Capacity, uses_cache};
use crate::bail;
use crate::error::Result;
use crate::plan::{CacheInfo, Plan, Turn};
use crate::transform;

/// How the keys and values of the cache are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// Exact, for comparisons.
    F32,
    /// Half the memory.
    F16,
    /// 8-bit codes.
    Q8,
    /// 4-bit codes, of heads that a Hadamard transform has evened out.
    Q4,
    /// In a basis that was calibrated: the eighth of the directions with the largest variance in 8
    /// bits, the others in 4.
    Resq4,
}

/// The basis that a format wants heads in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// The model's own.
    Own,
    /// A Hadamard transform of each head.
    Hadamard,
    /// Matrices that were calibrated, for each head one.
    Matrices,
}

/// Neighbouring values of a head with one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The first value.
    pub start: usize,
    /// Values, a multiple of 4.
    pub len: usize,
    /// 4 or 8 per value.
    pub bits: usize,
}

/// The values that the codes of a group stand for.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// From one value to the next; below zero where the value of largest size is above.
    pub scale: f16,
    inverse: f32,
    middle: f32,
}

/// Values of a group at most: longer ones save little and lose more.
const GROUP: usize = 32;

impl KvFormat {
    /// Every format, as on the command line: `--kv-type f16`.
    pub const ALL: [(&'static str, KvFormat); 5] = [
        ("f32", KvFormat::F32),
        ("f16", KvFormat::F16),
        ("q8", KvFormat::Q8),
        ("q4", KvFormat::Q4),
        ("resq4", KvFormat::Resq4),
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        let found = KvFormat::ALL.iter().find(|(_, format)| *format == self);
        found.expect("every format is listed").0
    }

    /// The basis it wants heads in.
    pub fn wants(self) -> Wants {
        match self {
            KvFormat::F32 | KvFormat::F16 | KvFormat::Q8 => Wants::Own,
            KvFormat::Q4 => Wants::Hadamard,
            KvFormat::Resq4 => Wants::Matrices,
        }
    }

    /// The groups of a head, in order; none for floats.
    pub fn groups(self, head_len: usize) -> Vec<Group> {
        match self {
            KvFormat::F32 | KvFormat::F16 => Vec::new(),
            KvFormat::Q8 => cut(0, head_len, 8),
            KvFormat::Q4 => cut(0, head_len, 4),
            KvFormat::Resq4 => {
                let high = fine_len(head_len);
                let low = cut(high, head_len - high, 4);
                [cut(0, high / 2, 8), cut(high / 2, high / 2, 8), low].concat()
            }
        }
    }

    /// Fails if heads of this length cannot be coded; floats take any.
    ///
    /// # Errors
    /// If codes would not fill whole words, or there are too few values for their groups.
    pub fn check_head(self, head_len: usize) -> Result<()> {
        let is_coded = !self.groups(16).is_empty();
        if is_coded && (head_len < 16 || !head_len.is_multiple_of(8)) {
            let name = self.name();
            bail!(
                "cache type {name}: expected heads of a multiple of 8 values, 16 or more, found \
                 {head_len}"
            );
        }
        Ok(())
    }

    /// Bytes of one head of one key or value.
    pub fn head_bytes(self, head_len: usize) -> usize {
        match self {
            KvFormat::F32 => 4 * head_len,
            KvFormat::F16 => 2 * head_len,
            KvFormat::Q8 | KvFormat::Q4 | KvFormat::Resq4 => {
                self.groups(head_len).iter().map(|group| group.code_bytes() + 2).sum()
            }
        }
    }
}

/// Fails if the caches that some ops use cannot be stored so.
///
/// # Errors
/// If codes would not fill whole words, or a cache is not in the basis that its format wants.
pub fn check(plan: &Plan, capacity: Capacity, ops: Range<usize>) -> Result<()> {
    let (kv, name) = (capacity.kv, capacity.kv.name());
    let used = plan.caches.iter().zip(uses_cache(plan, ops)).filter(|(_, used)| *used);
    for (&CacheInfo { head_len, turn, .. }, _) in used {
        kv.check_head(head_len)?;
        let found = match turn {
            None => Wants::Own,
            Some(Turn::Hadamard(basis)) => {
                transform::check(basis, head_len)?;
                Wants::Hadamard
            }
            Some(Turn::Matrices { .. }) => Wants::Matrices,
        };
        if found != kv.wants() {
            let (expected, found) = (kv.wants().name(), found.name());
            bail!("cache type {name}: expected {expected}, found {found}");
        }
    }
    Ok(())
}

impl Wants {
    fn name(self) -> &'static str {
        match self {
            Wants::Own => "the model's own basis",
            Wants::Hadamard => "a Hadamard transform",
            Wants::Matrices => "matrices",
        }
    }
}

/// Directions of a head that have 8 bits: an eighth, in two halves of whole words.
pub fn fine_len(head_len: usize) -> usize {
    (head_len / 8).next_multiple_of(8)
}

/// As few groups of one length as there can be.
fn cut(start: usize, len: usize, bits: usize) -> Vec<Group> {
    let fits = |count: &usize| len.is_multiple_of(4 * count) && len / count <= GROUP;
    let count = (1..=len / 4).find(fits).expect("a multiple of 4");
    let each = len / count;
    (0..count).map(|i| Group { start: start + i * each, len: each, bits }).collect()
}

impl Group {
    /// Bytes of its codes.
    pub fn code_bytes(&self) -> usize {
        self.len * self.bits / 8
    }

    /// The code of zero.
    pub fn middle(&self) -> f32 {
        (1 << (self.bits - 1)) as f32
    }
}

impl Grid {
    /// The grid of codes of so many bits on which the value of largest size is code 0.
    pub fn of(values: &[f32], bits: usize) -> Grid {
        let middle = (1 << (bits - 1)) as f32;
        let larger = |a: f32, &b: &f32| if b.abs() > a.abs() { b } else { a };
        let scale = values.iter().fold(0.0, larger) / -middle;
        // What is too large for a half is cut, and nothing becomes infinite.
        let most = f16::MAX.to_f32();
        let scale = f16::from_f32(scale.clamp(-most, most));
        let inverse = if scale.to_f32() == 0.0 { 0.0 } else { 1.0 / scale.to_f32() };
        Grid { scale, inverse, middle }
    }

    /// The code next to a value.
    #[inline(always)]
    pub fn code(&self, value: f32) -> u8 {
        let steps = (value * self.inverse).round_ties_even() + self.middle;
        steps.clamp(0.0, 2.0 * self.middle - 1.0) as u8
    }

    /// What a code stands for.
    pub fn value(&self, code: u8) -> f32 {
        self.scale.to_f32() * (f32::from(code) - self.middle)
    }
}

/// What is left of a head in the cache.
pub fn stored(format: KvFormat, head: &[f32]) -> Vec<f32> {
    match format {
        KvFormat::F32 => head.to_vec(),
        KvFormat::F16 => head.iter().map(|&value| f16::from_f32(value).to_f32()).collect(),
        KvFormat::Q8 | KvFormat::Q4 | KvFormat::Resq4 => {
            let groups = format.groups(head.len()).into_iter().flat_map(|group| {
                let values = &head[group.start..group.start + group.len];
                let grid = Grid::of(values, group.bits);
                values.iter().map(move |&value| grid.value(grid.code(value)))
            });
            groups.collect()
        }
    }
}

/// Bytes of cache per token, in all layers that some ops use.
pub fn token_bytes(plan: &Plan, kv: KvFormat, ops: Range<usize>) -> u64 {
    let used = plan.caches.iter().zip(uses_cache(plan, ops)).filter(|(_, used)| *used);
    used.map(|(info, _)| (2 * info.heads * kv.head_bytes(info.head_len)) as u64).sum()
}

/// Bytes of cache that some ops need.
pub fn cache_bytes(plan: &Plan, capacity: Capacity, ops: Range<usize>) -> u64 {
    let cells = (capacity.sequences as u64).saturating_mul(capacity.context as u64);
    cells.saturating_mul(token_bytes(plan, capacity.kv, ops))
}
