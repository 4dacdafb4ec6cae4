//! SentencePiece as llama.cpp runs it: of all neighbours that joined are a token, merge those
//! whose token has the greatest score; spell in bytes what is no token at the end.

use std::cmp::Ordering;

use super::index::TokenIndex;
use super::merge::{Merger, NO_TOKEN};

/// What SentencePiece needs beside the texts of the tokens.
pub(super) struct Spm {
    scores: Vec<f32>,
    /// The tokens of single bytes.
    byte_tokens: Vec<Option<u32>>,
    /// Stands for bytes without a token.
    unknown: Option<u32>,
    /// Bytes of the longest token.
    longest: usize,
    /// Whether no token has a space after another character, so that no merge crosses that place.
    cuts_at_spaces: bool,
}

/// What stands for a space.
const SPACE: char = '\u{2581}';

/// A score, which is never compared with one that is not a number in a real file.
#[derive(Clone, Copy)]
struct Score(f32);

impl Spm {
    /// Prepares a vocabulary; `scores` may be empty for all zero.
    pub(super) fn new(index: &TokenIndex, scores: Vec<f32>, unknown: Option<u32>) -> Spm {
        // Some vocabularies have the ASCII bytes only as characters.
        let as_character =
            |byte: u8| index.get(char::from(byte).encode_utf8(&mut [0; 4])).filter(|_| byte < 128);
        let byte_tokens =
            (0..=255).map(|byte| index.byte_token(byte).or_else(|| as_character(byte))).collect();
        let longest = index.tokens().iter().map(String::len).max().unwrap_or(0);
        let cuts_at_spaces = index.tokens().iter().all(|token| spaces(token).next().is_none());
        Spm { scores, byte_tokens, unknown, longest, cuts_at_spaces }
    }

    /// Appends the tokens of a text in which spaces are U+2581 already.
    pub(super) fn encode(&self, index: &TokenIndex, text: &str, out: &mut Vec<u32>) {
        let mut merger = Merger::new();
        let mut start = 0;
        // A heap over a whole text is out of every cache; over a word it is not.
        for end in spaces(text).filter(|_| self.cuts_at_spaces).chain([text.len()]) {
            self.encode_piece(index, &text[start..end], &mut merger, out);
            start = end;
        }
    }

    fn encode_piece(
        &self,
        index: &TokenIndex,
        text: &str,
        merger: &mut Merger<Score>,
        out: &mut Vec<u32>,
    ) {
        let characters = text.char_indices().map(|(start, character)| {
            let len = character.len_utf8();
            (index.get(&text[start..start + len]).unwrap_or(NO_TOKEN), len as u32)
        });
        let symbols = merger.run(characters, |left, right| {
            let (start, len) = (left.start as usize, (left.len + right.len) as usize);
            if len > self.longest {
                return None;
            }
            let id = index.get(&text[start..start + len])?;
            Some((Score(self.scores.get(id as usize).copied().unwrap_or(0.0)), id))
        });
        for symbol in symbols {
            if symbol.id != NO_TOKEN {
                out.push(symbol.id);
                continue;
            }
            let bytes = text[symbol.start as usize..][..symbol.len as usize].bytes();
            // Where a byte has no token either, at least its place is kept.
            out.extend(bytes.filter_map(|b| self.byte_tokens[usize::from(b)].or(self.unknown)));
        }
    }
}

/// Where a space follows another character.
fn spaces(text: &str) -> impl Iterator<Item = usize> {
    let mut after_space = true;
    text.char_indices().filter_map(move |(at, character)| {
        let is_cut = character == SPACE && !after_space;
        after_space = character == SPACE;
        is_cut.then_some(at)
    })
}

impl Ord for Score {
    fn cmp(&self, other: &Score) -> Ordering {
        // Adding zero makes minus zero plus zero, which llama.cpp holds equal.
        (self.0 + 0.0).total_cmp(&(other.0 + 0.0))
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Score) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Score {
    fn eq(&self, other: &Score) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Score {}
