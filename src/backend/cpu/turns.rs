//! The basis that a layer's cache is kept in.

use crate::plan::{CacheInfo, Plan, Turn, Weight};
use crate::simd::{Level, Simd, WithSimd};
use crate::transform;
use crate::types::Basis;

/// What turns heads into the basis of a cache, and back.
pub(super) enum Turns {
    None,
    Hadamard(Basis),
    /// By key head.
    Matrices(Vec<Matrices>),
}

/// A head is turned by the sum of rows that its values weigh, so one of the two directions needs
/// the transpose.
pub(super) struct Matrices {
    keys: Vec<f32>,
    values: Vec<f32>,
    values_back: Vec<f32>,
}

impl Turns {
    /// Of each layer of a plan that is used.
    pub(super) fn of(plan: &Plan, uses: &[bool]) -> Vec<Turns> {
        let turns = |(info, &is_used): (&CacheInfo, &bool)| match info.turn.filter(|_| is_used) {
            None => Turns::None,
            Some(Turn::Hadamard(basis)) => Turns::Hadamard(basis),
            Some(Turn::Matrices { keys, values }) => {
                let len = info.head_len;
                let of_head = |head: usize| {
                    let [keys, values] = [keys, values].map(|w| rows(plan, w, head, len));
                    Matrices {
                        keys: transposed(&keys, len),
                        values: transposed(&values, len),
                        values_back: values,
                    }
                };
                Turns::Matrices((0..info.heads).map(of_head).collect())
            }
        };
        plan.caches.iter().zip(uses).map(turns).collect()
    }

    /// Turns a key, or a query of a key head, in place.
    pub(super) fn keys(&self, level: Level, head: usize, x: &mut [f32], line: &mut [f32]) {
        match self {
            Turns::None => {}
            Turns::Hadamard(basis) => transform::forward(*basis, &[], x),
            Turns::Matrices(heads) => in_place(level, &heads[head].keys, x, line),
        }
    }

    /// A value, turned into `line` if at all.
    pub(super) fn values<'a>(
        &self,
        level: Level,
        head: usize,
        x: &'a [f32],
        line: &'a mut [f32],
    ) -> &'a [f32] {
        match self {
            Turns::None => return x,
            Turns::Hadamard(basis) => {
                line.copy_from_slice(x);
                transform::forward(*basis, &[], line);
            }
            Turns::Matrices(heads) => {
                level.dispatch(Product { rows: &heads[head].values, x, out: line });
            }
        }
        line
    }

    /// Turns what attention has summed up of a key head's values back, in place.
    pub(super) fn back(&self, level: Level, head: usize, x: &mut [f32], line: &mut [f32]) {
        match self {
            Turns::None => {}
            Turns::Hadamard(basis) => transform::inverse(*basis, &[], x),
            Turns::Matrices(heads) => in_place(level, &heads[head].values_back, x, line),
        }
    }
}

fn in_place(level: Level, rows: &[f32], x: &mut [f32], line: &mut [f32]) {
    level.dispatch(Product { rows, x, out: line });
    x.copy_from_slice(line);
}

/// The matrix of a head.
fn rows(plan: &Plan, weight: Weight, head: usize, len: usize) -> Vec<f32> {
    let tensor = &plan.weights[weight.0];
    let mut values = vec![0.0; len * len];
    tensor.kind.decode(&tensor.rows(head * len..(head + 1) * len), &mut values);
    values
}

fn transposed(matrix: &[f32], len: usize) -> Vec<f32> {
    (0..len * len).map(|at| matrix[at % len * len + at / len]).collect()
}

/// `out = sum over i of x[i] * rows[i]`.
struct Product<'a> {
    rows: &'a [f32],
    x: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Product { rows, x, out } = self;
        let len = x.len();
        assert!(out.len() == len && rows.len() == len * len, "a square matrix");
        let whole = len / S::LANES * S::LANES;
        for lanes in (0..whole).step_by(S::LANES) {
            let mut sums = s.splat(0.0);
            for (i, &x) in x.iter().enumerate() {
                // SAFETY: a vector of row `i`.
                let row = unsafe { s.load(rows.as_ptr().add(i * len + lanes)) };
                sums = s.fma(s.splat(x), row, sums);
            }
            // SAFETY: a vector below the length.
            unsafe { s.store(out.as_mut_ptr().add(lanes), sums) };
        }
        for (at, out) in out.iter_mut().enumerate().skip(whole) {
            *out = x.iter().enumerate().map(|(i, x)| x * rows[i * len + at]).sum();
        }
    }
}
