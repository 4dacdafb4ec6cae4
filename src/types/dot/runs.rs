//! Few columns, weights that are integers, or one-byte codes of pairs, with a norm per group, or
//! first the one and then the other: read (or looked up) and multiplied without a store in between.

use std::ops::Range;

use crate::simd::{PairTable, Simd};

use super::super::{Layout, Resq, Rows, SUB, Tensor};
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
    // Parts are whole runs, and each has one norm.
    let is_whole = weight.kind.layout() == Layout::Parted || weight.group.is_multiple_of(RUN);
    is_whole && columns.group.is_multiple_of(RUN)
}

/// What rows are: so many runs of pairs, then integers.
struct Form {
    /// Runs of pairs.
    pairs: usize,
    /// Runs of a row.
    runs: usize,
    /// Norms of a row.
    norms: usize,
}

impl Form {
    fn of(weight: &Tensor) -> Form {
        let runs = weight.cols / RUN;
        let pairs = match weight.kind.layout() {
            Layout::Pairs => runs,
            Layout::Parted => {
                Resq::parts(weight.cols).expect("the reader has checked the row").low / RUN
            }
            _ => 0,
        };
        Form { pairs, runs, norms: weight.cols / weight.group }
    }

    fn row_bytes(&self) -> usize {
        self.pairs * RUN_BYTES + (self.runs - self.pairs) * RUN
    }
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
    fn read_norms<S: Simd>(&mut self, s: S, form: &Form, rows: &Rows) {
        let norms = rows.norms.as_chunks::<2>().0;
        let count = norms.len();
        assert_eq!(count, rows.count * form.norms, "a norm per group");
        assert!(rows.count * form.runs + PAD <= self.norms.len(), "few rows");
        if (1..form.runs).contains(&form.pairs) {
            let rows = self.norms.chunks_exact_mut(form.runs);
            for (to, norms) in rows.zip(norms.as_chunks::<2>().0) {
                let (quiet, loud) = to.split_at_mut(form.pairs);
                quiet.fill(half::f16::from_le_bytes(norms[0]).to_f32());
                loud.fill(half::f16::from_le_bytes(norms[1]).to_f32());
            }
            return;
        }
        let at: *const u16 = norms.as_ptr().cast();
        let repeat = form.runs / form.norms;
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
    let form = Form::of(weight);
    let planes = weight.rows(first..first + count);
    assert!(planes.codes.len() == count * form.row_bytes(), "a byte per integer or pair");
    scratch.runs.read_norms(s, &form, &planes);
    let table = lookup.pairs.as_deref();
    let mut done = 0;
    while done < columns.count {
        let part = columns.few(done);
        let step = part.count;
        let out = &mut out[done * count..(done + step) * count];
        scratch.runs.read_columns::<S>(&part);
        match step {
            4 => some_columns::<S, 4>(s, table, &form, &planes, &part, &mut scratch.runs, out),
            2 => some_columns::<S, 2>(s, table, &form, &planes, &part, &mut scratch.runs, out),
            _ => some_columns::<S, 1>(s, table, &form, &planes, &part, &mut scratch.runs, out),
        }
        done += step;
    }
}

/// Each of the three forms of rows has a loop of its own, which knows what it need not look for.
#[inline(always)]
fn some_columns<S: Simd, const C: usize>(
    s: S,
    table: Option<&PairTable>,
    form: &Form,
    planes: &Rows,
    columns: &Int8Columns,
    runs: &mut Runs,
    out: &mut [f32],
) {
    match table {
        Some(table) if form.pairs == form.runs => {
            let table = Some((table, s.pairs(table)));
            each_row::<S, C, true, false>(s, table, form, planes, columns, runs, out);
        }
        Some(table) => {
            let table = Some((table, s.pairs(table)));
            each_row::<S, C, true, true>(s, table, form, planes, columns, runs, out);
        }
        None => each_row::<S, C, false, true>(s, None, form, planes, columns, runs, out),
    }
}

/// Sums up the runs of each row: with `P` there are pairs, with `I` integers.
#[inline(always)]
fn each_row<S: Simd, const C: usize, const P: bool, const I: bool>(
    s: S,
    table: Option<(&PairTable, S::Pairs)>,
    form: &Form,
    planes: &Rows,
    columns: &Int8Columns,
    runs: &mut Runs,
    out: &mut [f32],
) {
    let x: [*const i8; C] =
        std::array::from_fn(|c| columns.codes[c * codes_stride(columns.cols)..].as_ptr());
    let bytes = form.row_bytes();
    for r in 0..planes.count {
        runs.scale_row::<S, C>(s, r, form.runs);
        let codes = planes.codes[r * bytes..][..bytes].as_ptr();
        let mut sums = [s.splat(0.0); C];
        if P {
            let (table, pairs) = table.as_ref().expect("a table of pairs");
            let part = 0..form.pairs;
            pair_runs::<S, C>(s, (table, pairs), codes, part, &x, runs, form.runs, &mut sums);
        }
        if I {
            let codes = codes.wrapping_add(form.pairs * RUN_BYTES);
            let part = form.pairs..form.runs;
            integer_runs::<S, C>(s, codes, part, &x, runs, form.runs, &mut sums);
        }
        for c in 0..C {
            out[c * planes.count + r] = s.sum(sums[c]);
        }
    }
}

/// Runs `part` of a row; `codes` are theirs.
#[inline(always)]
fn integer_runs<S: Simd, const C: usize>(
    s: S,
    codes: *const u8,
    part: Range<usize>,
    x: &[*const i8; C],
    runs: &Runs,
    count: usize,
    sums: &mut [S::F32; C],
) {
    let padded = count.next_multiple_of(PAD);
    let first = part.start;
    for run in part {
        let i = run - first;
        s.prefetch(codes.wrapping_add(i * RUN + AHEAD));
        for c in 0..C {
            let mut dot = s.splat_i32(0);
            // SAFETY: `codes` has the runs, each column has `count`, and so have the products.
            unsafe {
                for at in (0..RUN).step_by(4 * S::LANES) {
                    let w = s.load_bytes(codes.add(i * RUN + at).cast());
                    dot = s.dot4_signed(dot, w, s.load_bytes(x[c].add(run * RUN + at)));
                }
                let scale = s.splat(*runs.products.as_ptr().add(c * padded + run));
                sums[c] = s.fma(s.to_f32(dot), scale, sums[c]);
            }
        }
    }
}

/// Runs `part` of a row, from the first on; `codes` are theirs.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's loop: what it reads, what it adds to")]
fn pair_runs<S: Simd, const C: usize>(
    s: S,
    (table, pairs): (&PairTable, &S::Pairs),
    codes: *const u8,
    part: Range<usize>,
    x: &[*const i8; C],
    runs: &Runs,
    count: usize,
    sums: &mut [S::F32; C],
) {
    let Range { start: mut run, end } = part;
    // SAFETY: `codes` has the runs, each column has `count`, and so have the run's numbers.
    unsafe {
        if 4 * S::LANES == 2 * RUN_BYTES {
            while run + 2 <= end {
                s.prefetch(codes.wrapping_add(run * RUN_BYTES + AHEAD));
                let codes = s.load_bytes(codes.add(run * RUN_BYTES).cast());
                let (a, b) = s.look_up_pairs(pairs, table, codes);
                add_run(s, &[a], x, runs, run, count, sums);
                add_run(s, &[b], x, runs, run + 1, count, sums);
                run += 2;
            }
            if run < end {
                let codes = s.load_half(codes.add(run * RUN_BYTES).cast());
                let (a, _) = s.look_up_pairs(pairs, table, codes);
                add_run(s, &[a], x, runs, run, count, sums);
            }
        } else {
            while run < end {
                let at = codes.add(run * RUN_BYTES);
                let (a, b) = s.look_up_pairs(pairs, table, s.load_bytes(at.cast()));
                if 4 * S::LANES == RUN_BYTES {
                    add_run(s, &[a, b], x, runs, run, count, sums);
                } else {
                    let next = s.load_bytes(at.add(RUN_BYTES / 2).cast());
                    let (c, d) = s.look_up_pairs(pairs, table, next);
                    add_run(s, &[a, b, c, d], x, runs, run, count, sums);
                }
                run += 1;
            }
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
