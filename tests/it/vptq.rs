//! Types of learned points: import against what the method's own code makes of the same layers, and
//! what every type promises.

use std::fs;
use std::path::PathBuf;

use gridmill::convert::export::{Keep, export};
use gridmill::convert::import::{self, vptq::layer};
use gridmill::file::Source;
use gridmill::file::safetensors::{Entry, Safetensors};
use gridmill::quant::random::Random;
use gridmill::run::{self, Device, Session};
use gridmill::types::{
    Basis, Bytes, ColumnPlanes, Entries, Int8Row, Outliers, SUB, Shape, Tensor, TensorType,
    by_name, learned, of_shape,
};
use half::{bf16, f16};
use serde_json::{Value, json};

use crate::folder::{Folder, Stored};
use crate::import::{converted, logits, options as options_of};
use crate::models::open;
use crate::products::check_products;
use crate::scratch::Scratch;

/// A layer of `tests/data/vptq`, and what it decodes to.
struct Golden {
    config: Value,
    file: Safetensors,
}

impl Golden {
    fn all() -> Vec<Golden> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/vptq");
        let text = fs::read_to_string(folder.join("layers.json")).unwrap();
        let layers: Vec<Value> = serde_json::from_str(&text).unwrap();
        let golden = |layer: Value| Golden {
            config: layer["config"].clone(),
            file: Safetensors::open(&folder.join(layer["file"].as_str().unwrap())).unwrap(),
        };
        layers.into_iter().map(golden).collect()
    }

    fn get(&self, name: &str) -> Option<(Entry, Bytes)> {
        self.file.get(name).map(|(entry, bytes)| (entry.clone(), bytes))
    }

    fn tensor(&self) -> Tensor {
        layer(&self.config, "blk.0.ffn_up.weight", &|name| self.get(name)).unwrap()
    }

    fn expected(&self) -> Vec<f32> {
        let (entry, bytes) = self.get("expected").unwrap();
        let number = |&bytes: &[u8; 2]| match &*entry.dtype {
            "F16" => f16::from_le_bytes(bytes).to_f32(),
            "BF16" => bf16::from_le_bytes(bytes).to_f32(),
            other => panic!("{other}"),
        };
        bytes.as_chunks::<2>().0.iter().map(number).collect()
    }

    /// What is said of a layer whose configuration or tensors were changed.
    fn refused(
        &self,
        change: impl Fn(&mut Value),
        get: impl Fn(&str, Entry, Bytes) -> Found,
    ) -> String {
        let mut config = self.config.clone();
        change(&mut config);
        let get = |name: &str| self.get(name).and_then(|(entry, bytes)| get(name, entry, bytes));
        layer(&config, "w", &get).err().expect("a layer to refuse").to_string()
    }
}

type Found = Option<(Entry, Bytes)>;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn decoded(tensor: &Tensor) -> Vec<f32> {
    let mut values = vec![0.0; tensor.len()];
    tensor.kind.decode(&tensor.rows(0..tensor.rows), &mut values);
    values
}

#[test]
fn layers_decode_as_the_published_code_decodes_them() {
    let all = Golden::all();
    assert_eq!(all.len(), 12);
    for golden in all {
        let tensor = golden.tensor();
        let name = tensor.kind.name();
        assert_eq!(bits(&decoded(&tensor)), bits(&golden.expected()), "{name}");
        // Some rows alone, from the middle of a block to the middle of another.
        let rows = 3..tensor.rows - 2;
        let mut some = vec![0.0; rows.len() * tensor.cols];
        tensor.kind.decode(&tensor.rows(rows.clone()), &mut some);
        let same = &golden.expected()[rows.start * tensor.cols..rows.end * tensor.cols];
        assert_eq!(bits(&some), bits(same), "{name}: rows {rows:?}");
        // As the CPU backend holds it.
        let held = tensor.kind.in_bytes(&tensor).unwrap();
        assert_eq!(
            bits(&decoded(&held)),
            bits(&golden.expected()),
            "{name} as {}",
            held.kind.name()
        );
    }
}

#[test]
fn planes_survive_a_file() {
    let folder = Scratch::new();
    for (at, golden) in Golden::all().iter().enumerate() {
        let path = folder.join(format!("{at}.gguf"));
        let metadata = gridmill::file::Metadata::new();
        let source = Source::made(String::new(), metadata, vec![golden.tensor()]);
        gridmill::convert::shape::save(&source, &path).unwrap();
        let read = Source::open(&path).unwrap();
        let tensor = read.tensor("blk.0.ffn_up.weight").unwrap().unwrap();
        assert_eq!(bits(&decoded(&tensor)), bits(&golden.expected()), "{}", tensor.kind.name());
    }
}

#[test]
fn names_are_shapes() {
    let outliers = Some(Outliers { count: 64, v: 4, bits: 12 });
    let wide = Shape { outliers, tables: 4, has_norm: true, ..Shape::int8(12, 12, 12) };
    let wide = Shape { entries: Entries::Bf16, ..wide };
    for (shape, name) in [
        (Shape::int8(6, 12, 0), "VPTQ_V6_K4096"),
        (Shape::int8(8, 12, 6), "VPTQ_V8_K4096_R64"),
        (Shape::signed(6, 7), "VPTQ_V6_K128_S"),
        (wide, "VPTQ_V12_K4096_R4096_G4_O64V4K4096_BF16N"),
    ] {
        assert_eq!(of_shape(shape).unwrap().name(), name);
        let kind = by_name(&name.to_lowercase()).unwrap();
        assert_eq!((kind.name(), learned(kind)), (name, Some(shape)));
        assert_eq!(kind.id(), of_shape(shape).unwrap().id(), "a shape has one number");
    }
    for name in [
        "VPTQ",
        "VPTQ_V8",
        "VPTQ_V8_K4000",
        "VPTQ_V17_K16",
        "VPTQ_V8_K131072",
        "VPTQ_V8_K16_R3",
        "VPTQ_V8_K16_G2",
        "VPTQ_V8_K16_G17_F16",
        "VPTQ_V08_K16",
        "VPTQ_V8_K16_F16_R4",
        "VPTQ_V8_K16_O0V4K4_F16",
        "VPTQ_V8_K16_N",
        "VPTQ_V8_K16_R1",
        "VPTQ_V8_K16_R4_S",
        "VPTQ_V8_K16_S_F16",
        "VPTQ_V8_K16_SS",
        "VPTQ_V8_K16_",
        "VPTQ_V8_K16__R4",
        "VPTQ_V8_K16_é4",
    ] {
        assert!(by_name(name).is_none(), "{name}");
    }
}

/// A weight of 10 rows of 64 columns with points of integers.
fn integers(shape: Shape) -> Tensor {
    let kind = of_shape(shape).unwrap();
    let mut state = 1_u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    let mut bytes = |count: usize| -> Vec<u8> { (0..count).map(|_| byte()).collect() };
    let residual = if shape.residual_bits > 0 { 1 << shape.residual_bits } else { 0 };
    let norms = (1..=10).flat_map(|i| f16::from_f32(i as f32 / 16.0).to_le_bytes());
    Tensor {
        name: "w".to_string(),
        kind,
        rows: 10,
        cols: 64,
        first: 0,
        basis: Basis::Original,
        group: 64,
        codes: bytes(10_usize.div_ceil(shape.v) * kind.row_bytes(64).unwrap()).into(),
        norms: norms.collect::<Vec<u8>>().into(),
        table: bytes(shape.v * ((1 << shape.bits) + residual)).into(),
        signs: Bytes::empty(),
        columns: ColumnPlanes::default(),
    }
}

/// The definition, spelled out.
fn plain(tensor: &Tensor, shape: Shape) -> Vec<f32> {
    let row_bytes = tensor.row_bytes();
    let point = |at: usize| i32::from(tensor.table[at] as i8);
    let mut values = Vec::new();
    for row in 0..tensor.rows {
        let codes = &tensor.codes[row / shape.v * row_bytes..][..row_bytes];
        let norm = [tensor.norms[2 * row], tensor.norms[2 * row + 1]];
        for col in 0..tensor.cols {
            let bit = |at: usize| usize::from(codes[at / 8] >> (at % 8) & 1);
            let number = |from: usize, count: usize| {
                (0..count).map(|i| bit(col * shape.width() + from + i) << i).sum::<usize>()
            };
            let main = number(0, shape.bits) * shape.v + row % shape.v;
            let mut sum = point(main);
            if shape.residual_bits > 0 {
                let rest = number(shape.bits, shape.residual_bits);
                sum += point((rest + (1 << shape.bits)) * shape.v + row % shape.v);
            }
            if shape.signs {
                let minus: Vec<usize> =
                    (0..shape.v - 1).map(|t| number(shape.bits + t, 1)).collect();
                let last = minus.iter().sum::<usize>() % 2;
                let is_minus = *minus.get(row % shape.v).unwrap_or(&last) == 1;
                sum = if is_minus { -sum.max(-127) } else { sum };
            }
            values.push(f16::from_le_bytes(norm).to_f32() * sum.clamp(-127, 127) as f32);
        }
    }
    values
}

#[test]
fn integer_points_decode_as_the_page_says() {
    for shape in [
        Shape::int8(6, 12, 0),
        Shape::int8(8, 12, 6),
        Shape::int8(4, 8, 8),
        Shape::int8(16, 3, 0),
        Shape::int8(2, 5, 4),
        Shape::signed(6, 7),
        Shape::signed(8, 11),
        Shape::signed(5, 3),
    ] {
        let tensor = integers(shape);
        let expected = plain(&tensor, shape);
        let name = tensor.kind.name();
        assert_eq!(decoded(&tensor), expected, "{name}");
        let held = tensor.kind.in_bytes(&tensor);
        assert_eq!(held.is_none(), (5..=8).contains(&shape.v), "{name}: a kernel reads it");
        if let Some(held) = held {
            assert_eq!(decoded(&held), expected, "{name} as {}", held.kind.name());
        }
        for row in 0..tensor.rows {
            let (mut values, mut scales) = (vec![0; 64], vec![0.0; 64 / SUB]);
            let mut out = Int8Row { values: &mut values, scales: &mut scales, mins: &mut [] };
            tensor.kind.unpack(&tensor.rows(row..row + 1), &mut out);
            let unpacked = (0..64).map(|i| scales[i / SUB] * f32::from(values[i]));
            assert!(unpacked.eq(expected[row * 64..][..64].iter().copied()), "{name}: row {row}");
        }
    }
}

#[test]
fn products_match_plain_loops() {
    let shapes = [(8, 12, 0), (6, 12, 0), (8, 12, 6), (8, 12, 8), (8, 12, 12), (5, 4, 2)];
    let odd_shapes = [(7, 16, 15), (8, 1, 0), (3, 8, 0), (12, 8, 1)];
    for (v, bits, residual_bits) in shapes.into_iter().chain(odd_shapes) {
        let kind = of_shape(Shape::int8(v, bits, residual_bits)).unwrap();
        for (rows, cols, group) in [(33, 64, 64), (7, 576, 576), (96, 96, 32), (1, 16, 16)] {
            check_products(kind, rows, cols, group);
        }
    }
}

/// Points with signs, of as many rows as a kernel takes and of fewer.
#[test]
fn signed_products_match_plain_loops() {
    for (v, bits) in [(6, 7), (4, 6), (8, 5), (3, 7), (2, 1), (7, 7), (5, 7), (8, 9), (6, 10)] {
        let kind = of_shape(Shape::signed(v, bits)).unwrap();
        for (rows, cols, group) in [(33, 64, 64), (7, 576, 576), (96, 96, 32), (96, 128, 64)] {
            check_products(kind, rows, cols, group);
        }
    }
}

#[test]
fn packed_codes_come_back() {
    for shape in
        [Shape::int8(8, 12, 4), Shape::int8(8, 16, 16), Shape::int8(6, 9, 5), Shape::signed(6, 7)]
    {
        let kind = of_shape(shape).unwrap();
        let mask = ((1_u64 << shape.width()) - 1) as u32;
        let codes: Vec<u32> = (0..64_u32).map(|i| i.wrapping_mul(0x9e37_79b9) & mask).collect();
        let mut bytes = vec![0xaa; kind.row_bytes(64).unwrap()];
        kind.pack(&codes, &mut bytes);
        let mut back = vec![0; 64];
        kind.unpack_codes(&bytes, &mut back);
        assert_eq!(back, codes, "{}", kind.name());
    }
}

#[test]
fn wrong_configurations() {
    let all = Golden::all();
    let same = |_: &str, entry: Entry, bytes: Bytes| Some((entry, bytes));
    let config = |key: &'static str, value: Value| {
        all[7].refused(move |config| config[key] = value.clone(), same)
    };
    for (key, value, message) in [
        ("out_features", json!(0), "out_features: expected 1 to 1048576, found 0"),
        ("in_features", json!(null), "in_features: expected 1 to 1048576, found null"),
        ("vector_lens", json!([4, 17]), "vector_lens: expected -1 to 16, found 17"),
        ("vector_lens", json!([4, -1]), "vector_lens: expected 2 to 16, found [4,-1]"),
        ("vector_lens", json!(8), "vector_lens: expected two numbers, found 8"),
        (
            "num_centroids",
            json!([32, 300]),
            "num_centroids: expected a power of two from 2 to 65536, found 300",
        ),
        (
            "num_res_centroids",
            json!([16, 64]),
            "num_res_centroids: expected no residual of outliers, found 16",
        ),
        ("group_num", json!(17), "group_num: expected 1 to 16, found 17"),
        ("group_size", json!(31), "8 outliers and 2 groups of 31 columns, expected 72 in all"),
        ("norm_dim", json!(1), "norm_dim: expected 0, found 1"),
        ("vector_quant_dim", json!("in"), "vector_quant_dim: expected \"out\", found \"in\""),
        (
            "num_centroids",
            json!([32, 512]),
            "tensor `centroids.weight`: expected shape [2, 4096], found [2, 2048]",
        ),
        ("is_indice_packed", json!(false), "tensor `indices`: expected type I16 or U16, found I32"),
        ("vector_lens", json!([-1, 8]), "vector_lens: expected 1 to 16 for outliers, found -1"),
        ("enable_norm", json!(1), "enable_norm: expected true or false, found 1"),
        (
            "enable_norm",
            json!(false),
            "tensor `weight_scale`: the configuration says that there is none",
        ),
        ("enable_perm", json!(null), "tensor `perm`: the configuration says that there is none"),
        (
            "num_res_centroids",
            json!([-1, -1]),
            "tensor `res_centroids.weight`: the configuration says that there is none",
        ),
    ] {
        assert_eq!(config(key, value), message);
    }
}

#[test]
fn wrong_tensors() {
    let all = Golden::all();
    let without = |missing: &'static str| {
        all[7]
            .refused(|_| (), move |name, entry, bytes| (name != missing).then_some((entry, bytes)))
    };
    for part in [
        "indices",
        "centroids.weight",
        "perm",
        "weight_scale",
        "weight_bias",
        "res_centroids.weight",
        "outlier_indices",
        "outlier_centroids.weight",
    ] {
        assert_eq!(without(part), format!("tensor `{part}` is missing"));
    }
    // Codes past a table of 256 points, then a column twice.
    let filled = |layer: usize, part: &'static str, byte: u8| {
        all[layer].refused(
            |_| (),
            move |name, entry, bytes| {
                let other = || Bytes::from(vec![byte; bytes.len()]);
                Some((entry, if name == part { other() } else { bytes }))
            },
        )
    };
    assert_eq!(filled(9, "indices", 9), "tensor `indices`: code 2313, expected less than 256");
    assert_eq!(
        filled(9, "res_indices", 1),
        "tensor `res_indices`: code 257, expected less than 16"
    );
    let message = "tensor `outlier_indices`: code 257, expected less than 32";
    assert_eq!(filled(7, "outlier_indices", 1), message);
    let message = "tensor `perm`: expected each of 72 columns once, found 0 in I16";
    assert_eq!(filled(7, "perm", 0), message);
    for part in [
        "centroids.weight",
        "res_centroids.weight",
        "outlier_centroids.weight",
        "weight_scale",
        "weight_bias",
    ] {
        let message = format!("tensor `{part}`: number 0: expected a finite one, found NaN");
        assert_eq!(filled(7, part, 0xff), message);
    }
}

/// A checkpoint is the folder whose matrices are what its codes stand for; in GGUF's order of the
/// rows of queries and keys where that has the plain one.
#[test]
fn checkpoints_are_the_plain_folders_they_stand_for() {
    for (name, class) in [("llama", "LlamaForCausalLM"), ("qwen2", "Qwen2ForCausalLM")] {
        let none = json!({"rope_scaling": null});
        let mut plain = Folder::of(name, class, none.clone());
        let mut coded = Folder::of(name, class, none);
        let mut configs = serde_json::Map::new();
        let modules = coded.tensors.iter().filter(|tensor| tensor.name.ends_with("_proj.weight"));
        let modules: Vec<Stored> = modules.cloned().collect();
        assert!(modules.len() >= 14, "{name}: found {} modules", modules.len());
        coded.tensors.retain(|tensor| !tensor.name.ends_with("_proj.weight"));
        for (at, weight) in modules.iter().enumerate() {
            let module = weight.name.strip_suffix(".weight").unwrap();
            let [rows, cols] = weight.shape[..] else { panic!("a matrix") };
            let (config, parts) = random_module(at, rows, cols);
            let get = |part: &str| {
                let part: &Stored = parts.iter().find(|stored| stored.name == part)?;
                let entry = Entry::new(part.dtype, part.shape.iter().map(|&s| s as u64).collect());
                Some((entry, Bytes::from(part.bytes.clone())))
            };
            let dense = decoded(&layer(&config, "w", &get).unwrap());
            let stored = plain.tensor(&weight.name);
            stored.bytes = dense.iter().flat_map(|value| value.to_le_bytes()).collect();
            stored.dtype = "F32";
            let named = |part: Stored| Stored { name: format!("{module}.{}", part.name), ..part };
            coded.tensors.extend(parts.iter().cloned().map(named));
            configs.insert(module.to_string(), config);
        }
        coded.config["quantization_config"] =
            json!({"quant_method": "vptq", "config_for_layers": configs});
        let folders = [Scratch::new(), Scratch::new(), Scratch::new()];
        let expected = import::open(&plain.write(&folders[0])).unwrap();
        let source = import::open(&coded.write(&folders[1])).unwrap();
        let close = |found: &[f32], expected: &[f32], what: &str| {
            let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 1e-4, "{name}: {what} differ by {error}");
        };
        let expected = logits(&expected);
        close(&logits(&source), &expected, "logits");
        // Codes stay as they are when the rest is converted.
        let found = converted(&source, &folders[2].join("out.gguf"), &options_of(None));
        let mut kept = found.tensors().filter(|tensor| learned(tensor.kind).is_some());
        assert!(kept.all(|t| *t.codes == *source.tensor(&t.name).unwrap().unwrap().codes));
        let kinds = found.tensors().filter(|tensor| learned(tensor.kind).is_some()).count();
        assert_eq!(kinds, modules.len());
        let options = run::Options { device: Device::Cpu, ..run::Options::default() };
        let mut session = Session::open(&source, &options).unwrap();
        let tokens: Vec<u32> = (0..20).map(|i| i * 37 % 128).collect();
        close(session.feed(0, &tokens).unwrap(), &expected, "logits of the CPU");
        // What other programs read has the order that they expect, and no word of another.
        let (again, stock) = (folders[2].join("again.gguf"), folders[2].join("stock.gguf"));
        let again = converted(&source, &again, &options_of(Some("F32")));
        export(&source, &stock, by_name("F32").unwrap(), Keep::default(), &mut |_| ()).unwrap();
        let key = format!("{name}.rope.pairing");
        assert_eq!(source.metadata().get(&key).is_some(), name == "llama");
        assert_eq!(found.metadata().get(&key).is_some(), name == "llama");
        for file in [again, open(&stock)] {
            assert!(file.metadata().get(&key).is_none(), "{name}: {key}");
            close(&logits(&file), &expected, "logits of plain floats");
        }
    }
}

/// Codes that are not packed come as signed numbers of 16 bits: the upper half of a table is below
/// zero.
#[test]
fn codes_of_the_upper_half_of_a_table() {
    let (rows, cols, v) = (4, 8, 2);
    let codes: Vec<u16> = (0..rows / v * cols).map(|i| (i * 4369) as u16).collect();
    assert!(codes.iter().filter(|&&code| code >= 1 << 15).count() >= 8);
    let points: Vec<f16> =
        (0..v << 16).map(|i| f16::from_f32((i as f32 - 65536.0) / 8192.0)).collect();
    let table = points.iter().flat_map(|point| point.to_le_bytes()).collect::<Vec<u8>>();
    let get = |name: &str| {
        let (kind, shape, bytes) = match name {
            "centroids.weight" => ("F16", vec![1, points.len() as u64], table.clone()),
            "indices" => {
                let bytes = codes.iter().flat_map(|code| code.to_le_bytes()).collect();
                ("I16", vec![1, (rows / v) as u64, cols as u64], bytes)
            }
            _ => return None,
        };
        Some((Entry::new(kind, shape), Bytes::from(bytes)))
    };
    let config = json!({
        "in_features": cols, "out_features": rows, "vector_lens": [-1, v],
        "num_centroids": [-1, 65536], "num_res_centroids": [-1, -1], "group_num": 1,
        "group_size": cols, "outlier_size": 0, "enable_norm": false, "enable_perm": false,
        "is_indice_packed": false,
    });
    let values = decoded(&layer(&config, "w", &get).unwrap());
    for (at, value) in values.iter().enumerate() {
        let (row, col) = (at / cols, at % cols);
        let code = usize::from(codes[row / v * cols + col]);
        assert_eq!(*value, points[code * v + row % v].to_f32(), "row {row}, column {col}");
    }
}

/// Tensors of a module whose codes are random, unpacked, with a residual in every other one.
fn random_module(at: usize, rows: usize, cols: usize) -> (Value, Vec<Stored>) {
    let mut random = Random(at as u64);
    let (v, points, residual) = (8, 64, if at.is_multiple_of(2) { 16 } else { -1 });
    let blocks = rows.div_ceil(v);
    let mut numbers = |count: usize, scale: f64| -> Vec<u8> {
        let normal = (0..count).map(|_| bf16::from_f64(scale * random.normal()[0]));
        normal.flat_map(bf16::to_le_bytes).collect()
    };
    let stored = |name: &str, dtype, shape: &[usize], bytes| Stored {
        name: name.to_string(),
        dtype,
        shape: shape.to_vec(),
        bytes,
    };
    let codes = |points: usize, step: usize| -> Vec<u8> {
        let codes = (0..blocks * cols).map(|i| ((i * step + at) % points) as u16);
        codes.flat_map(u16::to_le_bytes).collect()
    };
    let mut parts = vec![
        stored("centroids.weight", "BF16", &[1, points * v], numbers(points * v, 1.0)),
        stored("indices", "I16", &[1, blocks, cols], codes(points, 37)),
        stored("weight_scale", "BF16", &[cols], numbers(cols, 0.05)),
        stored("weight_bias", "BF16", &[cols], numbers(cols, 0.01)),
    ];
    if residual > 0 {
        let table = numbers(residual as usize * v, 0.3);
        parts.push(stored("res_centroids.weight", "BF16", &[1, residual as usize * v], table));
        parts.push(stored("res_indices", "I16", &[1, blocks, cols], codes(residual as usize, 5)));
    }
    let config = json!({
        "in_features": cols, "out_features": rows, "vector_lens": [-1, v],
        "num_centroids": [-1, points], "num_res_centroids": [-1, residual], "group_num": 1,
        "group_size": cols, "outlier_size": 0, "enable_norm": true, "enable_perm": false,
        "is_indice_packed": false,
    });
    (config, parts)
}
