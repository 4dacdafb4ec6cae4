//! The tokenizer of a model: text to tokens and tokens to bytes, as llama.cpp does both.

use std::collections::BTreeSet;

use super::bpe::Bpe;
use super::bytes;
use super::index::TokenIndex;
use super::pre::{self, PreTokenizer};
use super::special::{self, Fragment, SpecialTokens};
use super::spm::Spm;
use super::vocab::{TokenKind, Vocab};
use crate::bail;
use crate::error::{Error, Result};
use crate::limits::TEXT_BYTES_MAX;

/// A tokenizer made from a model's metadata.
pub struct Tokenizer {
    index: TokenIndex,
    kinds: Vec<TokenKind>,
    model: Model,
    special: SpecialTokens,
    pieces: Pieces,
    ends: BTreeSet<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    warnings: Vec<String>,
}

/// What `tokenizer.ggml.model` calls SentencePiece.
pub const PIECES: &str = "llama";

enum Model {
    Bpe(Box<Bpe>),
    Spm { spm: Box<Spm>, add_space_prefix: bool },
}

/// The printed bytes of every token, one after the other.
struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end.
    ends: Vec<usize>,
}

impl Tokenizer {
    /// Builds the tokenizer.
    ///
    /// # Errors
    ///
    /// When the vocabulary is invalid ([`Vocab::validate`]), its model or pre-tokenizer is not
    /// known, or its merges are not readable.
    pub fn new(mut vocab: Vocab) -> Result<Tokenizer> {
        vocab.validate()?;
        let mut warnings = Vec::new();
        let len = vocab.tokens.len() as u32;
        // Where a file names no token, llama.cpp takes these, as far as they exist.
        let default = |given: Option<u32>, id: u32| given.or((id < len).then_some(id));
        let index = TokenIndex::new(std::mem::take(&mut vocab.tokens));
        let (model, default_add_bos) = match vocab.model.as_deref().unwrap_or_default() {
            PIECES => {
                vocab.bos = default(vocab.bos, 1);
                vocab.eos = default(vocab.eos, 2);
                let unknown = default(vocab.unk, 0);
                let spm = Spm::new(&index, std::mem::take(&mut vocab.scores), unknown);
                let add_space_prefix = vocab.add_space_prefix.unwrap_or(true);
                (Model::Spm { spm: Box::new(spm), add_space_prefix }, true)
            }
            name @ ("gpt2" | "gemma4") => {
                let pre = pre_tokenizer(&vocab, name, &mut warnings)?;
                if pre.default_bos {
                    vocab.bos = default(vocab.bos, 11);
                }
                if !pre.escape_spaces {
                    vocab.eos = default(vocab.eos, 11);
                }
                let add_bos = pre.add_bos;
                let bpe = Bpe::new(&index, &vocab.merges, pre)?;
                if bpe.skipped_merges > 0 {
                    warnings.push(format!(
                        "{} of {} merges name texts that are no tokens and are left out",
                        bpe.skipped_merges,
                        vocab.merges.len()
                    ));
                }
                (Model::Bpe(Box::new(bpe)), add_bos)
            }
            other => return Err(unknown_model(other)),
        };
        let mut kinds = vocab.kinds(index.tokens().len());
        let ends = special::classify(&vocab, &index, &mut kinds);
        let special = SpecialTokens::new(&vocab, index.tokens(), &kinds)?;
        let spaces_escaped = match &model {
            Model::Spm { .. } => true,
            Model::Bpe(bpe) => bpe.escapes_spaces(),
        };
        Ok(Tokenizer {
            pieces: Pieces::new(index.tokens(), &kinds, spaces_escaped),
            kinds,
            model,
            special,
            ends,
            add_bos: vocab.add_bos.unwrap_or(default_add_bos) && vocab.bos.is_some(),
            add_eos: vocab.add_eos.unwrap_or(false) && vocab.eos.is_some(),
            bos: vocab.bos,
            eos: vocab.eos,
            index,
            warnings,
        })
    }

    /// The tokens of a text, without begin-of-text. Control tokens written out in the text
    /// (`<|im_start|>`) are recognised only if `parse_special`.
    ///
    /// # Errors
    ///
    /// When the text is too long.
    pub fn encode(&self, text: &str, parse_special: bool) -> Result<Vec<u32>> {
        if text.len() > TEXT_BYTES_MAX {
            bail!("the text has {} bytes, at most {TEXT_BYTES_MAX} expected", text.len());
        }
        let mut out = Vec::with_capacity(text.len() / 4 + 1);
        let mut after_special = true;
        for fragment in self.special.partition(text, parse_special) {
            let text = match fragment {
                Fragment::Token(id) => {
                    out.push(id);
                    after_special = true;
                    continue;
                }
                Fragment::Text("") => continue,
                Fragment::Text(text) => text,
            };
            match &self.model {
                Model::Bpe(bpe) => bpe.encode(&self.index, text, &mut out)?,
                Model::Spm { spm, add_space_prefix } => {
                    let prefix = if *add_space_prefix && after_special { "\u{2581}" } else { "" };
                    let escaped = format!("{prefix}{}", text.replace(' ', "\u{2581}"));
                    spm.encode(&self.index, &escaped, &mut out);
                }
            }
            after_special = false;
        }
        Ok(out)
    }

    /// The bytes that a token prints: rarely whole characters, see
    /// [`TextStream`](super::TextStream). Control tokens print nothing unless `show_special`, and
    /// neither does an id that does not exist.
    pub fn piece(&self, id: u32, show_special: bool) -> &[u8] {
        match self.kinds.get(id as usize) {
            None => &[],
            Some(TokenKind::Control | TokenKind::Unknown) if !show_special => &[],
            Some(_) => self.pieces.get(id as usize),
        }
    }

    /// The token's text as the vocabulary has it. For a special token, what it looks like in a
    /// prompt; for others, in the encoding of the model. Empty for an id that does not exist.
    pub fn text(&self, id: u32) -> &str {
        self.index.tokens().get(id as usize).map_or("", String::as_str)
    }

    /// What the token is for.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Undefined)
    }

    /// Whether generation ends with this token.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// All tokens that end generation, in order.
    pub fn ends_of_generation(&self) -> impl Iterator<Item = u32> {
        self.ends.iter().copied()
    }

    /// Begin-of-text.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End-of-text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether a prompt begins with [`Tokenizer::bos`], which then exists.
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether a text ends with [`Tokenizer::eos`], which then exists.
    pub fn add_eos(&self) -> bool {
        self.add_eos
    }

    /// Number of tokens.
    #[expect(clippy::len_without_is_empty, reason = "a vocabulary without tokens is refused")]
    pub fn len(&self) -> usize {
        self.index.tokens().len()
    }

    /// What is doubtful about the vocabulary: one sentence each, for the user to see.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// Every name of a pre-tokenizer that [`Tokenizer::new`] knows.
pub fn pre_tokenizers() -> impl Iterator<Item = &'static str> {
    pre::names()
}

/// One name for each way of cutting texts.
pub fn distinct_pre_tokenizers() -> impl Iterator<Item = &'static str> {
    pre::first_names()
}

fn pre_tokenizer(vocab: &Vocab, model: &str, warnings: &mut Vec<String>) -> Result<PreTokenizer> {
    if model == "gemma4" {
        return PreTokenizer::by_name(model);
    }
    match vocab.pre.as_deref() {
        Some(name) if !name.is_empty() => PreTokenizer::by_name(name),
        _ => {
            warnings.push(
                "the metadata has no `tokenizer.ggml.pre`; texts are cut by the rule `default`, \
                 which may degrade the answers"
                    .to_owned(),
            );
            PreTokenizer::by_name("default")
        }
    }
}

fn unknown_model(name: &str) -> Error {
    Error::new(format!("`tokenizer.ggml.model` is `{name}`, expected `gpt2`, `llama` or `gemma4`"))
}

impl Pieces {
    fn new(tokens: &[String], kinds: &[TokenKind], spaces_escaped: bool) -> Pieces {
        let mut pieces = Pieces { bytes: Vec::new(), ends: Vec::with_capacity(tokens.len()) };
        for (token, kind) in tokens.iter().zip(kinds) {
            match kind {
                TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined => {
                    pieces.bytes.extend_from_slice(token.as_bytes());
                }
                TokenKind::Normal if spaces_escaped => {
                    pieces.bytes.extend_from_slice(token.replace('\u{2581}', " ").as_bytes());
                }
                TokenKind::Normal => push_decoded(token, &mut pieces.bytes),
                TokenKind::Byte => pieces.bytes.extend(byte_of_token(token)),
                TokenKind::Unused | TokenKind::Undefined => {}
            }
            pieces.ends.push(pieces.bytes.len());
        }
        pieces
    }

    fn get(&self, id: usize) -> &[u8] {
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..self.ends[id]]
    }
}

/// Undoes the byte alphabet; characters outside it print as they are.
fn push_decoded(token: &str, out: &mut Vec<u8>) {
    for character in token.chars() {
        match bytes::byte_of(character) {
            Some(byte) => out.push(byte),
            None => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// The byte of a token such as `<0x0A>`.
fn byte_of_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(hex, 16).ok()
}
