//! Principal directions of a symmetric matrix, and random rotations. Heads have 16 to 256 values:
//! Jacobi's method in few lines takes a moment, and a library for matrices would bring many crates.

use super::random::Random;

/// Sweeps over all pairs at most; matrices of some hundred rows need about ten.
const SWEEPS: usize = 30;

/// The eigenvalues of a symmetric matrix `(n, n)`, largest first, and their unit vectors as rows,
/// by Jacobi's rotations: each makes one pair of entries zero, until all are next to nothing.
pub fn principal(mut matrix: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(matrix.len(), n * n, "a square matrix");
    let mut vectors: Vec<f64> = (0..n * n).map(|at| f64::from(at % (n + 1) == 0)).collect();
    let size: f64 = matrix.iter().map(|x| x * x).sum();
    for _ in 0..SWEEPS {
        let off = |row: usize| matrix[row * n..row * n + row].iter().map(|x| x * x).sum::<f64>();
        if (0..n).map(off).sum::<f64>() <= 1e-24 * size {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut matrix, &mut vectors, n, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| matrix[b * n + b].total_cmp(&matrix[a * n + a]));
    let values = order.iter().map(|&i| matrix[i * n + i]).collect();
    let rows = order.iter().flat_map(|&i| vectors[i * n..(i + 1) * n].to_vec()).collect();
    (values, rows)
}

/// Turns directions `p` and `q` so that entry `(p, q)` becomes zero.
fn rotate(matrix: &mut [f64], vectors: &mut [f64], n: usize, p: usize, q: usize) {
    let entry = matrix[p * n + q];
    if entry == 0.0 {
        return;
    }
    let theta = (matrix[q * n + q] - matrix[p * n + p]) / (2.0 * entry);
    let tan = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let cos = 1.0 / (tan * tan + 1.0).sqrt();
    let sin = tan * cos;
    let turn = |a: &mut f64, b: &mut f64| (*a, *b) = (cos * *a - sin * *b, sin * *a + cos * *b);
    for matrix in [&mut *matrix, vectors] {
        let (above, below) = matrix.split_at_mut(q * n);
        above[p * n..(p + 1) * n].iter_mut().zip(&mut below[..n]).for_each(|(a, b)| turn(a, b));
    }
    for row in matrix.chunks_exact_mut(n) {
        let (left, right) = row.split_at_mut(q);
        turn(&mut left[p], &mut right[0]);
    }
}

/// A random orthogonal matrix `(n, n)`: normal numbers, each row freed of those before it.
pub fn random_rotation(n: usize, random: &mut Random) -> Vec<f64> {
    let mut rows: Vec<f64> = (0..(n * n).div_ceil(2)).flat_map(|_| random.normal()).collect();
    rows.truncate(n * n);
    for at in 0..n {
        let (before, row) = rows.split_at_mut(at * n);
        let row = &mut row[..n];
        // Twice: what rounding left of the others the first time is gone after the second.
        for other in [&*before, &*before].concat().chunks_exact(n) {
            let along: f64 = other.iter().zip(&*row).map(|(a, b)| a * b).sum();
            row.iter_mut().zip(other).for_each(|(x, other)| *x -= along * other);
        }
        let size = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        row.iter_mut().for_each(|x| *x /= size);
    }
    rows
}
