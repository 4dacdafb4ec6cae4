//! Grids on a line (p = 1), exact: Lloyd and Max's optimum, and the best int8 points by dynamic
//! programming.

use super::IntegerGrid;

/// Where the normal density is beyond double precision.
const FAR: f64 = 12.0;

/// Lloyd and Max's levels, ascending.
pub(super) fn optimum(n: usize) -> Vec<f64> {
    // The density of optimal levels goes with the cube root of the normal density, which is a
    // normal density of variance 3: a start so near that Lloyd's steps converge.
    let quantile = |p: f64| {
        let (mut low, mut high) = (-FAR, FAR);
        for _ in 0..60 {
            let middle = 0.5 * (low + high);
            if mass_below(middle) < p { low = middle } else { high = middle }
        }
        3_f64.sqrt() * low
    };
    let mut levels: Vec<f64> = (0..n).map(|i| quantile((i as f64 + 0.5) / n as f64)).collect();
    // Lloyd's steps contract by about 1 - 1 / n^2.
    for _ in 0..40 * n * n + 1000 {
        let mut change: f64 = 0.0;
        let edges = edges(&levels);
        for (level, edge) in levels.iter_mut().zip(edges.windows(2)) {
            let mean = Moments::of(edge[0], edge[1]).mean();
            change = change.max((mean - *level).abs());
            *level = mean;
        }
        if change < 1e-13 {
            break;
        }
    }
    levels
}

/// Mean squared error of rounding a standard normal number to the nearest of these levels.
pub(super) fn error(levels: &[f64]) -> f64 {
    let mut levels = levels.to_vec();
    levels.sort_by(f64::total_cmp);
    let edges = edges(&levels);
    let cells = levels.iter().zip(edges.windows(2));
    cells.map(|(&level, edge)| Moments::of(edge[0], edge[1]).error(level)).sum()
}

/// The best `n` int8 levels, over all scales from coarse to fine.
pub(super) fn integer_optimum(n: usize) -> IntegerGrid {
    // From the outermost float level at 127 to the finest scale that could pay.
    let outermost = optimum(n)[n - 1];
    let coarse = 127.0 / outermost;
    let units = (0..=50).map(|i| coarse * (0.70 + 0.01 * f64::from(i)));
    let grids = units.map(|unit| (best_levels(n, unit), unit));
    let (points, unit, _) = grids
        .map(|((points, error), unit)| (points, unit, error))
        .min_by(|a, b| a.2.total_cmp(&b.2))
        .expect("some scales");
    IntegerGrid { points, unit }
}

/// The `n` levels out of -127..=127 with the least error at `unit` steps per deviation.
fn best_levels(n: usize, unit: f64) -> (Vec<i8>, f64) {
    const LEVELS: usize = 255;
    let place = |i: usize| (i as f64 - 127.0) / unit;
    // between[a][b]: the error of what lies between neighbouring levels a and b.
    let half = |edge: [f64; 2], level: f64| Moments::of(edge[0], edge[1]).error(level);
    let between = |a: usize, b: usize| {
        let middle = 0.5 * (place(a) + place(b));
        half([place(a), middle], place(a)) + half([middle, place(b)], place(b))
    };
    let between: Vec<Vec<f64>> =
        (0..LEVELS).map(|a| (0..LEVELS).map(|b| between(a, b.max(a))).collect()).collect();
    // best[b]: the least error left of b with k levels used, b the last.
    let mut best: Vec<f64> = (0..LEVELS).map(|b| half([-FAR, place(b)], place(b))).collect();
    let mut before: Vec<Vec<usize>> = Vec::new();
    for _ in 1..n {
        let step = |b: usize| {
            let totals = (0..b).map(|a| (best[a] + between[a][b], a));
            totals.min_by(|x, y| x.0.total_cmp(&y.0)).unwrap_or((f64::INFINITY, 0))
        };
        let (next, from) = (0..LEVELS).map(step).unzip();
        best = next;
        before.push(from);
    }
    let totals = (0..LEVELS).map(|b| (best[b] + half([place(b), FAR], place(b)), b));
    let (error, mut at) = totals.min_by(|x, y| x.0.total_cmp(&y.0)).expect("255 levels");
    let mut points = vec![(at as i32 - 127) as i8];
    for from in before.iter().rev() {
        at = from[at];
        points.push((at as i32 - 127) as i8);
    }
    points.reverse();
    (points, error)
}

/// Where the cells of ascending levels begin and end.
fn edges(levels: &[f64]) -> Vec<f64> {
    let middles = levels.windows(2).map(|pair| 0.5 * (pair[0] + pair[1]));
    std::iter::once(-FAR).chain(middles).chain([FAR]).collect()
}

/// Integrals of 1, x and x * x times the normal density over an interval.
struct Moments([f64; 3]);

impl Moments {
    fn of(from: f64, to: f64) -> Moments {
        // Left of 0 the mirror image: a difference of small masses is exact, one of near 1 is not.
        let mass = if from > 0.0 {
            mass_below(-from) - mass_below(-to)
        } else {
            mass_below(to) - mass_below(from)
        };
        let (a, b) = (density(from), density(to));
        Moments([mass, a - b, mass + from * a - to * b])
    }

    fn mean(&self) -> f64 {
        self.0[1] / self.0[0]
    }

    fn error(&self, level: f64) -> f64 {
        let [mass, first, second] = self.0;
        second - 2.0 * level * first + level * level * mass
    }
}

fn density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt()
}

/// The normal distribution function, by its series around 0: positive terms, so nothing cancels.
fn mass_below(x: f64) -> f64 {
    if x < -8.0 {
        return 0.0;
    }
    if x > 8.0 {
        return 1.0;
    }
    let (mut term, mut sum, mut k) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        k += 2.0;
        term *= x * x / k;
        sum += term;
    }
    0.5 + sum * density(x)
}
