//! Second moments of a linear layer's input: `M = sum over tokens of x^T x`.
//!
//! An error E of a weight costs `trace(E M E^T)` in the layer's output, so M says which directions
//! of the input a rounding must keep.

use rayon::prelude::*;

use crate::simd::Level;
use crate::simd::products::{OUTER, outer};
use crate::transform;
use crate::types::Basis;

/// Tokens whose products are summed in single precision before they join the double sums.
const TOKENS: usize = 64;

/// The sum of the outer products of all rows that were added.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Values per row.
    pub width: usize,
    /// Rows that were added.
    pub count: u64,
    /// `(width, width)`; the part above the diagonal is what [`Moments::whole`] fills in.
    sums: Vec<f64>,
}

impl Moments {
    /// No rows yet.
    pub fn new(width: usize) -> Moments {
        Moments { width, count: 0, sums: vec![0.0; width * width] }
    }

    /// From a whole matrix `(width, width)`, such as [`Moments::whole`] gives.
    pub fn of(width: usize, count: u64, sums: Vec<f64>) -> Moments {
        assert_eq!(sums.len(), width * width, "a square matrix");
        Moments { width, count, sums }
    }

    /// Adds rows `(n, width)`: products in single precision, sums of up to 64 of them, too, and
    /// everything else in double. The order does not depend on threads.
    ///
    /// # Panics
    /// If the rows are not whole.
    pub fn add(&mut self, rows: &[f32]) {
        let width = self.width;
        assert!(rows.len().is_multiple_of(width), "whole rows");
        self.count += (rows.len() / width) as u64;
        let tiles = tiles(rows, width);
        let tokens = rows.len() / width;
        // A band is as long as it lies low: one by one they are shared out evenly.
        let bands = self.sums.par_chunks_mut(OUTER * width).enumerate().with_max_len(1);
        bands.for_each(|(band, sums)| {
            let at = |tile: usize| &tiles[tile * tokens..][..tokens];
            for tile in 0..=band {
                add_tile(at(band), at(tile), (width, tile * OUTER), sums);
            }
        });
    }

    /// The sums as a whole symmetric matrix `(width, width)`.
    pub fn whole(&self) -> Vec<f64> {
        let mut sums = self.sums.clone();
        for row in 0..self.width {
            for col in 0..row {
                sums[col * self.width + row] = sums[row * self.width + col];
            }
        }
        sums
    }

    /// Which `count` values have the largest squares, of equal ones the first.
    pub fn loudest(&self, count: usize) -> Vec<bool> {
        let square = |at: usize| self.sums[at * self.width + at];
        let mut order: Vec<usize> = (0..self.width).collect();
        order.sort_by(|&a, &b| square(b).total_cmp(&square(a)));
        let mut loud = vec![false; self.width];
        order[..count].iter().for_each(|&at| loud[at] = true);
        loud
    }

    /// The share of all squares that some values have.
    pub fn share(&self, values: &[bool]) -> f64 {
        let squares = (0..self.width).map(|at| self.sums[at * self.width + at]);
        let all: f64 = squares.clone().sum();
        let some: f64 = squares.zip(values).filter(|(_, of)| **of).map(|(square, _)| square).sum();
        if all > 0.0 { some / all } else { 0.0 }
    }

    /// The moments of the input after its transform: `T M T^T`, a whole matrix.
    pub fn turned(&self, basis: Basis, signs: &[i8]) -> Vec<f64> {
        let mut sums = self.whole();
        if basis == Basis::Original {
            return sums;
        }
        let turn = |row: &mut [f64]| transform::forward_f64(basis, signs, row);
        on_both_sides(&mut sums, self.width, turn);
        sums
    }
}

/// Turns the rows of a square matrix and then its columns: `T M T^T`, where `turn` multiplies by T.
pub fn on_both_sides(matrix: &mut [f64], width: usize, turn: impl Fn(&mut [f64]) + Sync) {
    for _ in 0..2 {
        matrix.par_chunks_exact_mut(width).for_each(&turn);
        transpose(matrix, width);
    }
}

fn transpose(matrix: &mut [f64], width: usize) {
    for row in 0..width {
        for col in 0..row {
            matrix.swap(row * width + col, col * width + row);
        }
    }
}

/// Rows `(n, width)` cut into tiles of columns, `(tiles, n)`: those of one tile lie together, and
/// beyond the width there are zeros.
fn tiles(rows: &[f32], width: usize) -> Vec<[f32; OUTER]> {
    let count = rows.len() / width;
    let mut tiles = vec![[0.0; OUTER]; width.div_ceil(OUTER) * count];
    tiles.par_chunks_exact_mut(count.max(1)).enumerate().for_each(|(at, tile)| {
        for (to, row) in tile.iter_mut().zip(rows.chunks_exact(width)) {
            let from = &row[at * OUTER..width.min((at + 1) * OUTER)];
            to[..from.len()].copy_from_slice(from);
        }
    });
    tiles
}

/// Adds the products of two tiles to rows of the matrix, from a column on.
fn add_tile(
    left: &[[f32; OUTER]],
    right: &[[f32; OUTER]],
    (width, first): (usize, usize),
    sums: &mut [f64],
) {
    let mut tile = [[0.0; OUTER]; OUTER];
    for (left, right) in left.chunks(TOKENS).zip(right.chunks(TOKENS)) {
        outer(Level::best(), left, right, &mut tile);
        for (row, tile) in sums.chunks_mut(width).zip(&tile) {
            let sums = &mut row[first..width.min(first + OUTER)];
            sums.iter_mut().zip(tile).for_each(|(sum, part)| *sum += f64::from(*part));
        }
    }
}
