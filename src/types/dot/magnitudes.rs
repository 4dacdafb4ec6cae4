//! Few columns, weights whose codes are points of neighbouring rows and signs, at most 128 points:
//! a permutation of bytes looks the magnitudes of 64 columns of a row up at once.
//!
//! ```text
//! for each block of v rows, for each 64 columns, for each row of the block:
//!     sums[row] += magnitudes[row][codes] * (x, turned where the row's signs are minus)
//! ```
//!
//! A code and the signs of its column are taken apart when a weight is loaded: then they lie side
//! by side for 64 columns, the codes in bytes, the signs of a row in a word.

#![allow(clippy::needless_range_loop, reason = "tiles of registers read best by number")]

use std::ops::Range;

use half::f16;

use crate::simd::{Level, Simd};

use super::super::{Layout, Tensor, even_signs};
use super::int8::MatVec;
use super::points::own_signs;
use super::{Int8Columns, SUB, codes_stride, subs_stride};

/// Columns of a step.
const STEP: usize = 64;
/// Rows of a block at most.
const ROWS: usize = 8;
/// Magnitudes of a row, some of which are left out where there are fewer points.
const COUNT: usize = 128;
/// Bytes that are asked for before they are read.
const AHEAD: usize = 1024;

/// A weight whose codes are taken apart.
pub(super) struct Magnitudes {
    /// `(v, COUNT)`.
    table: Vec<u8>,
    /// `(blocks, cols / STEP)`: the codes of [`STEP`] columns, then v words of signs.
    steps: Vec<u8>,
    /// `(blocks * v, groups)`: zeros for rows that are not the weight's own.
    norms: Vec<f32>,
    v: usize,
    cols: usize,
    groups: usize,
    /// Rows of the first block that are not the weight's own.
    skip: usize,
}

impl Magnitudes {
    /// Of a weight that has such codes and fits the kernel.
    pub(super) fn new(weight: &Tensor, level: Level) -> Option<Magnitudes> {
        let Layout::Points { v, bits, signs: true, .. } = weight.kind.layout() else { return None };
        let fits = v <= ROWS && 1 << bits <= COUNT && weight.group.is_multiple_of(STEP);
        // 256-bit vectors have no permutation for it.
        if level == Level::Avx2 || !fits {
            return None;
        }
        let mut table = vec![0; v * COUNT];
        let points: &[i8] = bytemuck::cast_slice(&weight.table);
        for (code, point) in points.chunks_exact(v).enumerate() {
            let numbers = point.iter().enumerate();
            numbers.for_each(|(t, &number)| {
                table[t * COUNT + code] = number.unsigned_abs().min(127);
            });
        }
        let own_signs = own_signs(points, v);
        let (cols, groups, skip) = (weight.cols, weight.cols / weight.group, weight.skip());
        let rows = (skip + weight.rows).next_multiple_of(v);
        let mut norms = vec![0.0; rows * groups];
        let stored = weight.norms.as_chunks::<2>().0;
        let own = norms[skip * groups..].iter_mut().zip(stored);
        own.for_each(|(to, &norm)| *to = f16::from_le_bytes(norm).to_f32());
        let width = bits + v - 1;
        let mut steps = Vec::with_capacity(rows / v * cols / STEP * step_bytes(v));
        for bytes in weight.codes.chunks_exact(STEP / 8 * width) {
            let (codes, signs) = take_apart(bytes, v, bits, &own_signs);
            steps.extend(codes);
            signs[..v].iter().for_each(|signs| steps.extend(signs.to_le_bytes()));
        }
        assert_eq!(steps.len(), rows / v * cols / STEP * step_bytes(v), "a code per column");
        Some(Magnitudes { table, steps, norms, v, cols, groups, skip })
    }

    fn blocks(&self) -> usize {
        self.norms.len() / self.groups / self.v
    }
}

fn step_bytes(v: usize) -> usize {
    STEP + v * size_of::<u64>()
}

/// The codes of [`STEP`] columns, and the signs of each row of their block.
fn take_apart(bytes: &[u8], v: usize, bits: usize, own: &[u32]) -> ([u8; STEP], [u64; ROWS]) {
    let width = bits + v - 1;
    let (mut codes, mut signs) = ([0; STEP], [0; ROWS]);
    let mut padded = [0; STEP / 8 * (ROWS + 6) + 4];
    padded[..bytes.len()].copy_from_slice(bytes);
    for (c, code) in codes.iter_mut().enumerate() {
        let bit = c * width;
        let word: [u8; 4] = padded[bit / 8..][..4].try_into().expect("four bytes");
        let whole = u32::from_le_bytes(word) >> (bit % 8) & ((1 << width) - 1);
        *code = (whole & ((1 << bits) - 1)) as u8;
        let minus = even_signs(whole >> bits, v) ^ own[usize::from(*code)];
        for (t, signs) in signs.iter_mut().enumerate() {
            *signs |= u64::from(minus >> t & 1) << c;
        }
    }
    (codes, signs)
}

/// Every row, with up to four columns at a time. From here on rows are counted from the first of
/// the first block.
#[inline(always)]
pub(super) fn rows<S: Simd>(s: S, weight: &Magnitudes, work: MatVec) {
    let MatVec { first, count, columns, out, .. } = work;
    let range = weight.skip + first..weight.skip + first + count;
    let mut done = 0;
    while done < columns.count {
        let part = columns.few(done);
        let step = part.count;
        let out = &mut out[done * count..(done + step) * count];
        match step {
            1 => widths::<S, 1>(s, weight, range.clone(), &part, out),
            2 => widths::<S, 2>(s, weight, range.clone(), &part, out),
            _ => widths::<S, 4>(s, weight, range.clone(), &part, out),
        }
        done += step;
    }
}

/// How many rows a block has is known inside.
#[inline(always)]
fn widths<S: Simd, const C: usize>(
    s: S,
    weight: &Magnitudes,
    rows: Range<usize>,
    columns: &Int8Columns,
    out: &mut [f32],
) {
    match weight.v {
        2 => blocks::<S, C, 2>(s, weight, rows, columns, out),
        3 => blocks::<S, C, 3>(s, weight, rows, columns, out),
        4 => blocks::<S, C, 4>(s, weight, rows, columns, out),
        5 => blocks::<S, C, 5>(s, weight, rows, columns, out),
        6 => blocks::<S, C, 6>(s, weight, rows, columns, out),
        7 => blocks::<S, C, 7>(s, weight, rows, columns, out),
        _ => blocks::<S, C, 8>(s, weight, rows, columns, out),
    }
}

#[inline(always)]
fn blocks<S: Simd, const C: usize, const V: usize>(
    s: S,
    weight: &Magnitudes,
    rows: Range<usize>,
    columns: &Int8Columns,
    out: &mut [f32],
) {
    let count = rows.len();
    assert!(rows.end.div_ceil(V) <= weight.blocks() && weight.v == V, "rows that are");
    assert!(columns.cols == weight.cols && columns.group.is_multiple_of(SUB), "columns that fit");
    for block in rows.start / V..rows.end.div_ceil(V) {
        let sums = block_sums::<S, C, V>(s, weight, columns, block);
        for (c, sums) in sums.iter().enumerate() {
            for row in (block * V).max(rows.start)..(block * V + V).min(rows.end) {
                out[c * count + row - rows.start] = sums[row - block * V];
            }
        }
    }
}

/// The products of a block's rows with each column.
#[inline(always)]
fn block_sums<S: Simd, const C: usize, const V: usize>(
    s: S,
    weight: &Magnitudes,
    columns: &Int8Columns,
    block: usize,
) -> [[f32; V]; C] {
    let steps = weight.cols / STEP / weight.groups;
    let mut sums = [[0.0; V]; C];
    for group in 0..weight.groups {
        let mut floats = [[s.splat(0.0); V]; C];
        for step in group * steps..(group + 1) * steps {
            let at = (block * weight.groups * steps + step) * step_bytes(V);
            // SAFETY: the block has this step, and each column 64 values and their scales.
            unsafe {
                let codes = weight.steps.as_ptr().add(at);
                for line in (0..step_bytes(V)).step_by(STEP) {
                    s.prefetch_once(codes.wrapping_add(AHEAD + line));
                }
                step_sums(s, weight, codes, columns, step * STEP, &mut floats);
            }
        }
        for c in 0..C {
            for t in 0..V {
                let norm = weight.norms[(block * V + t) * weight.groups + group];
                sums[c][t] += norm * s.sum(floats[c][t]);
            }
        }
    }
    sums
}

/// Adds the products of a step.
///
/// # Safety
/// `codes` has a step, and every column [`STEP`] values from `first` on.
#[inline(always)]
unsafe fn step_sums<S: Simd, const C: usize, const V: usize>(
    s: S,
    weight: &Magnitudes,
    codes: *const u8,
    columns: &Int8Columns,
    first: usize,
    floats: &mut [[S::F32; V]; C],
) {
    // SAFETY: as the caller vouches; the table has as many bytes for each row.
    unsafe {
        for at in (0..STEP).step_by(4 * S::LANES) {
            let places = s.load_bytes(codes.add(at).cast());
            let mut x = [s.splat_byte(0); C];
            let mut scales = [s.splat(0.0); C];
            for c in 0..C {
                x[c] = s.load_bytes(
                    columns.codes.as_ptr().add(c * codes_stride(columns.cols) + first + at),
                );
                let scale = c * subs_stride(columns.cols) + (first + at) / SUB;
                scales[c] = s.load_spread(columns.scales.as_ptr().add(scale));
            }
            for t in 0..V {
                let w = s.look_up_128(weight.table.as_ptr().add(t * COUNT), places);
                let signs = codes.add(STEP).cast::<u64>().add(t).read_unaligned();
                let signs = s.spread_bits(u64::from_le(signs) >> at);
                for c in 0..C {
                    let x = s.negate(x[c], signs);
                    let dots = s.dot4_unsigned(s.splat_i32(0), w, x);
                    floats[c][t] = s.fma(s.to_f32(dots), scales[c], floats[c][t]);
                }
            }
        }
    }
}

/// Rows of a panel of as many rows as `packed` has room for: `packed[k][row]` has four columns.
#[inline(always)]
pub(super) fn fill<S: Simd>(s: S, weight: &Magnitudes, rows: Range<usize>, packed: &mut [u32]) {
    let Magnitudes { v, cols, skip, .. } = *weight;
    let room = packed.len() / (cols / 4);
    assert!(rows.end <= weight.blocks() * v - skip && rows.len() <= room, "rows that are");
    // What is past the last row is multiplied, too, and then dropped.
    packed.fill(0);
    for (to, row) in rows.enumerate() {
        let (block, t) = ((skip + row) / v, (skip + row) % v);
        for first in (0..cols).step_by(STEP) {
            let step = (block * cols + first) / STEP * step_bytes(v);
            let mut lanes = [0_u32; STEP / 4];
            // SAFETY: the block has this step, and the lanes are as many bytes.
            unsafe {
                let codes = weight.steps.as_ptr().add(step);
                let signs = codes.add(STEP).cast::<u64>().add(t).read_unaligned();
                for at in (0..STEP).step_by(4 * S::LANES) {
                    let places = s.load_bytes(codes.add(at).cast());
                    let w = s.look_up_128(weight.table.as_ptr().add(t * COUNT), places);
                    let w = s.bias(s.negate(w, s.spread_bits(u64::from_le(signs) >> at)));
                    s.store_bytes(lanes.as_mut_ptr().cast::<i8>().add(at), w);
                }
            }
            for (i, lane) in lanes.into_iter().enumerate() {
                packed[(first / 4 + i) * room + to] = lane;
            }
        }
    }
}
