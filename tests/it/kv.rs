//! The cache of keys and values as codes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gridmill::backend::Capacity;
use gridmill::backend::cpu::Cpu;
use gridmill::backend::kv::{self, Grid, KvFormat, Wants};
use gridmill::convert::{self, BasisWishes, Captured, Statistics};
use gridmill::error::Error;
use gridmill::file::Source;
use gridmill::model::{Hparams, Model};
use gridmill::plan::{Plan, Turn, Weight};
use gridmill::quant;
use gridmill::quant::presets;
use gridmill::quant::principal::{principal, random_rotation};
use gridmill::run::reverse::TokenWeights;
use gridmill::run::verify::relative_error;
use gridmill::run::{Device, Options, Session, kv_basis};
use gridmill::simd::Level;
use gridmill::transform;
use gridmill::types::Basis;
use sha2::{Digest, Sha256};

use crate::cpu::{self, Random, SHAPE, Shape};
use crate::import;
use crate::models::Parts;
use crate::scratch::Scratch;

pub(crate) const CODED: [KvFormat; 3] = [KvFormat::Q8, KvFormat::Q4, KvFormat::Resq4];

/// A plan with caches in the basis that a format wants.
pub(crate) fn turned(mut plan: Plan, kv: KvFormat) -> Plan {
    for layer in 0..plan.caches.len() {
        let info = plan.caches[layer];
        plan.caches[layer].turn = match kv.wants() {
            Wants::Own => None,
            Wants::Hadamard => Some(Turn::Hadamard(whole(info.head_len))),
            Wants::Matrices => {
                let [keys, values] = [11, 12].map(|seed| {
                    let heads = 0..info.heads as u64;
                    let matrices =
                        heads.flat_map(|head| orthogonal(info.head_len, seed + 5 * head));
                    let matrices: Vec<f32> = matrices.collect();
                    plan.weights.push(cpu::floats(info.heads * info.head_len, &matrices));
                    Weight(plan.weights.len() - 1)
                });
                Some(Turn::Matrices { keys, values })
            }
        };
    }
    plan
}

/// The transform of a whole head.
fn whole(head_len: usize) -> Basis {
    let covers = |basis: &Basis| match basis {
        Basis::Original | Basis::Parted { .. } => false,
        Basis::Hadamard { block } => *block as usize == head_len,
        Basis::Kronecker { .. } => true,
    };
    transform::choices(head_len).into_iter().find(covers).expect("a length with a transform")
}

/// Random rows, each freed of those before it.
fn orthogonal(len: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let mut rows: Vec<Vec<f64>> = Vec::new();
    for _ in 0..len {
        let mut row: Vec<f64> = random.floats(len).into_iter().map(f64::from).collect();
        for _ in 0..2 {
            for other in &rows {
                let along: f64 = other.iter().zip(&row).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(x, other)| *x -= along * other);
            }
        }
        let size = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        rows.push(row.into_iter().map(|x| x / size).collect());
    }
    rows.concat().into_iter().map(|x| x as f32).collect()
}

pub(crate) fn shapes() -> [Shape; 6] {
    [
        Shape { heads: 9, kv_heads: 3, head_len: 64, ..SHAPE },
        Shape { heads: 4, kv_heads: 2, head_len: 80, window: Some(21), ..SHAPE },
        Shape { heads: 12, kv_heads: 1, head_len: 16, ..SHAPE },
        Shape { heads: 1, kv_heads: 1, head_len: 96, soft_cap: Some(2.0), ..SHAPE },
        Shape { heads: 12, kv_heads: 1, head_len: 128, ..SHAPE },
        Shape { heads: 1, kv_heads: 1, head_len: 256, ..SHAPE },
    ]
}

#[test]
fn codes_are_next_to_their_values() {
    let mut random = Random(3);
    for head_len in [16, 32, 64, 80, 96, 128, 256] {
        let head: Vec<f32> = (0..head_len).map(|_| 3.0 * random.float() + 1.0).collect();
        for kv in CODED {
            let stored = kv::stored(kv, &head);
            let groups = kv.groups(head_len);
            let lens: usize = groups.iter().map(|group| group.len).sum();
            assert_eq!(lens, head_len, "{kv:?}: every value is in a group");
            for group in groups {
                let range = group.start..group.start + group.len;
                let grid = Grid::of(&head[range.clone()], group.bits);
                for (found, value) in stored[range.clone()].iter().zip(&head[range]) {
                    // Half a step; the end without a code of its own is off by a step, and by what
                    // the scale was rounded.
                    let step = grid.scale.to_f32().abs();
                    let is_end = value.abs() >= (group.middle() - 0.5) * step;
                    let allowed = if is_end { 1.01 * step } else { 0.501 * step };
                    let allowed = allowed + value.abs() / 1024.0;
                    assert!((found - value).abs() <= allowed, "{kv:?}: {value}, found {found}");
                }
            }
        }
    }
}

#[test]
fn sizes_are_those_of_the_page() {
    let page = include_str!("../../formats/kv.md");
    for (name, kv) in KvFormat::ALL {
        let bytes = [64, 80, 96, 128, 256].map(|len| kv.head_bytes(len).to_string());
        let row = format!("| `{name}` | {} |", bytes.join(" | "));
        assert!(page.contains(&row), "formats/kv.md has no row {row}");
    }
}

#[test]
fn heads_of_equal_or_extreme_values_stay_numbers() {
    for kv in CODED {
        for value in [0.0, -2.5, 1e-7, 60000.0] {
            let stored = kv::stored(kv, &[value; 64]);
            let close = |found: &f32| (found - value).abs() <= value.abs() / 1024.0 + 1e-7;
            assert!(stored.iter().all(close), "{kv:?}: {value}, found {:?}", stored[0]);
        }
    }
}

#[test]
fn plans_match_the_reference_op_by_op() {
    for shape in shapes() {
        for kv in CODED {
            for level in Level::available() {
                cpu::check_plan(shape, kv, &mut |plan, capacity| {
                    Box::new(Cpu::new(plan, capacity, 2, level).unwrap())
                });
            }
        }
    }
}

#[test]
fn caches_that_do_not_fit_are_refused() {
    let check = |shape: Shape, basis: KvFormat, kv: KvFormat, expected: &str| {
        let plan = Arc::new(turned(cpu::plan(shape), basis));
        let capacity = Capacity { rows: 4, logit_rows: 1, sequences: 1, context: 16, kv };
        let found = Cpu::new(plan, capacity, 1, Level::Portable).err().expect("a refusal");
        assert_eq!(found.to_string(), expected);
    };
    let odd = Shape { heads: 16, kv_heads: 16, head_len: 12, ..SHAPE };
    let message = "cache type q8: expected heads of a multiple of 8 values, 16 or more, found 12";
    check(odd, KvFormat::F16, KvFormat::Q8, message);
    // Whoever counts bytes first would divide by nothing.
    for head_len in [4, 8, 10, 12, 18] {
        let odd = Shape { head_len, ..odd };
        let file = Path::new("no such file");
        for kv in CODED {
            let error = kv_basis::fit(&mut cpu::plan(odd), kv, file).unwrap_err().to_string();
            assert!(error.ends_with(&format!("16 or more, found {head_len}")), "{error}");
        }
        assert!(kv_basis::check_head(head_len).is_err(), "{head_len}");
    }
    let message = "cache type q4: expected a Hadamard transform, found the model's own basis";
    check(SHAPE, KvFormat::F16, KvFormat::Q4, message);
    let message = "cache type f16: expected the model's own basis, found a Hadamard transform";
    check(SHAPE, KvFormat::Q4, KvFormat::F16, message);
    let message = "cache type resq4: expected matrices, found a Hadamard transform";
    check(SHAPE, KvFormat::Q4, KvFormat::Resq4, message);
}

fn model(name: &str) -> Source {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models");
    Source::open(format!("{folder}/{name}.gguf")).unwrap()
}

fn refusal(source: &Source, options: &Options) -> Error {
    Session::open(source, options).err().expect("a refusal")
}

#[test]
fn a_context_longer_than_memory_is_refused() {
    let source = model("llama");
    let on = |device, kv| Options { device, kv, context: Some(1 << 50), ..Options::default() };
    for (options, kind) in [
        (on(Device::Cpu, KvFormat::F16), "f16"),
        (on(Device::Cpu, KvFormat::Q8), "q8"),
        (on(Device::Reference, KvFormat::F16), "f32"),
    ] {
        let error = refusal(&source, &options);
        let text = error.to_string();
        let expected = format!("context: a {kind} cache of 1125899906842624 tokens needs");
        assert!(text.starts_with(&expected), "{text}");
        assert!(text.contains("expected at most"), "{text}");
        assert!(error.hint().is_some_and(|hint| hint.contains("--ctx")), "{error:?}");
    }
}

#[test]
fn bases_that_are_missing_or_wrong_are_refused() {
    let source = model("llama");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("basis.gguf");
    let kv_basis = Some(file.clone());
    let kv = KvFormat::Resq4;
    let options = Options { device: Device::Cpu, kv, kv_basis, ..Options::default() };
    let error = refusal(&source, &options);
    assert!(error.to_string().contains("basis.gguf is missing: cache type resq4"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("gridmill kv-basis")), "{error:?}");

    let check = |bytes: &[u8], expected: &str| {
        std::fs::write(&file, bytes).unwrap();
        let error = refusal(&source, &options).to_string();
        assert!(error.contains(expected), "expected {expected}, found {error}");
    };
    check(b"no GGUF", "basis.gguf");
    let other = std::fs::read(source.path()).unwrap();
    check(&other, "expected gridmill.kv_basis, found ");

    make_basis(&model("gemma3"), WINDOW, &file);
    check(&std::fs::read(&file).unwrap(), "it is of another model");
    make_basis(&source, WINDOW, &file);
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() - 500;
    bytes[at] ^= 1;
    check(&bytes, "the matrices are not those that were written");

    // A direction twice, and the sum of it.
    make_basis(&source, WINDOW, &file);
    let mut bytes = std::fs::read(&file).unwrap();
    let Hparams { layers, kv_heads, head_len, embed, .. } = Model::new(&source).unwrap().hparams;
    let end = bytes.len() - 32;
    let bases = end - 2 * layers * kv_heads * head_len * head_len * 2..end;
    let (first, second) = bytes[bases.clone()].split_at_mut(2 * head_len);
    second[..2 * head_len].copy_from_slice(first);
    let sum = Sha256::digest(&bytes[bases.start - 16 * embed * 2..end]);
    bytes[end..].copy_from_slice(&sum);
    let expected = "tensor `blk.0.keys.basis`: head 0: expected directions at right angles";
    check(&bytes, expected);
}

/// Another model of the same shape is known by its embedding, the same in 2 bits is the same.
#[test]
fn bases_belong_to_a_model() {
    let source = model("llama");
    let folder = Scratch::new();
    let kv_basis = Some(bases(&folder));
    let kv = KvFormat::Resq4;
    let options = Options { device: Device::Cpu, kv, kv_basis, ..Options::default() };

    let two_bits = Some(presets::by_name("higgs2").unwrap());
    let choice = convert::Options { vocabulary_kind: two_bits, ..import::options(Some("higgs2")) };
    let coded = import::converted(&source, &folder.join("coded.gguf"), &choice);
    Session::open(&coded, &options).unwrap();

    let mut parts = Parts::of_source(&source);
    let embedding = parts.tensors.iter_mut().find(|t| t.name == "token_embd.weight").unwrap();
    let half = embedding.bytes.len() / 2;
    embedding.bytes.rotate_left(half);
    let other = Source::open(parts.write(&folder)).unwrap();
    let error = refusal(&other, &options).to_string();
    assert!(error.ends_with("it is of another model: its embedding has other rows"), "{error}");
}

#[test]
fn bases_lie_beside_the_model() {
    for (model, expected) in [
        ("a/model.gguf", "a/model.kv-basis.gguf"),
        ("Qwen2.5-0.5B", "Qwen2.5-0.5B.kv-basis.gguf"),
        ("Qwen2.5-0.5B-Instruct", "Qwen2.5-0.5B-Instruct.kv-basis.gguf"),
    ] {
        assert_eq!(kv_basis::beside(Path::new(model)), Path::new(expected));
    }
    let here = std::env::current_dir().unwrap();
    assert_eq!(kv_basis::beside(Path::new(".")).parent(), here.parent());
}

/// A file of bases of the golden `llama`.
pub(crate) fn bases(folder: &Scratch) -> PathBuf {
    let file = folder.join("llama.kv-basis.gguf");
    make_basis(&model("llama"), WINDOW, &file);
    file
}

/// Tokens of a window that bases are made of.
const WINDOW: usize = 24;

/// Calibrates on a few tokens; the statistics stay beside the file.
fn make_basis(source: &Source, context: usize, file: &Path) -> Captured {
    let model = Model::new(source).unwrap();
    let options = Options { device: Device::Cpu, ..Options::default() };
    let vocabulary = model.hparams.vocabulary as u32;
    let window = |seed: u32| (0..WINDOW as u32).map(|i| (i * 7 + seed) % vocabulary).collect();
    let windows: Vec<Vec<u32>> = (0..4).map(window).collect();
    let kept = file.with_extension("statistics");
    convert::calibrate(
        &model,
        &options,
        (&windows, &TokenWeights::new()),
        "test",
        &kept,
        &mut || (),
    )
    .unwrap();
    let (statistics, _) = Statistics::open(&kept, source).unwrap();
    let wishes = BasisWishes { seed: 1, window: WINDOW, context };
    convert::kv_basis(&statistics, &model, &wishes, file, &mut || ()).unwrap()
}

/// The whole way: a text, bases, a session. More bits lose less, and the backends agree.
#[test]
fn sessions_keep_codes() {
    let source = model("llama");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("basis.gguf");
    let captured = make_basis(&source, WINDOW, &file);
    assert!((0.1..=1.0).contains(&captured.keys), "{}", captured.keys);
    assert!((0.1..=1.0).contains(&captured.values), "{}", captured.values);
    let logits = |device, kv| {
        let kv_basis = Some(file.clone());
        let context = Some(64);
        let options = Options { device, kv, kv_basis, context, ..Options::default() };
        let mut session = Session::open(&source, &options).unwrap();
        let tokens: Vec<u32> = (0..30).map(|i| i * 5 % 40).collect();
        session.feed(0, &tokens).unwrap();
        session.feed(0, &[3]).unwrap().to_vec()
    };
    let exact = logits(Device::Reference, KvFormat::F32);
    let lost = CODED.map(|kv| {
        let (reference, cpu) = (logits(Device::Reference, kv), logits(Device::Cpu, kv));
        let [lost, other] = [(&exact, &reference), (&reference, &cpu)]
            .map(|(expected, found)| relative_error(expected, found));
        assert!(other < 0.5 * lost, "{kv:?} loses {lost}, and the CPU differs by {other}");
        lost
    });
    let [q8, q4, resq4] = lost;
    assert!(q8 > 0.0 && q8 < 0.5 * q4 && q8 < 0.5 * resq4 && q4 < 0.5, "lost: {lost:?}");
}

#[test]
fn principal_directions_are_found() {
    let n = 24;
    let rows: Vec<f64> = orthogonal(n, 9).into_iter().map(f64::from).collect();
    let size = |i: usize| 2.0 * (n - i) as f64;
    let entry = |at: usize| -> f64 {
        (0..n).map(|i| size(i) * rows[i * n + at / n] * rows[i * n + at % n]).sum()
    };
    let (sizes, found) = principal((0..n * n).map(entry).collect(), n);
    for i in 0..n {
        assert!((sizes[i] - size(i)).abs() < 1e-4, "size {i}: {}", sizes[i]);
        let along: f64 = (0..n).map(|j| found[i * n + j] * rows[i * n + j]).sum();
        assert!((along.abs() - 1.0).abs() < 1e-4, "direction {i}: {along}");
    }
    let turned = random_rotation(n, &mut quant::random::Random(3));
    for (i, a) in turned.chunks(n).enumerate() {
        for (j, b) in turned.chunks(n).enumerate() {
            let product: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
            assert!((product - f64::from(i == j)).abs() < 1e-12, "rows {i} and {j}: {product}");
        }
    }
}

/// Moments of the first head of the second layer, without their scale.
fn moments(file: &Path, source: &Source, what: &str) -> Vec<f64> {
    let (statistics, _) = Statistics::open(&file.with_extension("statistics"), source).unwrap();
    let moments = statistics.moments_of(&format!("blk.1.{what}.0")).unwrap();
    let (whole, len) = (moments.whole(), moments.width);
    let trace: f64 = whole.iter().step_by(len + 1).sum();
    whole.into_iter().map(|x| x / trace).collect()
}

/// The directions that a file of bases has for keys of that head.
fn key_directions(file: &Path, len: usize) -> Vec<f64> {
    let tensor = Source::open(file).unwrap().tensor("blk.1.keys.basis").unwrap().unwrap();
    let mut rows = vec![0.0; len * len];
    tensor.kind.decode(&tensor.rows(0..len), &mut rows);
    rows.into_iter().map(f64::from).collect()
}

/// What the directions of 8 bits hold of something with these moments.
fn held(moments: &[f64], directions: &[f64]) -> f64 {
    let len = moments.len().isqrt();
    let size = |row: &[f64]| -> f64 {
        let along = |other: &[f64]| row.iter().zip(other).map(|(a, b)| a * b).sum::<f64>();
        moments.chunks_exact(len).zip(row).map(|(other, x)| x * along(other)).sum()
    };
    directions.chunks_exact(len).take(kv::fine_len(len)).map(size).sum()
}

/// The directions of 8 bits of a key head are those in which keys and queries are large together.
#[test]
fn directions_of_keys_are_those_that_queries_look_for() {
    let source = model("llama");
    let folder = Scratch::new();
    let file = bases(&folder);
    let [keys, queries] = ["keys", "queries"].map(|what| moments(&file, &source, what));
    let len = keys.len().isqrt();
    let rows = key_directions(&file, len);
    let both = |rows: &[f64]| held(&keys, rows) + held(&queries, rows);
    let alone = principal(keys.clone(), len).1;
    let sum = keys.iter().zip(&queries).map(|(a, b)| a + b).collect();
    let best: f64 = principal(sum, len).0[..kv::fine_len(len)].iter().sum();
    assert!((both(&rows) - best).abs() < 1e-2, "{} of {best}", both(&rows));
    assert!(both(&rows) > both(&alone) + 1e-2, "{} with queries", both(&alone));
    assert!(held(&keys, &rows) < held(&keys, &alone), "keys alone would hold more of keys");
}

/// A window that begins elsewhere has the same keys and queries, turned by RoPE; directions for
/// long texts are those of windows at all places.
#[test]
fn directions_serve_all_places_of_a_context() {
    let source = model("llama");
    let folder = Scratch::new();
    let (near, far) = (bases(&folder), folder.join("far.gguf"));
    let windows = 3;
    make_basis(&source, windows * WINDOW, &far);
    let both: Vec<f64> = moments(&near, &source, "keys")
        .iter()
        .zip(moments(&near, &source, "queries"))
        .map(|(a, b)| a + b)
        .collect();
    let len = both.len().isqrt();
    // Pairs of neighbours are turned by 10000^(-2 i / len) radians a place.
    let turn = |vector: &mut [f64], places: usize| {
        for (i, pair) in vector.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let angle = places as f64 * 10_000_f64.powf(-2.0 * i as f64 / len as f64);
            let (sin, cos) = angle.sin_cos();
            *pair = [pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos];
        }
    };
    let (sizes, directions) = principal(both, len);
    let mut everywhere = vec![0.0; len * len];
    for window in 0..windows {
        for (size, direction) in sizes.iter().zip(directions.chunks_exact(len)) {
            let mut direction = direction.to_vec();
            turn(&mut direction, window * WINDOW);
            for (i, to) in everywhere.iter_mut().enumerate() {
                *to += size * direction[i / len] * direction[i % len] / windows as f64;
            }
        }
    }
    let best: f64 = principal(everywhere.clone(), len).0[..kv::fine_len(len)].iter().sum();
    let [near, far] = [near, far].map(|file| held(&everywhere, &key_directions(&file, len)));
    assert!((far - best).abs() < 1e-2, "{far} of {best}");
    assert!(far > near + 1e-2, "{near} with directions of the first places, {far} of all");
}

/// 184 is 8 times 23, and Paley knows no matrix of 23, 46, 92 or 184.
#[test]
fn heads_without_a_transform_have_no_q4() {
    let mut plan = cpu::plan(Shape { heads: 2, kv_heads: 1, head_len: 184, ..SHAPE });
    let error = kv_basis::fit(&mut plan, KvFormat::Q4, Path::new("none")).unwrap_err();
    let message = "cache type q4: expected heads of a length that has a Hadamard transform, \
                   found 184";
    assert_eq!(error.to_string(), message);
    assert!(error.hint().is_some_and(|hint| hint.contains("--kv-type q8")), "{error:?}");
    kv_basis::fit(&mut plan, KvFormat::Q8, Path::new("none")).unwrap();
}
