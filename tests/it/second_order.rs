//! Moments, second-order rounding, allocation: against plain loops, identities and brute force.

use gridmill::quant::allocate::{Curve, Offer};
use gridmill::quant::alpha::{Alpha, Together};
use gridmill::quant::random::Random;
use gridmill::quant::second_order::{LANES, Rounding};
use gridmill::quant::{Feedback, Moments};
use gridmill::transform::{self, signs};
use gridmill::types::{Basis, HIGGS, Higgs, TensorType};
use half::f16;

pub(crate) fn normal(random: &mut Random, len: usize) -> Vec<f32> {
    (0..len.div_ceil(2)).flat_map(|_| random.normal()).take(len).map(|x| x as f32).collect()
}

/// Rows whose values go together, as activations do.
fn activations(random: &mut Random, count: usize, width: usize) -> Vec<f32> {
    let common = normal(random, 3 * width);
    let mut rows = normal(random, count * width);
    for row in rows.chunks_exact_mut(width) {
        let factors = normal(random, 3);
        for (i, value) in row.iter_mut().enumerate() {
            let shared: f32 = (0..3).map(|k| factors[k] * common[k * width + i]).sum();
            *value = (0.3 * *value + shared) * if i % 7 == 0 { 4.0 } else { 1.0 };
        }
    }
    rows
}

fn moments(random: &mut Random, count: usize, width: usize) -> Moments {
    let mut moments = Moments::new(width);
    moments.add(&activations(random, count, width));
    moments
}

fn grid(name: &str) -> &'static Higgs {
    HIGGS.iter().find(|grid| grid.name() == name).unwrap()
}

/// Codes and norms of up to [`LANES`] rows, and the errors of their weights.
fn round(
    feedback: &Feedback,
    grid: &Higgs,
    (group, descents): (usize, usize),
    values: &[f32],
) -> (Vec<u16>, Vec<f16>, Vec<f32>) {
    let p = grid.values_per_code();
    let mut codes = vec![0; values.len() / p];
    let mut norms = vec![f16::ZERO; values.len() / group];
    let rounding = Rounding { feedback, grid, group, descents };
    rounding.round(values, &mut codes, &mut norms);
    let value = |i: usize| grid.search().point(codes[i / p])[i % p] * norms[i / group].to_f32();
    let errors = values.iter().enumerate().map(|(i, w)| w - value(i)).collect();
    (codes, norms, errors)
}

#[test]
fn moments_are_those_of_plain_loops() {
    let mut random = Random(1);
    for (count, width) in [(1, 32), (70, 36), (130, 100), (65, 33)] {
        let rows = activations(&mut random, count, width);
        let mut moments = Moments::new(width);
        let (first, rest) = rows.split_at(count / 2 * width);
        moments.add(first);
        moments.add(rest);
        assert_eq!(moments.count, count as u64);
        let found = moments.whole();
        for i in 0..width {
            for j in 0..width {
                let products = rows.chunks_exact(width).map(|r| f64::from(r[i]) * f64::from(r[j]));
                let (expected, found) = (products.sum::<f64>(), found[i * width + j]);
                let size = (0..width).map(|k| f64::from(rows[k]).powi(2)).sum::<f64>() * 10.0;
                assert!((expected - found).abs() <= 1e-5 * size.max(expected.abs()), "{i}, {j}");
            }
        }
    }
}

#[test]
fn moments_turn_with_their_rows() {
    let mut random = Random(2);
    for (width, basis) in [
        (96, Basis::Hadamard { block: 32 }),
        (96, Basis::Kronecker { order: 12, block: 8 }),
        (64, Basis::Original),
    ] {
        let mut rows = activations(&mut random, 50, width);
        let mut before = Moments::new(width);
        before.add(&rows);
        let signs = signs(3, width);
        for row in rows.chunks_exact_mut(width) {
            transform::forward(basis, &signs, row);
        }
        let mut after = Moments::new(width);
        after.add(&rows);
        let (expected, found) = (after.whole(), before.turned(basis, &signs));
        let size = expected.iter().fold(0.0_f64, |size, x| size.max(x.abs()));
        for (expected, found) in expected.iter().zip(&found) {
            assert!((expected - found).abs() <= 1e-5 * size, "{basis:?}: {expected}, {found}");
        }
    }
}

/// `cost(noise R^-1) = sum of D_j noise_j^2`: holds only if factor, shaping and cost all do.
#[test]
fn shaped_noise_costs_what_each_rounding_does() {
    let mut random = Random(3);
    for (count, width) in [(400, 96), (20, 64), (300, 45)] {
        let feedback = Feedback::new(width, moments(&mut random, count, width).whole(), 7, 0.01);
        for at in 0..width {
            let mut noise = vec![0.0; 2 * width];
            noise[at] = 1.0;
            noise[width + at] = -2.0;
            feedback.shape(&mut noise);
            // What comes before an error does not hear of it.
            assert!(noise[..at].iter().all(|&e| e == 0.0));
        }
        let mut noise: Vec<f32> =
            (0..3 * width).map(|_| if random.bits() >> 63 == 1 { 1.0 } else { -1.0 }).collect();
        feedback.shape(&mut noise);
        let (expected, found) =
            (3.0 * width as f64 * feedback.mean_weight(), feedback.cost(&noise));
        assert!((expected - found).abs() <= 2e-4 * expected, "expected {expected}, found {found}");
    }
}

#[test]
fn without_correlation_it_is_rounding_to_nearest() {
    let width = 64;
    let mut identity = vec![0.0; width * width];
    (0..width).for_each(|i| identity[i * width + i] = 1.0);
    let feedback = Feedback::new(width, identity, 1, 0.0);
    let values = normal(&mut Random(4), LANES * width);
    for name in ["HIGGS_P1_N16", "HIGGS_P2_N64", "HIGGS_P4_N256"] {
        let grid = grid(name);
        let (codes, norms, _) = round(&feedback, grid, (32, 0), &values);
        let p = grid.values_per_code();
        for (i, place) in values.chunks_exact(p).enumerate() {
            let inverse = 1.0 / norms[i * p / 32].to_f32();
            let place: Vec<f32> = place.iter().map(|w| w * inverse).collect();
            assert_eq!(codes[i], grid.search().scan(&place), "{name}, code {i}");
        }
    }
}

#[test]
fn it_costs_less_than_rounding_to_nearest() {
    let mut random = Random(5);
    let width = 192;
    let moments = moments(&mut random, 600, width);
    let feedback = Feedback::new(width, moments.whole(), moments.count, 0.01);
    let mut flat = vec![0.0; width * width];
    (0..width).for_each(|i| flat[i * width + i] = 1.0);
    let flat = Feedback::new(width, flat, 1, 0.0);
    let values = normal(&mut random, LANES * width);
    for name in ["HIGGS_P1_N256", "HIGGS_P2_N256", "HIGGS_P2_N64", "HIGGS_P4_N256"] {
        for group in [32, width] {
            let cost = |feedback_used: &Feedback, descents| {
                feedback.cost(&round(feedback_used, grid(name), (group, descents), &values).2)
            };
            let nearest = cost(&flat, 0);
            let mut before = cost(&feedback, 0);
            assert!(before < 0.6 * nearest, "{name}, {group}: {before} of {nearest}");
            for descents in 1..4 {
                let after = cost(&feedback, descents);
                assert!(after <= 1.0001 * before, "{name}, {group}: {before} to {after}");
                before = after;
            }
        }
    }
}

#[test]
fn zeros_and_few_rows_are_rounded() {
    let width = 64;
    let moments = moments(&mut Random(6), 100, width);
    let feedback = Feedback::new(width, moments.whole(), 100, 0.01);
    let mut values = normal(&mut Random(7), 3 * width);
    values[width..2 * width].fill(0.0);
    for grid in HIGGS {
        let (_, norms, errors) = round(&feedback, grid, (32, 2), &values);
        assert!(norms[2..4].iter().all(|norm| *norm == f16::ZERO), "{}", grid.name());
        assert!(errors[width..2 * width].iter().all(|&error| error == 0.0), "{}", grid.name());
        assert!(errors.iter().all(|error| error.is_finite()), "{}", grid.name());
    }
}

#[test]
fn a_matrix_that_is_not_positive_is_damped_further() {
    // Eigenvalues 3 and -1.
    let feedback = Feedback::new(2, vec![1.0, 2.0, 2.0, 1.0], 1, 0.01);
    assert!((1.0..=10.0).contains(&feedback.damping), "{}", feedback.damping);
    let never = Feedback::new(2, vec![0.0; 4], 1, 0.01);
    assert!(never.mean_weight() > 0.0);
}

#[test]
fn threads_change_no_bit() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut random = Random(8);
            let moments = moments(&mut random, 300, 160);
            let feedback = Feedback::new(160, moments.whole(), 300, 0.01);
            let values = normal(&mut random, LANES * 160);
            (moments, round(&feedback, grid("HIGGS_P2_N64"), (160, 2), &values))
        })
    };
    assert!(run(1) == run(2));
}

/// The least loss within a budget, by trying everything.
fn brute(tensors: &[Vec<Offer>], bytes: u64) -> Option<f64> {
    let Some((first, rest)) = tensors.split_first() else { return Some(0.0) };
    let tails = first.iter().filter_map(|offer| {
        let left = bytes.checked_sub(offer.bytes)?;
        Some(offer.loss + brute(rest, left)?)
    });
    tails.min_by(f64::total_cmp)
}

#[test]
fn allocation_is_the_best_there_is() {
    let mut random = Random(9);
    for _ in 0..50 {
        let mut below = |n: u64| random.bits() % n;
        let tensors: Vec<Vec<Offer>> = (0..1 + below(5))
            .map(|_| {
                let count = 1 + below(4);
                let offer = |_| Offer { bytes: 6 * (1 + below(20)), loss: below(1000) as f64 };
                (0..count).map(offer).collect()
            })
            .collect();
        let curve = Curve::new(&tensors).unwrap();
        let (least, most) = curve.range();
        assert_eq!(curve.pick(least - 1), None);
        for bytes in least..=most + 1 {
            let picked = curve.pick(bytes).unwrap();
            let offers = || picked.iter().zip(&tensors).map(|(&choice, offers)| offers[choice]);
            assert!(offers().map(|offer| offer.bytes).sum::<u64>() <= bytes);
            let loss: f64 = offers().map(|offer| offer.loss).sum();
            assert_eq!(Some(loss), brute(&tensors, bytes), "{tensors:?}, {bytes}");
        }
        let points = curve.points();
        assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 > pair[1].1));
    }
    let message = Curve::new(&[Vec::new()]).err().unwrap().to_string();
    assert_eq!(message, "tensor 0: expected 1 to 255 types to choose from, found 0");
}

#[test]
fn a_coefficient_is_the_slope() {
    let exact = Alpha::fit(&[(0.01, 0.02), (0.02, 0.04), (0.1, 0.2)]);
    assert!((exact.value - 2.0).abs() < 1e-12 && exact.r2 > 1.0 - 1e-12, "{exact:?}");
    let bent = Alpha::fit(&[(0.01, 0.01), (0.02, 0.08), (0.1, 0.2)]);
    assert!(bent.r2 < 0.9, "{bent:?}");
    assert_eq!(Alpha::fit(&[(0.01, -0.02)]).value, 0.0);
}

#[test]
fn losses_together_follow_what_was_measured() {
    assert_eq!(Together::default().loss(0.3), 0.3);
    let together = Together::new([(0.01, 0.02), (0.1, 0.1), (1.0, 4.0)]);
    let close = |sum: f64, loss: f64| {
        let found = together.loss(sum);
        assert!((found / loss - 1.0).abs() < 1e-12, "{sum}: expected {loss}, found {found}");
    };
    [(0.01, 0.02), (0.1, 0.1), (1.0, 4.0)].into_iter().for_each(|(sum, loss)| close(sum, loss));
    // In proportion outside, and halfway between logarithms inside.
    close(0.001, 0.002);
    close(2.0, 8.0);
    close(0.1 * 10.0_f64.sqrt(), 0.1 * 40.0_f64.sqrt());
    // A loss that falls while errors grow is noise.
    let bent = Together::new([(0.01, 0.02), (0.1, 0.01), (1.0, 4.0)]);
    assert_eq!(bent, Together::new([(0.01, 0.02), (1.0, 4.0)]));
}
