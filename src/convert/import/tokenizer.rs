//! `tokenizer.json` and its companions to the keys of GGUF.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::folder::Folder;
use crate::bail;
use crate::error::{At, Error, Result};
use crate::file::{Array, Metadata, Value};
use crate::limits;
use crate::run::tokenizer::find_pre_tokenizer;

/// The file that all of it starts from.
const FILE: &str = "tokenizer.json";

/// Numbers of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// The special tokens: Hugging Face's name and GGUF's. (The misspelling is GGUF's.)
const SPECIAL: [(&str, &str); 6] = [
    ("bos", "bos"),
    ("eos", "eos"),
    ("unk", "unknown"),
    ("sep", "seperator"),
    ("pad", "padding"),
    ("mask", "mask"),
];

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Model,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// Newer files have pairs, older ones texts with a space between.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

/// Adds the tokenizer and the chat template of a model with so many rows in its embedding.
pub(super) fn add(folder: &Folder, rows: usize, metadata: &mut Metadata) -> Result<()> {
    let config = folder.json("tokenizer_config.json")?.unwrap_or_default();
    if let Some(template) = chat_template(folder, &config)? {
        metadata.set("tokenizer.chat_template", Value::String(template));
    }
    let Some(text) = folder.text(FILE)? else {
        let error = Error::new(format!("the folder has no {FILE}"));
        return Err(error.with_hint("other tokenizers are not read"));
    };
    let file: File = parse(&text).at(FILE)?;
    let mut set = |key: &str, value: Value| metadata.set(format!("tokenizer.ggml.{key}"), value);
    set("model", Value::String("gpt2".to_string()));
    let (tokens, kinds) = tokens(&file, rows).at(FILE)?;
    set("tokens", Value::Array(Array::String(tokens)));
    set("token_type", Value::Array(Array::I32(kinds)));
    let merges = file.model.merges.iter().map(Merge::text).collect::<Result<_>>().at(FILE)?;
    set("merges", Value::Array(Array::String(merges)));
    let generation = folder.json("generation_config.json")?.unwrap_or_default();
    let mut bos = None;
    for (name, key) in SPECIAL {
        let id = special(&file, name, &config, &[&folder.config, &generation]);
        if let Some(id) = id.filter(|&id| (id as usize) < rows) {
            set(&format!("{key}_token_id"), Value::U32(id));
            bos = bos.or(Some(id).filter(|_| name == "bos"));
        }
    }
    let theirs = tokenizers::Tokenizer::from_bytes(&text);
    let theirs = theirs.map_err(|error| Error::new(error.to_string())).at(FILE)?;
    let encode = |text: &str, special: bool| {
        let encoding = theirs.encode_fast(text, special);
        encoding.map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default()
    };
    // Where the configuration does not say, a text shows whether it is put in front.
    let says = config.get("add_bos_token").and_then(Json::as_bool);
    let shows = || bos.is_some() && encode("a", true).first().copied() == bos;
    set("add_bos_token", Value::Bool(says.unwrap_or_else(shows)));
    let spell = |ids: &[u32]| theirs.decode(ids, false).unwrap_or_default();
    let pre = find_pre_tokenizer(metadata, &|text| encode(text, false), &spell).at(FILE)?;
    metadata.set("tokenizer.ggml.pre", Value::String(pre));
    Ok(())
}

fn parse(text: &str) -> Result<File> {
    let file: File = serde_json::from_str(text).map_err(|error| Error::new(error.to_string()))?;
    let is_bpe = file.model.kind.as_deref().is_none_or(|kind| kind == "BPE");
    if !is_bpe || file.model.byte_fallback {
        let error = Error::new("expected byte-level BPE, found another kind of tokenizer");
        return Err(error.with_hint("llama.cpp's convert_hf_to_gguf.py reads other tokenizers"));
    }
    Ok(file)
}

impl Merge {
    fn text(&self) -> Result<String> {
        match self {
            Merge::Text(text) => Ok(text.clone()),
            Merge::Pair(a, b) if !a.contains(' ') && !b.contains(' ') => Ok(format!("{a} {b}")),
            Merge::Pair(a, b) => bail!("merge of `{a}` and `{b}`: expected texts without spaces"),
        }
    }
}

/// Every token and its kind; rows of the embedding without a token are filled up.
fn tokens(file: &File, rows: usize) -> Result<(Vec<String>, Vec<i32>)> {
    if rows > limits::VOCAB_LEN_MAX {
        bail!("{rows} tokens, expected at most {}", limits::VOCAB_LEN_MAX);
    }
    let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED; rows];
    let added = file.added_tokens.iter();
    let added = added.map(|token| (&token.content, token.id, added_kind(token)));
    let plain = file.model.vocab.iter().map(|(token, &id)| (token, id, NORMAL));
    for (token, id, kind) in plain.chain(added) {
        let Some(place) = tokens.get_mut(id as usize) else {
            bail!("token `{token}` has id {id}, but the embedding has {rows} rows");
        };
        place.clone_from(token);
        kinds[id as usize] = kind;
    }
    Ok((tokens, kinds))
}

/// As llama.cpp's converter: a name in angle brackets is special, whatever the file says.
fn added_kind(token: &Added) -> i32 {
    let content = token.content.as_str();
    let looks = content.starts_with("<|") && content.ends_with("|>");
    if token.special || looks || ["<pad>", "<mask>"].contains(&content) {
        CONTROL
    } else {
        USER_DEFINED
    }
}

/// The id of a special token: by its text in the tokenizer's configuration, or as a number in one
/// of the others.
fn special(
    file: &File,
    name: &str,
    config: &Map<String, Json>,
    others: &[&Map<String, Json>],
) -> Option<u32> {
    let token = config.get(&format!("{name}_token"));
    let token = token.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
    let by_text = token.and_then(|text| {
        let added = file.added_tokens.iter().find(|token| token.content == text);
        added.map(|token| token.id).or_else(|| file.model.vocab.get(text).copied())
    });
    let key = format!("{name}_token_id");
    let number = |config: &&Map<String, Json>| {
        let id = config.get(&key)?;
        // Several ends are a list, whose first one counts.
        let id = id.as_u64().or_else(|| id.as_array()?.first()?.as_u64());
        u32::try_from(id?).ok()
    };
    by_text.or_else(|| others.iter().find_map(number))
}

/// The template that is a file of its own, or the one in the configuration.
fn chat_template(folder: &Folder, config: &Map<String, Json>) -> Result<Option<String>> {
    if let Some(template) = folder.text("chat_template.jinja")? {
        return Ok(Some(template));
    }
    let template = config.get("chat_template");
    let named = || {
        let list = template?.as_array()?.iter();
        let mut list = list.filter(|entry| entry.get("name").is_some_and(|name| name == "default"));
        list.next()?.get("template")?.as_str()
    };
    Ok(template.and_then(Json::as_str).or_else(named).map(str::to_string))
}
