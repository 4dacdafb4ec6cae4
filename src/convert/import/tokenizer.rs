//! `tokenizer.json` or `tokenizer.model`, and their companions, to the keys of GGUF.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::folder::Folder;
use super::tokens::{Added, Tokens};
use super::{sampling, sentencepiece};
use crate::bail;
use crate::error::{At, Error, Result};
use crate::file::{Array, Metadata, Value};
use crate::run::tokenizer::{find_pre_tokenizer, find_space_prefix};

/// The file of the `tokenizers` library.
const FILE: &str = "tokenizer.json";
/// The file of SentencePiece.
const PIECES: &str = "tokenizer.model";

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
struct Model {
    #[serde(default)]
    byte_fallback: bool,
    unk_token: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// Enough of the file to say what the rest is.
#[derive(Deserialize)]
struct Kind {
    model: KindOfModel,
}

#[derive(Deserialize)]
struct KindOfModel {
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// Newer files have pairs, older ones texts with a space between.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

/// What a folder says beside its vocabulary.
struct Said<'a> {
    config: Map<String, Json>,
    generation: Map<String, Json>,
    model: &'a Map<String, Json>,
}

/// Adds the tokenizer and the chat template of a model with so many rows in its embedding.
pub(super) fn add(folder: &Folder, rows: usize, metadata: &mut Metadata) -> Result<()> {
    let said = Said {
        config: folder.json("tokenizer_config.json")?.unwrap_or_default(),
        generation: folder.json("generation_config.json")?.unwrap_or_default(),
        model: &folder.config,
    };
    sampling::add(&said.generation, metadata).at("generation_config.json")?;
    if let Some(template) = chat_template(folder, &said.config)? {
        metadata.set("tokenizer.chat_template", Value::String(template));
    }
    let pieces = folder.bytes(PIECES)?;
    let Some(text) = folder.text(FILE)? else {
        let Some(pieces) = pieces else {
            let error = Error::new(format!("the folder has no {FILE} and no {PIECES}"));
            return Err(error.with_hint("other tokenizers are not read"));
        };
        return of_pieces(folder, &pieces, None, rows, &said, metadata);
    };
    check_kind(&text).at(FILE)?;
    let file: File = from_json(&text).at(FILE)?;
    match (file.model.byte_fallback, pieces) {
        (false, _) => of_bytes(&text, &file, rows, &said, metadata).at(FILE),
        (true, Some(pieces)) => of_pieces(folder, &pieces, Some(&file), rows, &said, metadata),
        (true, None) => of_merges(&text, &file, rows, &said, metadata).at(FILE),
    }
}

fn from_json<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| Error::new(error.to_string()))
}

fn check_kind(text: &str) -> Result<()> {
    let kind = from_json::<Kind>(text)?.model.kind;
    match kind.as_deref() {
        None | Some("BPE") => Ok(()),
        Some(kind) => {
            let error =
                Error::new(format!("model of type `{kind}` is not supported, expected BPE"));
            Err(error.with_hint("llama.cpp's convert_hf_to_gguf.py reads other tokenizers"))
        }
    }
}

/// Byte-level BPE.
fn of_bytes(
    text: &str,
    file: &File,
    rows: usize,
    said: &Said,
    metadata: &mut Metadata,
) -> Result<()> {
    set(metadata, "model", Value::String("gpt2".to_string()));
    let tokens = file.tokens(rows)?;
    tokens.write(metadata, false);
    let merges = file.model.merges.iter().map(Merge::text).collect::<Result<_>>()?;
    set(metadata, "merges", Value::Array(Array::String(merges)));
    let theirs = Theirs::read(text)?;
    let bos = specials(&tokens, said, metadata);
    add_bos(said, metadata, || theirs.starts_with(bos));
    let encode = |text: &str| theirs.encode(text, false);
    let pre = find_pre_tokenizer(metadata, &encode, &|ids| theirs.spell(ids))?;
    set(metadata, "pre", Value::String(pre));
    Ok(())
}

/// SentencePiece as the `tokenizers` library has it: merges of characters, and bytes for what has
/// no token. GGUF has scores instead: a token that an earlier merge makes has a greater one.
fn of_merges(
    text: &str,
    file: &File,
    rows: usize,
    said: &Said,
    metadata: &mut Metadata,
) -> Result<()> {
    let mut tokens = file.tokens(rows)?;
    let mut ranks = HashMap::new();
    for (rank, merge) in file.model.merges.iter().enumerate() {
        let whole = merge.text()?.replacen(' ', "", 1);
        ranks.entry(whole).or_insert(rank);
    }
    tokens.score(|token| ranks.get(token).map(|&rank| -(rank as f32)));
    tokens.mark_bytes();
    tokens.mark_unknown(file.model.unk_token.as_deref());
    tokens.write_pieces(metadata);
    let theirs = Theirs::read(text)?;
    let bos = specials(&tokens, said, metadata);
    add_bos(said, metadata, || theirs.starts_with(bos));
    let encode = |text: &str| theirs.encode(text, false);
    let prefix = find_space_prefix(metadata, &encode, &|ids| theirs.spell(ids))?;
    set(metadata, "add_space_prefix", Value::Bool(prefix));
    Ok(())
}

/// A SentencePiece model, with what other files add to it.
fn of_pieces(
    folder: &Folder,
    bytes: &[u8],
    file: Option<&File>,
    rows: usize,
    said: &Said,
    metadata: &mut Metadata,
) -> Result<()> {
    let model = sentencepiece::read(bytes).at(PIECES)?;
    let mut tokens = Tokens::new(rows)?;
    tokens.add_pieces(&model.pieces).at(PIECES)?;
    let listed = folder.json("added_tokens.json")?.unwrap_or_default();
    for (content, id) in &listed {
        let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
            bail!("added_tokens.json: `{content}`: expected an id, found {id}");
        };
        tokens.add(&Added { id, content: content.clone(), special: false });
    }
    for added in decoder_tokens(&said.config).at("tokenizer_config.json")? {
        tokens.add(&added);
    }
    file.iter().flat_map(|file| &file.added_tokens).for_each(|added| tokens.add(added));
    tokens.write_pieces(metadata);
    let own = [
        ("bos", model.special.bos),
        ("eos", model.special.eos),
        ("unknown", model.special.unk),
        ("padding", model.special.pad),
    ];
    for (key, id) in own {
        if let Some(id) = id.filter(|&id| (id as usize) < model.pieces.len()) {
            set(metadata, &format!("{key}_token_id"), Value::U32(id));
        }
    }
    specials(&tokens, said, metadata);
    // As `transformers` and llama.cpp do where nothing is said.
    add_bos(said, metadata, || true);
    let prefix = said.config.get("add_prefix_space").and_then(Json::as_bool);
    set(metadata, "add_space_prefix", Value::Bool(prefix.unwrap_or(model.adds_space)));
    Ok(())
}

/// Tokens that `tokenizer_config.json` lists by their ids.
fn decoder_tokens(config: &Map<String, Json>) -> Result<Vec<Added>> {
    let Some(list) = config.get("added_tokens_decoder") else { return Ok(Vec::new()) };
    let entries = list.as_object().into_iter().flatten();
    let entry = |(id, token): (&String, &Json)| {
        let content = token.get("content").and_then(Json::as_str);
        let special = token.get("special").and_then(Json::as_bool).unwrap_or(false);
        match (id.parse(), content) {
            (Ok(id), Some(content)) => Ok(Added { id, content: content.to_string(), special }),
            _ => bail!("`added_tokens_decoder`: expected an id and its content, found {id:?}"),
        }
    };
    entries.map(entry).collect()
}

fn set(metadata: &mut Metadata, key: &str, value: Value) {
    metadata.set(format!("tokenizer.ggml.{key}"), value);
}

/// Writes the ids of the special tokens that are known; the answer is the one that begins a text.
fn specials(tokens: &Tokens, said: &Said, metadata: &mut Metadata) -> Option<u32> {
    let mut bos = None;
    for (name, key) in SPECIAL {
        let id = special(tokens, name, said).filter(|&id| (id as usize) < tokens.len());
        if let Some(id) = id {
            set(metadata, &format!("{key}_token_id"), Value::U32(id));
            bos = bos.or(Some(id).filter(|_| name == "bos"));
        }
    }
    bos
}

/// Where the configuration does not say, a text shows whether it is put in front.
fn add_bos(said: &Said, metadata: &mut Metadata, shows: impl FnOnce() -> bool) {
    let says = said.config.get("add_bos_token").and_then(Json::as_bool);
    set(metadata, "add_bos_token", Value::Bool(says.unwrap_or_else(shows)));
}

/// The same tokenizer in the `tokenizers` library.
struct Theirs(tokenizers::Tokenizer);

impl Theirs {
    fn read(text: &str) -> Result<Theirs> {
        let theirs = tokenizers::Tokenizer::from_bytes(text);
        theirs.map(Theirs).map_err(|error| Error::new(error.to_string()))
    }

    fn encode(&self, text: &str, special: bool) -> Vec<u32> {
        let encoding = self.0.encode_fast(text, special);
        encoding.map(|encoding| encoding.get_ids().to_vec()).unwrap_or_default()
    }

    fn starts_with(&self, bos: Option<u32>) -> bool {
        bos.is_some() && self.encode("a", true).first().copied() == bos
    }

    fn spell(&self, ids: &[u32]) -> String {
        self.0.decode(ids, false).unwrap_or_default()
    }
}

impl File {
    /// Every token and its kind.
    fn tokens(&self, rows: usize) -> Result<Tokens> {
        let mut tokens = Tokens::new(rows)?;
        for (token, &id) in &self.model.vocab {
            tokens.add_plain(token, id)?;
        }
        self.added_tokens.iter().for_each(|added| tokens.add(added));
        Ok(tokens)
    }
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

/// The id of a special token: by its text in the tokenizer's configuration, or as a number in one
/// of the others.
fn special(tokens: &Tokens, name: &str, said: &Said) -> Option<u32> {
    let token = said.config.get(&format!("{name}_token"));
    let token = token.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
    let key = format!("{name}_token_id");
    let number = |config: &Map<String, Json>| {
        let id = config.get(&key)?;
        // Several ends are a list, whose first one counts.
        let id = id.as_u64().or_else(|| id.as_array()?.first()?.as_u64());
        u32::try_from(id?).ok()
    };
    let by_text = token.and_then(|text| tokens.find(text));
    by_text.or_else(|| number(said.model)).or_else(|| number(&said.generation))
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
