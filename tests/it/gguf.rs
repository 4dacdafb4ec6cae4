//! What is written is read back: values, tensors, getters, copies.

use std::fs;

use gridmill::file::{Array, Gguf, Metadata, NewTensor, Source, Value, Writer};
use gridmill::types::raw::{self, RAW_TYPES};
use proptest::prelude::*;

use crate::scratch::{KINDS, Scratch};

fn values() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f32>().prop_map(Value::F32),
        any::<f64>().prop_map(Value::F64),
        any::<bool>().prop_map(Value::Bool),
        any::<String>().prop_map(Value::String),
        arrays().prop_map(Value::Array),
    ]
}

fn arrays() -> impl Strategy<Value = Array> {
    use prop::collection::vec;
    prop_oneof![
        vec(any::<u8>(), 0..9).prop_map(Array::U8),
        vec(any::<i8>(), 0..9).prop_map(Array::I8),
        vec(any::<u16>(), 0..9).prop_map(Array::U16),
        vec(any::<i16>(), 0..9).prop_map(Array::I16),
        vec(any::<u32>(), 0..9).prop_map(Array::U32),
        vec(any::<i32>(), 0..9).prop_map(Array::I32),
        vec(any::<u64>(), 0..9).prop_map(Array::U64),
        vec(any::<i64>(), 0..9).prop_map(Array::I64),
        vec(any::<f32>(), 0..9).prop_map(Array::F32),
        vec(any::<f64>(), 0..9).prop_map(Array::F64),
        vec(any::<bool>(), 0..9).prop_map(Array::Bool),
        vec(any::<String>(), 0..9).prop_map(Array::String),
    ]
}

/// Any stock type, with a shape that its block divides.
fn tensors() -> impl Strategy<Value = (usize, Vec<u64>)> {
    (0..RAW_TYPES.len(), prop::collection::vec(0..4u64, 0..=4)).prop_map(|(index, mut shape)| {
        let len = RAW_TYPES[index].block_len;
        match shape.first_mut() {
            Some(cols) => *cols *= len,
            None if len > 1 => shape.push(len),
            None => {}
        }
        (index, shape)
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn round_trip(
        entries in prop::collection::vec(("[a-z]{1,8}(\\.[a-z_]{1,8})?", values()), 0..12),
        shapes in prop::collection::vec(tensors(), 0..12),
        piece in 1..200usize,
    ) {
        let mut metadata = Metadata::new();
        entries.into_iter().for_each(|(key, value)| metadata.set(key, value));
        let tensors: Vec<NewTensor> = shapes
            .iter()
            .enumerate()
            .map(|(at, (kind, shape))| {
                NewTensor::new(&format!("t{at}"), shape, RAW_TYPES[*kind]).expect("a right shape")
            })
            .collect();
        let total: u64 = tensors.iter().map(NewTensor::bytes).sum();
        let data: Vec<u8> = (0..total).map(|at| (at * 31 % 251) as u8).collect();
        let folder = Scratch::new();
        let path = folder.join("out.gguf");
        let mut writer = Writer::create(&path, &[], &metadata, tensors.clone()).expect("a target");
        let expected_bytes = writer.file_bytes();
        data.chunks(piece).for_each(|piece| writer.write(piece).expect("the tensors have room"));
        writer.finish().expect("all bytes are written");

        prop_assert_eq!(fs::metadata(&path).expect("the file").len(), expected_bytes);
        let source = Source::open_with(&path, KINDS).expect("what is written can be read");
        // Through text, since NaN is not equal to itself.
        prop_assert_eq!(format!("{:?}", dump(source.metadata())), format!("{:?}", dump(&metadata)));
        let mut read = Vec::new();
        for (raw, tensor) in source.raw_tensors().zip(&tensors) {
            prop_assert_eq!(&raw.info.name, tensor.name());
            prop_assert_eq!(&raw.info.shape, tensor.shape());
            prop_assert_eq!(raw.info.kind, tensor.kind());
            prop_assert_eq!(raw.offset % 32, 0);
            read.extend_from_slice(&source.raw_bytes(&raw));
        }
        prop_assert_eq!(source.raw_tensors().count(), tensors.len());
        prop_assert_eq!(read, data);
    }
}

fn dump(metadata: &Metadata) -> Vec<(&str, &Value)> {
    metadata.iter().collect()
}

#[test]
fn getters() {
    let mut metadata = Metadata::new();
    let text = |text: &str| Value::String(text.to_string());
    metadata.set("u8", Value::U8(7));
    metadata.set("i64", Value::I64(7));
    metadata.set("minus", Value::I32(-7));
    metadata.set("f64", Value::F64(0.5));
    metadata.set("bool", Value::Bool(true));
    metadata.set("text", text("x"));
    metadata.set("u16s", Value::Array(Array::U16(vec![1, 2])));
    metadata.set("f32s", Value::Array(Array::F32(vec![0.5])));
    metadata.set("texts", Value::Array(Array::String(vec!["a".into()])));
    assert_eq!(metadata.get_u64("u8").expect("a u8"), Some(7));
    assert_eq!(metadata.get_u64("i64").expect("an i64"), Some(7));
    assert_eq!(metadata.get_u64("none").expect("not there"), None);
    assert_eq!(metadata.get_f32("f64").expect("a float"), Some(0.5));
    assert_eq!(metadata.get_bool("bool").expect("a bool"), Some(true));
    assert_eq!(metadata.get_str("text").expect("a string"), Some("x"));
    assert_eq!(metadata.get_i32s("u16s").expect("integers"), Some(vec![1, 2]));
    assert_eq!(metadata.get_f32s("f32s").expect("floats"), Some(vec![0.5]));
    assert_eq!(metadata.get_strings("texts").expect("strings"), Some(&["a".to_string()][..]));
    let fails = |error: gridmill::Error, message: &str| assert_eq!(error.to_string(), message);
    fails(
        metadata.get_u64("text").expect_err("a string"),
        "metadata key `text`: expected an integer that is not negative, found string",
    );
    fails(
        metadata.get_u64("minus").expect_err("negative"),
        "metadata key `minus`: expected an integer that is not negative, found I32(-7)",
    );
    fails(
        metadata.get_f32s("u16s").expect_err("integers"),
        "metadata key `u16s`: expected an array of floats, found array of u16",
    );
    fails(metadata.require_u64("none").expect_err("missing"), "metadata key `none` is missing");

    metadata.set("bool", Value::Bool(false));
    assert_eq!(metadata.remove("u8"), Some(Value::U8(7)));
    assert_eq!(metadata.get_bool("bool").expect("a bool"), Some(false));
    let keys: Vec<&str> = metadata.iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["i64", "minus", "f64", "bool", "text", "u16s", "f32s", "texts"]);
    metadata.remove_prefix("u");
    assert_eq!(metadata.get("u16s"), None);
    assert_eq!(metadata.get_str("text").expect("a string"), Some("x"));
}

#[test]
fn an_alignment_is_read_and_not_written() {
    use crate::scratch::Raw;
    let raw = Raw::head(2, 1).entry("general.alignment", 64).tensor("x", &[4], 24, 0).tensor(
        "y",
        &[4],
        24,
        64,
    );
    let mut bytes = raw.0;
    bytes.resize(bytes.len().next_multiple_of(64) + 68, 9);
    let gguf = Gguf::parse(&bytes).expect("a right file");
    assert_eq!((gguf.alignment, gguf.data_start % 64), (64, 0));
    let folder = Scratch::new();
    let tensors = vec![NewTensor::new("x", &[4], raw::I8).expect("a right tensor")];
    let path = folder.join("out.gguf");
    let mut writer = Writer::create(&path, &[], &gguf.metadata, tensors).expect("a target");
    writer.write(&[1; 4]).expect("four bytes");
    writer.finish().expect("whole");
    let written = Gguf::parse(&fs::read(&path).expect("the file")).expect("a right file");
    assert_eq!((written.alignment, written.metadata.len()), (32, 0));
}

#[test]
fn tensors_that_are_no_weights_are_kept_apart() {
    let folder = Scratch::new();
    let path = folder.join("out.gguf");
    let kind = |id| raw::find(id, &[]).expect("a stock type");
    let tensor = |name, shape: &[u64], id| NewTensor::new(name, shape, kind(id)).expect("right");
    let tensors = vec![
        tensor("weight", &[4, 3, 2], 0),
        tensor("ids", &[5], 26),
        tensor("codebook", &[256, 2], 15),
        tensor("none", &[4, 0], 0),
        tensor("norm", &[2], 0),
    ];
    let bytes: u64 = tensors.iter().map(NewTensor::bytes).sum();
    let mut writer = Writer::create(&path, &[], &Metadata::new(), tensors).expect("a target");
    writer.write(&vec![0; bytes as usize]).expect("room");
    writer.finish().expect("whole");
    let source = Source::open_with(&path, KINDS).expect("a right file");
    let weights: Vec<_> =
        source.tensors().map(|weight| (weight.name.as_str(), weight.rows, weight.cols)).collect();
    assert_eq!(weights, [("weight", 6, 4), ("norm", 1, 2)]);
    let others: Vec<&str> = source.other_tensors().map(|raw| raw.info.name.as_str()).collect();
    assert_eq!(others, ["ids", "codebook", "none"]);
    assert!(source.tensor("nothing").expect("not there").is_none());
    let error = source.tensor("codebook").err().expect("no such type here").to_string();
    let expected = "tensor `codebook` has type Q8_K (number 15, 584 bytes), which is not supported";
    assert!(error.ends_with(expected), "{error}");
    let error = source.architecture().expect_err("no metadata").to_string();
    assert!(error.ends_with("metadata key `general.architecture` is missing"), "{error}");
}
