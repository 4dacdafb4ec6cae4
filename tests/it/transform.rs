//! The input transforms against dense matrices, and against each other on every instruction set.

use gridmill::transform::{self, Paley, plain};
use gridmill::types::Basis;

const WIDTHS: [usize; 12] = [576, 640, 896, 960, 1024, 1536, 2048, 4864, 8960, 11008, 14336, 18944];

/// Numbers that look random, in -1..1, of both signs and many sizes.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next() * next().exp()).collect()
}

fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let square = |(&a, &b): (&f32, &f32)| (f64::from(a) - f64::from(b)).powi(2);
    a.iter().zip(b).map(square).sum::<f64>().sqrt()
}

/// One value of the transform's orthonormal matrix, from its definition.
fn entry(basis: Basis, cols: usize, row: usize, col: usize) -> f64 {
    let sylvester =
        |a: usize, b: usize| if (a & b).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    match basis {
        Basis::Parted { high } => {
            let low = cols - high as usize;
            if (row < low) != (col < low) {
                return 0.0;
            }
            let (first, len) = if row < low { (0, low) } else { (low, cols - low) };
            let basis = Basis::Hadamard { block: 1 << len.trailing_zeros() };
            entry(basis, len, row - first, col - first)
        }
        Basis::Original => f64::from(u8::from(row == col)),
        Basis::Hadamard { block } => {
            let block = block as usize;
            if row / block == col / block {
                sylvester(row % block, col % block) / (block as f64).sqrt()
            } else {
                0.0
            }
        }
        Basis::Kronecker { order, block } => {
            let block = block as usize;
            let paley = Paley::get(order).unwrap().is_plus(row / block, col / block);
            let sign = if paley { 1.0 } else { -1.0 };
            sign * sylvester(row % block, col % block) / (cols as f64).sqrt()
        }
    }
}

#[test]
fn signs_are_as_documented() {
    let expected: [i8; 16] = [-1, -1, -1, 1, 1, -1, -1, -1, 1, -1, 1, -1, 1, -1, 1, 1];
    assert_eq!(transform::signs(1, 16), expected);
    assert_eq!(transform::signs(1, 5)[..], expected[..5]);
    let total: i32 = transform::signs(42, 4096).iter().map(|&sign| i32::from(sign)).sum();
    assert!(total.abs() < 4 * 64, "{total} is four deviations from balance");
}

#[test]
fn paley_matrices_are_hadamard() {
    let orders: Vec<u32> = (1..=256).filter(|&order| Paley::get(order).is_some()).collect();
    for order in [12, 20, 28, 36, 60, 76, 108, 140, 148] {
        assert!(orders.contains(&order), "order {order} is missing of {orders:?}");
    }
    for order in orders {
        let paley = Paley::get(order).unwrap();
        let sign = |a, b| if paley.is_plus(a, b) { 1 } else { -1 };
        let row = |a: usize| (0..order as usize).map(|b| sign(a, b)).collect::<Vec<i32>>();
        let rows: Vec<_> = (0..order as usize).map(row).collect();
        for a in 0..order as usize {
            for b in 0..order as usize {
                let dot: i32 = rows[a].iter().zip(&rows[b]).map(|(x, y)| x * y).sum();
                assert_eq!(dot, if a == b { order as i32 } else { 0 }, "order {order}: {a} {b}");
            }
        }
    }
}

#[test]
fn choices_fit_the_width() {
    let kronecker = [
        (576, Some((36, 16))),
        (640, Some((20, 32))),
        (896, Some((28, 32))),
        (960, Some((60, 16))),
        (1024, None),
        (1536, Some((12, 128))),
        (2048, None),
        (4864, Some((76, 64))),
        (8960, Some((140, 64))),
        (11008, None),
        (14336, Some((28, 512))),
        (18944, Some((148, 128))),
    ];
    for (cols, expected) in kronecker {
        let choices = transform::choices(cols);
        assert_eq!(choices[0], Basis::Original);
        let found = choices.iter().find_map(|&basis| match basis {
            Basis::Kronecker { order, block } => Some((order, block)),
            _ => None,
        });
        assert_eq!(found, expected, "{cols}");
        let largest = 1 << cols.trailing_zeros();
        assert!(choices.contains(&Basis::Hadamard { block: largest }), "{cols}: {choices:?}");
        for basis in choices {
            transform::check(basis, cols).unwrap();
        }
    }
    assert_eq!(transform::choices(7), [Basis::Original]);
    assert_eq!(transform::choices(0), [Basis::Original]);
}

#[test]
fn misfits_are_refused() {
    let check = |basis, expected: &str| {
        let error = transform::check(basis, 576).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(Basis::Hadamard { block: 0 }, "power of two, found 0");
    check(Basis::Hadamard { block: 48 }, "power of two, found 48");
    check(Basis::Hadamard { block: 128 }, "divides 576 values, found 128");
    check(Basis::Kronecker { order: 12, block: 32 }, "576 values, found one of 12 * 32");
    check(Basis::Kronecker { order: 9, block: 64 }, "Paley's up to 256, found 9");
    check(Basis::Kronecker { order: 576, block: 1 }, "Paley's up to 256, found 576");
    check(Basis::Kronecker { order: u32::MAX, block: 1 << 31 }, "576 values");
}

#[test]
fn transforms_are_the_dense_matrix() {
    for cols in [64, 576, 640, 1536] {
        let signs = transform::signs(7, cols);
        let input = noise(cols, 3);
        for basis in transform::choices(cols) {
            if basis == Basis::Original {
                continue;
            }
            let dense = |out: usize, transpose: bool| {
                let term = |i: usize| {
                    let (row, col) = if transpose { (i, out) } else { (out, i) };
                    let sign = if transpose { 1 } else { signs[i] };
                    entry(basis, cols, row, col) * f64::from(input[i]) * f64::from(sign)
                };
                let sum: f64 = (0..cols).map(term).sum();
                if transpose { sum * f64::from(signs[out]) } else { sum }
            };
            for transpose in [false, true] {
                let expected: Vec<f32> = (0..cols).map(|i| dense(i, transpose) as f32).collect();
                let mut row = input.clone();
                let apply = if transpose { plain::inverse } else { plain::forward };
                apply(basis, &signs, &mut row);
                let off = distance(&row, &expected) / norm(&expected);
                assert!(off < 1e-6, "{basis:?} of {cols}, transpose {transpose}: off by {off}");
            }
        }
    }
}

#[test]
fn every_width_goes_there_and_back_with_the_same_bits_everywhere() {
    for cols in WIDTHS {
        let signs = transform::signs(cols as u64, cols);
        let input = noise(cols, 5);
        for basis in transform::choices(cols) {
            let mut expected = input.clone();
            plain::forward(basis, &signs, &mut expected);
            let ratio = norm(&expected) / norm(&input);
            assert!((ratio - 1.0).abs() < 1e-6, "{basis:?} of {cols}: norm times {ratio}");
            let mut back = expected.clone();
            plain::inverse(basis, &signs, &mut back);
            let off = distance(&back, &input) / norm(&input);
            assert!(off < 1e-6, "{basis:?} of {cols}: back with an error of {off}");
            let mut row = input.clone();
            transform::forward(basis, &signs, &mut row);
            assert!(same_bits(&row, &expected), "{basis:?} of {cols}");
            transform::inverse(basis, &signs, &mut row);
            assert!(same_bits(&row, &back), "{basis:?} of {cols}, back");
        }
    }
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[test]
fn a_constant_row_spreads_only_with_signs() {
    // The reason for the signs: without them the mean of a row lands in one value.
    let basis = Basis::Hadamard { block: 1024 };
    let largest = |signs: &[i8]| {
        let mut row = vec![1.0; 1024];
        plain::forward(basis, signs, &mut row);
        row.iter().fold(0.0_f32, |max, x| max.max(x.abs()))
    };
    assert_eq!(largest(&[]), 32.0);
    assert!(largest(&transform::signs(1, 1024)) < 5.0);
}

#[test]
fn parted_rows_are_turned_part_by_part() {
    for (cols, high) in [(576, 64), (1536, 192), (96, 16), (7, 3)] {
        let basis = Basis::Parted { high };
        transform::check(basis, cols).unwrap();
        let mut signs = transform::signs(7, cols);
        // Loud inputs spread over the row.
        let loud: Vec<bool> =
            (0..cols).map(|at| (at * high as usize) % cols < high as usize).collect();
        transform::mark(&mut signs, &loud);
        transform::check_signs(basis, &signs).unwrap();
        let (quiet, loud): (Vec<usize>, Vec<usize>) = (0..cols).partition(|&at| !loud[at]);
        let order = [quiet, loud].concat();
        let input = noise(cols, 3);
        let dense = |row: usize| {
            let term = |(col, &at): (usize, &usize)| {
                let signed = f64::from(input[at]) * f64::from(signs[at].signum());
                entry(basis, cols, row, col) * signed
            };
            order.iter().enumerate().map(term).sum::<f64>() as f32
        };
        let expected: Vec<f32> = (0..cols).map(dense).collect();
        let mut row = input.clone();
        plain::forward(basis, &signs, &mut row);
        let off = distance(&row, &expected) / norm(&expected);
        assert!(off < 1e-6, "{high} of {cols}: off by {off}");
        let mut fast = input.clone();
        transform::forward(basis, &signs, &mut fast);
        assert!(same_bits(&fast, &row), "{high} of {cols}");
        transform::inverse(basis, &signs, &mut fast);
        let off = distance(&fast, &input) / norm(&input);
        assert!(off < 1e-6, "{high} of {cols}: back with an error of {off}");
    }
}

#[test]
fn wrong_loud_inputs_are_refused() {
    let check = |high, signs: &[i8], expected: &str| {
        let error = transform::check_signs(Basis::Parted { high }, signs).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(1, &[1, -1, 2, -2], "2 loud inputs, expected 1");
    check(2, &[1, -1, 1, -2], "1 loud inputs, expected 2");
    check(1, &[1, 3, 1, -2], "sign 1 is 3, expected 1 or -1, or twice that");
    let plain = transform::check_signs(Basis::Hadamard { block: 2 }, &[1, 2]).unwrap_err();
    assert!(plain.to_string().contains("sign 1 is 2, expected 1 or -1"), "{plain}");
    let whole = transform::check(Basis::Parted { high: 64 }, 64).unwrap_err().to_string();
    assert!(whole.contains("a loud part within 64 values, found one of 64"), "{whole}");
}
