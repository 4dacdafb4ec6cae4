//! Hugging Face folders: plain ones against the GGUF files of the same models, HIGGS checkpoints
//! against weights that were decoded independently, and what must be refused.

use std::fs;
use std::path::Path;

use gridmill::convert::{Options, convert, form, import};
use gridmill::file::{Metadata, Source};
use gridmill::quant::flute::Packing;
use gridmill::quant::presets;
use gridmill::run::{self, Device, Session};
use gridmill::transform;
use gridmill::types::{Basis, HIGGS, TensorType};
use serde_json::{Value as Json, json};

use crate::checkpoint::{HEAD_LEN, KIND, Kind, Random, WIDTH, checkpoint, pack};
use crate::cli::{fails, gridmill, stderr, stdout, succeeds, text};
use crate::folder::{Folder, halves, write_json};
use crate::models::{model_path, open};
use crate::scratch::Scratch;

/// Words, which FLUTE's own functions packed.
const PACKED: &str = include_str!("../data/flute/packed.tsv");

/// Codes come back from FLUTE's packing, and ours for tests is the same.
#[test]
fn flute_is_read() {
    for line in PACKED.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [bits, tile, cols, rows] = [0, 1, 2, 3].map(|at| fields[at].parse().expect("a number"));
        let byte = |at| u8::from_str_radix(&fields[4][at..at + 2], 16).expect("hexadecimal");
        let words: Vec<u8> = (0..fields[4].len()).step_by(2).map(byte).collect();
        let mut random = Random(1);
        let mask = (1u64 << bits) - 1;
        // Input after input.
        let codes: Vec<u8> = (0..rows * cols).map(|_| (random.next() & mask) as u8).collect();
        let code = |n: usize, k: usize| codes[k * rows + n];
        assert!(pack((bits, tile), (rows, cols), code) == words, "{bits} bits, tiles of {tile}");

        let packing = Packing::new(bits, tile).expect("a packing of FLUTE's");
        assert!(rows.is_multiple_of(packing.outputs()));
        assert_eq!(words.len(), 2 * packing.word_rows(rows) * cols);
        for n in 0..rows {
            let mut found = vec![0; cols];
            packing.unpack(&words, rows, n, &mut found);
            assert!((0..cols).all(|k| found[k] == code(n, k)), "{bits} bits, output {n}");
        }
    }
    assert_eq!(PACKED.lines().count(), 5);
}

#[test]
fn kernels_name_their_packing() {
    let tile =
        |bits, id| (32..=64).find(|&t| Packing::new(bits, t) == Packing::of_template(bits, id));
    for (bits, id, expected) in [
        (4, 0, Some(64)),
        (4, 15, Some(64)),
        (4, 16, Some(32)),
        (4, 47, Some(32)),
        (4, 48, Some(64)),
        (4, 143, Some(32)),
        (2, 3, Some(64)),
        (2, 4, Some(32)),
        (2, 35, Some(32)),
        (3, 4, Some(32)),
    ] {
        let found = Packing::of_template(bits, id).and_then(|_| tile(bits, id));
        assert_eq!(found, expected, "{bits} bits, template {id}");
    }
    for (bits, id) in [(4, 144), (2, 36), (3, 36), (3, 0), (5, 4)] {
        assert_eq!(Packing::of_template(bits, id), None, "{bits} bits, template {id}");
    }
}

pub(crate) fn options(kind: Option<&str>) -> Options {
    Options {
        kind: presets::by_name(kind.unwrap_or("higgs4")).expect("a type"),
        keep: kind.is_none(),
        vocabulary_kind: None,
        recipe: None,
        whole_rows: false,
        overrides: Vec::new(),
        seed: 1,
        basis: None,
        group: None,
        form: form(false),
        share: None,
    }
}

pub(crate) fn converted(source: &Source, target: &Path, options: &Options) -> Source {
    convert(source, target, options, None, &mut |_| ()).expect("a model of ours");
    open(target)
}

pub(crate) fn logits(source: &Source) -> Vec<f32> {
    let options = run::Options { device: Device::Reference, ..run::Options::default() };
    let mut session = Session::open(source, &options).expect("a model of ours");
    let tokens: Vec<u32> = (0..20).map(|i| i * 37 % 128).collect();
    session.feed(0, &tokens).expect("room").to_vec()
}

/// What `make.py` gives to the models with YaRN, as older and newer configurations have it.
fn yarns() -> [Json; 3] {
    [
        json!({
            "rope_theta": null, "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 16.0, "beta_fast": 4.0,
                "beta_slow": 0.5, "mscale": 1.0, "mscale_all_dim": 0.5,
                "original_max_position_embeddings": 128,
            },
        }),
        json!({"rope_scaling": {
            "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
        }}),
        json!({"max_position_embeddings": 512, "original_max_position_embeddings": 32,
            "rope_scaling": {
                "rope_type": "yarn", "factor": 8.0, "attention_factor": 1.5, "truncate": true,
        }}),
    ]
}

/// Tensors, numbers and tokenizer are those of the GGUF file that the folder was made from, which
/// `transformers` agrees with (`models.rs`).
#[test]
fn plain_folders_are_their_gguf_files() {
    let rope3 = json!({"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }});
    let linear = json!({
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1_000_000.0},
        "rope_theta": null,
    });
    let none = json!({"rope_scaling": null});
    let [yarn2, yarn3, loud] = yarns();
    let [gemma, capped, whole] = gemmas();
    for (name, class, more) in [
        ("llama", "LlamaForCausalLM", &none),
        ("llama-rope3", "LlamaForCausalLM", &rope3),
        ("llama-bias", "LlamaForCausalLM", &none),
        ("mistral", "MistralForCausalLM", &linear),
        ("qwen2", "Qwen2ForCausalLM", &none),
        ("qwen3", "Qwen3ForCausalLM", &none),
        ("qwen2-yarn", "Qwen2ForCausalLM", &yarn2),
        ("qwen3-yarn", "Qwen3ForCausalLM", &yarn3),
        ("llama-yarn", "LlamaForCausalLM", &loud),
        ("gemma3", "Gemma3ForCausalLM", &gemma),
        ("gemma3-softcap", "Gemma3ForCausalLM", &capped),
        ("gemma3-softcap", "Gemma3ForConditionalGeneration", &whole),
        ("phi3", "Phi3ForCausalLM", &json!({"original_max_position_embeddings": 4096})),
        (
            "phi3-partial",
            "Phi3ForCausalLM",
            &json!({
                "sliding_window": null, "partial_rotary_factor": 0.75
            }),
        ),
        ("phi3-long", "Phi3ForCausalLM", &long_rope(16)),
        ("phi3-short", "Phi3ForCausalLM", &long_rope(64)),
        (
            "smollm3",
            "SmolLM3ForCausalLM",
            &json!({
                "no_rope_layers": [1, 1, 1, 0, 1], "use_sliding_window": false,
            }),
        ),
        ("qwen3moe", "Qwen3MoeForCausalLM", &json!({"norm_topk_prob": true})),
    ] {
        let (folder, out) = (Scratch::new(), Scratch::new());
        let mut made = Folder::of(name, class, more.clone());
        if class.ends_with("ForConditionalGeneration") {
            made = made.inside_a_larger_model();
        }
        let path = match name {
            "llama" => made.write_sharded(&folder),
            _ => made.write(&folder),
        };
        let expected = open(&model_path(&format!("{name}.gguf")));
        let source = import::open(&path).expect("a folder of ours");
        let found = converted(&source, &out.join("out.gguf"), &options(Some("F16")));
        assert_eq!(found.tensors().count(), expected.tensors().count(), "{name}");
        for theirs in expected.raw_tensors() {
            let ours = found.raw_tensor(&theirs.info.name).expect("a tensor of this name");
            let place = format!("{name}: {}", theirs.info.name);
            assert_eq!((&ours.info.shape, ours.info.kind), (&theirs.info.shape, theirs.info.kind));
            assert!(*found.raw_bytes(&ours) == *expected.raw_bytes(&theirs), "{place}");
        }
        same_keys(name, found.metadata(), expected.metadata());
        assert_eq!(logits(&found), logits(&expected), "{name}");
    }
}

/// The name is the folder's, and a key that is left out has a default.
fn same_keys(name: &str, found: &Metadata, expected: &Metadata) {
    let others = ["general.name", "general.file_type", "tokenizer.ggml.merges"];
    let defaults = ["rope.dimension_count", "key_length", "value_length", "sliding_window"];
    for (key, value) in expected.iter().filter(|(key, _)| !others.contains(key)) {
        let found = found.get(key);
        let is_absent = found.is_none() && defaults.iter().any(|end| key.ends_with(end));
        assert!(found == Some(value) || is_absent, "{name}: {key} is {found:?}, not {value:?}");
    }
}

/// What older and newer versions write for the same numbers, and for a model that sees as well.
fn gemmas() -> [Json; 3] {
    let newer = json!({
        "rope_theta": null,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 32,
        "layer_types": (0..7).map(|layer| match layer {
            5 => "full_attention",
            _ => "sliding_attention",
        }).collect::<Vec<&str>>(),
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
        },
    });
    let older = json!({
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 32,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 6,
        "tie_word_embeddings": null,
    });
    [newer, older.clone(), older]
}

/// Factors for each pair, and three quarters of a head rotated.
fn long_rope(original: usize) -> Json {
    json!({
        "original_max_position_embeddings": original,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
            "long_factor": [1.0, 1.5, 3.0, 6.0, 12.0, 24.0],
        },
    })
}

#[test]
fn templates_and_tokens_are_found() {
    let (folder, other) = (Scratch::new(), Scratch::new());
    let mut made = Folder::of("llama", "LlamaForCausalLM", json!({}));
    made.tokenizer_config = json!({"chat_template": "in the configuration"});
    made.tokenizer["post_processor"] = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [96], "tokens": ["<|begin|>"]}},
    });
    made.config["bos_token_id"] = json!(96);
    made.write(&folder);
    write_json(&folder, "generation_config.json", &json!({"eos_token_id": [97, 3]}));
    let source = import::open(&folder).expect("a folder of ours");
    let text = |key| source.metadata().get_str(key).unwrap().map(str::to_string);
    let number = |key: &str| source.metadata().get_u64(&format!("tokenizer.ggml.{key}")).unwrap();
    assert_eq!(text("tokenizer.chat_template").as_deref(), Some("in the configuration"));
    assert_eq!(text("tokenizer.ggml.pre").as_deref(), Some("gpt-2"));
    assert_eq!((number("bos_token_id"), number("eos_token_id")), (Some(96), Some(97)));
    assert_eq!(source.metadata().get_bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));

    // Digits one by one, as another family cuts texts; and a template in its own file.
    let bytes = made.tokenizer["pre_tokenizer"].clone();
    let digits = json!({"type": "Digits", "individual_digits": true});
    made.tokenizer["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [digits, bytes]});
    made.tokenizer["model"]["vocab"]["12"] = made.tokenizer["model"]["vocab"]["an"].clone();
    made.tokenizer["model"]["vocab"].as_object_mut().unwrap().remove("an");
    made.tokenizer["model"]["merges"] = json!([["1", "2"]]);
    made.write(&other);
    fs::write(other.join("chat_template.jinja"), "in a file").unwrap();
    let source = import::open(&other).expect("a folder of ours");
    let text = |key| source.metadata().get_str(key).unwrap().map(str::to_string);
    assert_eq!(text("tokenizer.ggml.pre").as_deref(), Some("smollm"));
    assert_eq!(text("tokenizer.chat_template").as_deref(), Some("in a file"));
}

fn squares(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|value| f64::from(value).powi(2)).sum()
}

/// Squared error over squared values.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let noise = squares(found.iter().zip(expected).map(|(a, b)| a - b));
    noise / squares(expected.iter().copied())
}

#[test]
fn checkpoints_keep_their_codes() {
    for (kind, name) in [
        (KIND, "HIGGS_P2_N256"),
        (Kind { tile: 64, template: Some(5), is_bf16: true, ..KIND }, "HIGGS_P2_N256"),
        (Kind { bits: 3, template: Some(4), ..KIND }, "HIGGS_P2_N64"),
        (Kind { bits: 2, hadamard: 512, ..KIND }, "HIGGS_P2_N16"),
        (Kind { bits: 2, tile: 64, template: Some(0), ..KIND }, "HIGGS_P2_N16"),
        (Kind { p: 1, template: Some(20), ..KIND }, "HIGGS_P1_N16"),
    ] {
        let (folder, plain, out) = (Scratch::new(), Scratch::new(), Scratch::new());
        let made = checkpoint(kind);
        let source = import::open(&made.folder.write(&folder)).expect("a checkpoint");
        let found = converted(&source, &out.join("out.gguf"), &options(None));

        let q = found.tensor("blk.0.attn_q.weight").unwrap().expect("a query");
        let block = kind.hadamard as u32;
        assert_eq!((q.kind.name(), q.group), (name, kind.hadamard));
        assert_eq!(q.basis, Basis::Hadamard { block });
        assert!(q.signs.iter().all(|&sign| sign == 1));
        let grid = HIGGS.iter().find(|grid| grid.name() == name).expect("a grid");
        let mut codes = vec![0; WIDTH * WIDTH / kind.p];
        grid.unpack_codes(&q.codes, &mut codes);
        let kept = halves(&codes, WIDTH, HEAD_LEN).into_iter().map(|code| code as u8);
        assert!(kept.eq(made.codes.iter().copied()), "{name}: codes are kept");

        // The grid in integers costs at most 1/12 of a squared step, of 1/39 and less.
        let expected = import::open(&made.decoded.write(&plain)).expect("a plain folder");
        for name in ["attn_q", "attn_v", "ffn_down"].map(|name| format!("blk.0.{name}.weight")) {
            let values = |source: &Source| {
                let tensor = source.tensor(&name).unwrap().expect("a weight");
                let mut values = vec![0.0; tensor.len()];
                tensor.kind.decode(&tensor.rows(0..tensor.rows), &mut values);
                let signs = bytemuck::cast_slice(&tensor.signs);
                for row in values.chunks_exact_mut(tensor.cols) {
                    transform::inverse(tensor.basis, signs, row);
                }
                values
            };
            let error = error(&values(&found), &values(&expected));
            assert!(error < 1e-4, "{name} of {bits} bits: {error:e}", bits = kind.bits);
        }
        let plain = converted(&expected, &out.join("plain.gguf"), &options(Some("F32")));
        let error = error(&logits(&found), &logits(&plain)).sqrt();
        // Activations are rounded to 8 bits, as are the vocabulary's weights.
        assert!(error < 0.03, "{name}: distance {error:.4}");
    }
}

/// What was imported stays when it is converted again, beside weights of the type's own grid.
#[test]
fn kept_weights_share_a_file_with_new_ones() {
    let (folder, out) = (Scratch::new(), Scratch::new());
    let mut made = checkpoint(KIND).folder;
    // One scale that differs from its neighbour keeps all of them.
    made.tensor("model.layers.0.mlp.up_proj.scales").bytes[1] ^= 1;
    let source = import::open(&made.write(&folder)).expect("a checkpoint");
    let first = converted(&source, &out.join("first.gguf"), &options(None));
    let mut again = options(None);
    let pattern = regex::Regex::new("attn_v").expect("a pattern");
    again.overrides.push((pattern, presets::by_name("higgs4").expect("a preset")));
    let second = converted(&first, &out.join("second.gguf"), &again);
    for (before, after) in first.tensors().zip(second.tensors()) {
        let is_new = before.name.contains("attn_v");
        assert_eq!(*before.codes == *after.codes, !is_new, "{}", before.name);
        let is_same = *before.table == *after.table && *before.signs == *after.signs;
        assert_eq!(is_same && *before.norms == *after.norms, !is_new, "{}", before.name);
        assert_eq!(first.sign_seed(&before.name) == second.sign_seed(&after.name), !is_new);
    }
    // Another type is made from the values, whatever they are.
    let plain = converted(&source, &out.join("plain.gguf"), &options(Some("F32")));
    assert!(error(&logits(&first), &logits(&plain)).sqrt() < 0.03);
    let has = |name: &str| second.raw_tensor(name).is_some();
    assert!(has("gridmill.table.higgs_p2_n256") && has("gridmill.table.higgs_p2_n256.1"));
    assert!(has("gridmill.signs.512") && has("gridmill.signs.512.1"));
    let up = second.tensor("blk.0.ffn_up.weight").unwrap().expect("a weight");
    assert_eq!(up.group, KIND.hadamard / 2);
    assert!(error(&logits(&second), &logits(&first)).sqrt() < 0.2);
}

#[test]
fn the_program_converts_folders() {
    let (folder, out) = (Scratch::new(), Scratch::new());
    let (source, target) = (checkpoint(KIND).folder.write(&folder), out.join("out.gguf"));
    let convert = gridmill(&["convert", text(&source), text(&target)]);
    assert!(convert.status.success() && !stderr(&convert).contains("warning"), "{convert:?}");
    let kept = |line: &&str| line.contains("attn_q") && line.contains("0.000000");
    assert_eq!(stdout(&convert).lines().filter(kept).count(), 1, "{convert:?}");
    assert!(succeeds(&["verify", text(&target)]).contains("every op agrees"));
    let again = gridmill(&["convert", text(&source), text(&target), "--to", "q8_0"]);
    assert!(again.status.success() && stderr(&again).contains("warning"), "{again:?}");
    let inside = folder.join("model.safetensors");
    fails(&["convert", text(&source), text(&inside)], 1, "model.safetensors");
    assert!(import::open(&source).is_ok(), "the source is whole");
    fails(&["run", text(&source), "-p", "x"], 1, "is a folder, expected a file");
}

/// What is wrong with a checkpoint, and the message after the folder's path, with `{Q}` for the
/// first module and `{C}` for the configuration of the quantisation.
type Case = (fn(&mut Folder), &'static str);

fn refused(folder: &Scratch) -> String {
    let error = import::open(folder).err().expect("a folder to refuse").to_string();
    let place = folder.display().to_string();
    error.strip_prefix(&place).unwrap_or_else(|| panic!("no path in: {error}")).to_string()
}

fn check(kind: Kind, cases: &[Case]) {
    let whole = checkpoint(kind).folder;
    for (edit, expected) in cases {
        let Folder { config, tokenizer, tokenizer_config, tensors } = &whole;
        let mut made = Folder {
            config: config.clone(),
            tokenizer: tokenizer.clone(),
            tokenizer_config: tokenizer_config.clone(),
            tensors: tensors.clone(),
        };
        edit(&mut made);
        let folder = Scratch::new();
        made.write(&folder);
        let expected = expected.replace("{Q}", Q);
        let expected = expected.replace("{C}", ": config.json: `quantization_config`: ");
        assert_eq!(refused(&folder), expected);
    }
}

fn quantisation<'a>(folder: &'a mut Folder, key: &str) -> &'a mut Json {
    &mut folder.config["quantization_config"][key]
}

const Q: &str = "model.layers.0.self_attn.q_proj";

#[test]
fn wrong_quantisations() {
    check(
        KIND,
        &[
            (
                |folder| *quantisation(folder, "quant_method") = json!("gptq"),
                "{C}quant_method \"gptq\" is not supported, expected \"higgs\" \
                 or \"vptq\"",
            ),
            (
                |folder| *quantisation(folder, "p") = json!(1),
                ": tensor `{Q}.tables`: value 0 is 0, but the published grid has -2.7325895",
            ),
            (
                |folder| {
                    *quantisation(folder, "p") = json!(1);
                    *quantisation(folder, "bits") = json!(3);
                },
                "{C}a grid of p 1 and 3 bits is not supported, expected p 2 and 2, 3 or 4 \
                 bits, or p 1 and 4 bits",
            ),
            (
                |folder| *quantisation(folder, "bits") = json!(-4),
                "{C}bits: expected 1 to 1048576, found -4",
            ),
            (
                |folder| *quantisation(folder, "hadamard_size") = json!(96),
                "{C}hadamard_size: expected a power of two from 32 up, found 96",
            ),
            (
                |folder| *quantisation(folder, "group_size") = json!(8),
                "{C}group_size: expected a multiple of 16 that divides 128, found 8",
            ),
            (
                |folder| {
                    *quantisation(folder, "hadamard_size") = json!(1024);
                    *quantisation(folder, "group_size") = json!(64);
                },
                ": tensor `{Q}.weight`: rows of 512 values are padded to 1024, which is not \
                 supported: expected a multiple of 1024",
            ),
        ],
    );
    check(
        Kind { template: Some(16), ..KIND },
        &[
            (
                |folder| *quantisation(folder, "tune_metadata") = json!({}),
                ": module `{Q}`: neither `tune_metadata` nor `num_sms_packed` says how it is \
                 packed",
            ),
            (
                |folder| quantisation(folder, "tune_metadata")[Q]["template_id"] = json!(144),
                ": module `{Q}`: `tune_metadata`: no kernel of 4 bits has template_id 144",
            ),
            (
                |folder| quantisation(folder, "tune_metadata")[Q]["num_bits"] = json!(3),
                ": module `{Q}`: `tune_metadata`: num_bits 3, expected 4",
            ),
        ],
    );
}

#[test]
fn wrong_tensors() {
    check(
        KIND,
        &[
            (
                |folder| folder.tensor("model.layers.0.self_attn.q_proj.tables2").bytes[1] ^= 4,
                ": tensor `{Q}.tables2`: value 0 is -5.0039063, but the published grid has \
                 -2.5014677",
            ),
            (
                |folder| folder.tensor("model.layers.0.self_attn.q_proj.scales").dtype = "I16",
                ": tensor `{Q}.scales`: expected type F16 or BF16, found I16",
            ),
            (
                |folder| {
                    folder.tensor("model.layers.0.self_attn.q_proj.scales").bytes[..2].fill(0xff)
                },
                ": tensor `{Q}.scales`: expected finite numbers, found NaN at 0",
            ),
            (
                |folder| {
                    folder.tensor("model.layers.0.self_attn.q_proj.weight").shape = vec![512, 128]
                },
                ": tensor `{Q}.weight`: expected shape [128, 512], found [512, 128]",
            ),
            (
                |folder| {
                    folder.tensor("model.layers.0.self_attn.q_proj.scales").name = "x".to_string()
                },
                ": tensor `{Q}.weight`: expected floats, found I16",
            ),
            (
                |folder| {
                    folder.tensors.retain(|tensor| !tensor.name.ends_with(".mlp.up_proj.tables2"))
                },
                ": tensor `model.layers.0.mlp.up_proj.tables2` is missing",
            ),
            (
                |folder| {
                    folder.tensors.retain(|tensor| !tensor.name.ends_with(".mlp.up_proj.weight"))
                },
                ": tensor `model.layers.0.mlp.up_proj.weight` is missing",
            ),
            (
                |folder| folder.tensors.retain(|tensor| tensor.name != "model.embed_tokens.weight"),
                ": tensor `model.embed_tokens.weight` is missing",
            ),
            (
                |folder| folder.tensor("model.norm.weight").shape = vec![256, 2],
                ": tensor `model.norm.weight`: expected shape [512], found [256, 2] (outputs \
                 first)",
            ),
            (
                |folder| {
                    let other = folder.tensor("model.norm.weight").clone();
                    folder
                        .tensors
                        .push(crate::folder::Stored { name: "model.other".into(), ..other });
                },
                ": tensor `model.other` is not part of architecture `llama`",
            ),
        ],
    );
}

#[test]
fn wrong_configurations() {
    check(
        KIND,
        &[
            (
                |folder| folder.config["architectures"] = json!(["MambaForCausalLM"]),
                "/config.json: unknown class `MambaForCausalLM`, expected Gemma3ForCausalLM, \
                 Gemma3ForConditionalGeneration, LlamaForCausalLM, MistralForCausalLM, \
                 Phi3ForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, \
                 SmolLM3ForCausalLM",
            ),
            (
                |folder| folder.config["num_attention_heads"] = json!("four"),
                "/config.json: `num_attention_heads`: expected an integer from 0 to \
                 4294967295, found \"four\"",
            ),
            (
                |folder| folder.config["rope_scaling"] = json!({"type": "dynamic", "factor": 2.0}),
                "/config.json: `rope_scaling`: rope type `dynamic` is not supported, expected \
                 default, linear, llama3, longrope or yarn",
            ),
            (
                |folder| folder.tokenizer["model"]["byte_fallback"] = json!(true),
                ": tokenizer.json: merging by scores does not cut texts as this tokenizer does",
            ),
            (
                |folder| folder.tokenizer["model"]["vocab"]["new"] = json!(128),
                ": tokenizer.json: token `new` has id 128, but the embedding has 128 rows",
            ),
        ],
    );
}
