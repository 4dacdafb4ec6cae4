//! Grids in a plane (p = 2): Lloyd's iteration with cooling noise over a fixed quadrature.

use super::IntegerGrid;
use crate::quant::random::Random;

type Point = [f64; 2];

/// Distance of quadrature points: for measuring.
pub(super) const FINE: f64 = 0.005;
/// Distance of quadrature points: for the last iterations.
const MIDDLE: f64 = 0.015;
/// Distance of quadrature points: for moving to int8.
const SETTLE: f64 = 0.03;
/// Distance of quadrature points: for the search.
const COARSE: f64 = 0.04;
/// The quadrature ends at this radius.
const RADIUS: f64 = 6.3;
/// Quadrature points per side of a tile, which share a short list of near points.
const TILE: usize = 8;

/// The best of several annealed grids.
pub(super) fn optimum(n: usize) -> Vec<Point> {
    // More points have more bad arrangements to fall into.
    let starts = if n <= 16 { 24 } else { 16 };
    let seeds: Vec<u64> = (0..starts).collect();
    let run = |seeds: &[u64]| seeds.iter().map(|&s| annealed(n, s)).collect::<Vec<_>>();
    let grids: Vec<_> = std::thread::scope(|scope| {
        let halves = seeds.chunks(seeds.len() / 2);
        let workers: Vec<_> = halves.map(|half| scope.spawn(move || run(half))).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
    });
    let best = grids.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("some starts");
    lloyd(best.0, MIDDLE, 400).0
}

/// One grid from a random start, and its error.
fn annealed(n: usize, seed: u64) -> (Vec<Point>, f64) {
    const STEPS: usize = 600;
    let mut random = Random(seed << 32 | n as u64);
    // The density of an optimal grid in a plane is normal with variance 2.
    let mut points: Vec<Point> =
        (0..n).map(|_| random.normal().map(|x| x * 2_f64.sqrt())).collect();
    for step in 0..STEPS {
        let cells = integrate(&points, COARSE);
        let heat = (1.0 - step as f64 / STEPS as f64).powi(3);
        for (point, cell) in points.iter_mut().zip(&cells) {
            let noise = random.normal();
            if cell.mass == 0.0 {
                *point = noise;
                continue;
            }
            let size = heat * (cell.error / cell.mass).sqrt();
            *point = [0, 1].map(|i| cell.first[i] / cell.mass + size * noise[i]);
        }
    }
    lloyd(points, COARSE, 200)
}

/// Lloyd's iteration with steps of one and a half, which still converge; and the error.
fn lloyd(mut points: Vec<Point>, step: f64, count: usize) -> (Vec<Point>, f64) {
    for _ in 0..count {
        let cells = integrate(&points, step);
        for (point, cell) in points.iter_mut().zip(&cells) {
            if cell.mass > 0.0 {
                *point = [0, 1].map(|i| {
                    let mean = cell.first[i] / cell.mass;
                    mean + 0.5 * (mean - point[i])
                });
            }
        }
    }
    let error = error(&points, step);
    (points, error)
}

/// Mean squared error per value at this distance of quadrature points.
pub(super) fn error(points: &[Point], step: f64) -> f64 {
    let cells = integrate(points, step);
    let (error, mass) = cells.iter().fold((0.0, 0.0), |(e, m), c| (e + c.error, m + c.mass));
    error / mass / 2.0
}

/// The float grid scaled and moved to int8 points, each where the error is least given the others.
pub(super) fn integer(points: &[Point]) -> IntegerGrid {
    let largest = points.as_flattened().iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    let trial = |percent: u32| {
        let unit = 127.0 / largest * f64::from(percent) / 100.0;
        let place = |x: f64| (x * unit).round().clamp(-127.0, 127.0) as i8;
        let points = settle(points.iter().map(|p| p.map(place)).collect(), unit);
        let grid = IntegerGrid { points: points.concat(), unit };
        (grid.error(2), grid)
    };
    let trials = (92..=116).step_by(3).map(trial);
    trials.min_by(|a, b| a.0.total_cmp(&b.0)).expect("some trials").1
}

/// Moves points by one step while that lowers the error.
fn settle(mut points: Vec<[i8; 2]>, unit: f64) -> Vec<[i8; 2]> {
    let scaled = |points: &[[i8; 2]]| -> Vec<Point> {
        points.iter().map(|p| p.map(|q| f64::from(q) / unit)).collect()
    };
    let mut places = places(&scaled(&points), SETTLE);
    for _ in 0..40 {
        let mut moved = false;
        for index in 0..points.len() {
            let here = points[index];
            // A small move matters to the places that have the point as nearest or second.
            let near: Vec<&Place> = places
                .iter()
                .filter(|place| place.nearest.0 == index || place.second.0 == index)
                .collect();
            let total = |to: [i8; 2]| -> f64 {
                let to = to.map(|q| f64::from(q) / unit);
                let error = |place: &&Place| {
                    let other = if place.nearest.0 == index { place.second } else { place.nearest };
                    place.weight * distance(place.at, to).min(other.1)
                };
                near.iter().map(error).sum()
            };
            let moves = (0..9)
                .map(|i| [here[0].saturating_add(i % 3 - 1), here[1].saturating_add(i / 3 - 1)]);
            let moves = moves.filter(|to| to.iter().all(|&x| x != i8::MIN));
            let best = moves.map(|to| (total(to), to)).min_by(|a, b| a.0.total_cmp(&b.0));
            let (least, to) = best.unwrap_or((f64::INFINITY, here));
            if least < total(here) * (1.0 - 1e-9) {
                points[index] = to;
                moved = true;
                places = self::places(&scaled(&points), SETTLE);
            }
        }
        if !moved {
            break;
        }
    }
    points
}

/// What a grid's cell holds of the normal density.
#[derive(Clone, Default)]
struct Cell {
    mass: f64,
    first: Point,
    error: f64,
}

/// The cell of every point, at this distance of quadrature points.
fn integrate(points: &[Point], step: f64) -> Vec<Cell> {
    let mut cells = vec![Cell::default(); points.len()];
    each_tile(points, step, 1, |tile, near| {
        tile.each_place(|at, weight| {
            let found = near.iter().map(|&(index, point)| (distance(at, point), index));
            let (error, index) =
                found.fold((f64::INFINITY, 0), |a, b| if b.0 < a.0 { b } else { a });
            let cell = &mut cells[index];
            cell.mass += weight;
            cell.error += weight * error;
            (0..2).for_each(|i| cell.first[i] += weight * at[i]);
        });
    });
    cells
}

/// A place of the quadrature, with its two nearest points and their squared distances.
struct Place {
    at: Point,
    weight: f64,
    nearest: (usize, f64),
    second: (usize, f64),
}

fn places(points: &[Point], step: f64) -> Vec<Place> {
    let mut places = Vec::new();
    each_tile(points, step, 2, |tile, near| {
        tile.each_place(|at, weight| {
            let (mut nearest, mut second) = ((0, f64::INFINITY), (0, f64::INFINITY));
            for &(index, point) in near {
                let found = (index, distance(at, point));
                if found.1 < nearest.1 {
                    (nearest, second) = (found, nearest);
                } else if found.1 < second.1 {
                    second = found;
                }
            }
            places.push(Place { at, weight, nearest, second });
        });
    });
    places
}

/// A square of the quadrature.
struct Tile<'a> {
    x: &'a [f64],
    y: &'a [f64],
}

impl Tile<'_> {
    fn each_place(&self, mut visit: impl FnMut(Point, f64)) {
        for &x in self.x {
            for &y in self.y {
                let square = x * x + y * y;
                if square <= RADIUS * RADIUS {
                    visit([x, y], (-0.5 * square).exp());
                }
            }
        }
    }
}

/// Visits every tile with the points that can be among the `rank` nearest of a place in it.
fn each_tile(
    points: &[Point],
    step: f64,
    rank: usize,
    mut visit: impl FnMut(&Tile, &[(usize, Point)]),
) {
    let half = (RADIUS / step).ceil() as i32;
    let axis: Vec<f64> = (-half..half).map(|i| (f64::from(i) + 0.5) * step).collect();
    let span =
        |run: &[f64]| (0.5 * (run[0] + run[run.len() - 1]), 0.5 * (run[run.len() - 1] - run[0]));
    let mut far = vec![0.0; points.len()];
    for x in axis.chunks(TILE) {
        for y in axis.chunks(TILE) {
            let ((cx, rx), (cy, ry)) = (span(x), span(y));
            let reach = (rx * rx + ry * ry).sqrt();
            if (cx * cx + cy * cy).sqrt() > RADIUS + reach {
                continue;
            }
            // No place of the tile is farther from its centre than `reach`.
            let distances = points.iter().map(|&p| distance([cx, cy], p).sqrt());
            far.iter_mut().zip(distances).for_each(|(far, d)| *far = d);
            let mut smallest = [f64::INFINITY; 2];
            for &d in &far {
                if d < smallest[0] {
                    smallest = [d, smallest[0]];
                } else if d < smallest[1] {
                    smallest[1] = d;
                }
            }
            let limit = smallest[rank - 1] + 2.0 * reach + 1e-9;
            let near = far.iter().enumerate().filter(|&(_, &d)| d <= limit);
            let near: Vec<(usize, Point)> = near.map(|(index, _)| (index, points[index])).collect();
            visit(&Tile { x, y }, &near);
        }
    }
}

fn distance(a: Point, b: Point) -> f64 {
    (a[0] - b[0]) * (a[0] - b[0]) + (a[1] - b[1]) * (a[1] - b[1])
}
