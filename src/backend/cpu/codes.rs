//! The cache as small codes, and attention on the codes as they are.
//!
//! ```text
//! score = sum over groups of scale * (q . codes - middle * sum of q)
//! out   = sum over cells of (weight * scale) * codes - middle * sum of (weight * scale)
//! ```
//!
//! A vector of keys is 16 cells, a vector of values some of a cell's directions, as with floats. A
//! byte of 4-bit codes has code `i` of a group in its low half, and code `i + len / 2` in its high
//! half, so that bytes come out as two vectors. A vector of values may reach past its group: those
//! lanes are summed up and never looked at.

use super::attend::{CHUNK, Kept, Local};
use super::cache::BLOCK;
use super::cells::Cells;
use crate::backend::kv::{Grid, Group};
use crate::simd::Simd;

/// Keys and values of all heads.
pub(super) struct Codes {
    groups: Vec<Placed>,
    /// Bytes of codes per cell.
    bytes: usize,
    /// `(blocks, bytes, BLOCK)`.
    keys: Cells<u8>,
    /// `(cells, bytes)`.
    values: Cells<u8>,
    /// `(blocks, groups, BLOCK)`.
    key_scales: Cells<u16>,
    value_scales: Cells<u16>,
    sums_len: usize,
}

/// A group, and where its things are.
struct Placed {
    group: Group,
    /// Its first byte among those of a cell.
    byte: usize,
    /// Its first sum.
    sum: usize,
}

impl Placed {
    fn bytes(&self) -> usize {
        self.group.code_bytes()
    }

    /// Sums of a vector's place after the other, the same for both halves of bytes.
    fn padded(&self) -> usize {
        self.bytes().next_multiple_of(BLOCK)
    }
}

impl Codes {
    pub(super) fn new(groups: Vec<Group>, cells: usize) -> Codes {
        let (mut byte, mut sum) = (0, 0);
        let place = |group: Group| {
            let placed = Placed { group, byte, sum };
            byte += placed.bytes();
            sum += placed.padded() * 8 / group.bits;
            placed
        };
        let groups: Vec<Placed> = groups.into_iter().map(place).collect();
        let scales = cells * groups.len();
        Codes {
            bytes: byte,
            keys: Cells::new(cells * byte),
            // The last vector may reach past the end.
            values: Cells::new(cells * byte + BLOCK),
            key_scales: Cells::new(scales),
            value_scales: Cells::new(scales),
            sums_len: sum,
            groups,
        }
    }

    /// Writes a cell.
    ///
    /// # Safety
    /// Nobody else may use the cell meanwhile.
    pub(super) unsafe fn write(&self, cell: usize, key: &[f32], value: &[f32]) {
        assert!((cell + 1) * self.bytes <= self.keys.len(), "a cell of the cache");
        let (block, lane) = (cell / BLOCK, cell % BLOCK);
        for (number, placed) in self.groups.iter().enumerate() {
            let Group { start, len, bits } = placed.group;
            let scale = (block * self.groups.len() + number) * BLOCK + lane;
            let keys_at = (block * self.bytes + placed.byte) * BLOCK + lane;
            let values_at = cell * self.bytes + placed.byte;
            for (head, codes, step, at, to) in [
                (key, &self.keys, BLOCK, keys_at, &self.key_scales),
                (value, &self.values, 1, values_at, &self.value_scales),
            ] {
                let head = &head[start..start + len];
                let grid = Grid::of(head, bits);
                let byte = |i: usize| match bits {
                    8 => grid.code(head[i]),
                    _ => grid.code(head[i]) | grid.code(head[i + len / 2]) << 4,
                };
                // SAFETY: within the buffers, which have as many blocks as `keys`, as asserted;
                // the caller vouches for the rest. Neighbours may be someone else's.
                unsafe {
                    for i in 0..placed.bytes() {
                        codes.as_ptr().add(at + i * step).write(byte(i));
                    }
                    to.as_ptr().add(scale).write(grid.scale.to_bits());
                }
            }
        }
    }

    /// The scales of a group in a block of the chunk that begins with cell `at`.
    ///
    /// # Safety
    /// Nobody may write them meanwhile.
    #[inline(always)]
    unsafe fn scales<'a>(
        &self,
        of: &'a Cells<u16>,
        at: usize,
        group: usize,
        block: usize,
    ) -> &'a [u16] {
        let start = ((at / BLOCK + block) * self.groups.len() + group) * BLOCK;
        // SAFETY: as the caller vouches.
        unsafe { of.get(start..start + BLOCK) }
    }
}

/// Products of queries from value `i` on with codes, onto sums.
///
/// # Safety
/// There are `T` queries at `queries`.
#[inline(always)]
unsafe fn products<S: Simd, const T: usize>(
    s: S,
    queries: *const f32,
    codes: S::F32,
    sums: &mut [S::F32; T],
) {
    for (t, sum) in sums.iter_mut().enumerate() {
        // SAFETY: as the caller vouches.
        *sum = s.fma(s.splat(unsafe { *queries.add(t) }), codes, *sum);
    }
}

/// A vector of each query's sums, times its factor, from `starts` on.
///
/// # Safety
/// `at` is valid for `T` vectors, `step` apart.
#[inline(always)]
unsafe fn begin<S: Simd, const T: usize>(
    s: S,
    at: *const f32,
    step: usize,
    factors: &[f32; T],
    starts: &[f32; T],
) -> [S::F32; T] {
    let mut sums = [s.splat(0.0); T];
    for (t, sum) in sums.iter_mut().enumerate() {
        // SAFETY: as the caller vouches.
        let so_far = unsafe { s.load(at.add(t * step)) };
        *sum = s.fma(so_far, s.splat(factors[t]), s.splat(starts[t]));
    }
    sums
}

/// # Safety
/// As [`begin`].
#[inline(always)]
unsafe fn end<S: Simd, const T: usize>(s: S, at: *mut f32, step: usize, sums: &[S::F32; T]) {
    for (t, &sum) in sums.iter().enumerate() {
        // SAFETY: as the caller vouches.
        unsafe { s.store(at.add(t * step), sum) };
    }
}

impl Kept for Codes {
    fn sums_len(&self) -> usize {
        self.sums_len
    }

    /// Behind the queries what each group's sums begin with, `(groups, T)`.
    fn ready<const T: usize>(&self, local: &mut Local) {
        let len: usize = self.groups.iter().map(|placed| placed.group.len).sum();
        let (queries, sums) = local.queries.split_at_mut(T * len);
        for (Placed { group, .. }, sums) in self.groups.iter().zip(sums.chunks_exact_mut(T)) {
            let queries = &queries[group.start * T..(group.start + group.len) * T];
            for (t, sum) in sums.iter_mut().enumerate() {
                *sum = -group.middle() * queries.iter().skip(t).step_by(T).sum::<f32>();
            }
        }
    }

    #[inline(always)]
    unsafe fn score<S: Simd, const T: usize>(
        &self,
        s: S,
        local: &mut Local,
        at: usize,
        cells: usize,
    ) {
        let last = self.groups.last().expect("a head has values").group;
        let (len, blocks) = (last.start + last.len, cells.div_ceil(BLOCK));
        assert!(local.queries.len() >= T * (len + self.groups.len()), "queries and their sums");
        assert!(at.is_multiple_of(BLOCK) && cells <= CHUNK, "the cells of a chunk");
        let size = self.bytes * BLOCK;
        for block in 0..blocks {
            let first = (at / BLOCK + block) * size;
            // SAFETY: as the caller vouches.
            let keys = unsafe { self.keys.get(first..first + size) };
            for lanes in (0..BLOCK).step_by(S::LANES) {
                let mut scores = [s.splat(0.0); T];
                for (number, placed) in self.groups.iter().enumerate() {
                    let Group { start, len: group, bits } = placed.group;
                    let mut sums = [s.splat(0.0); T];
                    for (t, sum) in sums.iter_mut().enumerate() {
                        *sum = s.splat(local.queries[(len + number) * T + t]);
                    }
                    // SAFETY: the group's values are within the queries and the block's codes, as
                    // asserted.
                    unsafe {
                        let queries = local.queries.as_ptr();
                        let codes = keys.as_ptr().add(placed.byte * BLOCK + lanes);
                        for i in 0..placed.bytes() {
                            let (codes, at) = (codes.add(i * BLOCK), queries.add((start + i) * T));
                            if bits == 8 {
                                products(s, at, s.load_u8(codes), &mut sums);
                            } else {
                                let (low, high) = s.load_u4(codes);
                                products(s, at, low, &mut sums);
                                products(s, at.add(group / 2 * T), high, &mut sums);
                            }
                        }
                        let scales = self.scales(&self.key_scales, at, number, block);
                        let scale = s.load_f16(scales.as_ptr().add(lanes));
                        for (score, sum) in scores.iter_mut().zip(sums) {
                            *score = s.fma(scale, sum, *score);
                        }
                    }
                }
                for (t, &score) in scores.iter().enumerate() {
                    let at = t * CHUNK + block * BLOCK + lanes;
                    // SAFETY: within query t's scores.
                    unsafe { s.store(local.scores.as_mut_ptr().add(at), score) };
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add<S: Simd, const T: usize>(
        &self,
        s: S,
        local: &mut Local,
        at: usize,
        cells: usize,
        factors: &[f32; T],
    ) {
        assert!(local.sums.len() >= T * self.sums_len && cells <= CHUNK, "lengths that fit");
        let bytes = self.bytes;
        // SAFETY: as the caller vouches. A vector that begins in a cell may end past it.
        let values = unsafe { self.values.get(at * bytes..(at + cells) * bytes + BLOCK) };
        for (number, placed) in self.groups.iter().enumerate() {
            // SAFETY: as the caller vouches.
            let starts = unsafe { self.spread::<S, T>(s, local, at, cells, number) };
            for first in (0..placed.bytes()).step_by(S::LANES) {
                // SAFETY: sums are padded to whole vectors, bytes reach past the last cell.
                unsafe {
                    let sums = local.sums.as_mut_ptr().add(placed.sum + first);
                    let codes = values.as_ptr().add(placed.byte + first);
                    let (weights, step) = (local.weights.as_ptr(), self.sums_len);
                    if placed.group.bits == 8 {
                        let mut all = begin(s, sums, step, factors, &starts);
                        for cell in 0..cells {
                            let codes = s.load_u8(codes.add(cell * bytes));
                            products(s, weights.add(cell * T), codes, &mut all);
                        }
                        end(s, sums, step, &all);
                    } else {
                        let other = sums.add(placed.padded());
                        let mut low = begin(s, sums, step, factors, &starts);
                        let mut high = begin(s, other, step, factors, &starts);
                        for cell in 0..cells {
                            let codes = s.load_u4(codes.add(cell * bytes));
                            products(s, weights.add(cell * T), codes.0, &mut low);
                            products(s, weights.add(cell * T), codes.1, &mut high);
                        }
                        end(s, sums, step, &low);
                        end(s, other, step, &high);
                    }
                }
            }
        }
    }

    fn gather(&self, sums: &[f32], head: &mut [f32]) {
        for placed in &self.groups {
            let Group { start, len, bits } = placed.group;
            let each = len * bits / 8;
            for (i, part) in head[start..start + len].chunks_exact_mut(each).enumerate() {
                let at = placed.sum + i * placed.padded();
                part.copy_from_slice(&sums[at..at + each]);
            }
        }
    }
}

impl Codes {
    /// The weights of some cells times the scales of a group, `(cells, T)`; returns what they take
    /// from every sum, for codes that begin at zero.
    ///
    /// # Safety
    /// Nobody may write the cache.
    #[inline(always)]
    unsafe fn spread<S: Simd, const T: usize>(
        &self,
        s: S,
        local: &mut Local,
        at: usize,
        cells: usize,
        number: usize,
    ) -> [f32; T] {
        let mut totals = [s.splat(0.0); T];
        let mut scaled = [0.0_f32; BLOCK];
        for block in 0..cells.div_ceil(BLOCK) {
            // SAFETY: as the caller vouches.
            let scales = unsafe { self.scales(&self.value_scales, at, number, block) };
            for (t, total) in totals.iter_mut().enumerate() {
                let weights = &local.scores[t * CHUNK + block * BLOCK..][..BLOCK];
                for lanes in (0..BLOCK).step_by(S::LANES) {
                    // SAFETY: vectors of a block's weights and scales.
                    unsafe {
                        let weight = s.load(weights.as_ptr().add(lanes));
                        let scale = s.load_f16(scales.as_ptr().add(lanes));
                        let product = s.mul(weight, scale);
                        s.store(scaled.as_mut_ptr().add(lanes), product);
                        *total = s.add(product, *total);
                    }
                }
                let to = local.weights[block * BLOCK * T + t..].iter_mut().step_by(T);
                to.zip(&scaled).for_each(|(to, &scaled)| *to = scaled);
            }
        }
        let middle = self.groups[number].group.middle();
        let mut starts = [0.0; T];
        for (start, total) in starts.iter_mut().zip(totals) {
            *start = -middle * s.sum(total);
        }
        starts
    }
}
