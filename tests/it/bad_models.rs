//! Models that must be refused, each with its message: a golden file with one thing wrong.

use gridmill::file::Value;
use gridmill::run::{Device, Options, Session};

use crate::models::{Part, Parts, open};
use crate::scratch::Scratch;

/// What is wrong, and the message after the file's path.
type Case = (fn(&mut Parts), &'static str);

/// The message that refuses `llama` after an edit, and the path of the file: 2 layers, width 64,
/// 4 query heads and 2 key heads of 16 values.
fn refusal(edit: fn(&mut Parts)) -> (String, String) {
    let mut parts = Parts::of("llama");
    edit(&mut parts);
    let folder = Scratch::new();
    let path = parts.write(&folder);
    let options = Options { device: Device::Reference, ..Options::default() };
    let error = Session::open(&open(&path), &options).err().expect("a model to refuse");
    (path.display().to_string(), error.to_string())
}

fn check(cases: &[Case]) {
    for &(edit, expected) in cases {
        let (path, found) = refusal(edit);
        assert_eq!(found, format!("{path}{expected}"));
    }
}

fn number(parts: &mut Parts, key: &str, value: u64) {
    parts.set(&format!("llama.{key}"), Value::U64(value));
}

#[test]
fn architectures() {
    check(&[(
        |parts| parts.set("general.architecture", Value::String("mamba".to_string())),
        ": unknown architecture `mamba`, expected gemma3, llama, phi3, qwen2, qwen3, qwen3moe, \
         smollm3",
    )]);
}

#[test]
fn no_architecture() {
    let cases: [Case; 2] = [
        (
            |parts| parts.set("general.architecture", Value::U32(3)),
            "metadata key `general.architecture`: expected a string, found U32(3)",
        ),
        (
            |parts| drop(parts.metadata.remove("general.architecture")),
            "metadata key `general.architecture` is missing",
        ),
    ];
    for (edit, expected) in cases {
        let (path, found) = refusal(edit);
        assert_eq!(found, format!("{path}: {expected}"));
    }
}

#[test]
fn tensors() {
    check(&[
        (|parts| parts.remove("token_embd.weight"), ": tensor `token_embd.weight` is missing"),
        (|parts| parts.remove("output_norm.weight"), ": tensor `output_norm.weight` is missing"),
        (|parts| parts.remove("blk.1.ffn_up.weight"), ": tensor `blk.1.ffn_up.weight` is missing"),
        (
            |parts| parts.tensor("blk.0.attn_k.weight").shape = vec![32, 64],
            ": tensor `blk.0.attn_k.weight`: expected shape [32, 64], found [64, 32] \
             (outputs first)",
        ),
        (
            |parts| parts.tensor("blk.1.ffn_norm.weight").shape = vec![32, 2],
            ": tensor `blk.1.ffn_norm.weight`: expected shape [64], found [2, 32] \
             (outputs first)",
        ),
        (
            |parts| surplus(parts, "blk.2.attn_norm.weight"),
            ": tensor `blk.2.attn_norm.weight` is not part of architecture `llama`",
        ),
        (
            |parts| surplus(parts, "blk.0.attn_q_norm.weight"),
            ": tensor `blk.0.attn_q_norm.weight` is not part of architecture `llama`",
        ),
    ]);
}

fn surplus(parts: &mut Parts, name: &str) {
    let Part { shape, kind, bytes, .. } = parts.tensor("blk.0.attn_norm.weight");
    let part =
        Part { name: name.to_string(), shape: shape.clone(), kind: *kind, bytes: bytes.clone() };
    parts.tensors.push(part);
}

#[test]
fn head_counts() {
    check(&[
        (
            |parts| number(parts, "attention.head_count", 0),
            ": llama.attention.head_count: expected 1 to 1048576, found 0",
        ),
        (
            |parts| number(parts, "attention.head_count", 1 << 60),
            ": llama.attention.head_count: expected 1 to 1048576, found 1152921504606846976",
        ),
        (
            |parts| number(parts, "attention.head_count_kv", 0),
            ": llama.attention.head_count_kv: expected 1 to 1048576, found 0",
        ),
        (
            |parts| number(parts, "attention.head_count_kv", 3),
            ": llama.attention.head_count_kv: expected a divisor of 4, found 3",
        ),
        (
            |parts| number(parts, "attention.head_count_kv", 8),
            ": llama.attention.head_count_kv: expected a divisor of 4, found 8",
        ),
        (
            |parts| number(parts, "attention.head_count", 6),
            ": llama.attention.head_count: 6 heads do not divide a width of 64",
        ),
        (
            |parts| number(parts, "attention.head_count", 128),
            ": llama.attention.head_count: 128 heads do not divide a width of 64",
        ),
        (
            |parts| parts.metadata.set("llama.attention.value_length", Value::U32(32)),
            ": llama.attention.value_length: expected 16, as keys have, found 32",
        ),
        (
            |parts| drop(parts.metadata.remove("llama.attention.head_count")),
            ": llama.attention.head_count is missing",
        ),
    ]);
}

#[test]
fn widths_and_layers() {
    check(&[
        (
            |parts| number(parts, "block_count", 0),
            ": llama.block_count: expected 1 to 4096, found 0",
        ),
        (
            |parts| number(parts, "block_count", 4097),
            ": llama.block_count: expected 1 to 4096, found 4097",
        ),
        (|parts| number(parts, "block_count", 3), ": tensor `blk.2.attn_norm.weight` is missing"),
        (
            |parts| number(parts, "embedding_length", 1 << 21),
            ": llama.embedding_length: expected 1 to 1048576, found 2097152",
        ),
        (
            |parts| number(parts, "embedding_length", 128),
            ": tensor `token_embd.weight`: expected shape [128, 128], found [128, 64] \
             (outputs first)",
        ),
        (
            |parts| number(parts, "feed_forward_length", 64),
            ": tensor `blk.0.ffn_gate.weight`: expected shape [64, 64], found [96, 64] \
             (outputs first)",
        ),
        (
            |parts| number(parts, "context_length", 0),
            ": llama.context_length: expected 1 to 2147483648, found 0",
        ),
        (
            |parts| drop(parts.metadata.remove("llama.embedding_length")),
            ": llama.embedding_length is missing",
        ),
    ]);
}

#[test]
fn rope_and_norms() {
    check(&[
        (
            |parts| number(parts, "rope.dimension_count", 15),
            ": llama.rope.dimension_count: expected an even number up to 16, found 15",
        ),
        (
            |parts| number(parts, "rope.dimension_count", 18),
            ": llama.rope.dimension_count: expected an even number up to 16, found 18",
        ),
        (
            |parts| {
                let kind = Value::String("dynamic".to_string());
                parts.metadata.set("llama.rope.scaling.type", kind);
            },
            ": llama.rope.scaling.type: `dynamic` is not supported, expected `none`, `linear`, \
             `longrope` or `yarn`",
        ),
        (
            |parts| {
                let kind = Value::String("yarn".to_string());
                parts.metadata.set("llama.rope.scaling.type", kind);
            },
            ": llama.rope.scaling.factor is missing, which `yarn` needs",
        ),
        (
            |parts| parts.set("llama.rope.freq_base", Value::F32(f32::INFINITY)),
            ": llama.rope.freq_base: expected a number of at least 0, found inf",
        ),
        (
            |parts| parts.set("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)),
            ": llama.attention.layer_norm_rms_epsilon: expected a number of at least 0, found NaN",
        ),
        (
            |parts| parts.set("llama.attention.layer_norm_rms_epsilon", Value::F32(-1.0)),
            ": llama.attention.layer_norm_rms_epsilon: expected a number of at least 0, found -1",
        ),
        (
            |parts| drop(parts.metadata.remove("llama.attention.layer_norm_rms_epsilon")),
            ": llama.attention.layer_norm_rms_epsilon is missing",
        ),
    ]);
}
