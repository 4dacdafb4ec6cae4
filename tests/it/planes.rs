//! The planes of our own types: written, read in both forms, and refused where they do not fit.

use std::path::PathBuf;

use gridmill::file::planes::{
    Form, PlanesBuilder, Record, Role, transform_by_text, transform_text,
};
use gridmill::file::{Array, Metadata, NewTensor, RawTensor, Source, Value, Writer};
use gridmill::types::{Basis, Tensor, raw};

use crate::scratch::{GRID_TABLE, Grid, KINDS, Scratch};

const HADAMARD: Basis = Basis::Hadamard { block: 64 };

fn record(name: &str) -> Record {
    let (rows, cols, group) = (6, 192, 48);
    Record {
        name: name.to_string(),
        kind: &Grid,
        rows,
        cols,
        basis: HADAMARD,
        group,
        sign_seed: 42,
        capture: 0.0,
    }
}

/// A file to be changed before it is written: metadata, and tensors with their bytes.
struct Model {
    metadata: Metadata,
    tensors: Vec<(NewTensor, Vec<u8>)>,
}

impl Model {
    /// Two weights in planes around a stock one.
    fn new(form: Form) -> Model {
        let mut builder = PlanesBuilder::new(form);
        let mut tensors = Vec::new();
        let mut add = |record: Record, fill: u8| {
            for plane in builder.add(record).expect("a right record") {
                let bytes = plane.tensor.bytes() as usize;
                let bytes = match plane.role {
                    Role::Codes => vec![fill; bytes],
                    Role::Norms => vec![0x3c; bytes],
                    Role::Table => GRID_TABLE.iter().map(|&point| point as u8).collect(),
                    Role::Signs => (0..bytes).map(|at| if at % 3 == 0 { 255 } else { 1 }).collect(),
                    role => panic!("a grid has no plane in the role `{}`", role.name()),
                };
                tensors.push((plane.tensor, bytes));
            }
        };
        add(record("blk.0.ffn_up.weight"), 1);
        add(record("blk.0.ffn_gate.weight"), 2);
        let f32 = raw::find(0, &[]).expect("a stock type");
        let norm = NewTensor::new("output_norm.weight", &[192], f32).expect("right");
        tensors.push((norm, vec![0; 768]));
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", Value::String("llama".to_string()));
        metadata.set("general.file_type", Value::U32(3));
        metadata.set("general.alignment", Value::U32(64));
        metadata.set("split.count", Value::U16(3));
        builder.finish(&mut metadata);
        Model { metadata, tensors }
    }

    fn write(&self, folder: &Scratch) -> PathBuf {
        let path = folder.join("out.gguf");
        let tensors = self.tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
        let mut writer = Writer::create(&path, &[], &self.metadata, tensors).expect("a target");
        self.tensors.iter().for_each(|(_, bytes)| writer.write(bytes).expect("room"));
        writer.finish().expect("whole");
        path
    }

    fn open(&self) -> gridmill::Result<Source> {
        let folder = Scratch::new();
        let path = self.write(&folder);
        // Without the path, which differs from run to run. The mapping outlives the file.
        Source::open_with(&path, KINDS)
    }

    fn strings(&mut self, key: &str, change: impl Fn(&mut Vec<String>)) {
        let mut values = self.metadata.require_strings(key).expect("the registry").to_vec();
        change(&mut values);
        self.metadata.set(key, Value::Array(Array::String(values)));
    }

    fn numbers(&mut self, key: &str, change: impl Fn(&mut Vec<u64>)) {
        let mut values = self.metadata.require_u64s(key).expect("the registry");
        change(&mut values);
        self.metadata.set(key, Value::Array(Array::U64(values)));
    }

    /// Replaces a tensor's name, shape, type and bytes.
    fn replace(&mut self, name: &str, new: &str, shape: &[u64], id: u32) {
        let kind = raw::find(id, KINDS).expect("a known type");
        let tensor = NewTensor::new(new, shape, kind).expect("right");
        let bytes = vec![1; tensor.bytes() as usize];
        let at = self.tensors.iter().position(|(tensor, _)| tensor.name() == name);
        self.tensors[at.expect("the tensor is there")] = (tensor, bytes);
    }
}

#[track_caller]
fn check_weight(weight: &Tensor, name: &str, fill: u8) {
    assert_eq!(weight.name, name);
    assert_eq!((weight.rows, weight.cols, weight.group), (6, 192, 48));
    assert_eq!(weight.basis, HADAMARD);
    assert_eq!(&*weight.codes, vec![fill; 6 * 48]);
    assert_eq!(&*weight.norms, vec![0x3c; 6 * 4 * 2]);
    assert_eq!(weight.table.len(), 32);
    assert_eq!(weight.signs.len(), 192);
    let rows = weight.rows(2..5);
    assert_eq!((rows.codes.len(), rows.norms.len(), rows.table), (144, 24, &GRID_TABLE[..]));
}

#[test]
fn both_forms_are_read() {
    for form in [Form::Planes, Form::Native] {
        let model = Model::new(form);
        let names: Vec<&str> = model.tensors.iter().map(|(tensor, _)| tensor.name()).collect();
        // Table and signs are shared, so they come once.
        let expected = [
            "blk.0.ffn_up.codes",
            "blk.0.ffn_up.norms",
            "gridmill.table.grid_p2_n16",
            "gridmill.signs.192",
            "blk.0.ffn_gate.codes",
            "blk.0.ffn_gate.norms",
            "output_norm.weight",
        ];
        assert_eq!(names, expected);
        let shape = |at: usize| model.tensors[at].0.shape();
        let codes: &[u64] = if form == Form::Planes { &[48, 6] } else { &[192, 6] };
        assert_eq!(
            (shape(0), shape(1), shape(2), shape(3)),
            (codes, &[4, 6][..], &[2, 16][..], &[192][..])
        );
        let source = model.open().expect("a right file");
        let weights: Vec<&Tensor> = source.tensors().collect();
        assert_eq!(weights.len(), 3);
        check_weight(weights[0], "blk.0.ffn_up.weight", 1);
        check_weight(weights[1], "blk.0.ffn_gate.weight", 2);
        assert_eq!(weights[2].name, "output_norm.weight");
        let found = source.tensor("blk.0.ffn_gate.weight").expect("right").expect("there");
        check_weight(&found, "blk.0.ffn_gate.weight", 2);
        assert_eq!(source.other_tensors().count(), 0);
        assert_eq!(source.raw_tensors().count(), 7);
        assert_eq!(source.architecture().expect("a string"), "llama");
    }
}

#[test]
fn the_metadata_of_a_new_file() {
    let metadata = Model::new(Form::Planes).metadata;
    let keys: Vec<&str> = metadata.iter().map(|(key, _)| key).collect();
    let expected = [
        "general.architecture",
        "general.quantization_version",
        "gridmill.format_version",
        "gridmill.needs_runtime",
        "gridmill.tensor.name",
        "gridmill.tensor.type",
        "gridmill.tensor.rows",
        "gridmill.tensor.cols",
        "gridmill.tensor.transform",
        "gridmill.tensor.group",
        "gridmill.tensor.sign_seed",
        "gridmill.plane.tensor",
        "gridmill.plane.role",
        "gridmill.plane.name",
    ];
    assert_eq!(keys, expected);
    assert_eq!(metadata.get("general.quantization_version"), Some(&Value::U32(2)));
    let mut stock = metadata.clone();
    PlanesBuilder::new(Form::Planes).finish(&mut stock);
    assert_eq!(stock.len(), 2, "a file without planes has no registry: {stock:?}");
}

/// A changed file must be refused with this message.
#[track_caller]
fn refused(change: impl FnOnce(&mut Model), message: &str) {
    let mut model = Model::new(Form::Planes);
    change(&mut model);
    let error = model.open().err().expect(message).to_string();
    let (_, error) = error.split_once("out.gguf: ").expect("the path comes first");
    assert_eq!(error, message);
}

#[test]
fn registries_that_contradict_themselves() {
    refused(
        |model| model.metadata.set("gridmill.format_version", Value::U32(2)),
        "`gridmill.format_version` is 2, expected 1",
    );
    refused(
        |model| drop(model.metadata.remove("gridmill.tensor.rows")),
        "metadata key `gridmill.tensor.rows` is missing",
    );
    refused(
        |model| model.numbers("gridmill.tensor.group", |groups| groups.truncate(1)),
        "`gridmill.tensor.group` has 1 elements, expected 2",
    );
    let up = "registry: tensor `blk.0.ffn_up.weight`";
    let strings = |key: &'static str, at: usize, text: &'static str, message: &str| {
        let change = |model: &mut Model| model.strings(key, |list| list[at] = text.to_string());
        refused(change, message);
    };
    strings("gridmill.tensor.type", 0, "GRID_9", &format!("{up}: unknown type `GRID_9`"));
    strings(
        "gridmill.tensor.type",
        0,
        "F32",
        &format!("{up}: type F32 is a stock type, which has no planes"),
    );
    strings(
        "gridmill.tensor.transform",
        0,
        "fourier:3",
        &format!("{up}: unknown transform `fourier:3`"),
    );
    let hadamard = "expected a Hadamard block that is a power of two, found 48";
    let kronecker = "expected a transform of 192 values, found one of 12 * 32";
    let paley = "expected a Hadamard order of Paley's up to 256, found 6";
    strings(
        "gridmill.tensor.transform",
        0,
        "kronecker:6x32",
        &format!("{up}: transform `kronecker:6x32`: {paley}"),
    );
    strings(
        "gridmill.tensor.transform",
        0,
        "hadamard:48",
        &format!("{up}: transform `hadamard:48`: {hadamard}"),
    );
    strings(
        "gridmill.tensor.transform",
        0,
        "kronecker:12x32",
        &format!("{up}: transform `kronecker:12x32`: {kronecker}"),
    );
    strings(
        "gridmill.tensor.transform",
        0,
        "none",
        &format!("{up}: type and transform allow no plane in the role `signs`"),
    );
    strings("gridmill.tensor.name", 1, "blk.0.ffn_up.weight", &format!("{up} occurs twice"));
    strings("gridmill.plane.role", 0, "scales", &format!("{up}: unknown role `scales`"));
    strings("gridmill.plane.role", 0, "norms", &format!("{up}: two planes in the role `norms`"));
}

#[test]
fn registries_with_numbers_that_do_not_fit() {
    let up = "registry: tensor `blk.0.ffn_up.weight`";
    let numbers = |key: &'static str, value: u64, message: &str| {
        refused(|model| model.numbers(key, |list| list[0] = value), message);
    };
    numbers(
        "gridmill.tensor.group",
        40,
        &format!("{up}: group 40, expected a multiple of 16 that divides 192 columns"),
    );
    numbers(
        "gridmill.tensor.rows",
        1 << 60,
        &format!(
            "{up}: 1152921504606846976 rows of 192 columns, expected 1 to 17592186044416 values"
        ),
    );
    numbers(
        "gridmill.plane.tensor",
        9,
        "registry: plane `blk.0.ffn_up.codes` belongs to tensor 9, but there are 2",
    );
    refused(
        |model| {
            model.strings("gridmill.plane.role", |list| drop(list.remove(0)));
            model.strings("gridmill.plane.name", |list| drop(list.remove(0)));
            model.numbers("gridmill.plane.tensor", |list| *list = list[1..].to_vec());
        },
        &format!("{up}: no plane in the role `codes`"),
    );
    refused(
        |model| {
            let taken = "blk.0.ffn_up.codes".to_string();
            model.strings("gridmill.plane.name", |names| names[4] = taken.clone());
        },
        "registry: tensor `blk.0.ffn_gate.weight`: plane `blk.0.ffn_up.codes` is used twice",
    );
}

#[test]
fn planes_that_do_not_fit() {
    let up = "tensor `blk.0.ffn_up.weight`";
    let replaced = |name: &'static str, new: &'static str, shape: &[u64], id, message: &str| {
        refused(|model| model.replace(name, new, shape, id), message);
    };
    replaced(
        "blk.0.ffn_up.codes",
        "other",
        &[1],
        24,
        &format!("{up}: plane `blk.0.ffn_up.codes` is not in the file"),
    );
    replaced(
        "blk.0.ffn_up.codes",
        "blk.0.ffn_up.codes",
        &[48, 5],
        24,
        &format!(
            "{up}: plane `blk.0.ffn_up.codes` has \
             type I8 and shape [48, 5], expected I8 and [48, 6]"
        ),
    );
    replaced(
        "blk.0.ffn_up.norms",
        "blk.0.ffn_up.norms",
        &[4, 6],
        0,
        &format!(
            "{up}: plane `blk.0.ffn_up.norms` has \
             type F32 and shape [4, 6], expected F16 and [4, 6]"
        ),
    );
    replaced(
        "gridmill.table.grid_p2_n16",
        "gridmill.table.grid_p2_n16",
        &[2, 15],
        24,
        &format!(
            "{up}: plane `gridmill.table.grid_p2_n16` has type I8 and shape [2, 15], expected I8 \
             and [2, 16]"
        ),
    );
    replaced(
        "gridmill.signs.192",
        "gridmill.signs.192",
        &[191],
        24,
        &format!(
            "{up}: plane `gridmill.signs.192` has type I8 and shape [191], expected I8 and [192]"
        ),
    );
    refused(
        |model| model.tensors[3].1[7] = 0,
        &format!("{up}: plane `gridmill.signs.192`: sign 7 is 0, expected 1 or -1"),
    );
    replaced(
        "output_norm.weight",
        "blk.0.ffn_up.weight",
        &[192],
        0,
        &format!("{up} is in the file twice: whole, and as planes"),
    );
    replaced(
        "output_norm.weight",
        "stray",
        &[192],
        0x4851_0ff0,
        "tensor `stray` has type Grid_P2_N16, but no record",
    );
}

/// Signs of another seed and tables of another grid are planes of their own, each written once.
#[test]
fn shared_planes_may_differ() {
    let builder = &mut PlanesBuilder::new(Form::Planes);
    let mut names = |record: Record, table: Option<&[u8]>| {
        let planes = match table {
            Some(table) => builder.add_with_table(record, table),
            None => builder.add(record),
        };
        let planes = planes.expect("a right record").into_iter().skip(2);
        planes.map(|plane| plane.tensor.name().to_string()).collect::<Vec<String>>()
    };
    let other_seed = |name: &str| Record { sign_seed: 43, ..record(name) };
    let (table, signs) = ("gridmill.table.grid_p2_n16", "gridmill.signs.192");
    let other_table = format!("{table}.1");
    assert_eq!(names(record("a"), Some(&[7; 32])), [other_table.as_str(), signs]);
    assert_eq!(names(record("b"), None), [table]);
    assert_eq!(names(other_seed("c"), None), [format!("{signs}.1")]);
    assert!(names(other_seed("d"), Some(&[7; 32])).is_empty());
    let error = builder.add_with_table(record("e"), &[7; 16]).expect_err("too short");
    assert_eq!(error.to_string(), "tensor `e`: a table of 16 bytes, expected 32");
}

#[test]
fn records_that_cannot_be_written() {
    let fails = |builder: &mut PlanesBuilder, record: Record, message: &str| {
        let error = builder.add(record).expect_err(message);
        assert_eq!(error.to_string(), message);
    };
    let builder = &mut PlanesBuilder::new(Form::Planes);
    builder.add(record("a.weight")).expect("a right record");
    fails(builder, record("a.weight"), "tensor `a.weight` is written twice");
    fails(builder, record("a"), "tensor `a`: the plane name `a.codes` is taken");
    let name = "n".repeat(60);
    fails(
        builder,
        record(&name),
        &format!("tensor `{name}`: the plane name `{name}.codes` has 66 bytes, expected 1 to 63"),
    );
    fails(
        builder,
        Record { cols: 0, ..record("c.weight") },
        "tensor `c.weight`: 6 rows of 0 columns, expected 1 to 17592186044416 values",
    );
}

#[test]
fn transforms_have_one_spelling() {
    let check = |basis, text: &str| {
        assert_eq!(transform_text(basis), text);
        assert_eq!(transform_by_text(text), Some(basis));
    };
    check(Basis::Original, "none");
    check(Basis::Hadamard { block: 64 }, "hadamard:64");
    check(Basis::Kronecker { order: 36, block: 16 }, "kronecker:36x16");
    for text in ["", "None", "hadamard", "hadamard:+64", "hadamard:064", "kronecker:36", "x:1"] {
        assert_eq!(transform_by_text(text), None, "{text}");
    }
}

#[test]
fn planes_survive_a_copy_in_shards() {
    // The registry is in the first file alone, the planes anywhere.
    let model = Model::new(Form::Planes);
    let folder = Scratch::new();
    let total = model.tensors.len() as i32;
    for (number, tensors) in model.tensors.chunks(3).enumerate() {
        let mut metadata = if number == 0 { model.metadata.clone() } else { Metadata::new() };
        metadata.set("split.no", Value::U16(number as u16));
        metadata.set("split.count", Value::U16(3));
        metadata.set("split.tensors.count", Value::I32(total));
        let path = folder.join(format!("m-{:05}-of-00003.gguf", number + 1));
        let list = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
        let mut writer = Writer::create(&path, &[], &metadata, list).expect("a target");
        tensors.iter().for_each(|(_, bytes)| writer.write(bytes).expect("room"));
        writer.finish().expect("whole");
    }
    let source = Source::open_with(folder.join("m-00003-of-00003.gguf"), KINDS);
    let source = source.expect("three right shards");
    let weights: Vec<&Tensor> = source.tensors().collect();
    check_weight(weights[0], "blk.0.ffn_up.weight", 1);
    check_weight(weights[1], "blk.0.ffn_gate.weight", 2);
    let shards: Vec<usize> = source.raw_tensors().map(|raw: RawTensor| raw.shard).collect();
    assert_eq!(shards, [0, 0, 0, 1, 1, 1, 2]);
}

/// `cargo test --test it planes::seeds -- --ignored`
#[test]
#[ignore = "writes the seeds of tests/fuzz"]
fn seeds() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus/gguf");
    std::fs::create_dir_all(&folder).expect("the folder is writable");
    for (form, name) in [(Form::Planes, "planes"), (Form::Native, "native")] {
        let scratch = Scratch::new();
        let written = Model::new(form).write(&scratch);
        std::fs::copy(written, folder.join(name)).expect("the folder is writable");
    }
}
