//! `gridmill compare`: the errors of weights and answers, and files that cannot be compared.

use std::path::Path;

use gridmill::file::{Array, Value};
use gridmill::run::walk::original;

use crate::cli::{fails, json, succeeds, text};
use crate::models::{Parts, model_path, open};
use crate::scratch::Scratch;

fn converted(folder: &Scratch, model: &Path, kind: &str) -> std::path::PathBuf {
    let target = folder.join(format!("{kind}.gguf"));
    succeeds(&["convert", text(model), text(&target), "--to", kind]);
    target
}

#[test]
fn errors_are_those_of_the_values() {
    let folder = Scratch::new();
    let a = model_path("llama.gguf");
    for kind in ["higgs2", "VPTQ_V3_K16", "Q8_0"] {
        let b = converted(&folder, &a, kind);
        let compared = json(&["compare", text(&a), text(&b), "--json"]);
        let bytes = |path: &Path| std::fs::metadata(path).unwrap().len();
        assert_eq!(compared["bytes_a"], bytes(&a));
        assert_eq!(compared["bytes_b"], bytes(&b));
        assert!(compared.get("perplexity_a").is_none(), "there is no text");
        let tensors = compared["tensors"].as_array().unwrap();
        let (first, second) = (open(&a), open(&b));
        assert_eq!(tensors.len(), first.tensors().count());
        for (found, a) in tensors.iter().zip(first.tensors()) {
            let b = second.tensor(&a.name).unwrap().unwrap();
            assert_eq!(found["name"], a.name);
            assert_eq!(found["type_a"], a.kind.name());
            assert_eq!(found["type_b"], b.kind.name());
            assert_eq!(found["bytes_a"], a.bytes());
            assert_eq!(found["bytes_b"], b.bytes());
            let mut values = [vec![0.0; a.len()], vec![0.0; a.len()]];
            original(a, 0..a.rows, &mut values[0]).unwrap();
            original(&b, 0..a.rows, &mut values[1]).unwrap();
            let square = |x: f32| f64::from(x) * f64::from(x);
            let noise: f64 = values[0].iter().zip(&values[1]).map(|(a, b)| square(a - b)).sum();
            let signal: f64 = values[0].iter().map(|&a| square(a)).sum();
            let (found, expected) = (found["error"].as_f64().unwrap(), noise / signal);
            // The difference is taken in single precision here.
            assert!((found - expected).abs() <= 1e-6 * expected, "{}: {found}", a.name);
            assert_eq!(found > 0.0, a.rows > 1, "{}: norms stay", a.name);
        }
    }
    let same = json(&["compare", text(&a), text(&a), "--json"]);
    assert!(same["tensors"].as_array().unwrap().iter().all(|tensor| tensor["error"] == 0.0));
    let table = succeeds(&["compare", text(&a), text(&a)]);
    assert!(table.contains("blk.0.attn_q.weight") && table.contains("161216"), "{table}");
}

/// What `perplexity` says of each alone, and of the second against the first.
#[test]
fn answers_are_those_of_perplexity() {
    let folder = Scratch::new();
    let a = model_path("llama.gguf");
    let b = converted(&folder, &a, "higgs2");
    let (a, b) = (text(&a), text(&b));
    let words = folder.file("words.txt", "the cat sat on the mat and ".repeat(20).as_bytes());
    let base = folder.join("base.logits");
    let common = ["--ctx", "32", "--json", "--chunks", "5"];
    let score = |model: &str, flag: &str| {
        let args = ["perplexity", model, text(&words), flag, text(&base)];
        json(&[&args[..], &common].concat())
    };
    let (first, second) = (score(a, "--save-logits"), score(b, "--against"));
    let both = json(&[&["compare", a, b, "--text", text(&words)], &common[..]].concat());
    assert_eq!(both["perplexity_a"], first["perplexity"]);
    assert_eq!(both["perplexity_b"], second["perplexity"]);
    assert_eq!(both["tokens"], first["tokens"]);
    assert_eq!(both["same_top1"], second["same_top1"]);
    for key in ["kl_mean", "kl_mean_se"] {
        let (found, expected) = (both[key].as_f64().unwrap(), second[key].as_f64().unwrap());
        assert!(expected > 1e-3, "{key}: the models differ: {second}");
        // A file of distributions rounds to 1 / 65535 of the range of log-probabilities.
        assert!((found - expected).abs() < 1e-5, "{key}: expected {expected}, found {found}");
    }
    for key in ["tps_a", "tps_b"] {
        assert!(both[key].as_f64().is_some_and(|rate| rate > 0.0), "{both}");
    }
    let table = succeeds(&["compare", a, b, "--text", text(&words), "--ctx", "32"]);
    for expected in ["perplexity of A", "perplexity of B", "tokens per second", "KL divergence"] {
        assert!(table.contains(expected), "{expected} in {table}");
    }
}

#[test]
fn files_of_different_models_are_refused() {
    let folder = Scratch::new();
    let a = model_path("llama.gguf");
    let other = |b: &Path, message: &str| fails(&["compare", text(&a), text(b)], 1, message);
    other(&model_path("qwen3.gguf"), "expected shape [32, 64] as in ");
    let mut parts = Parts::of("llama");
    parts.remove("blk.1.ffn_up.weight");
    let lacking = parts.write(&folder);
    let message = "edited.gguf: tensor `blk.1.ffn_up.weight` is missing, but ";
    other(&lacking, message);
    fails(&["compare", text(&lacking), text(&a)], 1, "has it: expected two files of one model");
    let mut parts = Parts::of("llama");
    let mut tokens = parts.metadata.require_strings("tokenizer.ggml.tokens").unwrap().to_vec();
    tokens[5] = "five".to_string();
    parts.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens.clone())));
    other(&parts.write(&folder), "the vocabulary differs: expected token 5 `");
    tokens.pop();
    parts.set("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
    other(&parts.write(&folder), "expected a vocabulary of 128 tokens as in the other, found 127");

    other(&folder.join("absent.gguf"), "absent.gguf");
    other(&folder.file("notes.txt", b"not a model"), "not a GGUF file");
    let short = folder.file("short.txt", b"hi");
    let a = text(&a);
    fails(&["compare", a, a, "--text", text(&short)], 1, "expected at least 512 tokens");
    fails(&["compare", a, a, "--text", "absent.txt"], 1, "absent.txt");
    fails(&["compare", a, a, "--chunks", "2"], 2, "--text");
    fails(&["compare", a], 2, "<B>");
}
