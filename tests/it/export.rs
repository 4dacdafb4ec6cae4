//! `gridmill export`: files of ours as stock files, value by value.

use std::fs;
use std::path::Path;

use gridmill::file::{Array, Metadata, Source, Value};
use gridmill::run::walk::original;
use gridmill::types::{PRIVATE_IDS, TensorType, by_name};

use crate::cli::{fails, gridmill, one_layer, stderr, succeeds, text};
use crate::models::{Parts, model_path, open};
use crate::scratch::Scratch;

/// What llama.cpp calls a file of each type (`enum llama_ftype`), and what it writes in place of a
/// type of 256 values where that does not fit.
const KINDS: [(&str, u32, &str); 11] = [
    ("F32", 0, "F32"),
    ("F16", 1, "F16"),
    ("BF16", 32, "BF16"),
    ("Q4_0", 2, "Q4_0"),
    ("Q4_1", 3, "Q4_1"),
    ("Q5_0", 8, "Q5_0"),
    ("Q5_1", 9, "Q5_1"),
    ("Q8_0", 7, "Q8_0"),
    ("Q4_K", 14, "Q5_0"),
    ("Q5_K", 16, "Q5_1"),
    ("Q6_K", 18, "Q8_0"),
];

/// The matrices of `source` are what `kind` makes of their values in the model's own basis, and
/// everything else is as a program that knows nothing of ours expects it.
#[track_caller]
fn check(source: &Source, target: &Path, file_type: u32, kind: &'static dyn TensorType) {
    let exported = open(target);
    let metadata = exported.metadata();
    assert!(metadata.iter().all(|(key, _)| !key.starts_with("gridmill.")), "{metadata:?}");
    assert_eq!(metadata.get("general.file_type"), Some(&Value::U32(file_type)));
    assert_eq!(metadata.get("general.quantization_version"), Some(&Value::U32(2)));
    let others = |metadata: &Metadata| -> Vec<(String, Value)> {
        let set = ["general.file_type", "general.quantization_version"];
        let is_ours = |key: &str| key.starts_with("gridmill.") || set.contains(&key);
        let kept = metadata.iter().filter(|(key, _)| !is_ours(key));
        kept.map(|(key, value)| (key.to_string(), value.clone())).collect()
    };
    assert_eq!(others(metadata), others(source.metadata()), "all other keys stay");

    let names = |source: &Source| -> Vec<String> {
        source.tensors().map(|tensor| tensor.name.clone()).collect()
    };
    assert_eq!(names(&exported), names(source), "names and their order");
    assert_eq!(exported.raw_tensors().count(), exported.tensors().count(), "nothing but weights");
    for (before, after) in source.tensors().zip(exported.tensors()) {
        let name = &before.name;
        assert_eq!((before.rows, before.cols), (after.rows, after.cols), "{name}");
        let dimensions = exported.raw_tensor(name).unwrap().info.shape.len();
        let expected = if before.rows == 1 { by_name("F32").unwrap() } else { kind };
        assert_eq!(dimensions, if before.rows == 1 { 1 } else { 2 }, "{name}");
        assert_eq!(after.kind.name(), expected.name(), "{name}");
        let mut values = vec![0.0; before.len()];
        original(before, 0..before.rows, &mut values).unwrap();
        let mut codes = vec![0; before.rows * expected.row_bytes(before.cols).unwrap()];
        expected.encode(&values, before.cols, 0, &mut codes, &mut []);
        assert!(*after.codes == *codes, "{name}: not what {} makes of it", expected.name());
    }
}

/// Files with a rotation, with codes that rows share, and in the other form.
#[test]
fn weights_return_to_their_own_basis() {
    let folder = Scratch::new();
    for (model, more) in [
        ("llama", &["--to", "higgs4"][..]),
        ("qwen3", &["--to", "higgs2", "--transform", "hadamard:16", "--native-types"]),
        ("llama", &["--to", "VPTQ_V3_K16"]),
    ] {
        let (model, coded) = (model_path(&format!("{model}.gguf")), folder.join("coded.gguf"));
        succeeds(&[&["convert", text(&model), text(&coded)], more].concat());
        let source = open(&coded);
        assert!(source.tensors().any(|tensor| tensor.kind.id() >= PRIVATE_IDS));
        for (name, file_type, written) in KINDS {
            let target = folder.join("stock.gguf");
            succeeds(&["export", text(&coded), text(&target), "--to", name]);
            check(&source, &target, file_type, by_name(written).unwrap());
        }
    }
    let stock = folder.join("stock.gguf");
    let args = ["-p", "Hello", "-n", "4", "--temp", "0", "--ignore-eos"];
    assert!(!succeeds(&[&["run", text(&stock)], &args[..]].concat()).is_empty());
    assert_eq!(folder.list(), ["coded.gguf", "stock.gguf"], "nothing is left beside the target");
}

#[test]
fn narrow_rows_get_another_type_and_it_is_said() {
    let folder = Scratch::new();
    let target = folder.join("out.gguf");
    let llama = model_path("llama.gguf");
    let output = gridmill(&["export", text(&llama), text(&target), "--to", "q4_k"]);
    let expected = "rows of 64, no multiple of 256: written as Q5_0 instead of Q4_K";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));

    let wide = one_layer(&folder, 64);
    for (name, file_type, _) in KINDS {
        let output = gridmill(&["export", text(&wide), text(&target), "--to", name]);
        assert_eq!(stderr(&output), "", "rows of 512 fit {name}");
        check(&open(&wide), &target, file_type, by_name(name).unwrap());
    }
}

#[test]
fn stock_weights_can_stay() {
    let folder = Scratch::new();
    let (coded, target) = (folder.join("coded.gguf"), folder.join("out.gguf"));
    let source = model_path("llama.gguf");
    let few = ["--tensor-type", "attn_q=Q8_0", "--embedding-type", "F16"];
    succeeds(&[&["convert", text(&source), text(&coded)], &few[..]].concat());
    let kinds = |args: &[&str]| -> Vec<&str> {
        succeeds(&[&["export", text(&coded), text(&target), "--to", "q5_1"], args].concat());
        let target = open(&target);
        let kind = |name| target.tensor(name).unwrap().unwrap().kind.name();
        ["blk.1.attn_q.weight", "token_embd.weight", "blk.1.attn_k.weight"].map(kind).to_vec()
    };
    assert_eq!(kinds(&[]), ["Q5_1", "Q5_1", "Q5_1"]);
    assert_eq!(kinds(&["--keep-stock"]), ["Q8_0", "F16", "Q5_1"]);
}

/// Keys of every type of value, of tools that we do not know, go through a conversion and back;
/// those of the importance matrix say how codes were made that are no more.
#[test]
fn keys_stay() {
    let folder = Scratch::new();
    let imatrix = [
        ("quantize.imatrix.file", Value::String("imatrix.gguf".to_string())),
        ("quantize.imatrix.dataset", Value::String("text.txt".to_string())),
        ("quantize.imatrix.entries_count", Value::I32(14)),
        ("quantize.imatrix.chunks_count", Value::I32(128)),
    ];
    let others = [
        ("general.license", Value::String("apache-2.0".to_string())),
        ("general.tags", Value::Array(Array::String(vec![String::new(), "a\u{e9}".to_string()]))),
        ("general.sampling.temp", Value::F32(0.6)),
        ("quantize.other", Value::U8(200)),
        ("mine.i8", Value::I8(-3)),
        ("mine.u16", Value::U16(60_000)),
        ("mine.i16", Value::I16(-300)),
        ("mine.u32", Value::U32(u32::MAX)),
        ("mine.bool", Value::Bool(true)),
        ("mine.u64", Value::U64(u64::MAX)),
        ("mine.i64", Value::I64(i64::MIN)),
        ("mine.f64", Value::F64(1e300)),
        ("mine.bytes", Value::Array(Array::U8(vec![0, 255]))),
        ("mine.nothing", Value::Array(Array::F64(Vec::new()))),
    ];
    let mut parts = Parts::of("llama");
    for (key, value) in imatrix.iter().chain(&others) {
        assert!(parts.metadata.get(key).is_none(), "{key} is new");
        parts.metadata.set(*key, value.clone());
    }
    let (source, coded) = (parts.write(&folder), folder.join("coded.gguf"));
    let (stock, kept) = (folder.join("stock.gguf"), folder.join("kept.gguf"));
    succeeds(&["convert", text(&source), text(&coded), "--to", "higgs4"]);
    succeeds(&["export", text(&coded), text(&stock), "--to", "Q8_0"]);
    succeeds(&["export", text(&coded), text(&kept), "--to", "Q8_0", "--keep-imatrix"]);
    let keys = |metadata: &Metadata| -> Vec<(String, Value)> {
        let set = ["general.file_type", "general.quantization_version"];
        let others = metadata.iter().filter(|(key, _)| !set.contains(key));
        others.map(|(key, value)| (key.to_string(), value.clone())).collect()
    };
    let mut expected = keys(&parts.metadata);
    assert_eq!(keys(open(&kept).metadata()), expected);
    expected.retain(|(key, _)| !imatrix.iter().any(|(known, _)| known == key));
    assert_eq!(keys(open(&stock).metadata()), expected);
    assert_eq!(expected.len() + imatrix.len(), keys(&parts.metadata).len());
}

#[test]
fn help_lists_the_types() {
    let help = succeeds(&["export", "--help"]);
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let names = KINDS.map(|(name, ..)| name).join(", ");
    assert!(help.contains(&names) && help.contains("norms and biases become F32"), "{help}");
}

#[test]
fn bad_input_is_refused() {
    let folder = Scratch::new();
    let bytes = fs::read(model_path("llama.gguf")).unwrap();
    let model = folder.file("model.gguf", &bytes);
    let target = folder.join("out.gguf");
    let to = |source: &Path, target: &Path, kind: &str, code: i32, message: &str| {
        fails(&["export", text(source), text(target), "--to", kind], code, message);
    };
    to(&model, &model, "F16", 1, "is the same file as the source");
    to(&model, &target, "Q2_K", 2, "expected one of F32, F16, BF16, ");
    to(&model, &target, "higgs4", 2, "found `higgs4`");
    to(&model, &target, "HIGGS_P2_N256", 2, "found `HIGGS_P2_N256`");
    to(&folder.join("absent.gguf"), &target, "F16", 1, "absent.gguf");
    to(&folder.file("notes.txt", b"not a model"), &target, "F16", 1, "not a GGUF file");
    to(&model, &folder.join("nowhere/out.gguf"), "F16", 1, "does not exist");
    fails(&["export", text(&model), text(&target)], 2, "--to <TYPE>");
    let half = folder.file("half.gguf", &bytes[..bytes.len() / 2]);
    to(&half, &target, "F16", 1, "but the file has");
    assert!(fs::read(&model).unwrap() == bytes, "the source is what it was");
    assert_eq!(folder.list(), ["half.gguf", "model.gguf", "notes.txt"]);
}
