//! Fine-tuning: the gradient against differences of the loss, and what it is good for.

use std::fs;
use std::path::Path;
use std::process::Command;

use gridmill::file::Source;
use gridmill::model::Model;
use gridmill::run::reverse::{Factors, Student, Taught};
use gridmill::run::{Device, Options};

use crate::cli::{fails, succeeds, text};
use crate::models::{model_path, open};
use crate::scratch::Scratch;

const ROWS: usize = 40;

fn options() -> Options {
    Options { device: Device::Cpu, threads: 2, ..Options::default() }
}

fn window(model: &Model) -> Vec<u32> {
    let vocabulary = model.hparams.vocabulary as u32;
    (0..ROWS as u32).map(|i| (i * i * 131 + 7 * i) % vocabulary).collect()
}

/// Two bits, but where a row is too short.
fn coded(folder: &Scratch, from: &Path, kind: &str) -> Source {
    let path = folder.join("coded.gguf");
    let mut args = vec!["convert", text(from), text(&path), "--to", kind];
    if text(from).ends_with("mistral.gguf") {
        args.extend(["--tensor-type", "attn_output.weight=F16"]);
    }
    succeeds(&args);
    open(&path)
}

/// Moves every factor a little along its gradient's sign, in groups by the weight's role, and
/// compares what the loss does with what the gradient says.
#[test]
fn the_gradient_is_that_of_the_loss() {
    let names = ["llama", "llama-bias", "llama-rope3", "mistral", "qwen2", "qwen3", "gemma3"];
    let more = ["gemma3-softcap", "phi3", "phi3-long", "smollm3", "qwen3moe"];
    let grids = names.into_iter().chain(more).map(|name| (name, "higgs2"));
    for (name, kind) in grids.chain([("llama", "VPTQ_V4_K256")]) {
        let folder = Scratch::new();
        let path = model_path(&format!("{name}.gguf"));
        let (source, coded) = (open(&path), coded(&folder, &path, kind));
        let (teacher, student) = (Model::new(&source).unwrap(), Model::new(&coded).unwrap());
        let window = window(&teacher);
        let windows = [window.clone()];
        let taught = Taught::new(&teacher, &options(), &windows, &mut || ()).unwrap();
        let mut pass = Student::new(&student, &taught, &options(), ROWS).unwrap();
        let factors = pass.factors().clone();
        let slope = pass.slope(&taught, (0, &window), &factors).unwrap();
        assert!(slope.loss > 0.0, "{name}: two bits cost something");
        for weight in factors.keys() {
            let along = |step: f32| -> Factors {
                let mut moved = factors.clone();
                let all = moved.get_mut(weight).unwrap().iter_mut();
                all.zip(&slope.gradient[weight]).for_each(|(f, d)| *f += step * d.signum());
                moved
            };
            // A larger step would change who is chosen, and the loss jumps there.
            let step = if name == "qwen3moe" { 0.0005 } else { 0.005 };
            let mut loss = |step| pass.slope(&taught, (0, &window), &along(step)).unwrap().loss;
            let measured = (loss(step) - loss(-step)) / (2.0 * f64::from(step));
            let expected: f64 = slope.gradient[weight].iter().map(|d| f64::from(d.abs())).sum();
            let off = (measured - expected).abs();
            assert!(
                off < 0.02 * expected + 1e-5,
                "{name}: {weight}: expected a slope of {expected}, measured {measured}"
            );
        }
    }
}

/// The KL divergence of a file from the model it was made from, on a text.
fn divergence(folder: &Scratch, model: &Path, coded: &Path, words: &Path) -> f64 {
    let base = folder.join("base");
    let score = |file: &Path, flags: [&str; 2]| -> serde_json::Value {
        let args = ["perplexity", text(file), text(words), "--chunks", "6", "--json"];
        serde_json::from_str(&succeeds(&[&args[..], &flags].concat())).unwrap()
    };
    score(model, ["--save-logits", text(&base)]);
    score(coded, ["--against", text(&base)])["kl_mean"].as_f64().unwrap()
}

#[test]
fn scales_and_norms_are_tuned_and_nothing_else() {
    ["higgs2", "VPTQ_V4_K256_S"].into_iter().for_each(tune);
}

fn tune(kind: &str) {
    let folder = Scratch::new();
    let model = folder.join("model.gguf");
    fs::copy(model_path("llama.gguf"), &model).unwrap();
    let words: String = (0..4000).map(|i| format!("{} of it, ", i * 7919 % 613)).collect();
    let words = folder.file("text.txt", words.as_bytes());
    let convert = |name: &str, threads: &str, flags: &[&str]| {
        let path = folder.join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_gridmill"));
        command.env("RAYON_NUM_THREADS", threads);
        command.args(["convert", text(&model), text(&path), "--to", kind]);
        command.args(["--calibrate", text(&words), "--calibration-windows", "12"]).args(flags);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        path
    };
    let plain = convert("plain.gguf", "2", &[]);
    let tuned = convert("tuned.gguf", "2", &["--fine-tune"]);
    let (first, second) = (open(&plain), open(&tuned));
    let pairs = first.raw_tensors().zip(second.raw_tensors());
    let changed: Vec<String> = pairs
        .filter(|(a, b)| *first.raw_bytes(a) != *second.raw_bytes(b))
        .map(|(a, _)| a.info.name.to_string())
        .collect();
    assert!(changed.iter().all(|name| name.ends_with(".norms") || name.ends_with("norm.weight")));
    assert!(
        changed.len() > 10 && !changed.contains(&"token_embd.norms".to_string()),
        "{changed:?}"
    );
    let before = divergence(&folder, &model, &plain, &words);
    let after = divergence(&folder, &model, &tuned, &words);
    assert!(after < 0.97 * before, "{before} {after}");
    let again = convert("again.gguf", "1", &["--fine-tune"]);
    assert!(fs::read(tuned).unwrap() == fs::read(again).unwrap(), "1 and 2 threads");
    let left: Vec<String> =
        folder.list().into_iter().filter(|name| name.starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn tuning_reads_on_where_calibration_stops() {
    let folder = Scratch::new();
    let model = folder.join("model.gguf");
    fs::copy(model_path("llama.gguf"), &model).unwrap();
    // Calibration has a window and nineteen that are held out.
    let convert = |count: usize, flags: &[&str]| {
        let words: String = (0..count).map(|i| format!("{} ", i * 7919 % 613)).collect();
        let words = folder.file("text.txt", words.as_bytes());
        let path = folder.join(format!("{count}{}.gguf", flags.len()));
        let args = ["convert", text(&model), text(&path), "--to", "higgs2", "--calibrate"];
        let more = ["--calibration-windows", "1", "--calibration-ctx", "16"];
        succeeds(&[&args[..], &[text(&words)], &more, flags].concat());
        fs::read(path).unwrap()
    };
    assert!(convert(400, &[]) == convert(500, &[]), "what is calibrated on is the same");
    assert!(convert(400, &["--fine-tune"]) != convert(500, &["--fine-tune"]));
}

#[test]
fn tuning_needs_a_text() {
    let folder = Scratch::new();
    let (model, target) = (model_path("llama.gguf"), folder.join("out.gguf"));
    let args = ["convert", text(&model), text(&target), "--to", "higgs2", "--fine-tune"];
    fails(&args, 1, "--fine-tune: expected a text to tune on, found none");
    assert!(!target.exists());
}
