//! Learned points: k-means over vectors, a second table for what the first leaves, and the search
//! for the pair whose sum is nearest (VPTQ, arXiv 2409.17066, sections 3 and 4).

use std::borrow::Cow;

use rayon::prelude::*;

use super::random::Random;
use crate::simd::Level;
use crate::simd::products::{LANES, score};
use crate::types::{Entries, Shape, even_signs, minus_signs};

/// The longest vector.
pub const V_MAX: usize = 16;
/// First points for which the nearest second point is looked for.
const BEAM: usize = 8;
/// Points whose scores are compared at once.
const CHUNK: usize = LANES;
/// Rounds of k-means for a table.
const ROUNDS: usize = 15;
/// Rounds in which both tables follow from codes that were found together.
const JOINT_ROUNDS: usize = 10;
/// The integers that learned numbers reach; sums of two points may go a little further.
const REACH: f32 = 120.0;

/// Points of one table in columns, so that neighbouring lanes are neighbouring points.
#[derive(Clone)]
struct Table {
    v: usize,
    /// `(v, padded count)`; where codes have signs, without them.
    columns: Vec<f32>,
    /// Where codes have signs: those of each point itself, a bit for each number.
    minus: Vec<u32>,
    /// Where codes have signs, 1 for points with an odd number of minus signs and 0 for others, and
    /// the other way round. A code turns an even number.
    odd: [Vec<f32>; 2],
    /// Half of each point's square; infinite past the last.
    halves: Vec<f32>,
}

impl Table {
    fn new(points: &[f32], v: usize, signs: bool) -> Table {
        let count = points.len() / v;
        let padded = count.next_multiple_of(CHUNK);
        let (mut columns, mut halves) = (vec![0.0; v * padded], vec![f32::INFINITY; padded]);
        let mut minus = Vec::new();
        let mut odd = [Vec::new(), Vec::new()];
        for (at, point) in points.chunks_exact(v).enumerate() {
            point.iter().enumerate().for_each(|(t, &value)| columns[t * padded + at] = value);
            halves[at] = point.iter().map(|value| value * value).sum::<f32>() / 2.0;
        }
        if signs {
            columns.iter_mut().for_each(|value| *value = value.abs());
            minus.extend(points.chunks_exact(v).map(minus_signs));
            let is_odd = |at: usize| minus.get(at).is_some_and(|minus| minus.count_ones() % 2 == 1);
            odd[0] = (0..padded).map(|at| f32::from(u8::from(is_odd(at)))).collect();
            odd[1] = odd[0].iter().map(|odd| 1.0 - odd).collect();
        }
        Table { v, columns, minus, odd, halves }
    }

    /// A point, with its signs if it has any.
    fn point(&self, code: usize) -> [f32; V_MAX] {
        let padded = self.halves.len();
        let own = |t: usize| if t < self.v { self.columns[t * padded + code] } else { 0.0 };
        turned(&std::array::from_fn(own), self.minus.get(code).copied().unwrap_or_default())
    }

    /// The point nearest to a place, and the signs that make it so; the lowest of equal ones.
    fn nearest(&self, place: &[f32; V_MAX], scores: &mut Scores) -> (usize, u32) {
        if self.minus.is_empty() {
            self.score(place, &[], scores);
            return (scores.best().0, 0);
        }
        let (minus, sizes) = (minus_signs(place), place.map(f32::abs));
        self.score(&sizes, &self.odd[minus.count_ones() as usize % 2], scores);
        let (code, _) = scores.best();
        let mut signs = minus ^ self.minus[code];
        if signs.count_ones() % 2 == 1 {
            let point = self.point(code);
            let product = |&t: &usize| sizes[t] * point[t].abs();
            let least = (0..self.v).min_by(|a, b| product(a).total_cmp(&product(b)));
            signs ^= 1 << least.unwrap_or_default();
        }
        (code, signs)
    }

    /// Scores of all points, higher for nearer ones, and the largest of each chunk. Where `turned`
    /// is 1, the number of a point that this costs least has the other sign.
    fn score(&self, place: &[f32; V_MAX], turned: &[f32], scores: &mut Scores) {
        scores.all.resize(self.halves.len(), 0.0);
        scores.largest.resize(self.halves.len() / CHUNK, 0.0);
        let (columns, halves) = (&self.columns, &self.halves);
        let place = &place[..self.v];
        let (all, largest) = (&mut scores.all, &mut scores.largest);
        score(Level::best(), columns, halves, place, turned, all, largest);
    }
}

/// Room for a search.
#[derive(Default)]
struct Scores {
    all: Vec<f32>,
    largest: Vec<f32>,
}

impl Scores {
    /// The best point; the lowest of equal ones.
    fn best(&self) -> (usize, f32) {
        let (mut chunk, mut best) = (0, f32::NEG_INFINITY);
        for (at, &score) in self.largest.iter().enumerate() {
            if score > best {
                (chunk, best) = (at, score);
            }
        }
        let scores = &self.all[chunk * CHUNK..][..CHUNK];
        let at = scores.iter().position(|&score| score == best).unwrap_or_default();
        (chunk * CHUNK + at, best)
    }

    /// The best points, best first. They are in the chunks whose largest scores are best.
    fn top(&self) -> Top {
        let mut chunks = Top::default();
        self.largest.iter().enumerate().for_each(|(at, &score)| chunks.add(at, score));
        let mut points = Top::default();
        for &(chunk, _) in &chunks.best[..chunks.count] {
            for (at, &score) in self.all[chunk * CHUNK..][..CHUNK].iter().enumerate() {
                points.add(chunk * CHUNK + at, score);
            }
        }
        points
    }
}

/// The [`BEAM`] best of what was added, best first.
#[derive(Default)]
struct Top {
    best: [(usize, f32); BEAM],
    count: usize,
}

impl Top {
    fn add(&mut self, at: usize, score: f32) {
        if self.count == BEAM && score <= self.best[BEAM - 1].1 || score == f32::NEG_INFINITY {
            return;
        }
        let mut place = self.count.min(BEAM - 1);
        while place > 0 && self.best[place - 1].1 < score {
            self.best[place] = self.best[place - 1];
            place -= 1;
        }
        self.best[place] = (at, score);
        self.count = BEAM.min(self.count + 1);
    }
}

/// Learned points of integers.
#[derive(Clone)]
pub struct Points {
    /// The type they belong to.
    pub shape: Shape,
    /// Integer steps per standard deviation of the vectors they were learned from.
    pub unit: f32,
    table: Vec<i8>,
    main: Table,
    residual: Option<Table>,
}

/// Memory of one searching thread.
#[derive(Default)]
pub struct Room {
    main: Scores,
    residual: Scores,
}

impl Points {
    /// Rounds that learning takes.
    pub fn rounds(shape: Shape) -> usize {
        if shape.residual_bits > 0 { 2 * ROUNDS + JOINT_ROUNDS } else { ROUNDS }
    }

    /// Learns from vectors `(n, v)` of unit variance. The same vectors and seed give the same
    /// points, whatever the number of threads. `done` hears of each of [`Points::rounds`].
    ///
    /// # Panics
    /// If the shape is not one of integers, or there are fewer vectors than points.
    pub fn learn(shape: Shape, vectors: &[f32], seed: u64, done: &mut dyn FnMut()) -> Points {
        assert!(shape.entries == Entries::Int8, "points of integers");
        let Shape { v, bits, residual_bits, signs, .. } = shape;
        let mut random = Random(seed);
        let mut main = k_means(vectors, (v, signs), 1 << bits, &mut random, done);
        let mut residual = Vec::new();
        if residual_bits > 0 {
            let (codes, _) = nearest(&Table::new(&main, v, false), vectors);
            let left = subtract(vectors, &main, &codes, v);
            residual = k_means(&left, (v, false), 1 << residual_bits, &mut random, done);
            for _ in 0..JOINT_ROUNDS {
                let points = Points::new(shape, &main, &residual, 1.0);
                let pairs = points.search_all(vectors);
                let (first, second): (Vec<usize>, Vec<usize>) = pairs.into_iter().unzip();
                main = means(&subtract(vectors, &residual, &second, v), &first, &main, v);
                residual = means(&subtract(vectors, &main, &first, v), &second, &residual, v);
                done();
            }
        }
        let largest = |points: &[f32]| points.iter().fold(0.0_f32, |m, value| m.max(value.abs()));
        let size = largest(&main) + largest(&residual) / 2.0;
        // Vectors of zeros have points of zeros.
        let unit = if size > 0.0 { REACH / size } else { 1.0 };
        Points::new(shape, &main, &residual, unit)
    }

    /// Rounds points to integers, `unit` of which are 1; where that is 1, they stay as they are.
    fn new(shape: Shape, main: &[f32], residual: &[f32], unit: f32) -> Points {
        let integer = |&value: &f32| (value * unit).round().clamp(-127.0, 127.0);
        let scaled = |points: &[f32]| -> Vec<f32> {
            if unit == 1.0 { points.to_vec() } else { points.iter().map(integer).collect() }
        };
        let (main, residual) = (scaled(main), scaled(residual));
        let table = main.iter().chain(&residual).map(|&value| value as i8).collect();
        let Shape { v, signs, .. } = shape;
        let second = (!residual.is_empty()).then(|| Table::new(&residual, v, false));
        Points { shape, unit, table, main: Table::new(&main, v, signs), residual: second }
    }

    /// The points of a table that was learned before; nothing if it has another length.
    pub fn of_table(shape: Shape, table: &[i8], unit: f32) -> Option<Points> {
        if table.len() != shape.v * shape.points() {
            return None;
        }
        let values: Vec<f32> = table.iter().map(|&value| f32::from(value)).collect();
        let (main, residual) = values.split_at(shape.v << shape.bits);
        Some(Points { unit, ..Points::new(shape, main, residual, 1.0) })
    }

    /// The table as a file has it.
    pub fn table(&self) -> &[i8] {
        &self.table
    }

    /// The code whose point, or sum of points, is nearest to `place` (in integer steps, zeros past
    /// v), and that point: the best sum among the few nearest first points.
    pub fn search(&self, place: &[f32; V_MAX], room: &mut Room) -> (u32, [f32; V_MAX]) {
        let (first, second) = self.pair(place, room);
        let mut point = self.main.point(first);
        if let Some(residual) = &self.residual {
            let more = residual.point(second);
            // As the type decodes it.
            point = std::array::from_fn(|t| (point[t] + more[t]).clamp(-127.0, 127.0));
        }
        if self.shape.signs {
            point = turned(&point, even_signs(second as u32, self.shape.v));
        }
        ((first | second << self.shape.bits) as u32, point)
    }

    /// The first code, and what comes above it in the whole one: a second, or signs.
    fn pair(&self, place: &[f32; V_MAX], room: &mut Room) -> (usize, usize) {
        let Some(residual) = &self.residual else {
            let (code, signs) = self.main.nearest(place, &mut room.main);
            return (code, signs as usize & ((1 << (self.shape.v - 1)) - 1));
        };
        self.main.score(place, &[], &mut room.main);
        let mut best = (f32::NEG_INFINITY, 0, 0);
        let top = room.main.top();
        for &(first, score) in &top.best[..top.count] {
            let point = self.main.point(first);
            let left = std::array::from_fn(|t| place[t] - point[t]);
            residual.score(&left, &[], &mut room.residual);
            let (second, more) = room.residual.best();
            if score + more > best.0 {
                best = (score + more, first, second);
            }
        }
        (best.1, best.2)
    }

    /// Pairs of codes of vectors `(n, v)`.
    fn search_all(&self, vectors: &[f32]) -> Vec<(usize, usize)> {
        let v = self.shape.v;
        let find = |room: &mut Room, vector: &[f32]| self.pair(&place(vector), room);
        vectors.par_chunks_exact(v).map_init(Room::default, find).collect()
    }
}

/// With the other sign where a bit is set.
fn turned(numbers: &[f32; V_MAX], signs: u32) -> [f32; V_MAX] {
    std::array::from_fn(|t| if signs >> t & 1 == 0 { numbers[t] } else { -numbers[t] })
}

fn place(vector: &[f32]) -> [f32; V_MAX] {
    let mut place = [0.0; V_MAX];
    place[..vector.len()].copy_from_slice(vector);
    place
}

/// The nearest points of vectors, and their signs.
fn nearest(table: &Table, vectors: &[f32]) -> (Vec<usize>, Vec<u32>) {
    let find = |scores: &mut Scores, vector: &[f32]| table.nearest(&place(vector), scores);
    vectors.par_chunks_exact(table.v).map_init(Scores::default, find).unzip()
}

/// Vectors with the other sign where bits are set.
fn turn_all(vectors: &[f32], signs: &[u32], v: usize) -> Vec<f32> {
    let pairs = vectors.chunks_exact(v).zip(signs);
    let turn = |(vector, &signs): (&[f32], &u32)| turned(&place(vector), signs).into_iter().take(v);
    pairs.flat_map(turn).collect()
}

/// What is left of vectors when their points are taken away.
fn subtract(vectors: &[f32], points: &[f32], codes: &[usize], v: usize) -> Vec<f32> {
    let pairs = vectors.chunks_exact(v).zip(codes);
    let left = |(vector, &code): (&[f32], &usize)| {
        let point = points[code * v..][..v].to_vec();
        vector.iter().zip(point).map(|(a, b)| a - b).collect::<Vec<f32>>()
    };
    pairs.flat_map(left).collect()
}

/// The mean of the vectors of each code; a code without vectors keeps its point.
fn means(vectors: &[f32], codes: &[usize], points: &[f32], v: usize) -> Vec<f32> {
    let mut sums = vec![0.0_f64; points.len()];
    let mut counts = vec![0_u32; points.len() / v];
    for (vector, &code) in vectors.chunks_exact(v).zip(codes) {
        counts[code] += 1;
        let sums = &mut sums[code * v..][..v];
        sums.iter_mut().zip(vector).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    let mut means = points.to_vec();
    let used = means.chunks_exact_mut(v).zip(sums.chunks_exact(v)).zip(counts);
    for ((point, sums), count) in used.filter(|(_, count)| *count > 0) {
        point.iter_mut().zip(sums).for_each(|(to, sum)| *to = (sum / f64::from(count)) as f32);
    }
    means
}

/// `count` points for vectors `(n, v)`, from different ones of them; a point that no vector is
/// nearest to goes to one that is far from its own.
///
/// # Panics
/// If there are fewer vectors than points.
fn k_means(
    vectors: &[f32],
    (v, signs): (usize, bool),
    count: usize,
    random: &mut Random,
    done: &mut dyn FnMut(),
) -> Vec<f32> {
    let total = vectors.len() / v;
    assert!(total >= count, "at least as many vectors as points");
    // One vector from each of `count` runs of them.
    let first = |i: usize| {
        let run = i * total / count..(i + 1) * total / count;
        run.start + (random.bits() % run.len() as u64) as usize
    };
    let firsts: Vec<usize> = (0..count).map(first).collect();
    let vector = |at: usize| &vectors[at * v..][..v];
    let mut points: Vec<f32> = firsts.into_iter().flat_map(|at| vector(at).to_vec()).collect();
    for _ in 0..ROUNDS {
        let (codes, minus) = nearest(&Table::new(&points, v, signs), vectors);
        let vectors = match signs {
            true => Cow::Owned(turn_all(vectors, &minus, v)),
            false => Cow::Borrowed(vectors),
        };
        points = means(&vectors, &codes, &points, v);
        repair(&vectors, &codes, &mut points, v);
        done();
    }
    points
}

/// Moves points without vectors to the vectors that are farthest from theirs.
fn repair(vectors: &[f32], codes: &[usize], points: &mut [f32], v: usize) {
    let mut counts = vec![0_u32; points.len() / v];
    codes.iter().for_each(|&code| counts[code] += 1);
    let empty: Vec<usize> = (0..counts.len()).filter(|&code| counts[code] == 0).collect();
    if empty.is_empty() {
        return;
    }
    let distance = |at: usize| -> f32 {
        let point = &points[codes[at] * v..][..v];
        vectors[at * v..][..v].iter().zip(point).map(|(a, b)| (a - b) * (a - b)).sum()
    };
    let mut far: Vec<(f32, usize)> = (0..codes.len()).map(|at| (distance(at), at)).collect();
    far.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    for (code, (_, at)) in empty.into_iter().zip(far) {
        points[code * v..][..v].copy_from_slice(&vectors[at * v..][..v]);
    }
}
