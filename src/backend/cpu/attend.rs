//! Attention.
//!
//! ```text
//! for a chunk of cells at a time:
//!     scores = queries * keys                     vectors along the cells
//!     weights = exp(scores - peak so far)         what is there is scaled when the peak moves
//!     sums += weights * values                    vectors along the head
//! ```
//!
//! Up to 12 queries that look at the same keys (neighbouring rows of a sequence, and the heads that
//! share a key head) go through a chunk together. Where rows are few, the cells of one row are cut
//! into parts that are put together afterwards; the cut depends on the position alone.

use std::sync::{Mutex, PoisonError};

use super::cache::{BLOCK, Cache, Floats, Store, Stored, padded};
use super::cells::Cells;
use super::turns::Turns;
use super::{State, Worker};
use crate::backend::Capacity;
use crate::plan::{Batch, Op, Plan};
use crate::simd::{Level, Simd, WithSimd, exp, tanh};

/// Cells at a time.
pub(super) const CHUNK: usize = 64;
/// Queries at a time.
pub(super) const QUERIES: usize = 12;
/// Rows of an item: a tile of any group size is then full.
const ROWS: usize = 12;
/// A batch with more rows keeps all workers busy without parts.
const SPLIT_ROWS: usize = 16;
/// Parts of one row at most.
const PARTS: usize = 16;
/// The score of a cell that is not seen; far below any other, but a number.
const UNSEEN: f32 = -1e30;

/// Neighbouring rows of one sequence, or a part of one row's cells.
#[derive(Clone, Copy)]
struct Item {
    row: usize,
    rows: usize,
    part: usize,
    parts: usize,
}

/// What attention needs beside the plan.
pub(super) struct Attention {
    items: Vec<Item>,
    /// By row and part, if rows are split: `(heads, 2 + value length)`: peak, total, sums.
    partial: Cells<f32>,
    locals: Vec<Mutex<Local>>,
}

/// One worker's memory.
pub(super) struct Local {
    /// `(head length, queries)`, then what a store makes of them.
    pub(super) queries: Vec<f32>,
    /// `(queries, CHUNK)`.
    pub(super) scores: [f32; QUERIES * CHUNK],
    /// `(queries, sums of the store)`.
    pub(super) sums: Vec<f32>,
    /// `(queries, CHUNK)`, what a store makes of weights.
    pub(super) weights: [f32; QUERIES * CHUNK],
    /// One head.
    line: Vec<f32>,
    peaks: [f32; QUERIES],
    totals: [f32; QUERIES],
}

/// How what is in a cache meets queries and weights. Cells are counted over all heads.
pub(super) trait Kept {
    /// Sums per query.
    fn sums_len(&self) -> usize;

    /// Readies the queries `(head length, T)` that are in `local`.
    fn ready<const T: usize>(&self, local: &mut Local);

    /// Scores of `cells` cells, up to the end of their block, from cell `at` on, where one begins.
    ///
    /// # Safety
    /// The cells are in the cache, and nobody writes it.
    unsafe fn score<S: Simd, const T: usize>(
        &self,
        s: S,
        local: &mut Local,
        at: usize,
        cells: usize,
    );

    /// Weights times values, onto the sums times `factors`.
    ///
    /// # Safety
    /// As [`Kept::score`].
    unsafe fn add<S: Simd, const T: usize>(
        &self,
        s: S,
        local: &mut Local,
        at: usize,
        cells: usize,
        factors: &[f32; T],
    );

    /// The sums of one query as a head.
    fn gather(&self, sums: &[f32], head: &mut [f32]);
}

impl Attention {
    pub(super) fn new(
        plan: &Plan,
        caches: &[Cache],
        capacity: Capacity,
        threads: usize,
    ) -> Attention {
        let (mut len, mut sums, mut partial) = (0, 0, 0);
        for op in &plan.ops {
            if let Op::Attend { layer, heads, .. } = op {
                let info = plan.caches[*layer];
                len = len.max(info.head_len);
                sums = sums.max(match &caches[*layer].store {
                    Store::F32(floats) => floats.sums_len(),
                    Store::F16(floats) => floats.sums_len(),
                    Store::Codes(codes) => codes.sums_len(),
                });
                partial = partial.max(heads * (2 + info.head_len));
            }
        }
        let local = || Local {
            // A group of codes, which has at least 4 values, takes a sum.
            queries: vec![0.0; QUERIES * (len + len.div_ceil(4))],
            scores: [0.0; QUERIES * CHUNK],
            sums: vec![0.0; QUERIES * sums],
            weights: [0.0; QUERIES * CHUNK],
            line: vec![0.0; len],
            peaks: [0.0; QUERIES],
            totals: [0.0; QUERIES],
        };
        Attention {
            items: Vec::with_capacity(capacity.rows.max(SPLIT_ROWS * PARTS)),
            partial: Cells::new(capacity.rows.min(SPLIT_ROWS) * PARTS * partial),
            locals: (0..threads).map(|_| Mutex::new(local())).collect(),
        }
    }

    /// Cuts a batch into items.
    pub(super) fn load(&mut self, batch: &Batch) {
        self.items.clear();
        let mut row = 0;
        while row < batch.len() {
            if batch.len() <= SPLIT_ROWS {
                let cells = batch.positions[row] as usize + 1;
                let chunk = (cells / PARTS).next_power_of_two().max(CHUNK);
                let parts = cells.div_ceil(chunk).min(PARTS);
                self.items.extend((0..parts).map(|part| Item { row, rows: 1, part, parts }));
                row += 1;
            } else {
                let same = |other: &&u32| **other == batch.sequences[row];
                let rows = batch.sequences[row..].iter().take(ROWS).take_while(same).count();
                self.items.push(Item { row, rows, part: 0, parts: 1 });
                row += rows;
            }
        }
    }
}

/// An op and its slots.
struct Attend<'a> {
    cache: &'a Cache,
    positions: &'a [u32],
    sequences: &'a [u32],
    heads: usize,
    scale: f32,
    window: Option<u32>,
    soft_cap: Option<f32>,
    q: &'a [f32],
    out: &'a Cells<f32>,
    turns: &'a Turns,
    level: Level,
    partial: &'a Cells<f32>,
}

impl State {
    /// # Safety
    /// As [`State::op`].
    pub(super) unsafe fn attend(&self, worker: &Worker, op: &Op) {
        let Op::Attend { q, positions, sequences, layer, heads, scale, window, soft_cap, out } = op
        else {
            unreachable!("called for this op")
        };
        let Attention { items, partial, locals } = &self.attention;
        // SAFETY: queries and indices are not written by this op.
        let attend = unsafe {
            Attend {
                cache: &self.caches[*layer],
                positions: self.indices(*positions),
                sequences: self.indices(*sequences),
                heads: *heads,
                scale: *scale,
                window: *window,
                soft_cap: *soft_cap,
                q: self.floats(*q).get(0..self.rows * self.width(*q)),
                out: self.floats(*out),
                turns: &self.turns[*layer],
                level: self.level,
                partial,
            }
        };
        let mut local = locals[worker.index()].lock().unwrap_or_else(PoisonError::into_inner);
        let kv_heads = attend.cache.info.heads;
        let pieces = items.len() * kv_heads;
        for piece in worker.pieces(pieces) {
            // The last rows of a prompt have the most to do: they come first.
            let piece = pieces - 1 - piece;
            let (item, kv_head) = (items[piece / kv_heads], piece % kv_heads);
            self.level.dispatch(Work { attend: &attend, item, kv_head, local: &mut local });
        }
        if items.iter().any(|item| item.parts > 1) {
            worker.barrier();
            let firsts = items.iter().filter(|item| item.part == 0 && item.parts > 1);
            for (i, item) in firsts.enumerate() {
                for head in worker.share(attend.heads + i).filter(|&head| head >= i) {
                    // SAFETY: this head is this worker's, and the parts are written.
                    unsafe { attend.join(*item, head - i, &mut local.line) };
                }
            }
        }
    }
}

impl Attend<'_> {
    fn partial_at(&self, row: usize, part: usize, head: usize) -> usize {
        ((row * PARTS + part) * self.heads + head) * (2 + self.cache.info.head_len)
    }

    /// The cells that a row sees.
    fn seen(&self, row: usize) -> (usize, usize) {
        let last = self.positions[row] as usize;
        let first = self.window.map_or(0, |window| (last + 1).saturating_sub(window as usize));
        (first, last)
    }

    /// Puts the parts of a row together.
    ///
    /// # Safety
    /// The parts must be written, and the head must be the caller's.
    unsafe fn join(&self, item: Item, head: usize, line: &mut [f32]) {
        let len = self.cache.info.head_len;
        let at = (item.row * self.heads + head) * len;
        // SAFETY: as the caller vouches.
        let out = unsafe { self.out.get_mut(at..at + len) };
        out.fill(0.0);
        // SAFETY: as the caller vouches.
        let part = |part: usize| unsafe {
            let at = self.partial_at(item.row, part, head);
            self.partial.get(at..at + 2 + len)
        };
        let peak = (0..item.parts).map(|i| part(i)[0]).fold(UNSEEN, f32::max);
        let mut total = 0.0;
        for i in 0..item.parts {
            let part = part(i);
            let factor = (part[0] - peak).exp();
            total += factor * part[1];
            out.iter_mut().zip(&part[2..]).for_each(|(out, x)| *out += factor * x);
        }
        out.iter_mut().for_each(|out| *out /= total);
        let kv_head = head * self.cache.info.heads / self.heads;
        self.turns.back(self.level, kv_head, out, &mut line[..len]);
    }
}

/// One item and one key head.
struct Work<'a> {
    attend: &'a Attend<'a>,
    item: Item,
    kv_head: usize,
    local: &'a mut Local,
}

impl WithSimd for Work<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        match &self.attend.cache.store {
            Store::F32(floats) => tiles(s, self, floats),
            Store::F16(floats) => tiles(s, self, floats),
            Store::Codes(codes) => tiles(s, self, codes),
        }
    }
}

/// All queries of the item, up to 12 at a time.
#[inline(always)]
fn tiles<S: Simd, K: Kept>(s: S, mut work: Work, kept: &K) {
    let group = work.attend.heads / work.attend.cache.info.heads;
    let queries = work.item.rows * group;
    let mut first = 0;
    while first < queries {
        let left = queries - first;
        match left {
            1 => tile::<S, K, 1>(s, &mut work, kept, first, 1),
            2 => tile::<S, K, 2>(s, &mut work, kept, first, 2),
            3..=8 => tile::<S, K, 4>(s, &mut work, kept, first, left.min(4)),
            _ => tile::<S, K, QUERIES>(s, &mut work, kept, first, left.min(QUERIES)),
        }
        first += match left {
            ..=8 => left.min(4),
            _ => QUERIES,
        };
    }
}

/// Queries `first..first + count` of the item, `T` at a time; the last stands in for what lacks.
#[inline(always)]
fn tile<S: Simd, K: Kept, const T: usize>(
    s: S,
    work: &mut Work,
    kept: &K,
    first: usize,
    count: usize,
) {
    let Work { attend, item, kv_head, local } = work;
    let info = attend.cache.info;
    let (len, sums_len) = (info.head_len, kept.sums_len());
    let group = attend.heads / info.heads;
    let places: [(usize, usize); T] = std::array::from_fn(|t| {
        let query = first + t.min(count - 1);
        (item.row + query / group, *kv_head * group + query % group)
    });
    let seen = places.map(|(row, _)| attend.seen(row));
    for (t, (row, head)) in places.into_iter().enumerate() {
        let query = &attend.q[(row * attend.heads + head) * len..][..len];
        for (to, x) in local.queries[t..].iter_mut().step_by(T).zip(query) {
            *to = x * attend.scale;
        }
    }
    kept.ready::<T>(local);
    local.sums[..T * sums_len].fill(0.0);
    local.peaks.fill(UNSEEN);
    local.totals.fill(0.0);

    let mut from = seen.iter().map(|seen| seen.0).min().unwrap_or(0) / BLOCK * BLOCK;
    let mut to = seen.iter().map(|seen| seen.1).max().unwrap_or(0) + 1;
    if item.parts > 1 {
        let step = (to - from).div_ceil(item.parts).next_multiple_of(BLOCK);
        (from, to) = (from + item.part * step, to.min(from + (item.part + 1) * step));
    }
    let at = attend.cache.head_at(attend.sequences[item.row] as usize, *kv_head);
    for chunk in (from..to).step_by(CHUNK) {
        let cells = CHUNK.min(to - chunk);
        // SAFETY: the chunk's cells are in the cache, whose sequences are whole blocks, and nobody
        // writes it during this op.
        unsafe {
            kept.score::<S, T>(s, local, at + chunk, cells);
            let factors = weigh::<S, T>(s, local, &seen, chunk, cells, attend.soft_cap);
            kept.add::<S, T>(s, local, at + chunk, cells, &factors);
        }
    }
    for (t, (row, head)) in places.into_iter().enumerate().take(count) {
        let Local { sums, line, peaks, totals, .. } = &mut **local;
        kept.gather(&sums[t * sums_len..][..sums_len], &mut line[..len]);
        // SAFETY: the row, part and head are this worker's.
        unsafe {
            if item.parts > 1 {
                let at = attend.partial_at(row, item.part, head);
                let partial = attend.partial.get_mut(at..at + 2 + len);
                (partial[0], partial[1]) = (peaks[t], totals[t]);
                partial[2..].copy_from_slice(&line[..len]);
            } else {
                let at = (row * attend.heads + head) * len;
                let out = attend.out.get_mut(at..at + len);
                let inverse = 1.0 / totals[t];
                out.iter_mut().zip(&*line).for_each(|(out, sum)| *out = sum * inverse);
                attend.turns.back(attend.level, *kv_head, out, &mut line[..len]);
            }
        }
    }
}

/// Scores to weights; returns what the sums so far are to be multiplied by.
#[inline(always)]
fn weigh<S: Simd, const T: usize>(
    s: S,
    local: &mut Local,
    seen: &[(usize, usize); T],
    chunk: usize,
    cells: usize,
    soft_cap: Option<f32>,
) -> [f32; T] {
    let padded = cells.next_multiple_of(BLOCK);
    let mut factors = [0.0; T];
    for t in 0..T {
        let scores = &mut local.scores[t * CHUNK..][..padded];
        let at = scores.as_mut_ptr();
        if let Some(cap) = soft_cap {
            for i in (0..padded).step_by(S::LANES) {
                // SAFETY: a vector of the scores, which are whole blocks.
                unsafe {
                    let x = tanh(s, s.mul(s.load(at.add(i)), s.splat(1.0 / cap)));
                    s.store(at.add(i), s.mul(x, s.splat(cap)));
                }
            }
        }
        let (first, last) = seen[t];
        if chunk < first || chunk + padded > last + 1 {
            for (i, score) in scores.iter_mut().enumerate() {
                if chunk + i < first || chunk + i > last {
                    *score = UNSEEN;
                }
            }
        }
        let at = scores.as_mut_ptr();
        let mut peaks = s.splat(UNSEEN);
        for i in (0..padded).step_by(S::LANES) {
            // SAFETY: as above.
            peaks = s.max(peaks, unsafe { s.load(at.add(i)) });
        }
        let peak = local.peaks[t].max(s.largest(peaks));
        let mut total = s.splat(0.0);
        for i in (0..padded).step_by(S::LANES) {
            // SAFETY: as above.
            unsafe {
                let weight = exp(s, s.sub(s.load(at.add(i)), s.splat(peak)));
                s.store(at.add(i), weight);
                total = s.add(total, weight);
            }
        }
        factors[t] = s.largest(exp(s, s.splat(local.peaks[t] - peak)));
        local.totals[t] = local.totals[t] * factors[t] + s.sum(total);
        local.peaks[t] = peak;
    }
    factors
}

impl<K: Stored + bytemuck::Zeroable> Kept for Floats<K> {
    fn sums_len(&self) -> usize {
        padded(self.len)
    }

    fn ready<const T: usize>(&self, _local: &mut Local) {}

    #[inline(always)]
    unsafe fn score<S: Simd, const T: usize>(
        &self,
        s: S,
        local: &mut Local,
        at: usize,
        cells: usize,
    ) {
        let len = self.len;
        let blocks = cells.next_multiple_of(BLOCK) * len;
        // SAFETY: as the caller vouches.
        let keys = unsafe { self.keys.get(at * len..at * len + blocks) };
        assert!(local.queries.len() >= T * len && keys.len() <= CHUNK * len, "lengths that fit");
        for (block, keys) in keys.chunks_exact(BLOCK * len).enumerate() {
            for lanes in (0..BLOCK).step_by(S::LANES) {
                let mut sums = [s.splat(0.0); T];
                for i in 0..len {
                    // SAFETY: value i of the block and of the queries, as asserted.
                    unsafe {
                        let key = K::load(s, keys.as_ptr().add(i * BLOCK + lanes));
                        for (t, sum) in sums.iter_mut().enumerate() {
                            let query = s.splat(*local.queries.as_ptr().add(i * T + t));
                            *sum = s.fma(query, key, *sum);
                        }
                    }
                }
                for (t, &sum) in sums.iter().enumerate() {
                    let at = t * CHUNK + block * BLOCK + lanes;
                    // SAFETY: within query t's scores.
                    unsafe { s.store(local.scores.as_mut_ptr().add(at), sum) };
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
        let padded = padded(self.len);
        // SAFETY: as the caller vouches.
        let values = unsafe { self.values.get(at * padded..(at + cells) * padded) };
        assert!(local.sums.len() >= T * padded && cells <= CHUNK, "lengths that fit");
        for lanes in (0..padded).step_by(S::LANES) {
            // SAFETY: a vector of each query's sums and of each cell's values, as asserted.
            unsafe {
                let at = local.sums.as_mut_ptr().add(lanes);
                let mut sums: [S::F32; T] = [s.splat(0.0); T];
                for t in 0..T {
                    sums[t] = s.mul(s.load(at.add(t * padded)), s.splat(factors[t]));
                }
                for cell in 0..cells {
                    let value = K::load(s, values.as_ptr().add(cell * padded + lanes));
                    for (t, sum) in sums.iter_mut().enumerate() {
                        let weight = s.splat(*local.scores.as_ptr().add(t * CHUNK + cell));
                        *sum = s.fma(weight, value, *sum);
                    }
                }
                for (t, &sum) in sums.iter().enumerate() {
                    s.store(at.add(t * padded), sum);
                }
            }
        }
    }

    fn gather(&self, sums: &[f32], head: &mut [f32]) {
        head.copy_from_slice(&sums[..head.len()]);
    }
}
