//! Few columns, weights that are integers, or one-byte codes of pairs, with a norm per group: read
//! (or looked up) and multiplied without a store in between.

use crate::simd::{PairTable, Simd};

use super::super::{Rows, SUB, Tensor};
use super::int8::MatVec;
use super::{COLUMNS_MAX, Int8Columns, ROWS_MAX, codes_stride, subs_stride};

/// Weights of a run: they share a scale, and are multiplied at once.
const RUN: usize = 64;
/// Bytes of their codes if a code is a pair.
const RUN_BYTES: usize = RUN / 2;
/// How far ahead of its use a weight is asked for: the machine's own guesses end with a page.
const AHEAD: usize = 2048;
/// Numbers per run are padded to a vector, so that vectors may read past the last.
const PAD: usize = 16;

/// Whether the groups allow it.
pub(super) fn fits(weight: &Tensor, columns: &Int8Columns) -> bool {
    weight.group.is_multiple_of(RUN) && columns.group.is_multiple_of(RUN)
}

/// Scales and sums by run.
pub(super) struct Runs {
    /// `(columns, padded runs)`: of the activations.
    scales: Vec<f32>,
    /// `(columns, padded runs)`: what takes the weights' bias off.
    bias: Vec<i32>,
    /// `(rows, runs)`: of the weights.
    norms: Vec<f32>,
    /// `(columns, padded runs)`: of weights and activations.
    products: Vec<f32>,
}

impl Runs {
    pub(super) fn new(cols: usize) -> Runs {
        let runs = cols / RUN;
        let padded = COLUMNS_MAX * runs.next_multiple_of(PAD);
        Runs {
            scales: vec![0.0; padded],
            bias: vec![0; padded],
            norms: vec![0.0; ROWS_MAX * runs + PAD],
            products: vec![0.0; padded],
        }
    }

    /// Takes the columns in.
    #[inline(always)]
    fn read_columns<S: Simd>(&mut self, columns: &Int8Columns) {
        let (runs, subs) = (columns.cols / RUN, subs_stride(columns.cols));
        let padded = runs.next_multiple_of(PAD);
        for c in 0..columns.count {
            for run in 0..runs {
                let at = c * subs + run * (RUN / SUB);
                self.scales[c * padded + run] = columns.scales[at];
                let sum: i32 = columns.sums[at..at + RUN / SUB].iter().sum();
                self.bias[c * padded + run] = -S::BIAS * sum;
            }
        }
    }

    /// Takes the norms of some rows in.
    #[inline(always)]
    fn read_norms<S: Simd>(&mut self, s: S, rows: &Rows) {
        let norms = rows.norms.as_chunks::<2>().0;
        let count = norms.len();
        assert_eq!(count, rows.count * (rows.cols / rows.group), "a norm per group");
        assert!(rows.count * (rows.cols / RUN) + PAD <= self.norms.len(), "few rows");
        let at: *const u16 = norms.as_ptr().cast();
        let repeat = rows.group / RUN;
        if repeat == 1 {
            for i in (0..count / S::LANES * S::LANES).step_by(S::LANES) {
                // SAFETY: whole vectors below `count`, which `self.norms` has.
                unsafe { s.store(self.norms.as_mut_ptr().add(i), s.load_f16(at.add(i))) };
            }
            let mut rest = [0_u16; PAD];
            let done = count / S::LANES * S::LANES;
            for (to, norm) in rest.iter_mut().zip(&norms[done..]) {
                *to = u16::from_le_bytes(*norm);
            }
            // SAFETY: `rest` is as long as the longest vector, and `self.norms` is padded by it.
            unsafe { s.store(self.norms.as_mut_ptr().add(done), s.load_f16(rest.as_ptr())) };
        } else {
            for (to, norm) in self.norms.chunks_exact_mut(repeat).zip(norms) {
                to.fill(half::f16::from_le_bytes(*norm).to_f32());
            }
        }
    }

    /// The products of scales for row `r`.
    #[inline(always)]
    fn scale_row<S: Simd, const C: usize>(&mut self, s: S, r: usize, runs: usize) {
        let padded = runs.next_multiple_of(PAD);
        for run in (0..runs).step_by(S::LANES) {
            // SAFETY: norms are padded by a vector, and so are the rows of the others.
            unsafe {
                let norm = s.load(self.norms.as_ptr().add(r * runs + run));
                for c in 0..C {
                    let at = c * padded + run;
                    let scale = s.load(self.scales.as_ptr().add(at));
                    s.store(self.products.as_mut_ptr().add(at), s.mul(norm, scale));
                }
            }
        }
    }
}

/// Every row, with up to four columns at a time: that leaves the tables their registers.
#[inline(always)]
pub(super) fn rows<S: Simd>(s: S, work: MatVec) {
    let MatVec { weight, lookup, first, count, columns, scratch, out } = work;
    let table = lookup.pairs.as_deref();
    let planes = weight.rows(first..first + count);
    let bytes = if table.is_some() { weight.cols / 2 } else { weight.cols };
    assert!(planes.codes.len() == count * bytes, "a byte per integer or pair");
    scratch.runs.read_norms(s, &planes);
    let mut done = 0;
    while done < columns.count {
        let part = columns.few(done);
        let step = part.count;
        let out = &mut out[done * count..(done + step) * count];
        scratch.runs.read_columns::<S>(&part);
        match step {
            4 => some_columns::<S, 4>(s, table, &planes, &part, &mut scratch.runs, out),
            2 => some_columns::<S, 2>(s, table, &planes, &part, &mut scratch.runs, out),
            _ => some_columns::<S, 1>(s, table, &planes, &part, &mut scratch.runs, out),
        }
        done += step;
    }
}

#[inline(always)]
fn some_columns<S: Simd, const C: usize>(
    s: S,
    table: Option<&PairTable>,
    planes: &Rows,
    columns: &Int8Columns,
    runs: &mut Runs,
    out: &mut [f32],
) {
    match table {
        Some(table) => pair_columns::<S, C>(s, table, planes, columns, runs, out),
        None => integer_columns::<S, C>(s, planes, columns, runs, out),
    }
}

#[inline(always)]
fn integer_columns<S: Simd, const C: usize>(
    s: S,
    planes: &Rows,
    columns: &Int8Columns,
    runs: &mut Runs,
    out: &mut [f32],
) {
    let count = planes.cols / RUN;
    let padded = count.next_multiple_of(PAD);
    let x: [*const i8; C] =
        std::array::from_fn(|c| columns.codes[c * codes_stride(columns.cols)..].as_ptr());
    for r in 0..planes.count {
        runs.scale_row::<S, C>(s, r, count);
        let codes = planes.codes[r * count * RUN..][..count * RUN].as_ptr();
        let mut sums = [s.splat(0.0); C];
        for run in 0..count {
            s.prefetch(codes.wrapping_add(run * RUN + AHEAD));
            for c in 0..C {
                let mut dot = s.splat_i32(0);
                // SAFETY: `codes` and each column have `count` runs, and so have the products.
                unsafe {
                    for at in (run * RUN..(run + 1) * RUN).step_by(4 * S::LANES) {
                        let w = s.load_bytes(codes.add(at).cast());
                        dot = s.dot4_signed(dot, w, s.load_bytes(x[c].add(at)));
                    }
                    let scale = s.splat(*runs.products.as_ptr().add(c * padded + run));
                    sums[c] = s.fma(s.to_f32(dot), scale, sums[c]);
                }
            }
        }
        for c in 0..C {
            out[c * planes.count + r] = s.sum(sums[c]);
        }
    }
}

#[inline(always)]
fn pair_columns<S: Simd, const C: usize>(
    s: S,
    table: &PairTable,
    planes: &Rows,
    columns: &Int8Columns,
    runs: &mut Runs,
    out: &mut [f32],
) {
    let pairs = s.pairs(table);
    let count = planes.cols / RUN;
    let x: [*const i8; C] =
        std::array::from_fn(|c| columns.codes[c * codes_stride(columns.cols)..].as_ptr());
    for r in 0..planes.count {
        runs.scale_row::<S, C>(s, r, count);
        let codes = planes.codes[r * count * RUN_BYTES..][..count * RUN_BYTES].as_ptr();
        let mut sums = [s.splat(0.0); C];
        // SAFETY: `codes` has `count` runs, each column has them, and so have the run's numbers.
        unsafe {
            let mut run = 0;
            if 4 * S::LANES == 2 * RUN_BYTES {
                while run + 2 <= count {
                    s.prefetch(codes.wrapping_add(run * RUN_BYTES + AHEAD));
                    let codes = s.load_bytes(codes.add(run * RUN_BYTES).cast());
                    let (a, b) = s.look_up_pairs(&pairs, table, codes);
                    add_run(s, &[a], &x, runs, run, count, &mut sums);
                    add_run(s, &[b], &x, runs, run + 1, count, &mut sums);
                    run += 2;
                }
                if run < count {
                    let codes = s.load_half(codes.add(run * RUN_BYTES).cast());
                    let (a, _) = s.look_up_pairs(&pairs, table, codes);
                    add_run(s, &[a], &x, runs, run, count, &mut sums);
                }
            } else {
                while run < count {
                    let at = codes.add(run * RUN_BYTES);
                    let (a, b) = s.look_up_pairs(&pairs, table, s.load_bytes(at.cast()));
                    if 4 * S::LANES == RUN_BYTES {
                        add_run(s, &[a, b], &x, runs, run, count, &mut sums);
                    } else {
                        let next = s.load_bytes(at.add(RUN_BYTES / 2).cast());
                        let (c, d) = s.look_up_pairs(&pairs, table, next);
                        add_run(s, &[a, b, c, d], &x, runs, run, count, &mut sums);
                    }
                    run += 1;
                }
            }
        }
        for c in 0..C {
            out[c * planes.count + r] = s.sum(sums[c]);
        }
    }
}

/// Adds the products of the 64 weights in `w` and those of each column.
///
/// # Safety
/// Each column of `x` has the run, and so have the run's numbers.
#[inline(always)]
unsafe fn add_run<S: Simd, const V: usize, const C: usize>(
    s: S,
    w: &[S::Bytes; V],
    x: &[*const i8; C],
    runs: &Runs,
    run: usize,
    count: usize,
    sums: &mut [S::F32; C],
) {
    let padded = count.next_multiple_of(PAD);
    for c in 0..C {
        // SAFETY: as the caller vouches.
        unsafe {
            let at = c * padded + run;
            let mut dot = s.first_i32(*runs.bias.as_ptr().add(at));
            for (i, &w) in w.iter().enumerate() {
                dot = s.dot4(dot, w, s.load_bytes(x[c].add(run * RUN + i * 4 * S::LANES)));
            }
            let scale = s.splat(*runs.products.as_ptr().add(at));
            sums[c] = s.fma(s.to_f32(dot), scale, sums[c]);
        }
    }
}
