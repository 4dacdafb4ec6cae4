//! The tokens of a vocabulary, gathered from several files, as GGUF lists them.

use serde::Deserialize;

use super::sentencepiece::Piece;
use crate::bail;
use crate::error::Result;
use crate::file::{Array, Metadata, Value};
use crate::limits;
use crate::run::tokenizer::PIECES;

/// Numbers of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// As llama.cpp's converter: what no merge makes has this score or the other one.
const SCORE_ADDED: f32 = -1000.0;
const SCORE_UNUSED: f32 = -10_000.0;
/// Less than any merge of a vocabulary of 2^22 tokens.
const SCORE_UNMERGED: f32 = -1e9;

/// A token that is no part of the trained vocabulary.
#[derive(Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    pub(super) special: bool,
}

/// Every token; rows of the embedding without one are filled up.
pub(super) struct Tokens {
    texts: Vec<String>,
    kinds: Vec<i32>,
    scores: Vec<f32>,
}

impl Tokens {
    /// So many unused ones.
    pub(super) fn new(rows: usize) -> Result<Tokens> {
        if rows > limits::VOCAB_LEN_MAX {
            bail!("{rows} tokens, expected at most {}", limits::VOCAB_LEN_MAX);
        }
        let texts = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        Ok(Tokens { texts, kinds: vec![UNUSED; rows], scores: vec![SCORE_UNUSED; rows] })
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    /// Puts an ordinary token in its place.
    pub(super) fn add_plain(&mut self, text: &str, id: u32) -> Result<()> {
        let rows = self.texts.len();
        let Some(place) = self.texts.get_mut(id as usize) else {
            bail!("token `{text}` has id {id}, but the embedding has {rows} rows");
        };
        if self.kinds[id as usize] != UNUSED {
            // In one order, whichever of them came first.
            let (first, second) = if **place < *text { (&**place, text) } else { (text, &**place) };
            bail!("tokens `{first}` and `{second}` have one id, {id}");
        }
        *place = text.to_string();
        self.kinds[id as usize] = NORMAL;
        Ok(())
    }

    /// Puts the pieces of a SentencePiece model in their places.
    pub(super) fn add_pieces(&mut self, pieces: &[Piece]) -> Result<()> {
        if pieces.len() > self.texts.len() {
            bail!("{} pieces, but the embedding has {} rows", pieces.len(), self.texts.len());
        }
        for (id, Piece { text, score, kind }) in pieces.iter().enumerate() {
            (self.kinds[id], self.scores[id]) = (*kind, *score);
            self.texts[id] = with_spaces(text, *kind);
        }
        Ok(())
    }

    /// Puts an added token in its place. One without a row is left out, as llama.cpp's converter
    /// does: it belongs to a part of the model that is not there, such as its eyes.
    pub(super) fn add(&mut self, token: &Added) {
        let id = token.id as usize;
        let Some(kind) = self.kinds.get_mut(id) else { return };
        // What stands for the unknown is no text, however it is listed again.
        if *kind != UNKNOWN {
            *kind = added_kind(token);
        }
        self.texts[id] = with_spaces(&token.content, *kind);
        self.scores[id] = SCORE_ADDED;
    }

    /// Gives every ordinary token its score; it may have none.
    pub(super) fn score(&mut self, of: impl Fn(&str) -> Option<f32>) {
        for (id, text) in self.texts.iter().enumerate() {
            if self.kinds[id] == NORMAL {
                self.scores[id] = of(text).unwrap_or(SCORE_UNMERGED);
            }
        }
    }

    /// Finds the tokens that stand for a byte.
    pub(super) fn mark_bytes(&mut self) {
        for (text, kind) in self.texts.iter().zip(&mut self.kinds) {
            let hex = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            let is_byte = |hex: &str| hex.len() == 2 && u8::from_str_radix(hex, 16).is_ok();
            if *kind == NORMAL && hex.is_some_and(is_byte) {
                *kind = BYTE;
            }
        }
    }

    /// Names the token that stands for what has none.
    pub(super) fn mark_unknown(&mut self, text: Option<&str>) {
        if let Some(id) = text.and_then(|text| self.find(text)) {
            self.kinds[id as usize] = UNKNOWN;
        }
    }

    /// The id of a token, the first where there are several.
    pub(super) fn find(&self, text: &str) -> Option<u32> {
        let found = |(kind, own): (&i32, &String)| *kind != UNUSED && own == text;
        self.kinds.iter().zip(&self.texts).position(found).map(|id| id as u32)
    }

    /// Writes the keys of a tokenizer of pieces, which llama.cpp names after its first model.
    pub(super) fn write_pieces(&self, metadata: &mut Metadata) {
        let mut set = |key: &str, value: &str| {
            metadata.set(format!("tokenizer.ggml.{key}"), Value::String(value.to_string()));
        };
        set("model", PIECES);
        set("pre", "default");
        self.write(metadata, true);
    }

    /// Writes the lists.
    pub(super) fn write(&self, metadata: &mut Metadata, with_scores: bool) {
        let mut set = |key: &str, list| {
            metadata.set(format!("tokenizer.ggml.{key}"), Value::Array(list));
        };
        set("tokens", Array::String(self.texts.clone()));
        if with_scores {
            set("scores", Array::F32(self.scores.clone()));
        }
        set("token_type", Array::I32(self.kinds.clone()));
    }
}

/// A token that is matched as it is written has spaces as they are written.
fn with_spaces(text: &str, kind: i32) -> String {
    if kind == USER_DEFINED { text.replace('\u{2581}', " ") } else { text.to_string() }
}

/// As llama.cpp's converter: some names are special, whatever the file says.
fn added_kind(token: &Added) -> i32 {
    let content = token.content.as_str();
    let is_between =
        |(start, end): (&str, &str)| content.starts_with(start) && content.ends_with(end);
    let looks = [("<|", "|>"), ("<\u{ff5c}", "\u{ff5c}>"), ("<unused", ">")];
    let names = ["<pad>", "<mask>", "<2mass>", "[@BOS@]"];
    if token.special || looks.into_iter().any(is_between) || names.contains(&content) {
        CONTROL
    } else {
        USER_DEFINED
    }
}
