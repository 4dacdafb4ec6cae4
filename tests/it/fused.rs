//! Matrices that lie in one: what every step of a conversion does with them.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gridmill::backend::reference::Reference;
use gridmill::backend::{Capacity, KvFormat};
use gridmill::model::{Model, Role};
use gridmill::plan::{Batch, Plan};
use gridmill::run::verify::verify;
use gridmill::types::Tensor;

use crate::cli::{succeeds, text};
use crate::models::{Parts, backend, devices, distance, golden, model_path, open, whole};
use crate::scratch::Scratch;

const CAPACITY: Capacity =
    Capacity { rows: 64, logit_rows: 64, sequences: 2, context: 40, kv: KvFormat::F32 };

fn model(folder: &Scratch) -> PathBuf {
    let path = folder.join("model.gguf");
    fs::copy(model_path("phi3.gguf"), &path).unwrap();
    path
}

fn words(folder: &Scratch) -> PathBuf {
    let text: String = (0..4000).map(|i| format!("{} of it, ", i * 7919 % 613)).collect();
    folder.file("text.txt", text.as_bytes())
}

/// The rows of a fused matrix are those of its parts, one after the other.
#[test]
fn parts_are_the_rows_of_the_whole() {
    let source = open(&model_path("phi3.gguf"));
    let model = Model::new(&source).unwrap();
    let values = |role| {
        let tensor = model.tensors.get(role, Some(1)).unwrap();
        let mut values = vec![0.0; tensor.len()];
        tensor.kind.decode(&tensor.rows(0..tensor.rows), &mut values);
        values
    };
    let cases: [(Role, &[Role]); 2] = [
        (Role::AttnQkv, &[Role::AttnQ, Role::AttnK, Role::AttnV]),
        (Role::FfnGateUp, &[Role::FfnGate, Role::FfnUp]),
    ];
    for (whole, parts) in cases {
        let together: Vec<f32> = parts.iter().flat_map(|&part| values(part)).collect();
        assert!(values(whole) == together, "{whole:?}");
        assert_eq!(model.tensors.get(whole, Some(1)).unwrap().cols, 64);
    }
}

/// The KL divergence of a file from the model it was made from.
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
fn they_are_calibrated_and_tuned() {
    let folder = Scratch::new();
    let (model, words) = (model(&folder), words(&folder));
    let convert = |name: &str, flags: &[&str]| {
        let path = folder.join(name);
        succeeds(&[&["convert", text(&model), text(&path), "--to", "higgs2"], flags].concat());
        path
    };
    let heard = ["--calibrate", text(&words), "--calibration-windows", "12"];
    let plain = convert("plain.gguf", &[]);
    let calibrated = convert("calibrated.gguf", &heard);
    let tuned = convert("tuned.gguf", &[&heard[..], &["--fine-tune"]].concat());
    let names = |path: &Path| -> Vec<String> {
        open(path).tensors().map(|tensor| tensor.name.clone()).collect()
    };
    assert_eq!(names(&tuned), names(&model), "the file has the model's own tensors");
    let [plain, calibrated, tuned] =
        [plain, calibrated, tuned].map(|path| divergence(&folder, &model, &path, &words));
    assert!(calibrated < 0.97 * plain && tuned < 0.97 * calibrated, "{plain} {calibrated} {tuned}");
}

#[test]
fn they_are_measured() {
    let folder = Scratch::new();
    let (model, out) = (model(&folder), folder.join("out.gguf"));
    let shown = succeeds(&["convert", text(&model), text(&out), "--bits", "4"]);
    assert!(shown.contains("attn_qkv") && shown.contains("ffn_gate_up"), "{shown}");
    assert!(open(&out).file_bytes() < open(&model).file_bytes() / 2);
    succeeds(&["verify", text(&out)]);
}

/// A part may begin within rows that share codes: every backend runs it, and the answers are those
/// of the same weights as floats.
#[test]
fn parts_begin_within_blocks() {
    let folder = Scratch::new();
    let (model, golden) = (model_path("phi3.gguf"), golden("phi3"));
    let [coded, plain] = ["coded.gguf", "plain.gguf"].map(|name| folder.join(name));
    // Runs that kernels read from their packed codes, and those that are held in bytes.
    for kind in [
        "VPTQ_V6_K64",
        "VPTQ_V6_K32_S",
        "VPTQ_V7_K256_S",
        "VPTQ_V7_K32_R16",
        "VPTQ_V3_K16",
        "VPTQ_V12_K64",
    ] {
        succeeds(&["convert", text(&model), text(&coded), "--to", kind]);
        succeeds(&["export", text(&coded), text(&plain), "--to", "F32"]);
        let source = open(&coded);
        let part = |role| Model::new(&source).unwrap().tensors.get(role, Some(1)).unwrap().clone();
        let (whole_one, key) = (part(Role::AttnQkv), part(Role::AttnK));
        assert_eq!((whole_one.skip(), key.kind.name()), (0, kind));
        assert_ne!(key.skip(), 0, "{kind}: keys begin within a block");
        let rows = key.first..key.first + key.rows;
        assert!(decoded(&key, 0..key.rows) == decoded(&whole_one, rows), "{kind}");
        let plan = Arc::new(Model::new(&source).unwrap().plan());
        let expected = whole(&open(&plain), &devices()[0], &golden);
        for options in devices() {
            let found = whole(&source, &options, &golden);
            let distance = distance(&found[0], &expected[0]);
            let device = format!("{kind} {:?} {}", options.device, options.level);
            assert!(distance < 0.1, "{device}: distance {distance:.3}");
            let mut oracle = Reference::new(plan.clone(), CAPACITY);
            let mut tested = backend(Plan::clone(&plan), &options);
            let differences = verify(&mut oracle, &mut *tested, &batch(), &mut |_| ());
            for found in differences.expect("room for the batch") {
                assert!(found.is_fine(), "{device}: {found:?}");
            }
        }
    }
}

fn decoded(tensor: &Tensor, rows: Range<usize>) -> Vec<f32> {
    let mut values = vec![0.0; rows.len() * tensor.cols];
    tensor.kind.decode(&tensor.rows(rows), &mut values);
    values
}

fn batch() -> Batch {
    let mut batch = Batch::default();
    let tokens = (0..40).map(|row| row * 37 % 128);
    tokens.zip(0..).for_each(|(token, row)| batch.push(token, row, 0, true));
    batch
}

/// A fused matrix of another shape is refused.
#[test]
fn shapes_are_checked() {
    let folder = Scratch::new();
    let mut parts = Parts::of("phi3");
    parts.tensor("blk.0.attn_qkv.weight").shape = vec![128, 64];
    let error = Model::new(&open(&parts.write(&folder))).err().expect("a model to refuse");
    assert_eq!(
        error.to_string(),
        "tensor `blk.0.attn_qkv.weight`: expected shape [128, 64], found [64, 128] (outputs first)"
    );
}
