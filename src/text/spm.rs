//! SentencePiece as llama.cpp runs it: merge the best adjacent pair until none is a token.
//!
//! The simple idea: start from single characters; as long as some two neighbours joined are a
//! token, join those whose token has the greatest score, of equal ones the leftmost; at the end,
//! spell what is no token in bytes. The code keeps the candidates in a heap, and drops those whose
//! parts have changed when they come up, so that the time grows as n log n.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher, RandomState};

/// The texts of a SentencePiece vocabulary, ready to be looked up.
pub(super) struct Spm {
    index: TextIndex,
    scores: Vec<f32>,
    /// The tokens of single bytes.
    byte_tokens: Vec<Option<u32>>,
    /// Stands for bytes without a token.
    unknown: Option<u32>,
    /// Bytes of the longest token.
    longest: usize,
}

/// A part of the text: a character, or what merges made of several.
struct Symbol {
    start: u32,
    /// Bytes; zero once merged into its left neighbour.
    len: u32,
    previous: Option<u32>,
    next: Option<u32>,
}

/// Two neighbours that may be merged.
struct Pair {
    score: f32,
    left: u32,
    right: u32,
    /// Bytes of both when this was found; differs later if one of them was merged.
    len: u32,
}

impl Spm {
    /// Indexes a vocabulary; `scores` may be empty for all zero.
    pub(super) fn new(tokens: &[String], scores: Vec<f32>, unknown: Option<u32>) -> Spm {
        let index = TextIndex::new(tokens);
        let byte_token = |byte: u8| {
            let hex = index.get(tokens, &format!("<0x{byte:02X}>"));
            hex.or_else(|| {
                byte.is_ascii()
                    .then(|| char::from(byte).to_string())
                    .and_then(|text| index.get(tokens, &text))
            })
        };
        let byte_tokens = (0..=255).map(byte_token).collect();
        let longest = tokens.iter().map(String::len).max().unwrap_or(0);
        Spm { index, scores, byte_tokens, unknown, longest }
    }

    /// Appends the tokens of a text in which spaces are U+2581 already. `tokens` are those that
    /// `new` was given.
    pub(super) fn encode(&self, tokens: &[String], text: &str, out: &mut Vec<u32>) {
        let mut symbols = split_characters(text);
        let mut heap = BinaryHeap::new();
        let push = |heap: &mut BinaryHeap<Pair>, symbols: &[Symbol], left, right| {
            heap.extend(self.pair(tokens, text, symbols, left, right));
        };
        for right in 1..symbols.len() as u32 {
            push(&mut heap, &symbols, Some(right - 1), Some(right));
        }
        while let Some(pair) = heap.pop() {
            let (left, right) = (pair.left as usize, pair.right as usize);
            let (left_len, right_len) = (symbols[left].len, symbols[right].len);
            if left_len == 0 || right_len == 0 || left_len + right_len != pair.len {
                continue;
            }
            symbols[left].len = pair.len;
            symbols[right].len = 0;
            let next = symbols[right].next;
            symbols[left].next = next;
            if let Some(next) = next {
                symbols[next as usize].previous = Some(pair.left);
            }
            push(&mut heap, &symbols, symbols[left].previous, Some(pair.left));
            push(&mut heap, &symbols, Some(pair.left), next);
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            self.push_symbol(tokens, symbol.text(text), out);
        }
    }

    fn pair(
        &self,
        tokens: &[String],
        text: &str,
        symbols: &[Symbol],
        left: Option<u32>,
        right: Option<u32>,
    ) -> Option<Pair> {
        let (left, right) = (left?, right?);
        let (first, second) = (&symbols[left as usize], &symbols[right as usize]);
        let len = first.len + second.len;
        if len as usize > self.longest {
            return None;
        }
        let start = first.start as usize;
        let id = self.index.get(tokens, &text[start..start + len as usize])?;
        let score = self.scores.get(id as usize).copied().unwrap_or(0.0);
        Some(Pair { score, left, right, len })
    }

    fn push_symbol(&self, tokens: &[String], symbol: &str, out: &mut Vec<u32>) {
        match self.index.get(tokens, symbol) {
            Some(id) => out.push(id),
            // Without a token for the byte either, the text is not lost silently.
            None => out.extend(
                symbol.bytes().filter_map(|b| self.byte_tokens[usize::from(b)].or(self.unknown)),
            ),
        }
    }
}

impl Symbol {
    fn text<'t>(&self, text: &'t str) -> &'t str {
        &text[self.start as usize..][..self.len as usize]
    }
}

impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

fn split_characters(text: &str) -> Vec<Symbol> {
    let mut symbols: Vec<Symbol> = (0..)
        .zip(text.char_indices())
        .map(|(i, (start, character)): (u32, (usize, char))| Symbol {
            start: start as u32,
            len: character.len_utf8() as u32,
            previous: i.checked_sub(1),
            next: Some(i + 1),
        })
        .collect();
    if let Some(last) = symbols.last_mut() {
        last.next = None;
    }
    symbols
}

/// A hash table from a token's text to its id that does not copy the texts.
struct TextIndex {
    /// Open addressing, at most half full. `EMPTY` or an id.
    slots: Vec<u32>,
    hasher: RandomState,
}

const EMPTY: u32 = u32::MAX;

impl TextIndex {
    /// Of two tokens with one text, the last one is found.
    fn new(tokens: &[String]) -> TextIndex {
        let len = (tokens.len() * 2).next_power_of_two();
        let mut index = TextIndex { slots: vec![EMPTY; len], hasher: RandomState::new() };
        for (id, token) in tokens.iter().enumerate() {
            let slot = index.slot(tokens, token);
            index.slots[slot] = id as u32;
        }
        index
    }

    fn get(&self, tokens: &[String], text: &str) -> Option<u32> {
        let id = self.slots[self.slot(tokens, text)];
        (id != EMPTY).then_some(id)
    }

    /// The slot that holds the text, or else the empty one where it belongs.
    fn slot(&self, tokens: &[String], text: &str) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(text) as usize & mask;
        while self.slots[slot] != EMPTY && tokens[self.slots[slot] as usize] != text {
            slot = (slot + 1) & mask;
        }
        slot
    }
}
