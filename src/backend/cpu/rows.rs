//! The ops that go row by row.

use super::{Memory, State, Worker, dot};
use crate::backend::levels::levels;
use crate::plan::{Activation, Input, Norm, Slot, Transform, Weight};
use crate::simd::{Simd, WithSimd, gelu, silu, tanh};
use crate::transform;
use crate::types::SUB;

/// Values of one piece of [`State::soft_cap`].
const PIECE: usize = 4096;

/// Each method runs one worker's part of the op of its name; what they ask for is what
/// [`State::op`] asks for: rows are divided among the workers, and a row is written by one.
impl State {
    /// # Safety
    /// As [`State::op`].
    pub(super) unsafe fn embed(
        &self,
        worker: &Worker,
        tokens: Slot,
        table: Weight,
        transform: Option<Transform>,
        scale: f32,
        out: Slot,
    ) {
        let (table, width) = (&self.plan.weights[table.0], self.width(out));
        // SAFETY: indices are not written by this op.
        let tokens = unsafe { self.indices(tokens) };
        for row in worker.share(tokens.len()) {
            // SAFETY: the row is this worker's.
            let out = unsafe { self.floats(out).get_mut(row * width..(row + 1) * width) };
            let token = tokens[row] as usize;
            table.kind.decode(&table.rows(token..token + 1), out);
            if let Some(transform) = transform {
                transform::inverse(transform.basis, self.signs(transform), out);
            }
            out.iter_mut().for_each(|x| *x *= scale);
        }
    }

    /// # Safety
    /// As [`State::op`].
    pub(super) unsafe fn angles(
        &self,
        worker: &Worker,
        positions: Slot,
        frequencies: Weight,
        amplitude: f32,
        out: Slot,
    ) {
        let (frequencies, width) = (self.vector(frequencies), self.width(out));
        // SAFETY: indices are not written by this op.
        let positions = unsafe { self.indices(positions) };
        for row in worker.share(positions.len()) {
            // SAFETY: the row is this worker's.
            let out = unsafe { self.floats(out).get_mut(row * width..(row + 1) * width) };
            for (out, &frequency) in out.as_chunks_mut::<2>().0.iter_mut().zip(frequencies) {
                let (sin, cos) = (f64::from(positions[row]) * f64::from(frequency)).sin_cos();
                *out = [cos as f32 * amplitude, sin as f32 * amplitude];
            }
        }
    }

    /// # Safety
    /// As [`State::op`].
    pub(super) unsafe fn prepare(
        &self,
        worker: &Worker,
        input: Input,
        rows: Option<Slot>,
        norm: Option<Norm>,
        transform: Option<Transform>,
        out: Slot,
    ) {
        let width = self.width(out);
        // SAFETY: the line is this worker's, and so are its rows; inputs are not written.
        unsafe {
            let rows = rows.map(|rows| self.indices(rows));
            let line = self.lines[worker.index()].get_mut(0..width);
            for row in worker.share(self.extent(out)) {
                let from = rows.map_or(row, |rows| rows[row] as usize);
                let from = from * width..(from + 1) * width;
                match input {
                    Input::Rows(slot) => line.copy_from_slice(self.floats(slot).get(from)),
                    Input::Gated { gate, up, activation } => {
                        let gate = self.floats(gate).get(from.clone());
                        let up = self.floats(up).get(from);
                        self.level.dispatch(Gate { gate, up, activation, out: line });
                    }
                }
                if let Some(norm) = norm {
                    let weight = self.vector(norm.weight);
                    self.level.dispatch(RmsNorm { row: line, weight, epsilon: norm.epsilon });
                }
                if let Some(transform) = transform {
                    transform::forward(transform.basis, self.signs(transform), line);
                }
                self.write_row(out, row, line);
            }
        }
    }

    /// # Safety
    /// The row must be the caller's.
    unsafe fn write_row(&self, out: Slot, row: usize, line: &[f32]) {
        let width = line.len();
        // SAFETY: as the caller vouches.
        unsafe {
            match &self.slots[out.0] {
                Memory::F32(cells) => {
                    cells.get_mut(row * width..(row + 1) * width).copy_from_slice(line);
                }
                Memory::Int8(memory) => {
                    let (codes, subs) = (dot::codes_stride(width), dot::subs_stride(width));
                    let work = Quantise {
                        line,
                        group: memory.group,
                        codes: memory.codes.get_mut(row * codes..(row + 1) * codes),
                        scales: memory.scales.get_mut(row * subs..(row + 1) * subs),
                        sums: memory.sums.get_mut(row * subs..(row + 1) * subs),
                    };
                    match memory.coarse {
                        0 => self.level.dispatch(work),
                        coarse => work.levels(coarse),
                    }
                }
                Memory::U32(_) => panic!("activations are not indices"),
            }
        }
    }

    /// # Safety
    /// As [`State::op`].
    pub(super) unsafe fn add_norm(&self, worker: &Worker, x: Slot, y: Slot, norm: Norm) {
        let width = self.width(x);
        for row in worker.share(self.extent(x)) {
            let range = row * width..(row + 1) * width;
            // SAFETY: the row and the line are this worker's; y is not written.
            unsafe {
                let line = self.lines[worker.index()].get_mut(0..width);
                line.copy_from_slice(self.floats(y).get(range.clone()));
                let weight = self.vector(norm.weight);
                self.level.dispatch(RmsNorm { row: line, weight, epsilon: norm.epsilon });
                let x = self.floats(x).get_mut(range);
                x.iter_mut().zip(&*line).for_each(|(x, y)| *x += y);
            }
        }
    }

    /// # Safety
    /// As [`State::op`].
    pub(super) unsafe fn soft_cap(&self, worker: &Worker, x: Slot, cap: f32) {
        let len = self.extent(x) * self.width(x);
        for piece in worker.share(len.div_ceil(PIECE)) {
            let range = piece * PIECE..((piece + 1) * PIECE).min(len);
            // SAFETY: the piece is this worker's.
            let x = unsafe { self.floats(x).get_mut(range) };
            self.level.dispatch(SoftCap { x, cap });
        }
    }
}

/// `f` on a vector of the values at a time, through zero-padded copies at the end.
#[inline(always)]
fn for_vectors<S: Simd>(s: S, x: &mut [f32], y: &[f32], f: impl Fn(S::F32, S::F32) -> S::F32) {
    assert_eq!(x.len(), y.len(), "two rows");
    let whole = x.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: a vector below the length of both.
        unsafe {
            let at = x.as_mut_ptr().add(i);
            s.store(at, f(s.load(at), s.load(y.as_ptr().add(i))));
        }
    }
    let (mut a, mut b) = ([0.0; 16], [0.0; 16]);
    let rest = x.len() - whole;
    a[..rest].copy_from_slice(&x[whole..]);
    b[..rest].copy_from_slice(&y[whole..]);
    // SAFETY: 16 is the longest vector.
    unsafe { s.store(a.as_mut_ptr(), f(s.load(a.as_ptr()), s.load(b.as_ptr()))) };
    x[whole..].copy_from_slice(&a[..rest]);
}

struct Gate<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    activation: Activation,
    out: &'a mut [f32],
}

impl WithSimd for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        self.out.copy_from_slice(self.gate);
        match self.activation {
            Activation::Silu => for_vectors(
                s,
                self.out,
                self.up,
                #[inline(always)]
                |gate, up| s.mul(silu(s, gate), up),
            ),
            Activation::Gelu => for_vectors(
                s,
                self.out,
                self.up,
                #[inline(always)]
                |gate, up| s.mul(gelu(s, gate), up),
            ),
        }
    }
}

/// `row = row * weight / sqrt(mean(row^2) + epsilon)`.
pub(super) struct RmsNorm<'a> {
    pub(super) row: &'a mut [f32],
    pub(super) weight: &'a [f32],
    pub(super) epsilon: f32,
}

impl WithSimd for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let whole = self.row.len() / S::LANES * S::LANES;
        let mut sums = s.splat(0.0);
        for i in (0..whole).step_by(S::LANES) {
            // SAFETY: a vector below the length.
            let x = unsafe { s.load(self.row.as_ptr().add(i)) };
            sums = s.fma(x, x, sums);
        }
        let rest: f32 = self.row[whole..].iter().map(|x| x * x).sum();
        let mean = (s.sum(sums) + rest) / self.row.len() as f32;
        let factor = s.splat(1.0 / (mean + self.epsilon).sqrt());
        for_vectors(
            s,
            self.row,
            self.weight,
            #[inline(always)]
            |x, weight| s.mul(s.mul(x, factor), weight),
        );
    }
}

struct SoftCap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl WithSimd for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let (cap, inverse) = (s.splat(self.cap), s.splat(1.0 / self.cap));
        for x in self.x.chunks_mut(64) {
            let mut y = [0.0; 64];
            let y = &mut y[..x.len()];
            y.copy_from_slice(x);
            for_vectors(
                s,
                x,
                y,
                #[inline(always)]
                |x, _| s.mul(cap, tanh(s, s.mul(x, inverse))),
            );
        }
    }
}

/// The rule of `formats/activations.md`.
struct Quantise<'a> {
    line: &'a [f32],
    group: usize,
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl Quantise<'_> {
    /// In 16 levels up to `coarse`: to see what they cost, so as plainly as can be.
    fn levels(self, coarse: usize) {
        let width = self.line.len();
        let [low, high] = levels(self.line, coarse, &mut self.codes[..width]);
        let (low_scales, high_scales) = self.scales[..width / SUB].split_at_mut(coarse / SUB);
        low_scales.fill(low);
        high_scales.fill(high);
        for (sum, codes) in self.sums.iter_mut().zip(self.codes[..width].chunks_exact(SUB)) {
            *sum = codes.iter().map(|&code| i32::from(code)).sum();
        }
    }
}

impl WithSimd for Quantise<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let subs = self.group / SUB;
        assert!(S::LANES <= SUB && self.codes.len() >= self.line.len(), "runs of whole vectors");
        for (i, values) in self.line.chunks_exact(self.group).enumerate() {
            let mut peaks = s.splat(0.0);
            for at in (0..values.len()).step_by(S::LANES) {
                // SAFETY: a group is whole vectors.
                peaks = s.max(peaks, s.abs(unsafe { s.load(values.as_ptr().add(at)) }));
            }
            let peak = s.largest(peaks);
            let inverse = if peak == 0.0 { 0.0 } else { 127.0 / peak };
            let codes = &mut self.codes[i * self.group..][..self.group];
            if inverse.is_finite() {
                for at in (0..values.len()).step_by(S::LANES) {
                    // SAFETY: a group is whole vectors.
                    unsafe {
                        let x = s.mul(s.load(values.as_ptr().add(at)), s.splat(inverse));
                        s.store_codes(codes.as_mut_ptr().add(at), x);
                    }
                }
            } else {
                // The peak is so small that its inverse is not a number; every value is +-inf or 0.
                for (code, value) in codes.iter_mut().zip(values) {
                    *code = ((value * inverse).round_ties_even() as i8).max(-127);
                }
            }
            self.scales[i * subs..(i + 1) * subs].fill(peak / 127.0);
            for (sum, codes) in self.sums[i * subs..].iter_mut().zip(codes.chunks_exact(SUB)) {
                *sum = codes.iter().map(|&code| i32::from(code)).sum();
            }
        }
    }
}
