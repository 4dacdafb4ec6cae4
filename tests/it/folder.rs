//! Hugging Face folders made from the models of `tests/data/models`, and from random HIGGS codes.

use std::fs;
use std::path::{Path, PathBuf};

use gridmill::file::{Array, Metadata, Value};
use serde_json::{Value as Json, json};

use crate::models::Parts;
use crate::scratch::Scratch;

/// A tensor of a safetensors file.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// A folder to write.
#[derive(Clone)]
pub(crate) struct Folder {
    pub(crate) config: Json,
    pub(crate) tokenizer: Json,
    pub(crate) tokenizer_config: Json,
    pub(crate) tensors: Vec<Stored>,
}

/// GGUF's name of a tensor without its layer: that of `transformers`.
const NAMES: [(&str, &str); 21] = [
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.{expert}.gate_proj"),
    ("ffn_up_exps", "mlp.experts.{expert}.up_proj"),
    ("ffn_down_exps", "mlp.experts.{expert}.down_proj"),
];

/// `blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`.
///
/// Where a block's result has a norm, `transformers` calls the one before it otherwise, and so it
/// does where two matrices lie in one.
fn their_name(name: &str, has_post_norms: bool, is_fused: bool) -> String {
    let (stem, kind) = name.rsplit_once('.').expect("a kind of tensor");
    let (layer, stem) = match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, stem)) => (format!("model.layers.{layer}."), stem),
        None => (String::new(), stem),
    };
    if stem == "ffn_norm" && has_post_norms {
        return format!("{layer}pre_feedforward_layernorm.{kind}");
    }
    if stem == "ffn_up" && is_fused {
        return format!("{layer}mlp.gate_up_proj.{kind}");
    }
    let found = NAMES.iter().find(|(ours, _)| *ours == stem);
    format!("{layer}{}.{kind}", found.unwrap_or_else(|| panic!("{stem}")).1)
}

impl Folder {
    /// A model of the repository as a folder with this class.
    pub(crate) fn of(name: &str, class: &str, more: Json) -> Folder {
        let parts = Parts::of(name);
        let arch = parts.metadata.get_str("general.architecture").unwrap().unwrap().to_string();
        let number = |key: &str| parts.metadata.get(&format!("{arch}.{key}")).map(as_json);
        let mut config = json!({
            "architectures": [class],
            "hidden_size": number("embedding_length"),
            "intermediate_size": number("feed_forward_length"),
            "num_experts": number("expert_count"),
            "num_experts_per_tok": number("expert_used_count"),
            "moe_intermediate_size": number("expert_feed_forward_length"),
            "num_hidden_layers": number("block_count"),
            "num_attention_heads": number("attention.head_count"),
            "num_key_value_heads": number("attention.head_count_kv"),
            "max_position_embeddings": number("context_length"),
            "rms_norm_eps": number("attention.layer_norm_rms_epsilon"),
            "rope_theta": number("rope.freq_base"),
            "head_dim": number("attention.key_length"),
            "sliding_window": number("attention.sliding_window"),
            "vocab_size": 128,
            "tie_word_embeddings": !parts.tensors.iter().any(|part| part.name == "output.weight"),
        });
        for (key, value) in more.as_object().expect("keys of the configuration") {
            config[key] = value.clone();
        }
        let heads = number("attention.head_count").and_then(|heads| heads.as_u64()).unwrap();
        let embed = number("embedding_length").and_then(|embed| embed.as_u64()).unwrap();
        let head_len = config["head_dim"].as_u64().unwrap_or(embed / heads) as usize;
        let has_post_norms = parts.tensors.iter().any(|part| part.name.contains("post_ffw_norm"));
        let is_fused = !parts.tensors.iter().any(|part| part.name.contains("ffn_gate"));
        let is_interleaved = ["llama", "smollm3"].contains(&arch.as_str());
        let tensors = parts.tensors.iter().filter(|part| !part.name.starts_with("rope_f"));
        let tensors = tensors.map(|part| {
            let mut shape: Vec<usize> = part.shape.iter().map(|&size| size as usize).collect();
            shape.reverse();
            let is_rotated = is_interleaved
                && (part.name.contains(".attn_q.") || part.name.contains(".attn_k."));
            let bytes = match is_rotated {
                true => halves(&part.bytes, shape[0], head_len),
                false => part.bytes.clone(),
            };
            let is_shifted = has_post_norms && part.name.ends_with("norm.weight");
            let bytes = if is_shifted { less_one(&bytes) } else { bytes };
            let name = their_name(&part.name, has_post_norms, is_fused);
            Stored { name, dtype: part.kind.name, shape, bytes }
        });
        let tensors = tensors.flat_map(by_expert);
        Folder {
            tensors: tensors.collect(),
            tokenizer: tokenizer(&parts.metadata),
            tokenizer_config: json!({
                "bos_token": "<|begin|>",
                "eos_token": {"content": "<|end|>"},
                "add_bos_token": false,
            }),
            config,
        }
    }

    /// The same model as the text's part of one that sees, with a tensor of the other part.
    pub(crate) fn inside_a_larger_model(self) -> Folder {
        let Folder { mut config, tokenizer, tokenizer_config, mut tensors } = self;
        let class = config.as_object_mut().and_then(|config| config.remove("architectures"));
        config = json!({"architectures": class, "text_config": config, "rope_theta": 1.0});
        for tensor in &mut tensors {
            tensor.name = format!("language_model.{}", tensor.name);
        }
        let other = Stored { name: "vision_tower.head.weight".to_string(), ..tensors[0].clone() };
        tensors.push(other);
        Folder { config, tokenizer, tokenizer_config, tensors }
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Stored {
        let found = self.tensors.iter_mut().find(|tensor| tensor.name == name);
        found.unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// All files, with the weights in one.
    pub(crate) fn write(&self, folder: &Scratch) -> PathBuf {
        self.write_rest(folder);
        folder.file("model.safetensors", &safetensors(&self.tensors));
        folder.to_path_buf()
    }

    /// All files, with the weights in two.
    pub(crate) fn write_sharded(&self, folder: &Scratch) -> PathBuf {
        self.write_rest(folder);
        let mut places = serde_json::Map::new();
        let halves = self.tensors.split_at(self.tensors.len() / 2);
        for (name, tensors) in [("a.safetensors", halves.0), ("b.safetensors", halves.1)] {
            folder.file(name, &safetensors(tensors));
            places.extend(tensors.iter().map(|tensor| (tensor.name.clone(), json!(name))));
        }
        write_json(folder, "model.safetensors.index.json", &json!({ "weight_map": places }));
        folder.to_path_buf()
    }

    fn write_rest(&self, folder: &Path) {
        write_json(folder, "config.json", &self.config);
        write_json(folder, "tokenizer.json", &self.tokenizer);
        write_json(folder, "tokenizer_config.json", &self.tokenizer_config);
    }
}

/// The matrices of experts one by one, as folders have them.
fn by_expert(tensor: Stored) -> Vec<Stored> {
    let [experts, rows, cols] = tensor.shape[..] else { return vec![tensor] };
    let parts = tensor.bytes.chunks_exact(tensor.bytes.len() / experts).enumerate();
    let one = |(expert, bytes): (usize, &[u8])| Stored {
        name: tensor.name.replace("{expert}", &expert.to_string()),
        dtype: tensor.dtype,
        shape: vec![rows, cols],
        bytes: bytes.to_vec(),
    };
    parts.map(one).collect()
}

pub(crate) fn write_json(folder: &Path, name: &str, value: &Json) {
    fs::write(folder.join(name), value.to_string()).expect("the folder is writable");
}

/// The bytes of a file with these tensors.
pub(crate) fn safetensors(tensors: &[Stored]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".to_string(), json!({"format": "pt"}));
    let mut at = 0;
    for Stored { name, dtype, shape, bytes } in tensors {
        let end = at + bytes.len();
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]});
        header.insert(name.clone(), entry);
        at = end;
    }
    let header = Json::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    tensors.iter().for_each(|tensor| file.extend(&tensor.bytes));
    file
}

/// Rows of a head from pairs of neighbours back to all first halves, all second halves.
pub(crate) fn halves<T: Copy>(values: &[T], rows: usize, head_len: usize) -> Vec<T> {
    let cols = values.len() / rows;
    let source = |row: usize| {
        let (head, at) = (row / head_len, row % head_len);
        head * head_len + at % (head_len / 2) * 2 + at / (head_len / 2)
    };
    (0..rows).flat_map(|row| &values[source(row) * cols..][..cols]).copied().collect()
}

/// The weights of norms that multiply by one more. (Exact, as `make.py` says.)
fn less_one(bytes: &[u8]) -> Vec<u8> {
    let values = bytes.as_chunks::<4>().0.iter();
    values.flat_map(|&value| (f32::from_le_bytes(value) - 1.0).to_le_bytes()).collect()
}

fn as_json(value: &Value) -> Json {
    match value {
        Value::F32(value) => json!(value),
        other => json!(other.as_u64().expect("a number")),
    }
}

/// `tokenizer.json` of a vocabulary of byte-level BPE.
pub(crate) fn tokenizer(metadata: &Metadata) -> Json {
    let key = |key: &str| format!("tokenizer.ggml.{key}");
    let strings = |name: &str| metadata.get_strings(&key(name)).unwrap().expect("a vocabulary");
    let kinds = metadata.get_i32s(&key("token_type")).unwrap().expect("kinds of tokens");
    let tokens = strings("tokens").iter().zip(0..);
    let (special, plain): (Vec<_>, Vec<_>) = tokens.partition(|(_, id)| kinds[*id as usize] == 3);
    let plain: serde_json::Map<String, Json> =
        plain.into_iter().map(|(token, id): (_, u32)| (token.clone(), json!(id))).collect();
    let added = special.into_iter().map(|(token, id)| {
        json!({
            "id": id, "content": token, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    });
    // A merge of texts that are no tokens is left out, since Hugging Face's library refuses it.
    let is_whole = |merge: &&String| {
        let whole = merge.replace(' ', "");
        merge.split(' ').chain([whole.as_str()]).all(|token| plain.contains_key(token))
    };
    let merges: Vec<&String> = strings("merges").iter().filter(is_whole).collect();
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<Json>>(),
        "normalizer": null,
        "pre_tokenizer": bytes,
        "post_processor": null,
        "decoder": bytes,
        "model": {"type": "BPE", "vocab": plain, "merges": merges},
    })
}

/// The vocabulary of the models of the repository.
pub(crate) fn vocabulary() -> Json {
    let parts = Parts::of("llama");
    assert!(matches!(
        parts.metadata.get("tokenizer.ggml.tokens"),
        Some(Value::Array(Array::String(tokens))) if tokens.len() == 128
    ));
    tokenizer(&parts.metadata)
}
