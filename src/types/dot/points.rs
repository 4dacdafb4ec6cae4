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

use super::super::points::codes;
use super::super::vptq::FUSED_MAX;
use super::super::{Layout, Shape, Tensor, even_signs, minus_signs};
use super::int8::MatVec;
use super::panel::greatest_common_divisor;
use super::{Int8Columns, SUB, codes_stride, subs_stride};

/// Numbers that are read of a point, and columns of a step.
const EIGHT: usize = FUSED_MAX;
/// Sums of a step: eight rows, in two halves of its columns.
const SUMS: usize = 2 * EIGHT;
/// Vectors of the narrowest instruction set that [`SUMS`] take.
const VECTORS: usize = 4;

/// The bit of the signs of each step of eight steps, in all bytes.
static SIGN_BITS: [[u8; 8 * EIGHT]; EIGHT] = {
    let mut bits = [[0; 8 * EIGHT]; EIGHT];
    let mut k = 0;
    while k < EIGHT {
        bits[k] = [0x80 >> k; 8 * EIGHT];
        k += 1;
    }
    bits
};

/// What a code is of: one point, two that are added, or one and signs.
const ONE: u8 = 0;
const TWO: u8 = 1;
const SIGNED: u8 = 2;

/// The points of a weight, each `stride` from the one before.
pub(super) struct Points {
    /// After eight bytes that are read with the first point.
    main: Vec<i8>,
    /// The same; empty if codes are of one point.
    residual: Vec<i8>,
    shape: Shape,
    /// Of each point: bits of its numbers below zero; empty where codes have no signs.
    own_signs: Vec<u32>,
    /// What a place is multiplied with: 1, or 8 where the table is too long for places of 16 bits.
    unit: usize,
}

impl Points {
    /// Of a weight with such a layout.
    pub(super) fn new(weight: &Tensor) -> Option<Points> {
        let Layout::Points(shape) = weight.kind.layout() else { return None };
        let Shape { v, bits, residual_bits, signs, .. } = shape;
        assert!(v <= EIGHT && bits.max(residual_bits) <= 16, "points that fit");
        let table: &[i8] = bytemuck::cast_slice(&weight.table);
        let (main, residual) = table.split_at(v << bits);
        let signed = if signs { main } else { &[] };
        let own_signs = signed.chunks_exact(v).map(minus_signs).collect();
        assert!(residual.is_empty() || residual.len() == v << residual_bits, "a point per code");
        let unit = if v << bits.max(residual_bits) <= 1 << 16 { 1 } else { EIGHT };
        let stride = if unit == 1 { v } else { EIGHT };
        // What the sums of two points are cut to.
        let least = if residual.is_empty() { -127 } else { i8::MIN };
        let lay = |points: &[i8]| {
            let mut laid = vec![0; EIGHT + points.len() / v * stride + EIGHT];
            for (to, point) in laid[EIGHT..].chunks_mut(stride).zip(points.chunks_exact(v)) {
                let number = |q: i8| if signs { q.max(-127).abs() } else { q.max(least) };
                to.iter_mut().zip(point).for_each(|(to, &q)| *to = number(q));
            }
            laid
        };
        let residual = if residual.is_empty() { Vec::new() } else { lay(residual) };
        Some(Points { main: lay(main), residual, shape, own_signs, unit })
    }

    /// What codes are of, and whether places are numbers of points.
    fn form(&self) -> (u8, bool) {
        let form = match self.residual.is_empty() {
            true if self.shape.signs => SIGNED,
            true => ONE,
            false => TWO,
        };
        (form, self.unit != 1)
    }
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
        let Shape { v, bits, signs, .. } = points.shape;
        let (cols, groups) = (weight.cols, weight.cols / weight.group);
        let skip = weight.skip();
        let blocks = (skip + weight.rows).div_ceil(v);
        let stride = if points.unit == 1 { v } else { 1 };
        let has_residual = !points.residual.is_empty();
        let mut places = Places {
            main: Vec::with_capacity(blocks * cols),
            residual: Vec::with_capacity(if has_residual { blocks * cols } else { 0 }),
            signs: vec![0; if signs { blocks * signs_stride(cols) } else { 0 }],
            norms: vec![0; blocks * groups * SUMS],
            blocks,
            cols,
            group: weight.group,
            skip,
        };
        for (at, code) in codes(&weight.codes, points.shape.width()).enumerate() {
            let (main, rest) = (code as usize & ((1 << bits) - 1), code >> bits);
            places.main.push((main * stride) as u16);
            if has_residual {
                places.residual.push((rest as usize * stride) as u16);
            }
            if signs {
                places.add_signs(at, even_signs(rest, v) ^ points.own_signs[main]);
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

    /// Signs of the `at`-th code.
    fn add_signs(&mut self, at: usize, minus: u32) {
        let (block, c) = (at / self.cols, at % EIGHT);
        let step = at % self.cols / EIGHT;
        let at = block * signs_stride(self.cols) + step / EIGHT * 8 * EIGHT;
        for row in (0..EIGHT).filter(|row| minus >> row & 1 == 1) {
            self.signs[at + 4 * (c / 4 * EIGHT + row) + c % 4] |= 0x80 >> (step % EIGHT);
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
    let (v, count) = (points.shape.v, rows.len());
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
            for at in (start..start + run).step_by(EIGHT) {
                // SAFETY: the block has eight places at `at`, and each column eight values.
                unsafe {
                    let weights = step::<S, K, F>(s, points, places, block * cols + at);
                    let (signs, bit) = signs::<S, K>(s, places, block, at);
                    for c in 0..C {
                        let x = columns.codes.as_ptr().add(c * codes_stride(cols) + at);
                        let x = s.spread_8(x);
                        for i in 0..vectors {
                            let (w, x) = (weights.as_ref()[i], x.as_ref()[i]);
                            dots[c][i] = if K == SIGNED {
                                s.dot4_unsigned(dots[c][i], w, s.negate(x, signs[i], bit))
                            } else {
                                s.dot4(dots[c][i], s.bias(w), x)
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
    let (cols, v) = (places.cols, points.shape.v);
    let room = packed.len() / (cols / 4);
    assert!(rows.end.div_ceil(v) <= places.blocks && rows.len() <= room, "rows that are");
    for block in rows.start / v..rows.end.div_ceil(v) {
        let (start, end) = ((block * v).max(rows.start), (block * v + v).min(rows.end));
        for at in 0..cols / EIGHT {
            let mut lanes = [0_u32; SUMS];
            // SAFETY: the block has eight places there; the vectors are `SUMS` lanes.
            unsafe {
                let weights = step::<S, K, F>(s, points, places, block * cols + at * EIGHT);
                let (signs, bit) = signs::<S, K>(s, places, block, at * EIGHT);
                for i in 0..SUMS / S::LANES {
                    let w = weights.as_ref()[i];
                    let w = if K == SIGNED { s.negate(w, signs[i], bit) } else { w };
                    let w = s.bias(w);
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
    let mut mains = [points.main.as_ptr().wrapping_add(EIGHT); EIGHT];
    let mut more = [points.residual.as_ptr().wrapping_add(EIGHT); EIGHT];
    // SAFETY: as the caller vouches; every place is one of a point, with eight numbers before it
    // and after it.
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

/// The signs of the weights of eight columns from `at` on, and the bit that they are in.
///
/// # Safety
/// The block is one, and has these columns.
#[inline(always)]
unsafe fn signs<S: Simd, const K: u8>(
    s: S,
    places: &Places,
    block: usize,
    at: usize,
) -> ([S::Bytes; VECTORS], S::Bytes) {
    let mut signs = [s.splat_byte(0); VECTORS];
    let mut bit = s.splat_byte(0);
    if K == SIGNED {
        let chunk = block * signs_stride(places.cols) + at / (8 * EIGHT) * (8 * EIGHT);
        // SAFETY: the chunk has a byte for each weight of eight columns, and as many bits have one.
        unsafe {
            for i in 0..SUMS / S::LANES {
                let signs_at = places.signs.as_ptr().add(chunk + 4 * S::LANES * i);
                signs[i] = s.load_bytes(signs_at.cast());
            }
            bit = s.load_bytes(SIGN_BITS[at / EIGHT % EIGHT].as_ptr().cast());
        }
    }
    (signs, bit)
}
