//! Folders that must be refused, architecture by architecture: what their configuration says and
//! no backend does, and files that are not whole. Plain ones are in `import.rs`.

use std::fs;
use std::path::Path;

use gridmill::convert::import;
use serde_json::{Value as Json, json};

use crate::checkpoint::{KIND, checkpoint};
use crate::folder::{Folder, Stored, safetensors, write_json};
use crate::scratch::Scratch;

/// The message after the folder's path.
fn refused(folder: &Scratch) -> String {
    let error = import::open(folder).err().expect("a folder to refuse").to_string();
    let place = folder.display().to_string();
    error.strip_prefix(&place).unwrap_or_else(|| panic!("no path in: {error}")).to_string()
}

/// A key of `config.json`, its value, and what is said of it.
type Case<'a> = (&'a str, Json, &'a str);

fn check(name: &str, class: &str, more: &Json, cases: &[Case]) {
    let whole = Folder::of(name, class, more.clone());
    let folder = Scratch::new();
    whole.write(&folder);
    import::open(&folder).unwrap_or_else(|error| panic!("{name} is whole: {error}"));
    for (key, value, expected) in cases {
        let mut made = whole.clone();
        made.config[*key] = value.clone();
        let folder = Scratch::new();
        made.write(&folder);
        let found = refused(&folder).replace("/config.json: ", ": config.json: ");
        assert_eq!(found, format!(": config.json: {expected}"), "{name}: {key}");
    }
}

#[test]
fn configurations_of_one_kind_of_layer() {
    let other = "is not supported, expected";
    let bands = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let none = json!({});
    check(
        "llama",
        "LlamaForCausalLM",
        &none,
        &[
            (
                "hidden_act",
                json!("gelu"),
                &format!("`hidden_act`: \"gelu\" {other} \"silu\" or \"swish\""),
            ),
            ("hidden_size", json!(null), "`hidden_size` is missing, expected a number"),
            (
                "hidden_size",
                json!(-64),
                "`hidden_size`: expected an integer from 0 to 4294967295, found -64",
            ),
            ("rms_norm_eps", json!(null), "`rms_norm_eps` is missing, expected a number"),
            (
                "rope_scaling",
                json!("linear"),
                "`rope_scaling`: expected an object, found \"linear\"",
            ),
            (
                "partial_rotary_factor",
                json!(0.5),
                &format!("`partial_rotary_factor`: 0.5 {other} 1.0"),
            ),
            ("text_config", json!(3), "`text_config`: expected an object, found 3"),
            ("layer_types", json!(["full_attention"]), "`layer_types`: expected 2 kinds, found 1"),
            (
                "layer_types",
                json!(["full_attention", "linear_attention"]),
                "`layer_types`: layer 1 is \"linear_attention\", expected \"full_attention\"",
            ),
        ],
    );
    check(
        "qwen2",
        "Qwen2ForCausalLM",
        &none,
        &[
            (
                "use_sliding_window",
                json!(true),
                &format!("`use_sliding_window`: true {other} false"),
            ),
            ("rope_scaling", bands, "rope of this type is not supported in architecture `qwen2`"),
        ],
    );
}

#[test]
fn configurations_of_longer_texts() {
    let other = "is not supported, expected";
    check(
        "qwen2",
        "Qwen2ForCausalLM",
        &json!({}),
        &[
            (
                "rope_scaling",
                json!({"type": "yarn", "factor": -4.0}),
                "`rope_scaling.factor`: expected a number above 0, found -4.0",
            ),
            (
                "rope_scaling",
                json!({"type": "yarn", "factor": 4.0, "beta_fast": "many"}),
                "`rope_scaling.beta_fast`: expected a number above 0, found \"many\"",
            ),
            (
                "rope_scaling",
                json!({"type": "yarn", "original_max_position_embeddings": 0}),
                "`original_max_position_embeddings`: expected an integer from 1 to 4294967295, \
                 found 0",
            ),
            (
                "rope_scaling",
                json!({"type": "yarn", "factor": 4.0, "truncate": false}),
                &format!("`rope_scaling.truncate`: false {other} true"),
            ),
        ],
    );
}

/// Kinds of rope that are known.
const KINDS: &str = "default, linear, llama3, longrope or yarn";

#[test]
fn configurations_of_turns() {
    let other = "is not supported, expected";
    let none = json!({});
    check(
        "smollm3",
        "SmolLM3ForCausalLM",
        &none,
        &[
            (
                "no_rope_layers",
                json!([1, 1, 1, 1, 1]),
                "`no_rope_layers`: expected [1, 1, 1, 0, 1], found [1,1,1,1,1]",
            ),
            ("no_rope_layer_interval", json!(3), &format!("`no_rope_layer_interval`: 3 {other} 4")),
        ],
    );
    check(
        "phi3",
        "Phi3ForCausalLM",
        &none,
        &[
            (
                "rope_scaling",
                json!({"type": "dynamic", "factor": 2.0}),
                &format!("`rope_scaling`: rope type `dynamic` {other} {KINDS}"),
            ),
            (
                "rope_scaling",
                json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}),
                "`original_max_position_embeddings`: expected a number above 0, found null",
            ),
            (
                "rope_scaling",
                json!({
                    "type": "su", "attention_factor": 1.0,
                    "short_factor": [1.0], "long_factor": [1.0],
                }),
                "`short_factor`: expected 8 numbers, found 1",
            ),
            (
                "rope_scaling",
                json!({"type": "su", "attention_factor": 1.0, "short_factor": [1.0, -1.0]}),
                "`rope_scaling.short_factor`: expected a number above 0, found -1.0",
            ),
            (
                "partial_rotary_factor",
                json!(1.5),
                "`partial_rotary_factor`: expected a number from 0 to 1, found 1.5",
            ),
            (
                "partial_rotary_factor",
                json!(0.2),
                "phi3.rope.dimension_count: expected an even number up to 16, found 3",
            ),
        ],
    );
}

#[test]
fn configurations_with_windows() {
    let other = "is not supported, expected";
    let base = json!({"query_pre_attn_scalar": 32, "rope_local_base_freq": 5000.0});
    let local = json!({
        "full_attention": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "yarn", "rope_theta": 5000.0},
    });
    let third = json!({"full_attention": {}, "chunked_attention": {}});
    check(
        "gemma3",
        "Gemma3ForCausalLM",
        &base,
        &[
            (
                "hidden_activation",
                json!("relu"),
                &format!("`hidden_activation`: \"relu\" {other} \"gelu_pytorch_tanh\""),
            ),
            ("sliding_window_pattern", json!(4), &format!("`sliding_window_pattern`: 4 {other} 6")),
            (
                "attn_logit_softcapping",
                json!(50.0),
                &format!("`attn_logit_softcapping`: 50.0 {other} 0.0"),
            ),
            ("query_pre_attn_scalar", json!(16), "`query_pre_attn_scalar`: expected 32, found 16"),
            (
                "layer_types",
                json!(vec!["full_attention"; 7]),
                "`layer_types`: layer 0 is \"full_attention\", expected \"sliding_attention\"",
            ),
            (
                "rope_parameters",
                local,
                &format!("`rope_parameters.sliding_attention`: rope type `yarn` {other} default"),
            ),
            (
                "rope_parameters",
                third,
                "`rope_parameters`: layers of kind `chunked_attention` are not supported",
            ),
            (
                "sliding_window",
                json!("8"),
                "`sliding_window`: expected an integer from 0 to 4294967295, found \"8\"",
            ),
        ],
    );
}

#[test]
fn tensors_that_are_not_apart() {
    let made = Folder::of("llama", "LlamaForCausalLM", json!({}));
    let header =
        |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &[0; 64]].concat();
    let entry = |name: &str, shape: &str, at: [u32; 2]| {
        format!("\"{name}\": {{\"dtype\": \"F32\", \"shape\": {shape}, \"data_offsets\": {at:?}}}")
    };
    let both = format!("{{{}, {}}}", entry("a", "[4]", [0, 16]), entry("b", "[4]", [12, 28]));
    let negative = format!("{{{}}}", entry("a", "[-4]", [0, 16]));
    for (header, expected) in [
        (header(&both), "tensor `b` begins at byte 12 of the data, but `a` ends at 16"),
        (header(&negative), "tensor `a`: invalid value: integer `-4`, expected u64"),
    ] {
        let folder = Scratch::new();
        made.write(&folder);
        folder.file("model.safetensors", &header);
        assert_eq!(refused(&folder), format!("/model.safetensors: {expected}"));
    }
}

#[test]
fn shards_that_are_not_there() {
    let made = Folder::of("llama", "LlamaForCausalLM", json!({}));
    let folder = Scratch::new();
    made.write_sharded(&folder);
    fs::remove_file(folder.join("b.safetensors")).expect("it was written");
    let expected = ": the folder has no b.safetensors, which model.safetensors.index.json names";
    assert_eq!(refused(&folder), expected);
    // A shard with a tensor of another.
    folder.file("b.safetensors", &safetensors(&made.tensors));
    let found = refused(&folder);
    assert!(found.starts_with(": tensor `") && found.ends_with("` is in two files"), "{found}");
}

/// A folder of a model that sees with a tensor of the text under two names.
#[test]
fn names_that_meet() {
    let mut made = Folder::of("gemma3", "Gemma3ForConditionalGeneration", json!({}));
    let mut other = made.tensor("model.norm.weight").clone();
    other.name = "language_model.model.norm.weight".to_string();
    made.tensors.push(other);
    let folder = Scratch::new();
    made.write(&folder);
    let expected = "tensor `model.norm.weight` is there twice";
    assert_eq!(refused(&folder), format!(": {expected}, once as `language_model.{}`", NORM));
}

const NORM: &str = "model.norm.weight";

#[test]
fn wrong_files() {
    let tensors = checkpoint(KIND).folder.tensors;
    let whole = safetensors(&tensors);
    let len = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let with_len = |len: u64| [&len.to_le_bytes(), &whole[8..]].concat();
    let with_header =
        |header: &str| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 64]].concat();
    let data = whole.len() - 8 - len;
    let cases = [
        (whole[..5].to_vec(), "the file has 5 bytes, expected at least 8".to_string()),
        (
            whole[..100].to_vec(),
            format!("the header ends at byte {}, but the file has 100", 8 + len),
        ),
        (
            with_len(1 << 40),
            format!("the header has {} bytes, expected at most 100000000", 1u64 << 40),
        ),
        (
            with_header("{\"a\""),
            "header: EOF while parsing an object at line 1 column 4".to_string(),
        ),
        (
            with_header("{\"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [0, 12]}}"),
            "tensor `a`: F32 of shape [4] has 12 bytes, expected 16".to_string(),
        ),
        (
            with_header("{\"a\": {\"dtype\": \"F32\", \"shape\": [4], \"data_offsets\": [16, 0]}}"),
            "tensor `a`: lies at bytes 16 to 0 of the data, but the file has 64".to_string(),
        ),
        (
            with_header(
                "{\"a\": {\"dtype\": \"F32\", \"shape\": [4294967296, 4294967296, 4], \
                 \"data_offsets\": [0, 0]}}",
            ),
            format!(
                "tensor `a`: shape [4294967296, 4294967296, 4] has more than {} values",
                1u64 << 44
            ),
        ),
    ];
    for (bytes, expected) in cases {
        let folder = Scratch::new();
        checkpoint_files(&folder);
        folder.file("model.safetensors", &bytes);
        assert_eq!(refused(&folder), format!("/model.safetensors: {expected}"));
    }
    let folder = Scratch::new();
    checkpoint_files(&folder);
    assert!(refused(&folder).contains("no model.safetensors and no model.safetensors.index.json"));
    folder.file("model.safetensors", &whole[..whole.len() - 1]);
    let message = refused(&folder);
    assert!(
        message.ends_with(&format!(" of the data, but the file has {}", data - 1)),
        "{message}"
    );
    write_json(&folder, "model.safetensors.index.json", &json!({"weight_map": {"a": "../a"}}));
    assert_eq!(
        refused(&folder),
        "/model.safetensors.index.json: tensor `a`: expected the name of a file in the folder, \
         found \"../a\""
    );
    let empty = Scratch::new();
    assert_eq!(refused(&empty), ": the folder has no config.json");
    folder.file("config.json", b"[1]");
    assert!(refused(&folder).starts_with("/config.json: invalid type: sequence"));
}

/// A folder without its weights.
fn checkpoint_files(folder: &Scratch) {
    checkpoint(KIND).folder.write(folder);
    fs::remove_file(folder.join("model.safetensors")).expect("it was written");
}

/// `cargo test --test it folders::seeds -- --ignored`
#[test]
#[ignore = "writes the seeds of tests/fuzz"]
fn seeds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    for target in ["folder", "safetensors"] {
        fs::create_dir_all(corpus.join(target)).expect("the folder is writable");
    }
    let shares = json!({"norm_topk_prob": true});
    let none = json!({});
    let small = |name: &str, dtype, shape: &[usize], bytes: usize| Stored {
        name: name.to_string(),
        dtype,
        shape: shape.to_vec(),
        bytes: vec![0; bytes],
    };
    let some = [
        small("a.weight", "F32", &[2, 3], 24),
        small("b.weight", "BF16", &[4], 8),
        small("scalar", "I64", &[], 8),
        small("other", "F8_E4M3", &[1, 2, 1], 2),
    ];
    fs::write(corpus.join("safetensors/small"), safetensors(&some)).expect("writable");
    for (name, class, more) in [
        ("llama", "LlamaForCausalLM", &none),
        ("qwen2", "Qwen2ForCausalLM", &none),
        ("qwen3moe", "Qwen3MoeForCausalLM", &shares),
        ("gemma3", "Gemma3ForCausalLM", &none),
        ("phi3", "Phi3ForCausalLM", &none),
        ("smollm3", "SmolLM3ForCausalLM", &none),
    ] {
        let Folder { config, tokenizer, tokenizer_config, tensors } =
            Folder::of(name, class, more.clone());
        let weights = safetensors(&tensors);
        let (len, rest) = weights.split_first_chunk::<8>().expect("the length of a header");
        let header = &rest[..u64::from_le_bytes(*len) as usize];
        let mut files =
            [config, tokenizer, tokenizer_config].map(|file| file.to_string().into_bytes());
        let pieces = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pieces/plain.model");
        let mut last = Vec::new();
        if name == "gemma3" {
            files[1].clear();
            last = fs::read(pieces).expect("committed");
        }
        let [config, tokenizer, more] = &files;
        let all = [&config[..], tokenizer, more, header, b"", &last];
        fs::write(corpus.join("folder").join(name), all.join(&255)).expect("writable");
    }
}
