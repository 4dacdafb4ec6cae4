//! What else a Hugging Face folder may hold: floats of every width, how tokens are to be chosen,
//! and values that must be refused.

use std::path::Path;

use gridmill::convert::import;
use gridmill::file::{Source, Value};
use half::{bf16, f16};
use serde_json::{Value as Json, json};

use crate::cli::{fails, text};
use crate::folder::{Folder, write_json};
use crate::models::{model_path, open};
use crate::scratch::Scratch;

const WEIGHT: &str = "model.layers.1.mlp.up_proj.weight";

fn llama() -> Folder {
    Folder::of("llama", "LlamaForCausalLM", json!({}))
}

/// The values of a weight, as GGUF calls it.
fn values(source: &Source, name: &str) -> Vec<f32> {
    let tensor = source.tensor(name).unwrap().unwrap();
    let mut values = vec![0.0; tensor.len()];
    tensor.kind.decode(&tensor.rows(0..tensor.rows), &mut values);
    values
}

/// Exponent and fraction of a byte as a number, with so many bits of fraction and this bias.
fn small(byte: u8, fraction_bits: u32, bias: i32) -> f32 {
    let fraction = f32::from(byte & ((1 << fraction_bits) - 1)) / (1 << fraction_bits) as f32;
    let exponent = i32::from((byte & 0x7f) >> fraction_bits);
    let size = match exponent {
        0 => fraction * 2.0_f32.powi(1 - bias),
        _ => (1.0 + fraction) * 2.0_f32.powi(exponent - bias),
    };
    if byte & 0x80 == 0 { size } else { -size }
}

/// A weight of each type of float, with every number of those of a byte.
#[test]
fn floats_of_every_width() {
    let expected = values(&open(&model_path("llama.gguf")), "blk.1.ffn_up.weight");
    let bytes = |at: usize| (at % 251) as u8;
    type Case<'a> = (&'static str, &'a dyn Fn(f32, usize) -> Vec<u8>, &'a dyn Fn(usize) -> f32);
    let same = |at: usize| expected[at];
    let short = |at: usize| bf16::from_f32(expected[at]).to_f32();
    // No number of E4M3, and what is none of E5M2, is left out.
    let four = |at: usize| if bytes(at) & 0x7f == 0x7f { 0 } else { bytes(at) };
    let five = |at: usize| if bytes(at) & 0x7c == 0x7c { 0 } else { bytes(at) };
    let cases: [Case; 6] = [
        ("F64", &|x, _| f64::from(x).to_le_bytes().to_vec(), &same),
        ("F32", &|x, _| x.to_le_bytes().to_vec(), &same),
        ("F16", &|x, _| f16::from_f32(x).to_le_bytes().to_vec(), &same),
        ("BF16", &|x, _| bf16::from_f32(x).to_le_bytes().to_vec(), &short),
        ("F8_E4M3", &|_, at| vec![four(at)], &|at| small(four(at), 3, 7)),
        ("F8_E5M2", &|_, at| vec![five(at)], &|at| small(five(at), 2, 15)),
    ];
    for (dtype, write, value) in cases {
        let (mut made, folder) = (llama(), Scratch::new());
        let stored = made.tensor(WEIGHT);
        stored.dtype = dtype;
        let all = expected.iter().enumerate();
        stored.bytes = all.flat_map(|(at, &x)| write(x, at)).collect();
        let source = import::open(&made.write(&folder)).expect("a folder of ours");
        let wanted: Vec<f32> = (0..expected.len()).map(value).collect();
        assert!(values(&source, "blk.1.ffn_up.weight") == wanted, "{dtype}");
    }
}

#[test]
fn sampling_is_carried_over() {
    let (made, folder) = (llama(), Scratch::new());
    made.write(&folder);
    let said = json!({
        "do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0,
        "repetition_penalty": 1.05, "mirostat": null, "eos_token_id": 97,
    });
    write_json(&folder, "generation_config.json", &said);
    let source = import::open(&folder).expect("a folder of ours");
    let found: Vec<(&str, &Value)> =
        source.metadata().iter().filter(|(key, _)| key.starts_with("general.sampling.")).collect();
    let expected = [
        ("general.sampling.top_k", &Value::I32(20)),
        ("general.sampling.top_p", &Value::F32(0.95)),
        ("general.sampling.min_p", &Value::F32(0.0)),
        ("general.sampling.temp", &Value::F32(0.6)),
        ("general.sampling.penalty_repeat", &Value::F32(1.05)),
    ];
    assert_eq!(found, expected);
}

fn refused(made: &Folder, more: impl Fn(&Path)) -> String {
    let folder = Scratch::new();
    made.write(&folder);
    more(&folder);
    let error = import::open(&folder).err().expect("a folder to refuse").to_string();
    error.strip_prefix(&folder.display().to_string()).expect("the folder's path first").to_string()
}

#[test]
fn values_of_wrong_types_are_refused() {
    let file = |name: &'static str, value: Json, expected: &str| {
        let found = refused(&llama(), |folder| write_json(folder, name, &value));
        assert_eq!(found, format!(": {name}: {expected}"));
    };
    let generation = "generation_config.json";
    file(
        generation,
        json!({"temperature": "hot"}),
        "`temperature`: expected a number, found \"hot\"",
    );
    file(generation, json!({"top_k": 1.5}), "`top_k`: expected an integer, found 1.5");
    file(
        generation,
        json!({"top_k": 1_u64 << 40}),
        "`top_k`: expected an integer, found 1099511627776",
    );
    file(generation, json!({"sequence": 3}), "`sequence`: expected a text, found 3");
    let map = "invalid type: integer `7`, expected a map at line 1 column 1";
    file("tokenizer_config.json", json!(7), map);

    let mut made = llama();
    made.config["rope_scaling"] = json!({"rope_type": 3});
    let found = refused(&made, |_| ());
    assert_eq!(found, "/config.json: `rope_scaling.rope_type`: expected a text, found 3");

    let mut made = llama();
    made.tokenizer["model"]["vocab"]["new"] = json!(5);
    let found = refused(&made, |_| ());
    assert!(found.starts_with(": tokenizer.json: tokens `") && found.ends_with("have one id, 5"));
    assert!(found.contains("`new`"), "{found}");
}

/// Also where a weight stays as it is.
#[test]
fn what_is_no_number_is_refused() {
    for (name, ours) in [(WEIGHT, "blk.1.ffn_up"), ("model.norm.weight", "output_norm")] {
        let (mut made, folder) = (llama(), Scratch::new());
        made.tensor(name).bytes[..4].fill(0xff);
        let (path, out) = (made.write(&folder), folder.join("out.gguf"));
        for kind in ["F16", "higgs4"] {
            let message = format!("tensor `{ours}.weight`: expected finite weights, found NaN");
            fails(&["convert", text(&path), text(&out), "--to", kind], 1, &message);
            assert!(!out.exists());
        }
    }
}
