//! Tiny models of every architecture against the logits of `transformers`: see
//! `tests/data/models/make.py`, which made both.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gridmill::backend::{Backend, Capacity, KvFormat};
use gridmill::file::{Metadata, NewTensor, Source, Value, Writer};
use gridmill::model::Model;
use gridmill::plan::{Batch, Plan};
use gridmill::run::{Device, Options, Session, session};
use gridmill::simd::Level;
use gridmill::types::Bytes;
use gridmill::types::raw::RawType;

use crate::scratch::Scratch;

/// Every model of the folder; a test holds the list against it.
const NAMES: [&str; 17] = [
    "gemma3",
    "gemma3-softcap",
    "llama",
    "llama-bias",
    "llama-rope3",
    "llama-yarn",
    "mistral",
    "phi3",
    "phi3-long",
    "phi3-partial",
    "phi3-short",
    "qwen2",
    "qwen2-yarn",
    "qwen3",
    "qwen3-yarn",
    "qwen3moe",
    "smollm3",
];

/// RMS of the difference over RMS. In f32 the library itself is 1e-6 from its double precision.
const TOLERANCE: f64 = 1e-4;

/// What `transformers` computes for one sequence.
pub(crate) struct Golden {
    tokens: Vec<u32>,
    /// `(tokens, vocabulary)`.
    logits: Vec<f32>,
}

pub(crate) fn model_path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name)
}

pub(crate) fn open(path: &Path) -> Source {
    Source::open(path).expect("the file is whole")
}

pub(crate) fn golden(name: &str) -> [Golden; 2] {
    let bytes = fs::read(model_path(&format!("{name}.golden"))).expect("committed");
    let mut words = bytes.as_chunks::<4>().0.iter().copied();
    let mut next = move || words.next().expect("the file is whole");
    let (vocabulary, count) = (u32::from_le_bytes(next()), u32::from_le_bytes(next()));
    assert_eq!(count, 2, "sequences");
    let golden = [(); 2].map(|()| {
        let len = u32::from_le_bytes(next());
        let tokens = (0..len).map(|_| u32::from_le_bytes(next())).collect();
        let logits = (0..len * vocabulary).map(|_| f32::from_le_bytes(next())).collect();
        Golden { tokens, logits }
    });
    let words: usize = golden.iter().map(|one| 1 + one.tokens.len() + one.logits.len()).sum();
    assert_eq!(bytes.len(), 4 * (2 + words), "the file ends with the last logits");
    golden
}

/// RMS of the difference over RMS.
pub(crate) fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |value: f64| value * value;
    let pairs = found.iter().zip(expected);
    let error: f64 = pairs.map(|(&f, &e)| square(f64::from(f) - f64::from(e))).sum();
    let norm: f64 = expected.iter().map(|&value| square(f64::from(value))).sum();
    (error / norm).sqrt()
}

/// The oracle, and the fast backend with every instruction set of this machine.
pub(crate) fn devices() -> Vec<Options> {
    let options = |device, level| Options {
        device,
        level,
        threads: 2,
        context: Some(40),
        sequences: 2,
        rows: Some(64),
        kv: KvFormat::F32,
        ..Options::default()
    };
    let cpu = Level::available().map(|level| options(Device::Cpu, level));
    let all = [options(Device::Reference, Level::Portable)].into_iter().chain(cpu);
    #[cfg(feature = "gpu")]
    let all = all.chain(gpus(options));
    all.collect()
}

/// The first adapter, whole and with a layer on the CPU.
#[cfg(feature = "gpu")]
fn gpus(options: impl Fn(Device, Level) -> Options) -> Vec<Options> {
    if gridmill::backend::gpu::device::adapters().is_empty() {
        return Vec::new();
    }
    let gpu = options(Device::Gpu(0), Level::best());
    vec![Options { gpu_layers: Some(1), ..gpu.clone() }, gpu]
}

/// A way to bring two sequences through a model: the logits of all their tokens.
type Way = fn(&Source, &Options, &[Golden; 2]) -> [Vec<f32>; 2];

const WAYS: [(&str, Way); 4] = [
    ("whole", whole),
    ("in pieces of 7", |source, options, golden| {
        whole(source, &Options { rows: Some(7), ..options.clone() }, golden)
    }),
    ("token by token", token_by_token),
    ("interleaved", |source, options, golden| {
        let mut session = Session::open(source, options).expect("a model of ours");
        interleaved(session.backend(), golden)
    }),
];

pub(crate) fn whole(source: &Source, options: &Options, golden: &[Golden; 2]) -> [Vec<f32>; 2] {
    let mut session = Session::open(source, options).expect("a model of ours");
    [0, 1].map(|sequence| {
        let tokens = &golden[sequence].tokens;
        let mut logits = Vec::new();
        let mut rows = Vec::new();
        let mut take = |row, values: &[f32]| {
            rows.push(row);
            logits.extend_from_slice(values);
        };
        session.feed_rows(sequence, tokens, &mut |_| true, &mut take).expect("room for all");
        assert_eq!(session.len(sequence), tokens.len());
        assert!(rows.into_iter().eq(0..tokens.len()), "every row once, in order");
        logits
    })
}

/// Both sequences advance in turn, in one cache.
fn token_by_token(source: &Source, options: &Options, golden: &[Golden; 2]) -> [Vec<f32>; 2] {
    let mut session = Session::open(source, options).expect("a model of ours");
    let mut logits = [Vec::new(), Vec::new()];
    for at in 0..golden[0].tokens.len().max(golden[1].tokens.len()) {
        for sequence in [1, 0] {
            let Some(&token) = golden[sequence].tokens.get(at) else { continue };
            let row = session.feed(sequence, &[token]).expect("room for all");
            logits[sequence].extend_from_slice(row);
        }
    }
    logits
}

/// Batches of 11 rows, in which the sequences take turns.
fn interleaved(backend: &mut dyn Backend, golden: &[Golden; 2]) -> [Vec<f32>; 2] {
    let mut rows = Vec::new();
    for at in 0..golden[0].tokens.len().max(golden[1].tokens.len()) {
        for sequence in [0, 1] {
            let token = golden[sequence].tokens.get(at);
            rows.extend(token.map(|&token| (token, at as u32, sequence)));
        }
    }
    let mut logits = [Vec::new(), Vec::new()];
    for rows in rows.chunks(11) {
        let mut batch = Batch::default();
        for &(token, position, sequence) in rows {
            batch.push(token, position, sequence as u32, true);
        }
        backend.run(&batch).expect("rows within the capacity");
        let found = backend.logits().expect("a device");
        let found = found.chunks_exact(found.len() / rows.len());
        for (&(.., sequence), found) in rows.iter().zip(found) {
            logits[sequence].extend_from_slice(found);
        }
    }
    logits
}

/// Shown with `cargo test -- --nocapture`.
#[expect(clippy::print_stderr, reason = "the distances themselves are worth a look")]
fn report(line: &str) {
    eprintln!("{line}");
}

#[test]
fn the_list_is_complete() {
    let entries = fs::read_dir(model_path("")).expect("committed");
    let names = entries.map(|entry| entry.expect("an entry").path());
    let is_model = |path: &PathBuf| path.extension().is_some_and(|end| end == "gguf");
    let stem = |path: PathBuf| path.file_stem().expect("a name").to_str().map(str::to_string);
    let mut names: Vec<String> = names.filter(is_model).filter_map(stem).collect();
    names.sort();
    assert_eq!(names, NAMES);
}

/// Every model, device and way.
#[test]
fn logits_are_those_of_transformers() {
    for name in NAMES {
        let (source, golden) = (open(&model_path(&format!("{name}.gguf"))), golden(name));
        for options in devices() {
            for (way, run) in WAYS {
                let found = run(&source, &options, &golden);
                for (found, golden) in found.iter().zip(&golden) {
                    let distance = distance(found, &golden.logits);
                    let device = format!("{:?} {}", options.device, options.level);
                    let line = format!(
                        "{name}, {device}, {way}, {} tokens: distance {distance:.1e}",
                        golden.tokens.len()
                    );
                    report(&line);
                    // Written so that a NaN fails.
                    assert!(distance <= TOLERANCE, "{line}, expected at most {TOLERANCE:e}");
                }
            }
        }
    }
}

/// The oracle's rows know nothing of each other but the cache: not a bit depends on the batch.
#[test]
fn the_oracle_does_not_see_batches() {
    for name in NAMES {
        let (source, golden) = (open(&model_path(&format!("{name}.gguf"))), golden(name));
        let options = &devices()[0];
        let expected = whole(&source, options, &golden);
        for (way, run) in &WAYS[1..] {
            assert!(run(&source, options, &golden) == expected, "{name}, {way}");
        }
    }
}

/// A session that forgets its last tokens goes on as if they had never been.
#[test]
fn truncated_sequences_go_on() {
    for name in ["gemma3", "qwen3"] {
        let (source, [golden, other]) = (open(&model_path(&format!("{name}.gguf"))), golden(name));
        for options in devices() {
            let mut session = Session::open(&source, &options).expect("a model of ours");
            session.feed(0, &golden.tokens[..20]).expect("room");
            session.feed(0, &other.tokens[..15]).expect("room");
            session.truncate(0, 20);
            let found = session.feed(0, &golden.tokens[20..]).expect("room");
            let expected = golden.logits.chunks_exact(found.len()).last().expect("some rows");
            let distance = distance(found, expected);
            let device = format!("{:?} {}", options.device, options.level);
            assert!(distance <= TOLERANCE, "{name}, {device}: distance {distance:.1e}");
        }
    }
}

/// A model file taken apart, to be put together differently.
pub(crate) struct Parts {
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<Part>,
}

/// One tensor of [`Parts`].
pub(crate) struct Part {
    pub(crate) name: String,
    /// The contiguous dimension first.
    pub(crate) shape: Vec<u64>,
    pub(crate) kind: RawType,
    pub(crate) bytes: Vec<u8>,
}

impl Parts {
    pub(crate) fn of(name: &str) -> Parts {
        Parts::of_source(&open(&model_path(&format!("{name}.gguf"))))
    }

    pub(crate) fn of_source(source: &Source) -> Parts {
        let part = |raw: gridmill::file::RawTensor| Part {
            name: raw.info.name.clone(),
            shape: raw.info.shape.clone(),
            kind: raw.info.kind,
            bytes: source.raw_bytes(&raw).to_vec(),
        };
        let tensors = source.raw_tensors().map(part).collect();
        Parts { metadata: source.metadata().clone(), tensors }
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Part {
        let found = self.tensors.iter_mut().find(|part| part.name == name);
        found.unwrap_or_else(|| panic!("no tensor {name}"))
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.tensor(name);
        self.tensors.retain(|part| part.name != name);
    }

    /// Changes a key that is there.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        assert!(self.metadata.get(key).is_some(), "no key {key}");
        self.metadata.set(key, value);
    }

    pub(crate) fn write(&self, folder: &Scratch) -> PathBuf {
        let path = folder.join("edited.gguf");
        let tensor = |part: &Part| NewTensor::new(&part.name, &part.shape, part.kind);
        let tensors = self.tensors.iter().map(tensor).collect::<Result<_, _>>();
        let tensors = tensors.expect("names and shapes of a file");
        let mut writer =
            Writer::create(&path, &[], &self.metadata, tensors).expect("the folder is writable");
        self.tensors.iter().for_each(|part| writer.write(&part.bytes).expect("room"));
        writer.finish().expect("all tensors are whole");
        path
    }
}

/// The golden data notices every number and every optional tensor: with any of them changed, the
/// logits are far away.
#[test]
fn every_number_counts() {
    type Edit = fn(&mut Parts);
    let float = |key: &'static str, value| (key, Some(Value::F32(value)));
    let numbers = [
        ("llama", float("llama.rope.freq_base", 20_000.0)),
        ("llama", float("llama.attention.layer_norm_rms_epsilon", 0.1)),
        ("mistral", float("llama.rope.scaling.factor", 2.0)),
        ("mistral", ("llama.rope.scaling.factor", None)),
        ("qwen3", float("qwen3.rope.freq_base", 10_000.0)),
        ("qwen3moe", ("qwen3moe.expert_used_count", Some(Value::U32(2)))),
        ("gemma3", float("gemma3.rope.freq_base", 10_000.0)),
        ("gemma3", float("gemma3.rope.freq_base_swa", 10_000.0)),
        ("gemma3", ("gemma3.attention.sliding_window", Some(Value::U32(9)))),
        ("gemma3", ("gemma3.attention.sliding_window", None)),
        ("gemma3-softcap", float("gemma3.final_logit_softcapping", 4.0)),
        ("gemma3-softcap", ("gemma3.rope.scaling.factor", None)),
        ("phi3", ("phi3.attention.sliding_window", Some(Value::U32(0)))),
        ("phi3", ("phi3.attention.sliding_window", Some(Value::U32(9)))),
        ("phi3-long", ("phi3.rope.scaling.attn_factor", None)),
        ("phi3-long", ("phi3.rope.scaling.original_context_length", Some(Value::U32(40)))),
        ("phi3-short", ("phi3.rope.scaling.original_context_length", Some(Value::U32(39)))),
        ("phi3-partial", ("phi3.rope.dimension_count", Some(Value::U32(16)))),
        ("smollm3", float("smollm3.rope.freq_base", 10_000.0)),
        ("qwen3-yarn", float("qwen3.rope.scaling.factor", 2.0)),
        ("qwen3-yarn", ("qwen3.rope.scaling.original_context_length", Some(Value::U32(32)))),
        ("qwen3-yarn", ("qwen3.rope.scaling.type", Some(Value::String("none".to_string())))),
        ("llama-yarn", ("llama.rope.scaling.attn_factor", None)),
        ("qwen2-yarn", ("qwen2.rope.scaling.yarn_beta_fast", None)),
        ("qwen2-yarn", ("qwen2.rope.scaling.yarn_beta_slow", None)),
    ];
    for (name, (key, value)) in numbers {
        let mut parts = Parts::of(name);
        match value {
            Some(value) => parts.set(key, value),
            None => assert!(parts.metadata.remove(key).is_some(), "no key {key}"),
        }
        check_far(name, &parts, key);
    }
    let tensors: [(&str, &str, Edit); 4] = [
        ("llama", "no head", |parts| parts.remove("output.weight")),
        ("llama-rope3", "no factors", |parts| parts.remove("rope_freqs.weight")),
        ("llama-bias", "no bias", |parts| parts.remove("blk.1.attn_output.bias")),
        ("llama-bias", "no bias", |parts| parts.remove("blk.0.attn_q.bias")),
    ];
    for (name, what, edit) in tensors {
        let mut parts = Parts::of(name);
        edit(&mut parts);
        check_far(name, &parts, what);
    }
}

fn check_far(name: &str, parts: &Parts, what: &str) {
    let folder = Scratch::new();
    let (source, golden) = (open(&parts.write(&folder)), golden(name));
    let found = whole(&source, &devices()[0], &golden);
    let distance = distance(&found[0], &golden[0].logits);
    assert!(distance > 30.0 * TOLERANCE, "{name}, {what}: distance only {distance:.1e}");
}

/// A weight replaced in the plan does what the same weight in the file does.
#[test]
fn weights_can_be_replaced_in_the_plan() {
    let (name, weight) = ("qwen2", "blk.1.attn_v.weight");
    let golden = golden(name);
    let mut parts = Parts::of(name);
    let values = parts.tensor(weight).bytes.as_chunks_mut::<2>().0;
    values.reverse();
    let other = Bytes::from(parts.tensor(weight).bytes.clone());
    let folder = Scratch::new();
    let edited = open(&parts.write(&folder));
    let source = open(&model_path(&format!("{name}.gguf")));
    for options in devices() {
        let expected = whole(&edited, &options, &golden);
        let mut plan = Model::new(&source).expect("a model of ours").plan();
        let found = plan.weights.iter_mut().find(|tensor| tensor.name == weight);
        found.expect("a weight of the plan").codes = other.clone();
        let mut session = Session::new(backend(plan, &options));
        let found = interleaved(session.backend(), &golden);
        for (found, expected) in found.iter().zip(&expected) {
            let distance = distance(found, expected);
            let device = format!("{:?} {}", options.device, options.level);
            assert!(distance <= TOLERANCE, "{device}: distance {distance:.1e}");
        }
        assert!(distance(&found[0], &golden[0].logits) > 1e-2, "the weight matters");
    }
}

pub(crate) fn backend(plan: Plan, options: &Options) -> Box<dyn Backend> {
    let capacity = Capacity {
        rows: options.rows.expect("devices() says"),
        logit_rows: options.rows.expect("devices() says"),
        sequences: options.sequences,
        context: options.context.expect("set in the table of devices"),
        kv: options.kv,
    };
    session::backend(Arc::new(plan), capacity, options).expect("a plan of ours")
}
