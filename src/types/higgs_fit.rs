//! How a group of values becomes codes and a scale: the nearest points for a scale, then the scale
//! of least squares for the points, and again while that pays.

use half::f16;

use super::higgs::Higgs;

/// Passes over one start; after the third hardly a code changes.
const PASSES: usize = 4;
/// Values of a point at most.
const P_MAX: usize = 4;
/// A larger value is cut to this before the search, where squares are still finite.
const FAR: f32 = 32_768.0;

/// Finds the nearest point of a grid: of equally near ones, the lowest code.
///
/// The space is cut into cubes, and each has a list of the points that can be nearest to a place
/// in it. So the answer is that of [`Search::scan`] after a look at few points instead of all.
pub struct Search {
    p: usize,
    /// Unused values are 0.
    points: Vec<[f32; P_MAX]>,
    /// Codes that are written.
    used: Vec<u16>,
    cubes: Cubes,
}

/// Cubes around 0, with a list of codes for each.
struct Cubes {
    /// Side of a cube.
    side: f32,
    /// Its inverse.
    per_value: f32,
    /// Cubes per axis.
    count: usize,
    /// Where the list of each cube begins in `lists`; one more at the end.
    starts: Vec<u32>,
    lists: Vec<u16>,
}

impl Search {
    /// For points `(n, p)`; one of -128 is unused.
    pub(super) fn new(p: usize, points: &[i8]) -> Search {
        // Small cubes have short lists, but many cubes do not fit in a cache.
        let (side, count) = match p {
            1 => (1.0, 384),
            2 => (4.0, 96),
            _ => (16.0, 16_usize),
        };
        let place = |point: &[i8]| {
            let value = |i| point.get(i).map_or(0.0, |&q| f32::from(q));
            std::array::from_fn(value)
        };
        let is_used = |point: &[i8]| point.iter().all(|&q| q != i8::MIN);
        let used = points.chunks_exact(p).enumerate().filter(|(_, point)| is_used(point));
        let used: Vec<u16> = used.map(|(code, _)| code as u16).collect();
        let points: Vec<_> = points.chunks_exact(p).map(place).collect();
        // Cubes of half the side again and again: a point that is nearest nowhere in a large cube
        // need not be looked at for the small ones in it.
        let mut cubes = Cubes::new(side * count as f32, 1);
        cubes.add(used.iter().copied());
        for halvings in (0..=count.trailing_zeros()).rev() {
            cubes = cubes.cut(count >> halvings, p, &points);
        }
        Search { p, points, used, cubes }
    }

    /// The nearest point to `place` (p values, finite).
    pub fn nearest(&self, place: &[f32]) -> u16 {
        match self.p {
            1 => self.nearest_of::<1>(place.try_into().expect("1 value")),
            2 => self.nearest_of::<2>(place.try_into().expect("2 values")),
            _ => self.nearest_of::<4>(place.try_into().expect("4 values")),
        }
    }

    /// The code of the nearest point to `place` under a scale above zero.
    #[inline]
    pub fn code<const P: usize>(&self, place: [f32; P], scale: f32) -> u16 {
        let inverse = 1.0 / scale;
        self.nearest_of(&place.map(|w| (w * inverse).clamp(-FAR, FAR)))
    }

    /// The values of a point; those past p are zero.
    #[inline]
    pub fn point(&self, code: u16) -> &[f32; P_MAX] {
        &self.points[code as usize]
    }

    /// The nearest point to `place`, by looking at all: the oracle.
    pub fn scan(&self, place: &[f32]) -> u16 {
        match self.p {
            1 => self.best_of::<1>(&self.used, place.try_into().expect("1 value")),
            2 => self.best_of::<2>(&self.used, place.try_into().expect("2 values")),
            _ => self.best_of::<4>(&self.used, place.try_into().expect("4 values")),
        }
    }

    #[inline]
    fn nearest_of<const P: usize>(&self, place: &[f32; P]) -> u16 {
        let cubes = &self.cubes;
        let (half, count) = (0.5 * cubes.count as f32, cubes.count as f32);
        let mut cube = 0;
        for x in place {
            let at = x * cubes.per_value + half;
            if !(at >= 0.0 && at < count) {
                return self.best_of(&self.used, place);
            }
            cube = cube * cubes.count + at as usize;
        }
        self.best_of(cubes.list(cube), place)
    }

    #[inline]
    fn best_of<const P: usize>(&self, codes: &[u16], place: &[f32; P]) -> u16 {
        let mut best = (f32::INFINITY, 0);
        for &code in codes {
            let point = &self.points[code as usize];
            let mut distance = 0.0;
            for (x, q) in place.iter().zip(point) {
                distance += (x - q) * (x - q);
            }
            if distance < best.0 {
                best = (distance, code);
            }
        }
        best.1
    }
}

impl Cubes {
    /// Without lists: [`Cubes::add`] gives each cube one.
    fn new(side: f32, count: usize) -> Cubes {
        Cubes { side, per_value: 1.0 / side, count, starts: vec![0], lists: Vec::new() }
    }

    fn list(&self, cube: usize) -> &[u16] {
        &self.lists[self.starts[cube] as usize..self.starts[cube + 1] as usize]
    }

    /// Appends the list of the next cube.
    fn add(&mut self, list: impl Iterator<Item = u16>) {
        self.lists.extend(list);
        self.starts.push(self.lists.len() as u32);
    }

    /// The same space in `count` cubes per axis, a multiple of those here.
    fn cut(&self, count: usize, p: usize, points: &[[f32; P_MAX]]) -> Cubes {
        let mut cut = Cubes::new(self.side * self.count as f32 / count as f32, count);
        let half = cut.side * count as f32 / 2.0;
        for cube in 0..count.pow(p as u32) {
            let (mut low, mut parent) = ([0.0; P_MAX], 0);
            for (axis, low) in low[..p].iter_mut().enumerate() {
                let at = cube / count.pow((p - 1 - axis) as u32) % count;
                *low = at as f32 * cut.side - half;
                parent = parent * self.count + at * self.count / count;
            }
            let list = nearest_in(&low[..p], cut.side, points, self.list(parent));
            cut.add(list.into_iter());
        }
        cut
    }
}

/// Of these codes, the ones that can be nearest to a place in the cube from `low` on.
fn nearest_in(low: &[f32], side: f32, points: &[[f32; P_MAX]], codes: &[u16]) -> Vec<u16> {
    // Squared distances of the search are rounded, by less than this.
    const SLACK: f32 = 0.5;
    // The squared distances of a point from the nearest and the farthest place of the cube.
    let span = |point: &[f32; P_MAX]| {
        low.iter().zip(point).fold((0.0, 0.0), |(near, far), (low, q)| {
            let (left, right) = (low - q, low + side - q);
            let outside = left.max(-right).max(0.0);
            let farthest = left.abs().max(right.abs());
            (near + outside * outside, far + farthest * farthest)
        })
    };
    let spans: Vec<_> = codes.iter().map(|&code| (code, span(&points[code as usize]))).collect();
    let limit = spans.iter().fold(f32::INFINITY, |least, (_, span)| least.min(span.1)) + SLACK;
    let near: Vec<u16> =
        spans.iter().filter(|(_, span)| span.0 <= limit).map(|&(code, _)| code).collect();
    // Of two points, one is nearer in the whole cube if it is in the corner that is worst.
    let is_hidden = |code: u16, other: u16| {
        let (point, other) = (&points[code as usize], &points[other as usize]);
        let terms = low.iter().zip(point.iter().zip(other)).map(|(low, (q, r))| {
            let worst = (-2.0 * low * (r - q)).max(-2.0 * (low + side) * (r - q));
            r * r - q * q + worst
        });
        terms.sum::<f32>() < -SLACK
    };
    let is_kept = |&code: &u16| !near.iter().any(|&other| is_hidden(code, other));
    near.iter().copied().filter(is_kept).collect()
}

/// Chooses the codes of one group, and returns its scale.
pub(super) fn fit(kind: &Higgs, values: &[f32], codes: &mut [u16]) -> f16 {
    let search = kind.search();
    match search.p {
        1 => fit_of::<1>(kind, search, values, codes),
        2 => fit_of::<2>(kind, search, values, codes),
        _ => fit_of::<4>(kind, search, values, codes),
    }
}

/// As `fit`, for points of `P` values. Sums go from the first value to the last, in f64.
fn fit_of<const P: usize>(kind: &Higgs, search: &Search, values: &[f32], codes: &mut [u16]) -> f16 {
    let places = values.as_chunks::<P>().0;
    let energy: f64 = values.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
    let mut best = (energy, f16::ZERO);
    codes.fill(search.nearest_of(&[0.0; P]));
    if energy == 0.0 {
        return f16::ZERO;
    }
    let deviation = (energy / values.len() as f64).sqrt();
    let largest = values.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
    let mut trial = vec![0_u16; codes.len()];
    let mut refine = |scale: f16, best: &mut (f64, f16)| {
        let (dot, square) = assign(search, places, scale, &mut trial);
        // The points were chosen for one scale; the best scale for them is another.
        let refit = if dot > 0.0 { rounded(dot / square) } else { scale };
        let at = f64::from(refit.to_f32());
        let error = energy - 2.0 * at * dot + at * at * square;
        if error < best.0 {
            *best = (error, refit);
            codes.copy_from_slice(&trial);
        }
    };
    for start in kind.starts(deviation, f64::from(largest)) {
        refine(rounded(start), &mut best);
    }
    for _ in 0..PASSES {
        let before = best.1;
        refine(before, &mut best);
        if best.1 == before {
            break;
        }
    }
    best.1
}

/// The nearest half-precision number that can be a scale: above zero, and finite.
fn rounded(scale: f64) -> f16 {
    f16::from_f64(scale).clamp(f16::MIN_POSITIVE_SUBNORMAL, f16::MAX)
}

/// The nearest points for a scale; their dot product with the values, and with themselves.
fn assign<const P: usize>(
    search: &Search,
    places: &[[f32; P]],
    scale: f16,
    codes: &mut [u16],
) -> (f64, f64) {
    let (mut dot, mut square) = (0.0, 0.0);
    let inverse = 1.0 / scale.to_f32();
    for (place, code) in places.iter().zip(codes) {
        *code = search.nearest_of(&place.map(|w| (w * inverse).clamp(-FAR, FAR)));
        for (&w, &q) in place.iter().zip(&search.points[*code as usize]) {
            dot += f64::from(w) * f64::from(q);
            square += f64::from(q) * f64::from(q);
        }
    }
    (dot, square)
}
