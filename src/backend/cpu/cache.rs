//! The keys and values of one layer, laid out for vectors.
//!
//! Per sequence and head, keys stand in blocks of 16 cells with the cell as the fast index, so that
//! scores come out a vector of cells at a time; values stand cell after cell, padded to a vector.

use super::cells::Cells;
use crate::backend::{Capacity, KvFormat};
use crate::plan::CacheInfo;
use crate::simd::Simd;

/// Cells of a block of keys, and what a row of values is padded to: the longest vector.
pub(super) const BLOCK: usize = 16;

/// One layer's.
pub(super) struct Cache {
    pub(super) info: CacheInfo,
    /// Cells per sequence, whole blocks.
    cells: usize,
    pub(super) store: Store,
}

/// Keys and values in some format.
pub(super) enum Store {
    F32(Cells<f32>, Cells<f32>),
    F16(Cells<u16>, Cells<u16>),
}

/// A format of the cache.
pub(super) trait Stored: Copy {
    /// # Safety
    /// `at` is valid for a vector.
    unsafe fn load<S: Simd>(s: S, at: *const Self) -> S::F32;
}

impl Cache {
    pub(super) fn new(info: CacheInfo, capacity: Capacity) -> Cache {
        let cells = capacity.context.next_multiple_of(BLOCK);
        let heads = capacity.sequences * info.heads * cells;
        let (keys, values) = (heads * info.head_len, heads * value_len(info));
        let store = match capacity.kv {
            KvFormat::F32 => Store::F32(Cells::new(keys), Cells::new(values)),
            KvFormat::F16 => Store::F16(Cells::new(keys), Cells::new(values)),
        };
        Cache { info, cells, store }
    }

    /// Where the keys of a head begin.
    pub(super) fn keys_at(&self, sequence: usize, head: usize) -> usize {
        (sequence * self.info.heads + head) * self.cells * self.info.head_len
    }

    /// Where the values of a head begin.
    pub(super) fn values_at(&self, sequence: usize, head: usize) -> usize {
        (sequence * self.info.heads + head) * self.cells * value_len(self.info)
    }

    /// Writes a cell.
    ///
    /// # Safety
    /// Nobody else may use the cell meanwhile.
    pub(super) unsafe fn write(
        &self,
        (sequence, head, cell): (usize, usize, usize),
        key: &[f32],
        value: &[f32],
    ) {
        let block = self.keys_at(sequence, head) + cell / BLOCK * BLOCK * key.len() + cell % BLOCK;
        let row = self.values_at(sequence, head) + cell * value_len(self.info);
        assert!(cell < self.cells && key.len() == self.info.head_len, "a cell of the cache");
        let end = block + (key.len() - 1) * BLOCK;
        // SAFETY: within the buffers, as asserted; the caller vouches for the rest. Keys are
        // written through pointers, since their neighbours in a block may be someone else's.
        unsafe {
            match &self.store {
                Store::F32(keys, values) => {
                    assert!(end < keys.len());
                    for (i, &key) in key.iter().enumerate() {
                        keys.as_ptr().add(block + i * BLOCK).write(key);
                    }
                    values.get_mut(row..row + value.len()).copy_from_slice(value);
                }
                Store::F16(keys, values) => {
                    assert!(end < keys.len());
                    let half = |x: f32| half::f16::from_f32(x).to_bits();
                    for (i, &key) in key.iter().enumerate() {
                        keys.as_ptr().add(block + i * BLOCK).write(half(key));
                    }
                    let values = values.get_mut(row..row + value.len());
                    values.iter_mut().zip(value).for_each(|(to, &value)| *to = half(value));
                }
            }
        }
    }
}

/// From one cell's values to the next.
pub(super) fn value_len(info: CacheInfo) -> usize {
    info.head_len.next_multiple_of(BLOCK)
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const f32) -> S::F32 {
        // SAFETY: as the caller vouches.
        unsafe { s.load(at) }
    }
}

impl Stored for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const u16) -> S::F32 {
        // SAFETY: as the caller vouches.
        unsafe { s.load_f16(at) }
    }
}
