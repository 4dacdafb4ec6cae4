//! Second moments of a linear layer's input: `M = sum over tokens of x^T x`.
//!
//! An error E of a weight costs `trace(E M E^T)` in the layer's output, so M says which directions
//! of the input a rounding must keep.

use rayon::prelude::*;

use crate::simd::Level;
use crate::simd::products::{OUTER, add_outer};
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
        // Rows of the matrix get longer downwards: bands from both ends balance.
        let bands = self.sums.par_chunks_mut(OUTER.0 * width).enumerate().with_max_len(1);
        bands.for_each(|(band, sums)| {
            for rows in rows.chunks(TOKENS * width) {
                add_band(rows, width, band * OUTER.0, sums);
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
        for _ in 0..2 {
            let rows = sums.par_chunks_exact_mut(self.width);
            rows.for_each(|row| transform::forward_f64(basis, signs, row));
            transpose(&mut sums, self.width);
        }
        sums
    }
}

fn transpose(matrix: &mut [f64], width: usize) {
    for row in 0..width {
        for col in 0..row {
            matrix.swap(row * width + col, col * width + row);
        }
    }
}

/// Some tokens' products for a few rows of the matrix from `first` on, up to the diagonal.
fn add_band(rows: &[f32], width: usize, first: usize, sums: &mut [f64]) {
    let height = sums.len() / width;
    for col in (0..first + height).step_by(OUTER.1) {
        let cols = OUTER.1.min(width - col);
        if (height, cols) == OUTER {
            let mut tile = [[0.0; OUTER.1]; OUTER.0];
            add_outer(Level::best(), rows, width, (first, col), &mut tile);
            for (i, tile) in tile.iter().enumerate() {
                let sums = &mut sums[i * width + col..][..cols];
                sums.iter_mut().zip(tile).for_each(|(sum, part)| *sum += f64::from(*part));
            }
        } else {
            for (i, sums) in sums.chunks_exact_mut(width).enumerate() {
                for (j, sum) in sums[col..col + cols].iter_mut().enumerate() {
                    let products = rows.chunks_exact(width).map(|r| r[first + i] * r[col + j]);
                    *sum += f64::from(products.fold(0.0, |sum, product| sum + product));
                }
            }
        }
    }
}
