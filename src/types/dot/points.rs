//! Few columns, weights whose codes are learned points of neighbouring rows.
//!
//! ```text
//! for each block of v rows, for each column c:
//!     sums[0..v] += point(code[block][c]) * x[c]
//! ```
//!
//! Points are padded to eight numbers. Eight columns go at a time: their points are turned so that
//! a lane has one row's numbers in four columns, as the integer dot product wants them.

#![allow(clippy::needless_range_loop, reason = "tiles of registers read best by number")]

use crate::simd::Simd;

use super::super::{Layout, Rows, Tensor};
use super::int8::MatVec;
use super::panel::greatest_common_divisor;
use super::{Int8Columns, SUB, codes_stride, subs_stride};

/// Numbers of a padded point, and columns of a step.
const EIGHT: usize = 8;
/// Sums of a step: eight rows, in two halves of its columns.
const SUMS: usize = 2 * EIGHT;
/// Bits of the widest code: eight of them with what is read past the last fit [`TAIL`].
const WIDTH_MAX: usize = 32;
/// Bytes for the last codes of a plane, where the reads of the others would leave it.
const TAIL: usize = WIDTH_MAX + 8;
/// Bits of a main code, where the width of codes is known when this is compiled.
const BITS: usize = 12;
/// Vectors of the narrowest instruction set that [`SUMS`] take.
const VECTORS: usize = 4;

/// The points of a weight, padded.
pub(super) struct Points {
    main: Vec<[i8; EIGHT]>,
    /// Empty if codes are of one point.
    residual: Vec<[i8; EIGHT]>,
    v: usize,
    bits: usize,
    width: usize,
}

impl Points {
    /// Of a weight with such a layout.
    pub(super) fn new(weight: &Tensor) -> Option<Points> {
        let Layout::Points { v, bits, residual_bits } = weight.kind.layout() else { return None };
        assert!(v <= EIGHT && bits + residual_bits <= WIDTH_MAX, "points that fit");
        let table: &[i8] = bytemuck::cast_slice(&weight.table);
        let (main, residual) = table.split_at(v << bits);
        let pad = |point: &[i8]| {
            let mut padded = [0; EIGHT];
            padded[..v].copy_from_slice(point);
            padded
        };
        let mut main: Vec<_> = main.chunks_exact(v).map(pad).collect();
        let residual: Vec<_> = residual.chunks_exact(v).map(pad).collect();
        if residual.is_empty() {
            // What the sums of two points are cut to.
            main.as_flattened_mut().iter_mut().for_each(|q| *q = (*q).max(-127));
        }
        assert_eq!(main.len(), 1 << bits, "a point for every code");
        assert!(residual.is_empty() || residual.len() == 1 << residual_bits, "and here");
        Some(Points { main, residual, v, bits, width: bits + residual_bits })
    }

    /// Bits of a code and its residual, or 0 where the first does not have [`BITS`].
    fn known_width(&self) -> usize {
        if self.bits == BITS { self.width } else { 0 }
    }
}

/// Every row, with up to four columns at a time.
#[inline(always)]
pub(super) fn rows<S: Simd>(s: S, work: MatVec) {
    let MatVec { weight, lookup, first, count, columns, out, .. } = work;
    let points = lookup.points.as_deref().expect("a lookup of this weight");
    let planes = weight.rows(first..first + count);
    let mut done = 0;
    while done < columns.count {
        let part = columns.few(done);
        let step = part.count;
        let out = &mut out[done * count..(done + step) * count];
        match step {
            1 => widths::<S, 1>(s, points, &planes, &part, out),
            2 => widths::<S, 2>(s, points, &planes, &part, out),
            _ => widths::<S, 4>(s, points, &planes, &part, out),
        }
        done += step;
    }
}

/// The widths of the presets are known where the codes are read.
#[inline(always)]
fn widths<S: Simd, const C: usize>(
    s: S,
    points: &Points,
    planes: &Rows,
    columns: &Int8Columns,
    out: &mut [f32],
) {
    match (points.known_width(), points.residual.is_empty()) {
        (12, true) => blocks::<S, C, 12, false>(s, points, planes, columns, out),
        (18, false) => blocks::<S, C, 18, true>(s, points, planes, columns, out),
        (20, false) => blocks::<S, C, 20, true>(s, points, planes, columns, out),
        (_, true) => blocks::<S, C, 0, false>(s, points, planes, columns, out),
        (_, false) => blocks::<S, C, 0, true>(s, points, planes, columns, out),
    }
}

#[inline(always)]
fn blocks<S: Simd, const C: usize, const W: usize, const R: bool>(
    s: S,
    points: &Points,
    planes: &Rows,
    columns: &Int8Columns,
    out: &mut [f32],
) {
    let width = if W == 0 { points.width } else { W };
    let (cols, v) = (planes.cols, points.v);
    let bytes = cols / EIGHT * width;
    let groups = cols / planes.group;
    let skipped = planes.first % v;
    let norms = planes.norms.as_chunks::<2>().0;
    for block in 0..planes.codes.len() / bytes {
        let codes = &planes.codes[block * bytes..];
        let row = |t: usize| (block * v + t).wrapping_sub(skipped);
        let norm = |group: usize, t: usize| {
            let norm = (t < v && row(t) < planes.count).then(|| norms[row(t) * groups + group]);
            norm.map_or(0.0, |norm| half::f16::from_le_bytes(norm).to_f32())
        };
        let sums = block_sums::<S, C, W, R>(s, points, planes, columns, codes, norm);
        for (c, sums) in sums.iter().enumerate() {
            for t in (0..v).filter(|&t| row(t) < planes.count) {
                out[c * planes.count + row(t)] = sums[t] + sums[EIGHT + t];
            }
        }
    }
}

/// The products of a block's rows with each column, in two halves.
#[inline(always)]
fn block_sums<S: Simd, const C: usize, const W: usize, const R: bool>(
    s: S,
    points: &Points,
    planes: &Rows,
    columns: &Int8Columns,
    codes: &[u8],
    norm: impl Fn(usize, usize) -> f32,
) -> [[f32; SUMS]; C] {
    let width = if W == 0 { points.width } else { W };
    let cols = planes.cols;
    let run = greatest_common_divisor(planes.group, columns.group);
    assert!(run.is_multiple_of(SUB), "runs that fit");
    let vectors = SUMS / S::LANES;
    let mut floats = [[s.splat(0.0); VECTORS]; C];
    let (mut norms, mut tail) = ([0.0; SUMS], [0; TAIL]);
    for start in (0..cols).step_by(run) {
        if start % planes.group == 0 {
            for t in 0..EIGHT {
                norms[t] = norm(start / planes.group, t);
                norms[EIGHT + t] = norms[t];
            }
        }
        let mut dots = [[s.splat_i32(0); VECTORS]; C];
        for c in 0..C {
            let sums = &columns.sums[c * subs_stride(cols) + start / SUB..][..run / SUB];
            // What takes the bias off, once for both halves of the columns.
            let bias = -S::BIAS * sums.iter().sum::<i32>();
            let mut both = [0; SUMS];
            both[..EIGHT].fill(bias);
            for i in 0..vectors {
                // SAFETY: `vectors` of them are `SUMS` numbers.
                dots[c][i] = unsafe { s.load_i32(both.as_ptr().add(i * S::LANES)) };
            }
        }
        for at in (start..start + run).step_by(EIGHT) {
            let from = codes_at(codes, at / EIGHT * width, width, &mut tail);
            // SAFETY: `TAIL` bytes are there, codes are below the tables' lengths, and each column
            // has eight values at `at`.
            unsafe {
                let weights = step::<S, W, R>(s, points, from);
                for c in 0..C {
                    let x = columns.codes.as_ptr().add(c * codes_stride(cols) + at);
                    let x = s.spread_8(x);
                    for i in 0..vectors {
                        let w = s.bias(weights.as_ref()[i]);
                        dots[c][i] = s.dot4(dots[c][i], w, x.as_ref()[i]);
                    }
                }
            }
        }
        for c in 0..C {
            let scale = s.splat(columns.scales[c * subs_stride(cols) + start / SUB]);
            for i in 0..vectors {
                // SAFETY: `vectors` of them are `SUMS` numbers.
                let norm = unsafe { s.load(norms.as_ptr().add(i * S::LANES)) };
                floats[c][i] = s.fma(s.to_f32(dots[c][i]), s.mul(norm, scale), floats[c][i]);
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

/// Where the `width` bytes of eight codes and what is read after them can be read: in place, or at
/// the end of a plane in a copy.
#[inline(always)]
fn codes_at(codes: &[u8], from: usize, width: usize, tail: &mut [u8; TAIL]) -> *const u8 {
    if from + TAIL <= codes.len() {
        return codes[from..].as_ptr();
    }
    tail[..width].copy_from_slice(&codes[from..from + width]);
    tail.as_ptr()
}

/// Rows of a panel of as many rows as `packed` has room for: `packed[k][row]` has four columns.
#[inline(always)]
pub(super) fn fill<S: Simd>(s: S, points: &Points, planes: &Rows, packed: &mut [u32]) {
    match (points.known_width(), points.residual.is_empty()) {
        (12, true) => fill_blocks::<S, 12, false>(s, points, planes, packed),
        (18, false) => fill_blocks::<S, 18, true>(s, points, planes, packed),
        (20, false) => fill_blocks::<S, 20, true>(s, points, planes, packed),
        (_, true) => fill_blocks::<S, 0, false>(s, points, planes, packed),
        (_, false) => fill_blocks::<S, 0, true>(s, points, planes, packed),
    }
}

#[inline(always)]
fn fill_blocks<S: Simd, const W: usize, const R: bool>(
    s: S,
    points: &Points,
    planes: &Rows,
    packed: &mut [u32],
) {
    let width = if W == 0 { points.width } else { W };
    let (cols, v) = (planes.cols, points.v);
    let rows = packed.len() / (cols / 4);
    // What is past the last row is multiplied, too, and then dropped.
    packed.fill(0);
    let bytes = cols / EIGHT * width;
    let skipped = planes.first % v;
    let mut tail = [0; TAIL];
    for block in 0..planes.codes.len() / bytes {
        let codes = &planes.codes[block * bytes..];
        let first = (block * v).saturating_sub(skipped);
        let count = (block * v + v - skipped).min(planes.count) - first;
        let skip = first + skipped - block * v;
        for at in 0..cols / EIGHT {
            let from = codes_at(codes, at * width, width, &mut tail);
            let mut lanes = [0_u32; SUMS];
            // SAFETY: `TAIL` bytes are there, and codes are below the tables' lengths; the vectors
            // are `SUMS` lanes.
            unsafe {
                let weights = step::<S, W, R>(s, points, from);
                for i in 0..SUMS / S::LANES {
                    let w = s.bias(weights.as_ref()[i]);
                    s.store_bytes(lanes.as_mut_ptr().add(i * S::LANES).cast(), w);
                }
            }
            for (half, lanes) in lanes.chunks_exact(EIGHT).enumerate() {
                let line = (2 * at + half) * rows + first;
                packed[line..line + count].copy_from_slice(&lanes[skip..skip + count]);
            }
        }
    }
}

/// The weights of eight columns.
///
/// # Safety
/// `at` is valid for [`TAIL`] bytes, and the tables have every code.
#[inline(always)]
unsafe fn step<S: Simd, const W: usize, const R: bool>(
    s: S,
    points: &Points,
    at: *const u8,
) -> S::Points {
    let width = if W == 0 { points.width } else { W };
    let bits = if W == 0 { points.bits } else { BITS };
    let mask = (1 << bits) - 1;
    let rest = (1 << (width - bits)) - 1;
    let mut mains = [points.main.as_ptr().cast::<i8>(); EIGHT];
    let mut more = [points.residual.as_ptr().cast::<i8>(); EIGHT];
    for i in 0..EIGHT {
        let bit = i * width;
        // SAFETY: as the caller vouches; the last word begins before byte `WIDTH_MAX`.
        unsafe {
            let word = at.add(bit / 8).cast::<u64>().read_unaligned();
            let code = (u64::from_le(word) >> (bit % 8)) as usize;
            mains[i] = mains[i].add((code & mask) * EIGHT);
            if R {
                more[i] = more[i].add((code >> bits & rest) * EIGHT);
            }
        }
    }
    // SAFETY: every code has a point.
    unsafe { if R { s.point_sums(mains, more) } else { s.points(mains) } }
}
