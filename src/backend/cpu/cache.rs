//! The keys and values of one layer, laid out for vectors.
//!
//! Per sequence and head, keys stand in blocks of 16 cells with the cell as the fast index, so that
//! scores come out a vector of cells at a time; values stand cell after cell, padded to a vector.

use super::cells::Cells;
use super::codes::Codes;
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
    F32(Floats<f32>),
    F16(Floats<u16>),
    Codes(Codes),
}

/// Keys and values as floats.
pub(super) struct Floats<K> {
    pub(super) keys: Cells<K>,
    pub(super) values: Cells<K>,
    pub(super) len: usize,
}

/// A format of floats.
pub(super) trait Stored: Copy {
    /// # Safety
    /// `at` is valid for a vector.
    unsafe fn load<S: Simd>(s: S, at: *const Self) -> S::F32;

    /// What is left of a float.
    fn of(value: f32) -> Self;
}

impl Cache {
    pub(super) fn new(info: CacheInfo, capacity: Capacity) -> Cache {
        let cells = capacity.context.next_multiple_of(BLOCK);
        let all = capacity.sequences * info.heads * cells;
        let store = match capacity.kv {
            KvFormat::F32 => Store::F32(Floats::new(info.head_len, all)),
            KvFormat::F16 => Store::F16(Floats::new(info.head_len, all)),
            KvFormat::Q8 | KvFormat::Q4 | KvFormat::Resq4 => {
                Store::Codes(Codes::new(capacity.kv.groups(info.head_len), all))
            }
        };
        Cache { info, cells, store }
    }

    /// Where the cells of a head begin, among those of all heads.
    pub(super) fn head_at(&self, sequence: usize, head: usize) -> usize {
        (sequence * self.info.heads + head) * self.cells
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
        assert!(cell < self.cells && key.len() == self.info.head_len, "a cell of the cache");
        assert_eq!(key.len(), value.len(), "a value for each key");
        let at = self.head_at(sequence, head) + cell;
        // SAFETY: as the caller vouches.
        unsafe {
            match &self.store {
                Store::F32(floats) => floats.write(at, key, value),
                Store::F16(floats) => floats.write(at, key, value),
                Store::Codes(codes) => codes.write(at, key, value),
            }
        }
    }
}

impl<K: Stored + bytemuck::Zeroable> Floats<K> {
    fn new(len: usize, cells: usize) -> Floats<K> {
        Floats { keys: Cells::new(cells * len), values: Cells::new(cells * padded(len)), len }
    }

    /// # Safety
    /// As [`Cache::write`].
    unsafe fn write(&self, cell: usize, key: &[f32], value: &[f32]) {
        let block = cell / BLOCK * BLOCK * self.len + cell % BLOCK;
        let row = cell * padded(self.len);
        assert!(block + (key.len() - 1) * BLOCK < self.keys.len(), "a cell of the cache");
        // SAFETY: within the buffers, as asserted; the caller vouches for the rest. Keys are
        // written through pointers, since their neighbours in a block may be someone else's.
        unsafe {
            for (i, &key) in key.iter().enumerate() {
                self.keys.as_ptr().add(block + i * BLOCK).write(K::of(key));
            }
            let values = self.values.get_mut(row..row + value.len());
            values.iter_mut().zip(value).for_each(|(to, &value)| *to = K::of(value));
        }
    }
}

/// From one cell's values to the next.
pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(BLOCK)
}

impl Stored for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const f32) -> S::F32 {
        // SAFETY: as the caller vouches.
        unsafe { s.load(at) }
    }

    fn of(value: f32) -> f32 {
        value
    }
}

impl Stored for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, at: *const u16) -> S::F32 {
        // SAFETY: as the caller vouches.
        unsafe { s.load_f16(at) }
    }

    fn of(value: f32) -> u16 {
        half::f16::from_f32(value).to_bits()
    }
}
