//! What calibration hears of experts, and what is made of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use gridmill::convert::{Statistics, calibrate};
use gridmill::file::{Metadata, NewTensor, Source, Value, Writer};
use gridmill::model::Model;
use gridmill::quant::Moments;
use gridmill::run::reverse::TokenWeights;
use gridmill::run::walk::{Tap, Walk};
use gridmill::run::{Device, Options};
use gridmill::types::raw;

use crate::cli::{fails, json, succeeds, text};
use crate::models::{model_path, open};
use crate::scratch::Scratch;

/// As `qwen3moe.gguf` has them.
const EXPERTS: usize = 6;
const USED: usize = 3;
const FFN: usize = 32;

/// A copy of the model, so that what is kept beside it goes away.
fn model(folder: &Scratch) -> PathBuf {
    let path = folder.join("model.gguf");
    fs::copy(model_path("qwen3moe.gguf"), &path).unwrap();
    path
}

fn words(folder: &Scratch) -> PathBuf {
    let words: String =
        (0..4000).map(|i| format!("{} the {} of it, ", i * 7919 % 613, i)).collect();
    folder.file("text.txt", words.as_bytes())
}

/// The moments of what each expert multiplies its last matrix with, by hand; all experts read the
/// same rows before.
#[test]
fn every_expert_is_heard_by_itself() {
    let folder = Scratch::new();
    let source = open(&model(&folder));
    let model = Model::new(&source).unwrap();
    let windows: Vec<Vec<u32>> =
        (0..3).map(|i| (0..50).map(|j| (i * 31 + j * 17) % 128).collect()).collect();
    let options = Options { device: Device::Cpu, threads: 2, ..Options::default() };
    let path = folder.join("s.gguf");
    calibrate(&model, &options, (&windows, &TokenWeights::new()), "print", &path, &mut || ())
        .unwrap();
    let (statistics, _) = Statistics::open(&path, &source).unwrap();

    let mut expected: BTreeMap<String, Vec<Moments>> = BTreeMap::new();
    let mut walk = Walk::new(&model, &options, &windows, u64::MAX, &folder).unwrap();
    let mut take = |tap: Tap| {
        let Tap::Experts { weights, values, width, chosen } = tap else { return };
        assert_eq!((width, chosen.len()), (FFN, 50 * USED));
        let all = expected.entry(weights[0].to_string());
        let all = all.or_insert_with(|| vec![Moments::new(width); EXPERTS]);
        for (row, &expert) in values.chunks_exact(width).zip(chosen) {
            all[expert as usize].add(row);
        }
    };
    while walk.step(&mut take).unwrap() {}
    assert_eq!(expected.len(), model.hparams.layers);
    for (name, expected) in &expected {
        assert!(name.ends_with("ffn_down_exps.weight"), "{name}");
        let input = statistics.use_of(name).unwrap();
        let mut rows = 0;
        for (number, expected) in expected.iter().enumerate() {
            let found = statistics.moments(input, statistics.matrix(input, number).unwrap());
            let found = found.unwrap();
            assert_eq!(found.count, expected.count, "{name}: expert {number}");
            rows += found.count;
            let (found, expected) = (found.whole(), expected.whole());
            let size = expected.iter().fold(0.0_f64, |size, x| size.max(x.abs()));
            let pairs = found.iter().zip(&expected);
            let off = pairs.fold(0.0_f64, |off, (a, b)| off.max((a - b).abs()));
            assert!(off <= 1e-5 * size, "{name}: expert {number}: {off} of {size}");
        }
        assert_eq!(rows, (150 * USED) as u64);
        assert!(statistics.matrix(input, EXPERTS).is_err());
        let [gate, up] = ["gate", "up"].map(|which| {
            statistics.use_of(&name.replace("ffn_down", &format!("ffn_{which}"))).unwrap()
        });
        assert_eq!(gate, up);
        assert_eq!(statistics.matrix(gate, EXPERTS - 1).unwrap(), 0);
        assert_eq!(statistics.moments(gate, 0).unwrap().count, 150);
        // What chooses is never coded.
        assert_eq!(statistics.use_of(&name.replace("ffn_down_exps", "ffn_gate_inp")), None);
    }
}

/// The KL divergence of a file from the model it was made from.
fn divergence(folder: &Scratch, model: &Path, coded: &Path, words: &Path) -> f64 {
    let base = folder.join("base");
    let score = ["perplexity", text(model), text(words), "--chunks", "6", "--save-logits"];
    succeeds(&[&score[..], &[text(&base)]].concat());
    let score = ["perplexity", text(coded), text(words), "--chunks", "6", "--json", "--against"];
    json(&[&score[..], &[text(&base)]].concat())["kl_mean"].as_f64().unwrap()
}

fn kind(source: &Source, name: &str) -> &'static str {
    source.tensor(name).unwrap().unwrap().kind.name()
}

#[test]
fn listening_and_tuning_bring_experts_nearer() {
    let folder = Scratch::new();
    let (model, words) = (model(&folder), words(&folder));
    let convert = |name: &str, more: &[&str]| {
        let path = folder.join(name);
        let args = ["convert", text(&model), text(&path), "--seed", "3"];
        succeeds(&[&args[..], more].concat());
        path
    };
    let heard = ["--calibrate", text(&words), "--calibration-windows", "12"];
    let plain = convert("plain.gguf", &["--to", "higgs2"]);
    let calibrated = convert("calibrated.gguf", &[&["--to", "higgs2"], &heard[..]].concat());
    let tuning = [&["--to", "higgs2", "--fine-tune"], &heard[..]].concat();
    let tuned = convert("tuned.gguf", &tuning);
    let of = |path: &Path| divergence(&folder, &model, path, &words);
    let (plain, calibrated, tuned) = (of(&plain), of(&calibrated), of(&tuned));
    assert!(calibrated < 0.95 * plain, "{plain} to {calibrated}");
    assert!(tuned < 0.97 * calibrated, "{calibrated} to {tuned}");
    // Experts may begin within rows that share codes, which then hear one of them.
    let points =
        |name: &str, more: &[&str]| of(&convert(name, &[&["--to", "VPTQ_V5_K256"], more].concat()));
    let (plain, calibrated) = (points("p.gguf", &[]), points("q.gguf", &heard));
    assert!(calibrated < 0.95 * plain, "{plain} to {calibrated}");
    // Types are chosen for experts, too.
    let budget = convert("budget.gguf", &[&["--bits", "2.5"], &heard[..]].concat());
    let source = open(&budget);
    for layer in 0..2 {
        for which in ["gate", "up", "down"] {
            let kind = kind(&source, &format!("blk.{layer}.ffn_{which}_exps.weight"));
            assert!(kind.starts_with("HIGGS") || kind.starts_with("VPTQ"), "{kind}");
        }
    }
    assert_eq!(kind(&source, "blk.0.ffn_gate_inp.weight"), "F32");
}

/// llama.cpp's importance matrices have a row and a count for each expert.
#[test]
fn importance_matrices_have_rows_of_experts() {
    let folder = Scratch::new();
    let (model, out) = (model(&folder), folder.join("out.gguf"));
    let name = "blk.0.ffn_down_exps.weight";
    let matrix = |experts: usize, counts: usize| {
        let mut metadata = Metadata::new();
        metadata.set("general.type", Value::String("imatrix".to_string()));
        let kind = raw::find(0, &[]).unwrap();
        let record = |ending: &str, shape: [u64; 2]| {
            NewTensor::new(&format!("{name}.{ending}"), &shape, kind).unwrap()
        };
        let records = vec![
            record("in_sum2", [FFN as u64, experts as u64]),
            record("counts", [1, counts as u64]),
        ];
        let path = folder.join("imatrix.gguf");
        let mut writer = Writer::create(&path, &[], &metadata, records).unwrap();
        let sums: Vec<f32> = (0..FFN * experts).map(|i| (i * i) as f32).collect();
        writer.write(bytemuck::cast_slice(&sums)).unwrap();
        // Nobody chose the first one.
        let counts: Vec<f32> = (0..counts).map(|i| 20.0 * i as f32).collect();
        writer.write(bytemuck::cast_slice(&counts)).unwrap();
        writer.finish().unwrap();
        path
    };
    let path = matrix(EXPERTS, EXPERTS);
    let args = ["convert", text(&model), text(&out), "--calibrate", text(&path)];
    succeeds(&args);
    let (statistics, _) = Statistics::open(&path, &open(&model)).unwrap();
    let input = statistics.use_of(name).unwrap();
    let moments = statistics.moments(input, 2).unwrap();
    assert_eq!((moments.count, moments.whole()[FFN + 1]), (40, f64::from(65 * 65)));
    matrix(EXPERTS - 1, EXPERTS - 1);
    fails(&args, 1, "expected those of expert 5, found 5");
    matrix(EXPERTS, EXPERTS - 1);
    fails(&args, 1, "expected 5 rows, as counts, found 6");
}
