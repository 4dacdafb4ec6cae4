//! Hadamard matrices of orders that are no power of two, by Paley's two constructions.

use std::sync::OnceLock;

/// The largest order that is built: the work per value grows with it.
pub const ORDER_MAX: u32 = 256;

/// A Hadamard matrix: +1 and -1, rows orthogonal to each other.
pub struct Paley {
    plus: Vec<Vec<u8>>,
    plus_transposed: Vec<Vec<u8>>,
}

impl Paley {
    /// The matrix of this order, built once; `None` if neither construction gives it.
    ///
    /// The first takes a prime q = 3 (mod 4) to the order q + 1, the second a prime q = 1 (mod 4)
    /// to 2 (q + 1). Prime powers are left out.
    pub fn get(order: u32) -> Option<&'static Paley> {
        static BUILT: [OnceLock<Option<Paley>>; ORDER_MAX as usize / 4 + 1] =
            [const { OnceLock::new() }; ORDER_MAX as usize / 4 + 1];
        if !order.is_multiple_of(4) || order == 0 || order > ORDER_MAX {
            return None;
        }
        BUILT[order as usize / 4].get_or_init(|| build(order as usize)).as_ref()
    }

    /// For each row, the columns that hold +1, ascending; the others hold -1.
    pub fn plus(&self) -> &[Vec<u8>] {
        &self.plus
    }

    /// For each column, the rows that hold +1, ascending.
    pub fn plus_transposed(&self) -> &[Vec<u8>] {
        &self.plus_transposed
    }

    /// Whether the value at this place is +1.
    pub fn is_plus(&self, row: usize, col: usize) -> bool {
        self.plus[row].contains(&(col as u8))
    }
}

fn build(order: usize) -> Option<Paley> {
    let matrix = if is_prime(order - 1) {
        first(order - 1)
    } else if order / 2 % 4 == 2 && is_prime(order / 2 - 1) {
        second(order / 2 - 1)
    } else {
        return None;
    };
    let places = |is_plus: &dyn Fn(usize, usize) -> bool| -> Vec<Vec<u8>> {
        let row = |a| (0..order).filter(|&b| is_plus(a, b)).map(|b| b as u8).collect();
        (0..order).map(row).collect()
    };
    Some(Paley {
        plus: places(&|row, col| matrix[row][col] > 0),
        plus_transposed: places(&|col, row| matrix[row][col] > 0),
    })
}

/// I + S with S = [0, 1; -1, Q] for a prime q = 3 (mod 4), where Q[a][b] = legendre(a - b).
fn first(q: usize) -> Vec<Vec<i8>> {
    let legendre = legendre(q);
    let value = |row: usize, col: usize| match (row, col) {
        (0, _) => 1,
        (_, 0) => -1,
        (row, col) if row == col => 1,
        (row, col) => legendre[(q + row - col) % q],
    };
    (0..=q).map(|row| (0..=q).map(|col| value(row, col)).collect()).collect()
}

/// The conference matrix C = [0, 1; 1, Q] for a prime q = 1 (mod 4), each of its values taken to
/// two by two: 0 to [1, -1; -1, -1], and c to c [1, 1; 1, -1].
fn second(q: usize) -> Vec<Vec<i8>> {
    let legendre = legendre(q);
    let conference = |row: usize, col: usize| match (row, col) {
        (0, 0) => 0,
        (0, _) | (_, 0) => 1,
        (row, col) => legendre[(q + row - col) % q],
    };
    let value = |row: usize, col: usize| match conference(row / 2, col / 2) {
        0 if row.is_multiple_of(2) && col.is_multiple_of(2) => 1,
        0 => -1,
        c if row % 2 == 1 && col % 2 == 1 => -c,
        c => c,
    };
    (0..2 * (q + 1)).map(|row| (0..2 * (q + 1)).map(|col| value(row, col)).collect()).collect()
}

/// For each residue of the prime `q`: 0 for 0, +1 for a square, -1 for the others.
fn legendre(q: usize) -> Vec<i8> {
    let mut symbols = vec![-1; q];
    for root in 1..q {
        symbols[root * root % q] = 1;
    }
    symbols[0] = 0;
    symbols
}

fn is_prime(q: usize) -> bool {
    q >= 2 && (2..).take_while(|d| d * d <= q).all(|d| !q.is_multiple_of(d))
}
