//! Few columns, weights whose codes are learned points of neighbouring rows.
//!
//! ```text
//! for each block of v rows, for each column c:
//!     sums[0..v] += point(code[block][c]) * x[c]
//! ```
//!
//! Eight numbers are read of every point, of which those past its own go to rows that nobody looks
//! at. Eight columns go at a time: their points are turned so that a lane has one row's numbers in
//! four columns, as the integer dot product wants them. To cut codes out of a stream of bits costs
//! as much as all the rest: it is done once, when a weight is loaded ([`Places`]).

#![allow(clippy::needless_range_loop, reason = "tiles of registers read best by number")]

use std::ops::Range;

use crate::simd::Simd;

use super::super::{Layout, Tensor, even_signs};
use super::int8::MatVec;
use super::panel::greatest_common_divisor;
use super::{Int8Columns, SUB, codes_stride, subs_stride};

/// Numbers that are read of a point, and columns of a step.
const EIGHT: usize = 8;
/// Sums of a step: eight rows, in two halves of its columns.
const SUMS: usize = 2 * EIGHT;
/// Bits of the widest code with its residual.
const WIDTH_MAX: usize = 32;
/// Places of a line of the cache, and how many are asked for before they are read.
const LINE: usize = 32;
const AHEAD: usize = 512;
/// Bits of codes with signs whose points are kept with all their signs.
const EXPANDED_WIDTH: usize = 12;
/// Vectors of the narrowest instruction set that [`SUMS`] take.
const VECTORS: usize = 4;

/// What a code is of: one point, two that are added, or one and signs.
const ONE: u8 = 0;
const TWO: u8 = 1;
const SIGNED: u8 = 2;

/// The points of a weight, each `stride` from the one before.
pub(super) struct Points {
    main: Vec<i8>,
    /// Empty if codes are of one point.
    residual: Vec<i8>,
    v: usize,
    bits: usize,
    width: usize,
    signs: bool,
    /// Of each point: bits of its numbers below zero; empty where codes have no signs.
    own_signs: Vec<u32>,
    /// What a place is multiplied with: 1, or 8 where the table is too long for places of 16 bits.
    unit: usize,
}

impl Points {
    /// Of a weight with such a layout.
    pub(super) fn new(weight: &Tensor) -> Option<Points> {
        let Layout::Points { v, bits, residual_bits, signs } = weight.kind.layout() else {
            return None;
        };
        let width = bits + residual_bits + if signs { v - 1 } else { 0 };
        assert!(v <= EIGHT && width <= WIDTH_MAX, "points that fit");
        assert!(bits.max(residual_bits) <= 16, "codes that fit");
        let table: &[i8] = bytemuck::cast_slice(&weight.table);
        let (main, residual) = table.split_at(v << bits);
        // To look a point up with its signs is quicker than to turn it, if that table stays small.
        let all_signs = signs && width <= EXPANDED_WIDTH;
        let expanded = if all_signs { with_signs(main, v, bits) } else { Vec::new() };
        let (main, bits) = if all_signs { (&expanded[..], width) } else { (main, bits) };
        let signs = signs && !all_signs;
        let own_signs = if signs { own_signs(main, v) } else { Vec::new() };
        assert!(residual.is_empty() || residual.len() == v << residual_bits, "a point per code");
        let unit = if v << bits.max(residual_bits) <= 1 << 16 { 1 } else { EIGHT };
        let stride = if unit == 1 { v } else { EIGHT };
        // What the sums of two points are cut to.
        let least = if residual.is_empty() { -127 } else { i8::MIN };
        let lay = |points: &[i8]| {
            let mut laid = vec![0; points.len() / v * stride + EIGHT];
            for (to, point) in laid.chunks_mut(stride).zip(points.chunks_exact(v)) {
                let number = |q: i8| if signs { q.max(-127).abs() } else { q.max(least) };
                to.iter_mut().zip(point).for_each(|(to, &q)| *to = number(q));
            }
            laid
        };
        let residual = if residual.is_empty() { Vec::new() } else { lay(residual) };
        Some(Points { main: lay(main), residual, v, bits, width, signs, own_signs, unit })
    }

    /// What codes are of, and whether places are numbers of points.
    fn form(&self) -> (u8, bool) {
        let form = match self.residual.is_empty() {
            true if self.signs => SIGNED,
            true => ONE,
            false => TWO,
        };
        (form, self.unit != 1)
    }
}

/// The signs that points have themselves: a bit for each number below zero.
pub(super) fn own_signs(points: &[i8], v: usize) -> Vec<u32> {
    let signs = |point: &[i8]| {
        let minus = point.iter().enumerate().filter(|(_, number)| **number < 0);
        minus.fold(0, |signs, (t, _)| signs | 1 << t)
    };
    points.chunks_exact(v).map(signs).collect()
}

/// Points with all the signs that codes can give them.
fn with_signs(points: &[i8], v: usize, bits: usize) -> Vec<i8> {
    let signs = (0..1 << (v - 1)).map(|signs| even_signs(signs, v));
    let points = |minus: u32| {
        let number =
            move |(at, &q): (usize, &i8)| if minus >> (at % v) & 1 == 0 { q } else { -q.max(-127) };
        points.iter().enumerate().map(number)
    };
    let mut all = Vec::with_capacity(v << (bits + v - 1));
    signs.for_each(|minus| all.extend(points(minus)));
    all
}

/// Where the points of a weight's codes are.
pub(super) struct Places {
    /// `(row blocks, cols)`.
    main: Vec<u16>,
    /// The same of second points; empty if there are none.
    residual: Vec<u16>,
    /// `(row blocks, cols / 64 rounded up, 64)`: bit `7 - k` of byte i is the sign of byte i of the
    /// k-th eight columns as [`Simd::points`] turns them; empty if codes have none.
    signs: Vec<u8>,
    /// `(row blocks, groups, SUMS)`: the half-precision scales of eight rows, and once more.
    norms: Vec<u16>,
    blocks: usize,
    cols: usize,
    group: usize,
    /// Rows of the first block that are not the weight's own.
    skip: usize,
}

impl Places {
    /// Of a weight with these points.
    pub(super) fn new(points: &Points, weight: &Tensor) -> Places {
        let Points { v, bits, width, unit, .. } = *points;
        let (cols, groups) = (weight.cols, weight.cols / weight.group);
        let skip = weight.skip();
        let blocks = (skip + weight.rows).div_ceil(v);
        let stride = if unit == 1 { v } else { 1 };
        let has_residual = !points.residual.is_empty();
        let mut places = Places {
            main: Vec::with_capacity(blocks * cols),
            residual: Vec::with_capacity(if has_residual { blocks * cols } else { 0 }),
            signs: vec![0; if points.signs { blocks * signs_stride(cols) } else { 0 }],
            norms: vec![0; blocks * groups * SUMS],
            blocks,
            cols,
            group: weight.group,
            skip,
        };
        // Eight codes are whole bytes.
        for (step, codes) in weight.codes.chunks_exact(width).enumerate() {
            let mut padded = [0; WIDTH_MAX + 8];
            padded[..width].copy_from_slice(codes);
            for c in 0..EIGHT {
                let bit = c * width;
                let word: [u8; 8] = padded[bit / 8..][..8].try_into().expect("eight bytes");
                let code = (u64::from_le_bytes(word) >> (bit % 8)) as usize;
                let main = code & ((1 << bits) - 1);
                places.main.push((main * stride) as u16);
                let rest = code >> bits & ((1 << (width - bits)) - 1);
                if has_residual {
                    places.residual.push((rest * stride) as u16);
                }
                if points.signs {
                    places.add_signs(step, c, even_signs(rest as u32, v) ^ points.own_signs[main]);
                }
            }
        }
        assert_eq!(places.main.len(), blocks * cols, "a code per block and column");
        for (row, norms) in weight.norms.as_chunks::<2>().0.chunks_exact(groups).enumerate() {
            for (group, &norm) in norms.iter().enumerate() {
                let at = ((skip + row) / v * groups + group) * SUMS + (skip + row) % v;
                places.norms[at] = u16::from_le_bytes(norm);
                places.norms[at + EIGHT] = u16::from_le_bytes(norm);
            }
        }
        places
    }

    /// Signs of column `c` of eight, the `step`-th of all.
    fn add_signs(&mut self, step: usize, c: usize, minus: u32) {
        let (block, step) = (step / (self.cols / EIGHT), step % (self.cols / EIGHT));
        let at = block * signs_stride(self.cols) + step / EIGHT * 8 * EIGHT;
        for row in (0..EIGHT).filter(|row| minus >> row & 1 == 1) {
            self.signs[at + 4 * (c / 4 * EIGHT + row) + c % 4] |= 0x80 >> (step % EIGHT);
        }
    }

    /// Says that the places a while after `count` from `at` on will be read, once: the table, which
    /// is read without end, keeps its room in the cache.
    #[inline(always)]
    fn prefetch<S: Simd, const K: u8>(&self, s: S, at: usize, count: usize) {
        for at in (at..at + count).step_by(LINE) {
            s.prefetch_once(self.main.as_ptr().wrapping_add(at + AHEAD).cast());
            if K == TWO {
                s.prefetch_once(self.residual.as_ptr().wrapping_add(at + AHEAD).cast());
            }
        }
    }
}

/// Bytes of the signs of a block.
fn signs_stride(cols: usize) -> usize {
    cols.next_multiple_of(8 * EIGHT)
}

/// Every row, with up to four columns at a time. From here on rows are counted from the first of
/// the first block, as those of [`fill`] are.
#[inline(always)]
pub(super) fn rows<S: Simd>(s: S, work: MatVec) {
    let MatVec { lookup, first, count, columns, out, .. } = work;
    let points = lookup.points.as_deref().expect("a lookup of this weight");
    let places = lookup.places.as_deref().expect("a lookup of this weight");
    let mut done = 0;
    while done < columns.count {
        let part = columns.few(done);
        let step = part.count;
        let out = &mut out[done * count..(done + step) * count];
        let range = places.skip + first..places.skip + first + count;
        match step {
            1 => forms::<S, 1>(s, points, places, range, &part, out),
            2 => forms::<S, 2>(s, points, places, range, &part, out),
            _ => forms::<S, 4>(s, points, places, range, &part, out),
        }
        done += step;
    }
}

/// Whether there are second points, and whether places are numbers of points, is known inside.
#[inline(always)]
fn forms<S: Simd, const C: usize>(
    s: S,
    points: &Points,
    places: &Places,
    rows: Range<usize>,
    columns: &Int8Columns,
    out: &mut [f32],
) {
    match points.form() {
        (ONE, false) => blocks::<S, C, ONE, false>(s, points, places, rows, columns, out),
        (ONE, true) => blocks::<S, C, ONE, true>(s, points, places, rows, columns, out),
        (TWO, false) => blocks::<S, C, TWO, false>(s, points, places, rows, columns, out),
        (TWO, true) => blocks::<S, C, TWO, true>(s, points, places, rows, columns, out),
        (_, false) => blocks::<S, C, SIGNED, false>(s, points, places, rows, columns, out),
        (_, true) => blocks::<S, C, SIGNED, true>(s, points, places, rows, columns, out),
    }
}

#[inline(always)]
fn blocks<S: Simd, const C: usize, const K: u8, const F: bool>(
    s: S,
    points: &Points,
    places: &Places,
    rows: Range<usize>,
    columns: &Int8Columns,
    out: &mut [f32],
) {
    let (v, count) = (points.v, rows.len());
    assert!(rows.end.div_ceil(v) <= places.blocks && columns.cols == places.cols, "rows that are");
    let run = greatest_common_divisor(places.group, columns.group);
    assert!(run.is_multiple_of(SUB), "runs that fit");
    let biases = biases::<S>(columns, run, K == SIGNED);
    for block in rows.start / v..rows.end.div_ceil(v) {
        let sums = block_sums::<S, C, K, F>(s, points, places, columns, &biases, block);
        for (c, sums) in sums.iter().enumerate() {
            for row in (block * v).max(rows.start)..(block * v + v).min(rows.end) {
                let t = row - block * v;
                out[c * count + row - rows.start] = sums[t] + sums[EIGHT + t];
            }
        }
    }
}

/// What takes the bias of `run` columns off, a half of it in each half of the columns: the same for
/// every block of rows; nothing where weights are unsigned. `(columns, runs)`.
#[inline(always)]
fn biases<S: Simd>(columns: &Int8Columns, run: usize, unsigned: bool) -> Vec<i32> {
    let bias = if unsigned { 0 } else { S::BIAS / 2 };
    let mut biases = Vec::with_capacity(columns.count * columns.cols / run);
    for sums in columns.sums.chunks_exact(subs_stride(columns.cols)).take(columns.count) {
        for sums in sums[..columns.cols / SUB].chunks_exact(run / SUB) {
            biases.push(-bias * sums.iter().sum::<i32>());
        }
    }
    biases
}

/// The products of a block's rows with each column, in two halves.
#[inline(always)]
fn block_sums<S: Simd, const C: usize, const K: u8, const F: bool>(
    s: S,
    points: &Points,
    places: &Places,
    columns: &Int8Columns,
    biases: &[i32],
    block: usize,
) -> [[f32; SUMS]; C] {
    let (cols, groups) = (places.cols, places.cols / places.group);
    let runs = biases.len() / C / groups;
    let run = places.group / runs;
    let vectors = SUMS / S::LANES;
    let mut floats = [[s.splat(0.0); VECTORS]; C];
    for group in 0..groups {
        let norms = &places.norms[(block * groups + group) * SUMS..][..SUMS];
        for i in group * runs..(group + 1) * runs {
            let start = i * run;
            let mut dots = [[s.splat_i32(0); VECTORS]; C];
            for c in 0..C {
                dots[c] = [s.splat_i32(biases[c * groups * runs + i]); VECTORS];
            }
            places.prefetch::<S, K>(s, block * cols + start, run);
            for at in (start..start + run).step_by(EIGHT) {
                // SAFETY: the block has eight places at `at`, and each column eight values.
                unsafe {
                    let weights = step::<S, K, F>(s, points, places, block * cols + at);
                    let signs = signs::<S, K>(s, places, block, at);
                    for c in 0..C {
                        let x = columns.codes.as_ptr().add(c * codes_stride(cols) + at);
                        let x = s.spread_8(x);
                        for i in 0..vectors {
                            let (w, x) = (weights.as_ref()[i], x.as_ref()[i]);
                            dots[c][i] = match K {
                                SIGNED => s.dot4_unsigned(dots[c][i], w, s.negate(x, signs[i])),
                                _ => s.dot4(dots[c][i], s.bias(w), x),
                            };
                        }
                    }
                }
            }
            for c in 0..C {
                let scale = s.splat(columns.scales[c * subs_stride(cols) + start / SUB]);
                for i in 0..vectors {
                    // SAFETY: `vectors` of them are `SUMS` numbers.
                    let norm = unsafe { s.load_f16(norms.as_ptr().add(i * S::LANES)) };
                    floats[c][i] = s.fma(s.to_f32(dots[c][i]), s.mul(norm, scale), floats[c][i]);
                }
            }
        }
    }
    let mut sums = [[0.0; SUMS]; C];
    for c in 0..C {
        for i in 0..vectors {
            // SAFETY: `vectors` of them are `SUMS` numbers.
            unsafe { s.store(sums[c].as_mut_ptr().add(i * S::LANES), floats[c][i]) };
        }
    }
    sums
}

/// Rows `first..first + count` of a panel of as many rows as `packed` has room for:
/// `packed[k][row]` has four columns.
#[inline(always)]
pub(super) fn fill<S: Simd>(
    s: S,
    points: &Points,
    places: &Places,
    rows: Range<usize>,
    packed: &mut [u32],
) {
    // What is past the last row is multiplied, too, and then dropped.
    packed.fill(0);
    let rows = places.skip + rows.start..places.skip + rows.end;
    match points.form() {
        (ONE, false) => fill_blocks::<S, ONE, false>(s, points, places, rows, packed),
        (ONE, true) => fill_blocks::<S, ONE, true>(s, points, places, rows, packed),
        (TWO, false) => fill_blocks::<S, TWO, false>(s, points, places, rows, packed),
        (TWO, true) => fill_blocks::<S, TWO, true>(s, points, places, rows, packed),
        (_, false) => fill_blocks::<S, SIGNED, false>(s, points, places, rows, packed),
        (_, true) => fill_blocks::<S, SIGNED, true>(s, points, places, rows, packed),
    }
}

#[inline(always)]
fn fill_blocks<S: Simd, const K: u8, const F: bool>(
    s: S,
    points: &Points,
    places: &Places,
    rows: Range<usize>,
    packed: &mut [u32],
) {
    let (cols, v) = (places.cols, points.v);
    let room = packed.len() / (cols / 4);
    assert!(rows.end.div_ceil(v) <= places.blocks && rows.len() <= room, "rows that are");
    for block in rows.start / v..rows.end.div_ceil(v) {
        let (start, end) = ((block * v).max(rows.start), (block * v + v).min(rows.end));
        for at in 0..cols / EIGHT {
            let mut lanes = [0_u32; SUMS];
            // SAFETY: the block has eight places there; the vectors are `SUMS` lanes.
            unsafe {
                let weights = step::<S, K, F>(s, points, places, block * cols + at * EIGHT);
                let signs = signs::<S, K>(s, places, block, at * EIGHT);
                for i in 0..SUMS / S::LANES {
                    let w = weights.as_ref()[i];
                    let w = s.bias(if K == SIGNED { s.negate(w, signs[i]) } else { w });
                    s.store_bytes(lanes.as_mut_ptr().add(i * S::LANES).cast(), w);
                }
            }
            for (half, lanes) in lanes.chunks_exact(EIGHT).enumerate() {
                let line = (2 * at + half) * room + start - rows.start;
                let lanes = &lanes[start - block * v..end - block * v];
                packed[line..line + lanes.len()].copy_from_slice(lanes);
            }
        }
    }
}

/// The weights of eight columns.
///
/// # Safety
/// There are eight places at `at`, counted from the first of all.
#[inline(always)]
unsafe fn step<S: Simd, const K: u8, const F: bool>(
    s: S,
    points: &Points,
    places: &Places,
    at: usize,
) -> S::Points {
    let mut mains = [points.main.as_ptr(); EIGHT];
    let mut more = [points.residual.as_ptr(); EIGHT];
    // SAFETY: as the caller vouches; every place is one of a point, with eight numbers after it.
    unsafe {
        for i in 0..EIGHT {
            let place = usize::from(*places.main.as_ptr().add(at + i));
            mains[i] = mains[i].add(if F { place * EIGHT } else { place });
            if K == TWO {
                let place = usize::from(*places.residual.as_ptr().add(at + i));
                more[i] = more[i].add(if F { place * EIGHT } else { place });
            }
        }
        if K == TWO { s.point_sums(mains, more) } else { s.points(mains) }
    }
}

/// Bytes below zero where the weights of eight columns from `at` on are.
///
/// # Safety
/// The block is one, and has these columns.
#[inline(always)]
unsafe fn signs<S: Simd, const K: u8>(
    s: S,
    places: &Places,
    block: usize,
    at: usize,
) -> [S::Bytes; VECTORS] {
    let mut signs = [s.splat_byte(0); VECTORS];
    if K == SIGNED {
        let chunk = block * signs_stride(places.cols) + at / (8 * EIGHT) * (8 * EIGHT);
        let up = s.splat_i32((at / EIGHT % EIGHT) as i32);
        for i in 0..SUMS / S::LANES {
            // SAFETY: the chunk has a byte for each weight of eight columns.
            let all =
                unsafe { s.load_bytes(places.signs.as_ptr().add(chunk + 4 * S::LANES * i).cast()) };
            signs[i] = s.shift_up(all, up);
        }
    }
    signs
}
