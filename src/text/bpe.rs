//! Byte-level BPE: cut a text into pieces, then merge neighbours in the order of the merges.
//!
//! The merge loop is shared with SentencePiece; as in llama.cpp, no merge reaches across a byte
//! without a token.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::bytes;
use super::hash::KeyedHash;
use super::index::TokenIndex;
use super::merge::{Merger, NO_TOKEN, Symbol};
use super::pre::PreTokenizer;
use crate::bail;
use crate::error::Result;

/// The merges of a vocabulary and the pre-tokenizer that bounds them.
pub(super) struct Bpe {
    pre: PreTokenizer,
    /// The rank of a pair of tokens, the least merged first, and the token that they make.
    merges: HashMap<u64, (u32, u32), KeyedHash>,
    /// The token of each byte: of its character in the byte alphabet, or `<0x41>` where the
    /// vocabulary is in UTF-8.
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
        let mut table = HashMap::with_capacity_and_hasher(merges.len(), KeyedHash::new());
        let mut skipped_merges = 0;
        let mut whole = String::new();
        for (rank, merge) in (0..).zip(merges) {
            // The left text has at least one character, which may be a space itself.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let Some((_, right)) = merge[first..].split_once(' ') else {
                bail!("merge {rank} is `{merge}`, expected two texts with a space between");
            };
            let left = &merge[..merge.len() - right.len() - 1];
            whole.clear();
            whole.extend([left, right]);
            match (index.get(left), index.get(right), index.get(&whole)) {
                (Some(left), Some(right), Some(whole)) => {
                    table.entry(pair_key(left, right)).or_insert((rank, whole));
                }
                _ => skipped_merges += 1,
            }
        }
        let byte_token = |byte: u8| {
            if pre.escape_spaces {
                index.byte_token(byte)
            } else {
                index.get(bytes::CHARS[usize::from(byte)].encode_utf8(&mut [0; 4]))
            }
        };
        let byte_tokens = (0..=255).map(byte_token).collect();
        Ok(Bpe { pre, merges: table, byte_tokens, skipped_merges })
    }

    /// Whether tokens are UTF-8 with spaces as U+2581, not encoded bytes.
    pub(super) fn escapes_spaces(&self) -> bool {
        self.pre.escape_spaces
    }

    /// Appends the tokens of a text without special tokens.
    pub(super) fn encode(&self, index: &TokenIndex, text: &str, out: &mut Vec<u32>) {
        let mut merger = Merger::new();
        if self.pre.escape_spaces {
            let text = text.replace(' ', "\u{2581}");
            self.pre.split(&text, &mut |piece| {
                self.encode_characters(index, piece, &mut merger, out);
            });
            return;
        }
        let mut encoded = String::new();
        self.pre.split(text, &mut |piece| {
            if self.pre.ignore_merges {
                encoded.clear();
                encoded.extend(piece.bytes().map(|byte| bytes::CHARS[usize::from(byte)]));
                if let Some(id) = index.get(&encoded) {
                    out.push(id);
                    return;
                }
            }
            let bytes = piece.bytes().map(|b| (self.byte_token(b).unwrap_or(NO_TOKEN), 1));
            let symbols = merger.run(bytes, |left, right| self.pair(left, right));
            // A byte without a token has no place in the output; llama.cpp drops it too.
            out.extend(symbols.map(|symbol| symbol.id).filter(|&id| id != NO_TOKEN));
        });
    }

    /// The same for a vocabulary in UTF-8.
    fn encode_characters(
        &self,
        index: &TokenIndex,
        piece: &str,
        merger: &mut Merger<Reverse<u32>>,
        out: &mut Vec<u32>,
    ) {
        // Lines are never merged with words, but blank lines are tokens.
        if piece.bytes().all(|byte| byte == b'\n')
            && let Some(id) = index.get(piece)
        {
            out.push(id);
            return;
        }
        let characters = piece.char_indices().map(|(start, character)| {
            let len = character.len_utf8();
            (index.get(&piece[start..start + len]).unwrap_or(NO_TOKEN), len as u32)
        });
        for symbol in merger.run(characters, |left, right| self.pair(left, right)) {
            if symbol.id == NO_TOKEN {
                let bytes = piece[symbol.start as usize..][..symbol.len as usize].bytes();
                out.extend(bytes.filter_map(|byte| self.byte_token(byte)));
            } else {
                out.push(symbol.id);
            }
        }
    }

    fn byte_token(&self, byte: u8) -> Option<u32> {
        self.byte_tokens[usize::from(byte)]
    }

    fn pair(&self, left: &Symbol, right: &Symbol) -> Option<(Reverse<u32>, u32)> {
        let &(rank, id) = self.merges.get(&pair_key(left.id, right.id))?;
        Some((Reverse(rank), id))
    }
}

fn pair_key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}
