//! `convert --calibrate`, `--bits`, `--size`, `--recipe`: what they do, and what they refuse.

use std::fs;
use std::path::{Path, PathBuf};

use gridmill::convert::sensitivity::{self, Subject};
use gridmill::convert::{Feedbacks, Statistics, calibrate};
use gridmill::file::{NewTensor, Source, Value, Writer};
use gridmill::model::Model;
use gridmill::quant::Moments;
use gridmill::run::reverse::TokenWeights;
use gridmill::run::walk::{Tap, Walk};
use gridmill::run::{Device, Options};
use gridmill::types::raw::{self, RawType};

use crate::cli::{fails, gridmill, json, stderr, succeeds, text};
use crate::models::{Parts, model_path, open};
use crate::scratch::Scratch;

/// A copy of a golden model, so that what is kept beside it goes away.
fn model(folder: &Scratch) -> PathBuf {
    let path = folder.join("model.gguf");
    fs::copy(model_path("llama.gguf"), &path).unwrap();
    path
}

/// A text of some thousand tokens.
fn words(folder: &Scratch) -> PathBuf {
    let text: String = (0..2000).map(|i| format!("{} the {} of it, ", i * 7919 % 613, i)).collect();
    folder.file("text.txt", text.as_bytes())
}

fn kept(folder: &Scratch, ending: &str) -> PathBuf {
    let mut names = folder.list().into_iter().filter(|name| name.ends_with(ending));
    let found = names.next().unwrap_or_else(|| panic!("no {ending} in {:?}", folder.list()));
    assert_eq!(names.next(), None, "one {ending}");
    folder.join(found)
}

/// Every tensor's bytes.
fn content(path: &Path) -> Vec<Vec<u8>> {
    let source = open(path);
    source.raw_tensors().map(|raw| source.raw_bytes(&raw).to_vec()).collect()
}

#[test]
fn statistics_are_the_moments_of_every_input() {
    let folder = Scratch::new();
    let source = open(&model(&folder));
    let model = Model::new(&source).unwrap();
    let vocabulary = model.hparams.vocabulary as u32;
    let windows: Vec<Vec<u32>> =
        (0..3).map(|i| (0..90).map(|j| (i * 131 + j * 17) % vocabulary).collect()).collect();
    let options = Options { device: Device::Cpu, threads: 2, ..Options::default() };
    let path = folder.join("s.gguf");
    calibrate(&model, &options, (&windows, &TokenWeights::new()), "print", &path, &mut || ())
        .unwrap();
    let (statistics, note) = Statistics::open(&path, &source).unwrap();
    assert_eq!((statistics.fingerprint.as_str(), note), ("print", None));
    let layers = model.hparams.layers;
    let names = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    for layer in 0..layers {
        let uses: Vec<usize> = names
            .map(|name| statistics.use_of(&format!("blk.{layer}.{name}.weight")).expect(name))
            .to_vec();
        assert!(uses[0] == uses[1] && uses[1] == uses[2] && uses[4] == uses[5], "{uses:?}");
        let distinct: std::collections::HashSet<_> = uses.iter().collect();
        assert_eq!(distinct.len(), 4);
    }
    // The first layer's input by hand: the norm of the embedding.
    let embedding = source.tensor("token_embd.weight").unwrap().unwrap();
    let gains = source.tensor("blk.0.attn_norm.weight").unwrap().unwrap();
    let decode = |tensor: &gridmill::types::Tensor, row: usize| {
        let mut values = vec![0.0; tensor.cols];
        tensor.kind.decode(&tensor.rows(row..row + 1), &mut values);
        values
    };
    let gains = decode(&gains, 0);
    let mut expected = Moments::new(embedding.cols);
    for &token in windows.iter().flatten() {
        let mut row = decode(&embedding, token as usize);
        let square = row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32;
        let scale = 1.0 / (square + model.hparams.epsilon).sqrt();
        row.iter_mut().zip(&gains).for_each(|(x, gain)| *x *= scale * gain);
        expected.add(&row);
    }
    let found = statistics.moments(statistics.use_of("blk.0.attn_k.weight").unwrap(), 0).unwrap();
    assert_eq!(found.count, 270);
    let (expected, found) = (expected.whole(), found.whole());
    let size = expected.iter().fold(0.0_f64, |size, x| size.max(x.abs()));
    for (expected, found) in expected.iter().zip(&found) {
        assert!((expected - found).abs() <= 1e-4 * size, "expected {expected}, found {found}");
    }
}

/// Hidden states that go to a file come back as they were.
#[test]
fn walks_with_little_memory_come_by_the_same() {
    let folder = Scratch::new();
    let source = open(&model(&folder));
    let model = Model::new(&source).unwrap();
    let windows: Vec<Vec<u32>> =
        (0..3).map(|i| (0..40).map(|j| 3 + i * 40 + j).collect()).collect();
    let options = Options { device: Device::Cpu, threads: 1, ..Options::default() };
    let walk = |limit: u64| {
        let mut heard = Vec::new();
        let mut walk = Walk::new(&model, &options, &windows, limit, &folder).unwrap();
        let mut take = |tap: Tap| match tap {
            Tap::Input { weights, values, .. } => {
                heard.push((weights.join(" "), values.to_vec()));
            }
            Tap::Experts { .. } => panic!("the model has no experts"),
            Tap::Cache { keys, values, .. } => {
                heard.push(("cache".to_string(), [keys, values].concat()));
            }
        };
        while walk.step(&mut take).unwrap() {}
        heard
    };
    let (little, much) = (walk(0), walk(u64::MAX));
    assert!(!much.is_empty() && little == much);
    assert_eq!(folder.list(), ["model.gguf"]);
}

#[test]
fn calibration_lowers_the_error_of_outputs_and_is_kept() {
    let folder = Scratch::new();
    let (model, words, out) = (model(&folder), words(&folder), folder.join("out.gguf"));
    let mut args = vec!["convert", text(&model), text(&out), "--to", "higgs4"];
    args.extend(["--calibrate", text(&words), "--calibration-windows", "2"]);
    succeeds(&args);
    let first = content(&out);
    let statistics = kept(&folder, ".statistics.gguf");
    let written = fs::metadata(&statistics).unwrap().modified().unwrap();
    let again = gridmill(&args);
    assert!(again.status.success());
    assert!(content(&out) == first, "the same input gives the same bytes");
    assert_eq!(fs::metadata(&statistics).unwrap().modified().unwrap(), written);
    assert!(succeeds(&["inspect", text(&statistics)]).contains("blk.0.attn_q.weight.moments"));
    // What was kept can be named, too.
    let named = ["convert", text(&model), text(&out), "--to", "higgs4", "--calibrate"];
    succeeds(&[&named[..], &[text(&statistics)]].concat());
    assert!(content(&out) == first);
}

#[test]
fn a_budget_is_kept() {
    let folder = Scratch::new();
    let (model, words, out) = (model(&folder), words(&folder), folder.join("out.gguf"));
    let recipe = folder.join("recipe.txt");
    let flags = ["--calibrate", text(&words), "--calibration-windows", "2"];
    let convert = |more: &[&str]| {
        let args = [&["convert", text(&model), text(&out)], &flags[..], more].concat();
        succeeds(&args)
    };
    convert(&["--bits", "4.5", "--recipe-out", text(&recipe)]);
    let found = json(&["inspect", text(&out), "--json"]);
    let matrices = found["tensors"].as_array().unwrap().iter().filter(|tensor| {
        let name = tensor["name"].as_str().unwrap();
        name.ends_with(".weight") && !name.contains("norm")
    });
    let (mut bytes, mut weights) = (0.0, 0.0);
    for tensor in matrices {
        let shape = tensor["shape"].as_array().unwrap().iter().map(|dim| dim.as_f64().unwrap());
        bytes += tensor["bytes"].as_f64().unwrap();
        weights += shape.product::<f64>();
    }
    let bits = 8.0 * bytes / weights;
    assert!((4.0..=4.5).contains(&bits), "{bits} bits");
    let by_bits = content(&out);
    convert(&["--recipe", text(&recipe)]);
    assert!(content(&out) == by_bits, "a recipe gives what it was written from");
    let size = fs::metadata(&out).unwrap().len();
    convert(&["--size", &size.to_string()]);
    assert!(fs::metadata(&out).unwrap().len() <= size);
}

#[test]
fn without_a_text_noise_is_white_and_the_model_writes() {
    let folder = Scratch::new();
    let (model, out) = (model(&folder), folder.join("out.gguf"));
    succeeds(&["convert", text(&model), text(&out), "--bits", "4"]);
    let measured = fs::read_to_string(kept(&folder, ".sensitivity.tsv")).unwrap();
    let written = fs::metadata(kept(&folder, ".own-text.tokens")).unwrap().len();
    assert_eq!(written, 4 * (3 + 8) * 512);
    // After them, all at once with three errors, and the activations.
    let matrices = measured.lines().skip(1).count() - 4;
    let source = open(&model);
    assert_eq!(matrices, gridmill::convert::matrices(&source, &Model::new(&source).unwrap()));
}

/// What is lost in two kinds of text is the geometric mean of what is lost in each.
#[test]
fn kinds_of_text_have_a_mean() {
    let folder = Scratch::new();
    let source = open(&model(&folder));
    let (model, options) = (Model::new(&source).unwrap(), on_cpu());
    let window = |step: u32| (0..32).map(|i| i * step % 40).collect::<Vec<u32>>();
    let (windows, [even, odd]) = ([window(3)], [vec![window(7), window(9)], vec![window(1)]]);
    let losses = |name: &str, others: &[Vec<Vec<u32>>]| -> Vec<f64> {
        let (model, options) = (&model, &options);
        let subject =
            Subject { model, options, windows: &windows, others, fingerprint: name, seed: 1 };
        let kept = folder.join(name);
        let none = &mut Feedbacks::none();
        sensitivity::measure(&subject, none, &kept, &mut |_| ()).unwrap();
        let text = fs::read_to_string(&kept).unwrap();
        let lines = text.lines().filter(|line| line.starts_with(['*', 'a']));
        lines.map(|line| line.rsplit(['\t', ':']).next().unwrap().parse().unwrap()).collect()
    };
    let [both, even, odd] =
        [("both", &[even.clone(), odd.clone()][..]), ("even", &[even]), ("odd", &[odd])]
            .map(|(name, others)| losses(name, others));
    assert_eq!((both.len(), even.len(), odd.len()), (4, 4, 4));
    for ((both, even), odd) in both.iter().zip(even).zip(odd) {
        let expected = (even * odd).sqrt();
        assert!((both - expected).abs() <= 1e-12 * expected, "{both}, expected {expected}");
        assert!(even != odd);
    }
}

fn on_cpu() -> Options {
    Options { device: Device::Cpu, ..Options::default() }
}

#[test]
fn the_model_writes_its_own_text() {
    let folder = Scratch::new();
    let (model, out) = (model(&folder), folder.join("out.gguf"));
    let args = ["convert", text(&model), text(&out), "--calibrate", "self"];
    succeeds(&[&args[..], &["--calibration-windows", "3"]].concat());
    let written = fs::read(kept(&folder, ".own-text.tokens")).unwrap();
    // With the windows in which sensitivities would be measured.
    assert_eq!(written.len(), 4 * (3 + 3 + 16) * 512);
    fs::remove_file(kept(&folder, ".own-text.tokens")).unwrap();
    succeeds(&[&args[..], &["--calibration-windows", "3"]].concat());
    assert!(fs::read(kept(&folder, ".own-text.tokens")).unwrap() == written, "a fixed seed");
}

#[test]
fn an_interrupted_measurement_goes_on() {
    let folder = Scratch::new();
    let (model, out) = (model(&folder), folder.join("out.gguf"));
    let args = ["convert", text(&model), text(&out), "--bits", "4"];
    succeeds(&args);
    let path = kept(&folder, ".sensitivity.tsv");
    let whole = fs::read_to_string(&path).unwrap();
    // Cut in the middle of a line.
    fs::write(&path, &whole[..whole.len() * 2 / 3]).unwrap();
    succeeds(&args);
    assert_eq!(fs::read_to_string(&path).unwrap(), whole);
    fs::write(&path, whole.replacen("sensitivity 3 ", "sensitivity 3 0", 1)).unwrap();
    fails(&args, 1, "it was measured with other settings");
    fs::write(&path, whole.replacen("0.005:", "0.005;", 1)).unwrap();
    fails(&args, 1, "line 2: expected a weight and its losses");
    fs::write(&path, whole.replacen("*\t0.006:", "*\t0.007:", 1)).unwrap();
    fails(&args, 1, "expected a weight and its losses");
}

#[test]
fn bad_texts_and_statistics() {
    let folder = Scratch::new();
    let (model, out) = (model(&folder), folder.join("out.gguf"));
    let check = |path: &Path, message: &str| {
        let args = ["convert", text(&model), text(&out), "--calibrate", text(path)];
        fails(&args, 1, message);
        assert!(!out.exists());
    };
    check(&folder.join("nowhere.txt"), "nowhere.txt");
    check(&folder.file("empty.txt", b""), "expected at least 512 tokens");
    check(&folder.file("short.txt", b"a few words"), "expected at least 512 tokens, found");
    check(&folder.file("latin.txt", b"caf\xe9 au lait"), "expected UTF-8, found byte 3");
    check(&model, "expected gridmill.statistics, an imatrix or a text, found model");

    // Statistics of another model, then damaged ones.
    let other = folder.join("other.gguf");
    fs::copy(model_path("qwen3.gguf"), &other).unwrap();
    let words = words(&folder);
    let flags = ["--calibrate", text(&words), "--calibration-windows", "1"];
    succeeds(&[&["convert", text(&other), text(&out)], &flags[..]].concat());
    fs::remove_file(&out).unwrap();
    let statistics = kept(&folder, ".statistics.gguf");
    check(&statistics, "it is of another model");
    fs::remove_file(&statistics).unwrap();

    succeeds(&[&["convert", text(&model), text(&out)], &flags[..]].concat());
    fs::remove_file(&out).unwrap();
    let statistics = kept(&folder, ".statistics.gguf");
    let mut bytes = fs::read(&statistics).unwrap();
    let len = bytes.len();
    bytes[len / 2] ^= 0x40;
    fs::write(&statistics, &bytes).unwrap();
    let damaged = "the matrices are not those that were written";
    fails(&[&["convert", text(&model), text(&out)], &flags[..]].concat(), 1, damaged);
    fs::write(&statistics, &bytes[..len / 2]).unwrap();
    let args = [&["convert", text(&model), text(&out)], &flags[..]].concat();
    fails(&args, 1, "delete the file to calibrate again");
    assert!(!out.exists());
}

#[test]
fn importance_matrices_are_diagonals() {
    let folder = Scratch::new();
    let (model, out) = (model(&folder), folder.join("out.gguf"));
    let source = open(&model);
    let matrix = |name: &str, width: usize, count: f32| {
        let mut metadata = gridmill::file::Metadata::new();
        metadata.set("general.type", Value::String("imatrix".to_string()));
        let kind: RawType = raw::find(0, &[]).unwrap();
        let records = vec![
            NewTensor::new(&format!("{name}.in_sum2"), &[width as u64, 1], kind).unwrap(),
            NewTensor::new(&format!("{name}.counts"), &[1, 1], kind).unwrap(),
        ];
        let path = folder.join("imatrix.gguf");
        let mut writer = Writer::create(&path, &[], &metadata, records).unwrap();
        let sums: Vec<f32> = (0..width).map(|i| (i * i) as f32).collect();
        writer.write(bytemuck::cast_slice(&sums)).unwrap();
        writer.write(&count.to_le_bytes()).unwrap();
        writer.finish().unwrap();
        path
    };
    let name = "blk.0.ffn_down.weight";
    let width = source.tensor(name).unwrap().unwrap().cols;
    let path = matrix(name, width, 100.0);
    let args = ["convert", text(&model), text(&out), "--calibrate", text(&path)];
    let output = gridmill(&args);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("not how inputs go together"), "{}", stderr(&output));
    matrix(name, width + 32, 100.0);
    fails(&args, 1, "it is of another model: expected");
    matrix("blk.77.ffn_down.weight", width, 100.0);
    fails(&args, 1, "it has `blk.77.ffn_down.weight`, and the model has not");
    matrix(name, width, 0.0);
    fails(&args, 1, "expected a count above 0");
}

#[test]
fn bad_budgets_and_recipes() {
    let folder = Scratch::new();
    let (model, out) = (model(&folder), folder.join("out.gguf"));
    let check = |flags: &[&str], code: i32, message: &str| {
        fails(&[&["convert", text(&model), text(&out)], flags].concat(), code, message);
        assert!(!out.exists());
    };
    check(&["--bits", "1"], 1, "bits per weight, found 1");
    check(&["--bits", "40"], 1, "--bits: expected ");
    check(&["--bits", "NaN"], 1, "bits per weight, found NaN");
    check(&["--size", "10kB"], 2, "expected a size");
    check(&["--size", "1000"], 1, "bytes, found 1000");
    check(&["--size", "900GB"], 1, "bytes, found 900000000000");
    check(&["--bits", "4", "--to", "higgs4"], 2, "cannot be used with");
    let all = ["--bits", "4", "--tensor-type", ".*=F16"];
    check(&all, 1, "there is no matrix to choose a type for");
    let recipe = |text: &str| folder.file("recipe.txt", text.as_bytes());
    let name = "blk.0.ffn_down.weight";
    let path = recipe(&format!("# a comment\n{name} higgs4 0.1\n{name} higgs3\n"));
    let path = text(&path);
    check(&["--recipe", path], 1, "line 3: tensor `blk.0.ffn_down.weight` has a type already");
    recipe("blk.0.ffn_sideways.weight higgs4");
    check(&["--recipe", path], 1, "line 1: the model has no tensor `blk.0.ffn_sideways.weight`");
    recipe(&format!("\n{name} higgs5\n"));
    check(&["--recipe", path], 1, "line 2: expected one of");
    recipe(name);
    check(&["--recipe", path], 1, "line 1: expected a tensor and a type");
}

/// A model whose last layer's input is always zero has moments of zeros.
#[test]
fn dead_inputs_are_rounded_anyway() {
    let folder = Scratch::new();
    let mut parts = Parts::of("llama");
    parts.tensor("blk.0.ffn_norm.weight").bytes.fill(0);
    let model = parts.write(&folder);
    let (words, out) = (words(&folder), folder.join("out.gguf"));
    let args = ["convert", text(&model), text(&out), "--calibrate", text(&words)];
    succeeds(&[&args[..], &["--calibration-windows", "1"]].concat());
    let source: Source = open(&out);
    assert!(source.tensor("blk.0.ffn_up.weight").unwrap().is_some());
}
