//! Grids in four dimensions (p = 4): Lloyd's iteration with cooling noise over a sample.

use super::IntegerGrid;
use crate::quant::random::Random;

type Point = [f32; 4];

/// Vectors of a step of the search at least, and for each point: enough that their chance costs
/// less than the noise.
const SEARCH: usize = 1 << 17;
const SEARCH_EACH: usize = 128;
/// Vectors of the last steps: a grid fits their chance by n / SAMPLE of its error, 0.01%.
const SAMPLE: usize = 1 << 21;
/// Sides of the cubes whose vectors are looked up together.
const LARGE: f32 = 1.5;
const SMALL: f32 = 0.375;

pub(super) fn optimum(n: usize) -> Vec<[f64; 4]> {
    const STEPS: usize = 300;
    let mut random = Random(n as u64);
    // The density of an optimal grid is normal with variance (p + 2) / p.
    let mut points = sample(&mut random, n);
    points.as_flattened_mut().iter_mut().for_each(|x| *x *= 1.5_f32.sqrt());
    for step in 0..STEPS {
        let (cells, error) = integrate(&points, &sample(&mut random, SEARCH.max(SEARCH_EACH * n)));
        let heat = 0.7 * (1.0 - step as f64 / STEPS as f64).powi(3);
        let noise = sample(&mut random, n);
        for ((point, cell), noise) in points.iter_mut().zip(&cells).zip(noise) {
            let size = heat * error.sqrt();
            *point = cell.map_or(noise, |mean| {
                std::array::from_fn(|i| (mean[i] + size * f64::from(noise[i])) as f32)
            });
        }
    }
    let vectors = sample(&mut random, SAMPLE);
    for _ in 0..30 {
        let (cells, _) = integrate(&points, &vectors);
        for (point, cell) in points.iter_mut().zip(cells) {
            let mean = cell.map_or(*point, |mean| mean.map(|x| x as f32));
            *point = std::array::from_fn(|i| mean[i] + 0.5 * (mean[i] - point[i]));
        }
    }
    points.iter().map(|point| point.map(f64::from)).collect()
}

/// Mean squared error per value over a sample that the grid was not made from.
pub(super) fn error(points: &[[f64; 4]]) -> f64 {
    let points: Vec<Point> = points.iter().map(|point| point.map(|x| x as f32)).collect();
    integrate(&points, &sample(&mut Random(u64::MAX / 3), 2 * SAMPLE)).1
}

/// The float grid scaled and rounded to int8: here the cells are so large that rounding is free.
pub(super) fn integer(points: &[[f64; 4]]) -> IntegerGrid {
    let largest = points.as_flattened().iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    let unit = 127.0 / largest;
    let points = points.as_flattened().iter().map(|x| (x * unit).round() as i8).collect();
    IntegerGrid { points, unit }
}

fn sample(random: &mut Random, count: usize) -> Vec<Point> {
    let mut vector = || {
        let ([a, b], [c, d]) = (random.normal(), random.normal());
        [a, b, c, d].map(|x| x as f32)
    };
    (0..count).map(|_| vector()).collect()
}

/// The mean of each point's cell, if a vector fell into it, and the error per value.
fn integrate(points: &[Point], vectors: &[Point]) -> (Vec<Option<[f64; 4]>>, f64) {
    // Parts of a fixed size, added in their order: the same sums on any number of threads.
    let parts: Vec<_> = std::thread::scope(|scope| {
        let halves = vectors.chunks(vectors.len().div_ceil(2));
        let workers: Vec<_> = halves.map(|half| scope.spawn(|| sums(points, half))).collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
    });
    let mut cells = vec![([0.0; 4], 0.0); points.len()];
    let mut error = 0.0;
    for (part, part_error) in parts {
        error += part_error;
        for (cell, other) in cells.iter_mut().zip(part) {
            (0..4).for_each(|i| cell.0[i] += other.0[i]);
            cell.1 += other.1;
        }
    }
    let mean = |(sum, count): ([f64; 4], f64)| (count > 0.0).then(|| sum.map(|x| x / count));
    (cells.into_iter().map(mean).collect(), error / vectors.len() as f64 / 4.0)
}

/// Sum and number of the vectors of each cell, and the squared error of all.
fn sums(points: &[Point], vectors: &[Point]) -> (Vec<([f64; 4], f64)>, f64) {
    let mut cells = vec![([0.0; 4], 0.0); points.len()];
    let mut error = 0.0;
    for (vector, (index, least)) in vectors.iter().zip(nearest(points, vectors)) {
        error += f64::from(least);
        let cell = &mut cells[index];
        (0..4).for_each(|i| cell.0[i] += f64::from(vector[i]));
        cell.1 += 1.0;
    }
    (cells, error)
}

/// The nearest point of each vector, the first of equally near ones, and its squared distance.
///
/// Vectors in one cube share a list of the points that can be nearest in it, which is made from the
/// list of a larger cube.
fn nearest(points: &[Point], vectors: &[Point]) -> Vec<(usize, f32)> {
    let cube = |side: f32, vector: &Point| vector.map(|x| (x / side).floor() as i32);
    let mut order: Vec<usize> = (0..vectors.len()).collect();
    order.sort_by_cached_key(|&at| (cube(LARGE, &vectors[at]), cube(SMALL, &vectors[at])));
    let all: Vec<(usize, Point)> = points.iter().copied().enumerate().collect();
    let mut found = vec![(0, f32::INFINITY); vectors.len()];
    let same = |side: f32| {
        move |&a: &usize, &b: &usize| cube(side, &vectors[a]) == cube(side, &vectors[b])
    };
    for large in order.chunk_by(same(LARGE)) {
        let some = near(&all, cube(LARGE, &vectors[large[0]]), LARGE);
        for small in large.chunk_by(same(SMALL)) {
            let few = near(&some, cube(SMALL, &vectors[small[0]]), SMALL);
            for &at in small {
                for &(index, point) in &few {
                    let distance = distance(&vectors[at], &point);
                    if distance < found[at].1 {
                        found[at] = (index, distance);
                    }
                }
            }
        }
    }
    found
}

/// The points that can be nearest to a place in a cube, in their order.
fn near(points: &[(usize, Point)], cube: [i32; 4], side: f32) -> Vec<(usize, Point)> {
    let centre = cube.map(|i| (i as f32 + 0.5) * side);
    let far: Vec<f32> = points.iter().map(|(_, point)| distance(&centre, point).sqrt()).collect();
    // No place is farther from the centre than half the diagonal, which is a side.
    let limit = far.iter().fold(f32::INFINITY, |least, &d| least.min(d)) + 2.01 * side;
    points.iter().zip(far).filter(|(_, d)| *d <= limit).map(|(&point, _)| point).collect()
}

fn distance(a: &Point, b: &Point) -> f32 {
    (0..4).fold(0.0, |sum, i| sum + (a[i] - b[i]) * (a[i] - b[i]))
}
