//! Grids of points that round a standard normal vector with the least squared error.
//!
//! A grid is made as floats first, by Lloyd's iteration: each point moves to the mean of the
//! vectors it is nearest to. That finds the optimum on a line and only a poor local one in a plane,
//! so there the points are shaken, less and less, on the way. The result is then scaled and moved
//! to int8, because int8 values are what the kernels multiply. Errors are per value, of a unit
//! normal: at p = 1 exact, at p = 2 by quadrature, at p = 4 by a fixed sample.

mod line;
mod plane;
mod space;

/// A grid on int8 points.
#[derive(Clone, Debug, PartialEq)]
pub struct IntegerGrid {
    /// `(n, p)`.
    pub points: Vec<i8>,
    /// Steps of the integers per standard deviation of the normal vector.
    pub unit: f64,
}

/// Makes the grid of `n` points with `p` values each, the float one and its int8 form.
///
/// # Panics
/// If `p` is not 1, 2 or 4.
pub fn make(p: usize, n: usize) -> (Vec<f64>, IntegerGrid) {
    match p {
        1 => (line::optimum(n), line::integer_optimum(n)),
        2 => {
            let points = plane::optimum(n);
            let integer = plane::integer(&points);
            (points.concat(), integer)
        }
        4 => {
            let points = space::optimum(n);
            let integer = space::integer(&points);
            (points.concat(), integer)
        }
        _ => panic!("grids of p = {p} are not made"),
    }
}

/// Mean squared error per value of rounding a standard normal vector to these `(n, p)` points.
///
/// # Panics
/// If `p` is not 1, 2 or 4.
pub fn error(p: usize, points: &[f64]) -> f64 {
    match p {
        1 => line::error(points),
        2 => plane::error(points.as_chunks().0, plane::FINE),
        4 => space::error(points.as_chunks().0),
        _ => panic!("grids of p = {p} are not measured"),
    }
}

impl IntegerGrid {
    /// [`error`] of this grid with `p` values per point.
    pub fn error(&self, p: usize) -> f64 {
        let points: Vec<f64> = self.points.iter().map(|&q| f64::from(q) / self.unit).collect();
        error(p, &points)
    }
}
