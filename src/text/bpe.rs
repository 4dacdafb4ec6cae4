//! Byte-level BPE: cut a text into pieces, write the bytes as characters, merge.
//!
//! The merges are the `tokenizers` crate's. As in llama.cpp, none reaches across a character
//! without a token, and merges that name a text without one are left out.

use std::collections::HashSet;

use tokenizers::Model;
use tokenizers::models::bpe::{self, BPE};

use super::bytes;
use super::index::TokenIndex;
use super::pre::PreTokenizer;
use crate::bail;
use crate::error::{Error, Result};

/// The merges of a vocabulary and the pre-tokenizer that bounds them.
pub(super) struct Bpe {
    pre: PreTokenizer,
    merges: BPE,
    /// The characters that are tokens.
    characters: HashSet<char>,
    /// The tokens `<0x00>` to `<0xFF>`, for the bytes of other characters, where they exist.
    byte_tokens: Vec<Option<u32>>,
    /// Merges left out since they name a text that is no token.
    pub(super) skipped_merges: usize,
}

impl Bpe {
    /// Builds the merge table.
    ///
    /// # Errors
    ///
    /// When there are no merges, or one is not two texts with a space between.
    pub(super) fn new(index: &TokenIndex, merges: &[String], pre: PreTokenizer) -> Result<Bpe> {
        if merges.is_empty() {
            bail!("`tokenizer.ggml.merges` is missing or empty, which a BPE tokenizer needs");
        }
        let mut known = Vec::with_capacity(merges.len());
        let (mut seen, mut skipped_merges) = (HashSet::new(), 0);
        let mut whole = String::new();
        for (rank, merge) in merges.iter().enumerate() {
            // The left text has at least one character, which may be a space itself.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let Some((_, right)) = merge[first..].split_once(' ') else {
                bail!("merge {rank} is `{merge}`, expected two texts with a space between");
            };
            let left = &merge[..merge.len() - right.len() - 1];
            whole.clear();
            whole.extend([left, right]);
            let is_known = [left, right, &whole].iter().all(|text| index.get(text).is_some());
            // Of two equal pairs, the first one counts.
            if is_known && seen.insert((left, right)) {
                known.push((left.to_owned(), right.to_owned()));
            } else if !is_known {
                skipped_merges += 1;
            }
        }
        let tokens = index.tokens();
        let characters = tokens.iter().filter_map(|token| single_character(token)).collect();
        let byte_tokens = (0..=255).map(|byte| index.byte_token(byte)).collect();
        // Of two tokens with one text, the last one is found.
        let ids: bpe::Vocab = tokens.iter().cloned().zip(0..).collect();
        let merges = BPE::builder()
            .vocab_and_merges(ids, known)
            .ignore_merges(pre.ignore_merges)
            .build()
            .map_err(|error| Error::new(error.to_string()))?;
        Ok(Bpe { pre, merges, characters, byte_tokens, skipped_merges })
    }

    /// Whether tokens are UTF-8 with spaces as U+2581, not encoded bytes.
    pub(super) fn escapes_spaces(&self) -> bool {
        self.pre.escape_spaces
    }

    /// Appends the tokens of a text without special tokens.
    ///
    /// # Errors
    ///
    /// None are known; the crate behind it can return one.
    pub(super) fn encode(&self, index: &TokenIndex, text: &str, out: &mut Vec<u32>) -> Result<()> {
        let mut outcome = Ok(());
        let mut keep = |result: Result<()>| {
            if outcome.is_ok() {
                outcome = result;
            }
        };
        if self.pre.escape_spaces {
            let text = text.replace(' ', "\u{2581}");
            // Lines are never merged with words, but blank lines are tokens.
            let is_blank = |piece: &str| piece.bytes().all(|byte| byte == b'\n');
            self.pre.split(
                &text,
                &mut |piece| match index.get(piece).filter(|_| is_blank(piece)) {
                    Some(id) => out.push(id),
                    None => keep(self.encode_piece(index, piece, out)),
                },
            );
        } else {
            let mut encoded = String::new();
            self.pre.split(text, &mut |piece| {
                encoded.clear();
                encoded.extend(piece.bytes().map(|byte| bytes::CHARS[usize::from(byte)]));
                keep(self.encode_piece(index, &encoded, out));
            });
        }
        outcome
    }

    fn encode_piece(&self, index: &TokenIndex, piece: &str, out: &mut Vec<u32>) -> Result<()> {
        let is_unknown = |character: char| !self.characters.contains(&character);
        let is_whole = self.pre.ignore_merges && index.get(piece).is_some();
        if is_whole || !piece.contains(is_unknown) {
            return self.merge(piece, out);
        }
        let mut rest = piece;
        while let Some(at) = rest.find(is_unknown) {
            self.merge(&rest[..at], out)?;
            let unknown = rest[at..].chars().next().map_or(0, char::len_utf8);
            let spelled = rest[at..at + unknown].bytes();
            if self.pre.escape_spaces {
                out.extend(spelled.filter_map(|byte| self.byte_tokens[usize::from(byte)]));
            }
            rest = &rest[at + unknown..];
        }
        self.merge(rest, out)
    }

    fn merge(&self, piece: &str, out: &mut Vec<u32>) -> Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        let tokens = self.merges.tokenize(piece).map_err(|error| Error::new(error.to_string()))?;
        out.extend(tokens.iter().map(|token| token.id));
        Ok(())
    }
}

fn single_character(token: &str) -> Option<char> {
    let mut characters = token.chars();
    let character = characters.next()?;
    characters.next().is_none().then_some(character)
}
