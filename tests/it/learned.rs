//! Learned points and the rounding of blocks of rows: against brute force, and what they refuse.

use std::process::Command;

use gridmill::file::Source;
use gridmill::quant::blocks::BlockRounding;
use gridmill::quant::points::{Points, Room, V_MAX};
use gridmill::quant::random::Random;
use gridmill::quant::{Feedback, Moments};
use gridmill::types::{Shape, even_signs};
use half::f16;

use crate::cli::{fails, succeeds, text};
use crate::models::model_path;
use crate::scratch::Scratch;
use crate::second_order::normal;

fn place(vector: &[f32], unit: f32) -> [f32; V_MAX] {
    std::array::from_fn(|t| vector.get(t).map_or(0.0, |value| value * unit))
}

fn distance(a: &[f32; V_MAX], b: &[f32; V_MAX]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// Every point that a table has, with its signs if there are any.
fn all_points(points: &Points) -> Vec<Vec<f32>> {
    let Shape { v, signs, .. } = points.shape;
    let own = points.table().chunks_exact(v).map(|point| point.iter().map(|&q| q.into()).collect());
    let own: Vec<Vec<f32>> = own.collect();
    if !signs {
        return own;
    }
    let even = (0_u32..1 << v).filter(|minus| minus.count_ones() % 2 == 0);
    let sign = |minus: u32, t: usize| if minus >> t & 1 == 1 { -1.0 } else { 1.0 };
    let turned = |minus: u32, point: &Vec<f32>| -> Vec<f32> {
        point.iter().enumerate().map(|(t, x)| sign(minus, t) * x).collect()
    };
    even.flat_map(|minus| own.iter().map(move |point| turned(minus, point))).collect()
}

/// Mean squared error of vectors of unit variance, per value.
fn error(points: &Points, vectors: &[f32]) -> f64 {
    let mut room = Room::default();
    let v = points.shape.v;
    let of = |vector: &[f32]| {
        let place = place(vector, points.unit);
        distance(&place, &points.search(&place, &mut room).1)
    };
    let sum: f64 = vectors.chunks_exact(v).map(of).sum();
    sum / f64::from(points.unit).powi(2) / vectors.len() as f64
}

#[test]
fn search_finds_the_nearest_point() {
    let mut random = Random(3);
    let plain = [(2, 3), (4, 6), (5, 7), (16, 5)].map(|(v, bits)| Shape::int8(v, bits, 0));
    let signed = [(2, 2), (4, 4), (8, 5), (3, 3)].map(|(v, bits)| Shape::signed(v, bits));
    for shape in plain.into_iter().chain(signed) {
        let Shape { v, bits, .. } = shape;
        let vectors = normal(&mut random, v * 2000);
        let points = Points::learn(shape, &vectors, 1, &mut || ());
        assert_eq!(points.table().len(), v << bits);
        let all = all_points(&points);
        let mut room = Room::default();
        for vector in vectors.chunks_exact(v).take(200) {
            let place = place(vector, points.unit);
            let (code, point) = points.search(&place, &mut room);
            let far = |point: &Vec<f32>| {
                distance(&place, &std::array::from_fn(|t| point.get(t).map_or(0.0, |&x| x)))
            };
            let nearest = all.iter().map(far).fold(f64::INFINITY, f64::min);
            assert!(distance(&place, &point) < nearest * 1.000_01 + 1e-3);
            let sizes = &points.table()[(code as usize & ((1 << bits) - 1)) * v..][..v];
            let minus = even_signs(code >> bits, v);
            for (t, (&size, &value)) in sizes.iter().zip(&point).enumerate() {
                let is_minus = shape.signs && minus >> t & 1 == 1;
                assert_eq!(value, if is_minus { -f32::from(size) } else { size.into() });
            }
        }
    }
}

#[test]
fn learning_pays() {
    let mut random = Random(5);
    let (seen, unseen) = (normal(&mut random, 4 * 30_000), normal(&mut random, 4 * 5_000));
    // Two scalar bits of a normal number leave 0.1175; vectors of four do better with as many.
    let flat = error(&Points::learn(Shape::int8(4, 8, 0), &seen, 1, &mut || ()), &unseen);
    assert!((0.09..0.11).contains(&flat), "{flat}");
    // A second point for what the first leaves, found together, is near a table of as many bits.
    let single = error(&Points::learn(Shape::int8(4, 9, 0), &seen, 1, &mut || ()), &unseen);
    let double = error(&Points::learn(Shape::int8(4, 6, 3), &seen, 1, &mut || ()), &unseen);
    assert!(double < flat && single < double * 1.02, "{single} {double} {flat}");
    assert!(double < 1.15 * single, "{single} {double}");
    // Signs of which one is free beat a table of as many bits.
    let signed = error(&Points::learn(Shape::signed(4, 6), &seen, 1, &mut || ()), &unseen);
    assert!(signed < single, "{single} {signed}");
}

#[test]
fn learning_does_not_depend_on_threads() {
    let vectors = normal(&mut Random(7), 3 * 4000);
    for shape in [Shape::int8(3, 6, 4), Shape::signed(3, 5)] {
        let learn = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let points = pool.install(|| Points::learn(shape, &vectors, 9, &mut || ()));
            (points.table().to_vec(), points.unit)
        };
        assert_eq!(learn(1), learn(3));
    }
}

#[test]
fn every_round_is_told() {
    let vectors = normal(&mut Random(8), 3 * 500);
    for shape in [Shape::int8(3, 4, 0), Shape::int8(3, 4, 2), Shape::signed(3, 4)] {
        let mut rounds = 0;
        Points::learn(shape, &vectors, 1, &mut || rounds += 1);
        assert_eq!(rounds, Points::rounds(shape));
    }
}

/// Rows of weights, moments of inputs that go together, and points for them.
fn task(width: usize, rows: usize) -> (Vec<f32>, Feedback, Points) {
    let mut random = Random(11);
    let mut moments = Moments::new(width);
    let common = normal(&mut random, width);
    for _ in 0..400 {
        let (own, share) = (normal(&mut random, width), random.normal()[0] as f32);
        let row: Vec<f32> =
            own.iter().zip(&common).map(|(own, common)| own + 2.0 * share * common).collect();
        moments.add(&row);
    }
    let weights = normal(&mut random, rows * width);
    let vectors = normal(&mut random, 4 * 20_000);
    let points = Points::learn(Shape::int8(4, 8, 0), &vectors, 1, &mut || ());
    (weights, Feedback::new(width, moments.whole(), 400, 0.01), points)
}

/// Rounds rows for one metric, or none; the cost in another, and the norms.
fn round_for(
    feedback: Option<&Feedback>,
    metric: &Feedback,
    points: &Points,
    descents: usize,
    rows: &[f32],
) -> (f64, Vec<f16>) {
    let width = metric.width;
    let (count, v) = (rows.len() / width, points.shape.v);
    let mut codes = vec![0; count.div_ceil(v) * width];
    let mut norms = vec![f16::ZERO; count];
    let rounding = BlockRounding { width, feedback, points, descents };
    rounding.round(rows, &mut codes, &mut norms);
    let value = |row: usize, col: usize| {
        let code = codes[row / v * width + col] as usize;
        norms[row].to_f32() * f32::from(points.table()[code * v + row % v])
    };
    let errors: Vec<f32> =
        rows.iter().enumerate().map(|(at, w)| w - value(at / width, at % width)).collect();
    (metric.cost(&errors), norms)
}

/// The cost of rounding rows, and their norms.
fn round(feedback: &Feedback, points: &Points, descents: usize, rows: &[f32]) -> (f64, Vec<f16>) {
    round_for(Some(feedback), feedback, points, descents, rows)
}

#[test]
fn blocks_of_rows_are_rounded_by_what_errors_cost() {
    let (weights, feedback, points) = task(96, 10);
    // Rounded as if all inputs were alike, and counted as they are.
    let (blind, _) = round_for(None, &feedback, &points, 0, &weights);
    let costs: Vec<f64> =
        (0..4).map(|descents| round(&feedback, &points, descents, &weights).0).collect();
    assert!(costs[0] < 0.8 * blind, "{costs:?} {blind}");
    assert!(costs.windows(2).all(|pair| pair[1] <= pair[0] * 1.000_1), "{costs:?}");
    assert!(costs[2] < 0.97 * costs[0], "{costs:?}");
}

#[test]
fn without_moments_every_input_counts_alike() {
    let (weights, feedback, points) = task(96, 10);
    let mut moments = vec![0.0; 96 * 96];
    (0..96).for_each(|i| moments[i * 96 + i] = 1.0);
    let even = Feedback::new(96, moments, 1, 0.0);
    for descents in 0..3 {
        let alike = round_for(Some(&even), &feedback, &points, descents, &weights);
        assert_eq!(round_for(None, &feedback, &points, descents, &weights), alike);
    }
}

#[test]
fn rows_of_zeros_stay_zeros() {
    let (mut weights, feedback, points) = task(96, 6);
    weights[96..2 * 96].fill(0.0);
    let (_, norms) = round(&feedback, &points, 2, &weights);
    assert_eq!(norms[1], f16::ZERO);
    assert!(norms.iter().enumerate().all(|(row, norm)| row == 1 || norm.to_f32() > 0.0));
    let nothing = vec![0.0; 96 * 4];
    assert_eq!(round(&feedback, &points, 2, &nothing), (0.0, vec![f16::ZERO; 4]));
}

#[test]
fn conversion_is_the_same_on_any_number_of_threads() {
    let folder = Scratch::new();
    let source = model_path("llama.gguf");
    let convert = |threads: &str| {
        let path = folder.join(threads);
        let mut command = Command::new(env!("CARGO_BIN_EXE_gridmill"));
        command.env("RAYON_NUM_THREADS", threads);
        command.args(["convert", text(&source), text(&path), "--to", "VPTQ_V4_K256_R16"]);
        assert!(command.output().unwrap().status.success());
        std::fs::read(path).unwrap()
    };
    assert!(convert("1") == convert("2"));
}

#[test]
fn too_few_vectors_are_refused() {
    let folder = Scratch::new();
    let (source, target) = (model_path("llama.gguf"), folder.join("out.gguf"));
    let message = "VPTQ_V8_K65536: expected at least 65536 vectors to learn from, found ";
    let args = ["convert", text(&source), text(&target), "--to", "VPTQ_V8_K65536"];
    fails(&args, 1, message);
    assert!(!target.exists());
    succeeds(&["convert", text(&source), text(&target), "--to", "VPTQ_V8_K256"]);
}

/// Zeros stay zeros, of one matrix or of all; what is no number is refused before there is a file.
#[test]
fn matrices_of_zeros_and_infinities() {
    let folder = Scratch::new();
    let path = model_path("llama.gguf");
    let (bytes, source) = (std::fs::read(&path).unwrap(), Source::open(&path).unwrap());
    let target = folder.join("out.gguf");
    let convert = |name: &str, bytes: &[u8]| {
        let changed = folder.file(name, bytes);
        ["convert", text(&changed), text(&target), "--to", "VPTQ_V8_K256"].map(str::to_string)
    };
    // Halves from the start of a tensor on.
    let put = |bytes: &mut [u8], name: &str, count: usize, value: f16| {
        let at = source.raw_tensor(name).unwrap().offset as usize;
        bytes[at..at + 2 * count].as_chunks_mut().0.fill(value.to_le_bytes());
    };
    let up = "blk.0.ffn_up.weight";
    let mut broken = bytes.clone();
    put(&mut broken, up, 1, f16::INFINITY);
    let message = format!("tensor `{up}`: expected finite weights, found inf in row 0, column 0");
    fails(&convert("infinite.gguf", &broken).each_ref().map(String::as_str), 1, &message);
    assert!(!target.exists());

    let matrices = || source.tensors().filter(|t| t.rows > 1 && t.name.starts_with("blk."));
    let one = vec![up.to_string()];
    for names in [one, matrices().map(|tensor| tensor.name.clone()).collect()] {
        let mut zeros = bytes.clone();
        for name in &names {
            put(&mut zeros, name, source.tensor(name).unwrap().unwrap().len(), f16::ZERO);
        }
        succeeds(&convert("zeros.gguf", &zeros).each_ref().map(String::as_str));
        let coded = Source::open(&target).unwrap();
        for name in &names {
            let tensor = coded.tensor(name).unwrap().unwrap();
            assert_eq!(tensor.kind.name(), "VPTQ_V8_K256");
            let mut values = vec![1.0; tensor.len()];
            tensor.kind.decode(&tensor.rows(0..tensor.rows), &mut values);
            assert!(values.iter().all(|&value| value == 0.0), "{name}");
        }
    }
}
