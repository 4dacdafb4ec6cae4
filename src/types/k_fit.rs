//! How the encoders of the types of 256 values find their scales and minimums.
//!
//! ```text
//! for every group: try steps around its range, and draw the best line through the codes
//! give all groups of the block a common factor, so that their scales become integers
//! a few times: choose among the neighbours of each integer, then fit the factor to the choice
//! ```
//!
//! The squared error of a line through codes is a quadratic form in a few sums, so that a candidate
//! costs one pass over the values. Sums run in one order: the same values give the same bytes.

use std::ops::RangeInclusive;

use half::f16;

/// Steps that are tried for a group: tenths of a level around the range of its values.
const TRIALS: RangeInclusive<i32> = -10..=10;

/// Times that integers and factors are fitted to each other; a fourth gains under 0.1% of the
/// error.
const ROUNDS: usize = 3;

/// The largest six-bit scale or minimum.
const SIX_BITS: f32 = 63.0;

/// A block of groups with minimums: `value = (factor * scale) * q - min_factor * min`.
pub(super) struct WithMins {
    pub(super) factor: f16,
    pub(super) min_factor: f16,
    pub(super) scales: [u8; 8],
    pub(super) mins: [u8; 8],
    pub(super) codes: [u8; 256],
}

/// A block of groups without: `value = (factor * scale) * (q - 32)`.
pub(super) struct Symmetric {
    pub(super) factor: f16,
    pub(super) scales: [i8; 16],
    pub(super) codes: [u8; 256],
}

/// Codes from `low` to `high`.
#[derive(Clone, Copy)]
struct Levels {
    low: f32,
    high: f32,
}

/// `value = scale * q - min`.
#[derive(Clone, Copy, Default)]
struct Line {
    scale: f32,
    min: f32,
}

/// What the error of a line depends on.
#[derive(Clone, Copy, Default)]
struct Sums {
    /// Values.
    count: f64,
    /// Of the values.
    x: f64,
    /// Of their squares.
    xx: f64,
    /// Of the codes.
    q: f64,
    /// Of the squares of the codes.
    qq: f64,
    /// Of values times codes.
    xq: f64,
}

impl Sums {
    /// The squared error of a line through these codes.
    fn error(&self, line: Line) -> f64 {
        let (scale, min) = (f64::from(line.scale), f64::from(line.min));
        let shifted = self.xx + 2.0 * min * self.x + self.count * min * min;
        shifted - 2.0 * scale * (self.xq + min * self.q) + scale * scale * self.qq
    }

    /// The line of least error that has no negative minimum; none if all codes are the same.
    fn line(&self) -> Option<Line> {
        let spread = self.count * self.qq - self.q * self.q;
        let scale = (self.count * self.xq - self.q * self.x) / spread;
        let min = (scale * self.q - self.x) / self.count;
        if spread > 0.0 && min >= 0.0 {
            return Some(Line { scale: scale as f32, min: min as f32 });
        }
        self.line_from_zero()
    }

    /// The line of least error without a minimum; none if all codes are zero.
    fn line_from_zero(&self) -> Option<Line> {
        (self.qq > 0.0).then(|| Line { scale: (self.xq / self.qq) as f32, min: 0.0 })
    }
}

/// Codes a block of four or five bits, `top` being the largest code.
pub(super) fn with_mins(values: &[f32; 256], top: u8) -> WithMins {
    let levels = Levels { low: 0.0, high: top.into() };
    let groups: &[[f32; 32]; 8] = values.as_chunks().0.try_into().expect("8 * 32 is 256");
    let wishes = groups.map(|group| line(&group, levels));
    let largest = |part: fn(&Line) -> f32| wishes.iter().map(part).fold(0.0, f32::max);
    let factors = Line {
        scale: largest(|line| line.scale) / SIX_BITS,
        min: largest(|line| line.min) / SIX_BITS,
    };
    let (factors, integers) = fit(groups, levels, wishes, factors, 0.0..=SIX_BITS);
    WithMins {
        factor: f16::from_f32(factors.scale),
        min_factor: f16::from_f32(factors.min),
        scales: integers.map(|line| line.scale as u8),
        mins: integers.map(|line| line.min as u8),
        codes: block_codes(groups, levels, factors, integers),
    }
}

/// Codes a block of six bits.
pub(super) fn symmetric(values: &[f32; 256]) -> Symmetric {
    let levels = Levels { low: -32.0, high: 31.0 };
    let groups: &[[f32; 16]; 16] = values.as_chunks().0.try_into().expect("16 * 16 is 256");
    let wishes = groups.map(|group| line_from_zero(&group, levels));
    // The scale that is farthest from zero becomes -128, the end without a counterpart.
    let extreme = super::block::extreme(&wishes.map(|line| line.scale));
    let factors = Line { scale: extreme / -128.0, min: 0.0 };
    let (factors, integers) = fit(groups, levels, wishes, factors, -128.0..=127.0);
    Symmetric {
        factor: f16::from_f32(factors.scale),
        scales: integers.map(|line| line.scale as i8),
        codes: block_codes(groups, levels, factors, integers),
    }
}

/// Fits integers, their scales within a range, and factors to each other, as far as that helps.
fn fit<const N: usize, const GROUPS: usize>(
    groups: &[[f32; N]; GROUPS],
    levels: Levels,
    wishes: [Line; GROUPS],
    mut factors: Line,
    scales: RangeInclusive<f32>,
) -> (Line, [Line; GROUPS]) {
    let mut best = (f64::INFINITY, Line::default(), [Line::default(); GROUPS]);
    for _ in 0..ROUNDS {
        let stored = half(factors);
        let mut chosen = [(Sums::default(), Line::default()); GROUPS];
        let mut error = 0.0;
        for ((group, wish), chosen) in groups.iter().zip(wishes).zip(&mut chosen) {
            let (lost, sums, integers) = neighbours(group, levels, wish, stored, &scales);
            *chosen = (sums, integers);
            error += lost;
        }
        if error < best.0 {
            best = (error, stored, chosen.map(|(_, integers)| integers));
        }
        factors = fit_factors(&chosen, stored);
    }
    (best.1, best.2)
}

/// The codes of a block, counted from the lowest level.
fn block_codes<const N: usize, const GROUPS: usize>(
    groups: &[[f32; N]; GROUPS],
    levels: Levels,
    factors: Line,
    integers: [Line; GROUPS],
) -> [u8; 256] {
    let mut codes = [0; 256];
    let each = groups.iter().zip(integers).zip(codes.as_chunks_mut::<N>().0);
    for ((group, integers), out) in each {
        let q = codes_of(group, levels, times(factors, integers));
        out.iter_mut().zip(q).for_each(|(out, q)| *out = (q - levels.low) as u8);
    }
    codes
}

/// The best line through a group whose values may have an offset.
fn line<const N: usize>(values: &[f32; N], levels: Levels) -> Line {
    let (low, high) = super::block::bounds(values);
    // A minimum is subtracted and never negative: all-positive values start at zero.
    let low = low.min(0.0);
    let flat = Line { scale: 0.0, min: -low };
    let try_levels = |tenths: i32| {
        let scale = (high - low) / (levels.high + tenths as f32 / 10.0);
        sums(values, levels, Line { scale, min: -low })
    };
    best_line(flat, sums(values, levels, flat).error(flat), TRIALS.map(try_levels), Sums::line)
}

/// The best line through a group that includes zero.
fn line_from_zero<const N: usize>(values: &[f32; N], levels: Levels) -> Line {
    let extreme = super::block::extreme(values);
    let try_levels = |tenths: i32| {
        let scale = extreme / (levels.low + tenths as f32 / 10.0);
        sums(values, levels, Line { scale, min: 0.0 })
    };
    let zero = Line::default();
    let error = sums(values, levels, zero).error(zero);
    best_line(zero, error, TRIALS.map(try_levels), Sums::line_from_zero)
}

/// The best of a first line and those through the codes of each trial.
fn best_line(
    first: Line,
    error: f64,
    trials: impl Iterator<Item = Sums>,
    fit: fn(&Sums) -> Option<Line>,
) -> Line {
    let mut best = (error, first);
    for sums in trials {
        let Some(line) = fit(&sums) else { continue };
        let error = sums.error(line);
        if error < best.0 {
            best = (error, line);
        }
    }
    best.1
}

/// The integers near a wish, of the scale and of the minimum, that lose least under the factors:
/// the error, its sums, the integers.
fn neighbours<const N: usize>(
    values: &[f32; N],
    levels: Levels,
    wish: Line,
    factors: Line,
    scales: &RangeInclusive<f32>,
) -> (f64, Sums, Line) {
    let share = |wish: f32, factor: f32| if factor == 0.0 { 0.0 } else { (wish / factor).round() };
    let near = |center: f32, low: f32, high: f32| {
        // Beyond the range the neighbours are the end itself, which is then tried again.
        [0.0, -1.0, 1.0].map(|step: f32| (center + step).max(low).min(high))
    };
    let mins = match factors.min == 0.0 {
        true => [0.0; 3],
        false => near(share(wish.min, factors.min), 0.0, SIX_BITS),
    };
    let mut best = (f64::INFINITY, Sums::default(), Line::default());
    for scale in near(share(wish.scale, factors.scale), *scales.start(), *scales.end()) {
        for &min in &mins[..if factors.min == 0.0 { 1 } else { 3 }] {
            let integers = Line { scale, min };
            let line = times(factors, integers);
            let sums = sums(values, levels, line);
            let error = sums.error(line);
            if error < best.0 {
                best = (error, sums, integers);
            }
        }
    }
    best
}

/// The factors of least error for chosen integers and codes; those there were, where the choice
/// says nothing about them.
fn fit_factors(chosen: &[(Sums, Line)], before: Line) -> Line {
    let (mut aa, mut ab, mut bb, mut a, mut b) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (sums, integers) in chosen {
        let (scale, min) = (f64::from(integers.scale), f64::from(integers.min));
        aa += scale * scale * sums.qq;
        ab += scale * min * sums.q;
        bb += min * min * sums.count;
        a += scale * sums.xq;
        b -= min * sums.x;
    }
    // Zero slope of the error: `aa * f - ab * g = a` and `bb * g - ab * f = b`.
    let determinant = aa * bb - ab * ab;
    let (scale, min) = match determinant > 0.0 {
        true => ((a * bb + b * ab) / determinant, (b * aa + a * ab) / determinant),
        false => (a / aa, f64::from(before.min)),
    };
    if scale.is_finite() && min.is_finite() && min >= 0.0 {
        Line { scale: scale as f32, min: min as f32 }
    } else {
        before
    }
}

fn times(factors: Line, integers: Line) -> Line {
    Line { scale: factors.scale * integers.scale, min: factors.min * integers.min }
}

/// As the file will have it.
fn half(line: Line) -> Line {
    let half = |value: f32| f16::from_f32(value).to_f32();
    Line { scale: half(line.scale), min: half(line.min) }
}

/// The nearest codes of a line.
#[inline(always)]
fn codes_of<const N: usize>(values: &[f32; N], levels: Levels, line: Line) -> [f32; N] {
    // Adding and subtracting 1.5 * 2^23 rounds to an integer, and vectorises where `round` does
    // not.
    const ROUND: f32 = 12_582_912.0;
    let inverse = if line.scale == 0.0 { 0.0 } else { 1.0 / line.scale };
    values.map(|value| {
        ((value + line.min) * inverse).max(levels.low).min(levels.high) + ROUND - ROUND
    })
}

/// Sums over the nearest codes of a line.
#[inline(always)]
fn sums<const N: usize>(values: &[f32; N], levels: Levels, line: Line) -> Sums {
    const LANES: usize = 4;
    let codes = codes_of(values, levels, line);
    let mut lanes = [[0.0f64; LANES]; 5];
    let values = values.as_chunks::<LANES>().0;
    for (values, codes) in values.iter().zip(codes.as_chunks::<LANES>().0) {
        for i in 0..LANES {
            let (x, q) = (f64::from(values[i]), f64::from(codes[i]));
            lanes[0][i] += x;
            lanes[1][i] += x * x;
            lanes[2][i] += q;
            lanes[3][i] += q * q;
            lanes[4][i] += x * q;
        }
    }
    let [x, xx, q, qq, xq] = lanes.map(|lane| lane.iter().sum());
    Sums { count: N as f64, x, xx, q, qq, xq }
}
