//! The loop that byte-level BPE and SentencePiece share: merge the best adjacent pair.
//!
//! The simple idea: as long as some two neighbours can be merged, merge the best pair, of equal
//! ones the leftmost. Looking for it anew each time takes quadratic time, so a heap keeps the
//! candidates, and one whose parts have changed since is dropped when it comes up.

use std::collections::BinaryHeap;

/// A part of the text: a character or byte, or what merges made of several.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// The token that it is, or [`NO_TOKEN`].
    pub(super) id: u32,
    /// Where it begins in the text, in bytes.
    pub(super) start: u32,
    /// Bytes; zero once merged into its left neighbour.
    pub(super) len: u32,
    previous: u32,
    next: u32,
}

/// The id of a symbol that is no token.
pub(super) const NO_TOKEN: u32 = u32::MAX;

const NO_SYMBOL: u32 = u32::MAX;

/// Symbols and candidates, kept so that a piece of text costs no allocation.
pub(super) struct Merger<Rank> {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate<Rank>>,
}

/// Two neighbours that can be merged. The order of the fields is the order of the heap.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Candidate<Rank> {
    /// Greater ones merge first.
    rank: Rank,
    left: std::cmp::Reverse<u32>,
    right: u32,
    /// Bytes of both.
    len: u32,
    /// The token that they make.
    id: u32,
}

impl<Rank: Ord> Merger<Rank> {
    pub(super) fn new() -> Merger<Rank> {
        Merger { symbols: Vec::new(), candidates: BinaryHeap::new() }
    }

    /// Splits a text into symbols of `(id, bytes)`, merges what `pair` gives a rank and a token,
    /// and returns the symbols; those with a length are the result.
    pub(super) fn run(
        &mut self,
        symbols: impl Iterator<Item = (u32, u32)>,
        pair: impl Fn(&Symbol, &Symbol) -> Option<(Rank, u32)>,
    ) -> impl Iterator<Item = &Symbol> {
        self.symbols.clear();
        let mut start = 0;
        for (i, (id, len)) in (0_u32..).zip(symbols) {
            let previous = i.checked_sub(1).unwrap_or(NO_SYMBOL);
            self.symbols.push(Symbol { id, start, len, previous, next: i + 1 });
            start += len;
        }
        if let Some(last) = self.symbols.last_mut() {
            last.next = NO_SYMBOL;
        }
        for right in 1..self.symbols.len() as u32 {
            self.consider(right - 1, right, &pair);
        }
        while let Some(Candidate { left, right, len, id, .. }) = self.candidates.pop() {
            let (first, second) = (self.symbols[left.0 as usize], self.symbols[right as usize]);
            if first.len == 0 || second.len == 0 || first.len + second.len != len {
                continue;
            }
            self.symbols[right as usize].len = 0;
            self.symbols[left.0 as usize] = Symbol { id, len, next: second.next, ..first };
            if second.next != NO_SYMBOL {
                self.symbols[second.next as usize].previous = left.0;
            }
            self.consider(first.previous, left.0, &pair);
            self.consider(left.0, second.next, &pair);
        }
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    fn consider(
        &mut self,
        left: u32,
        right: u32,
        pair: impl Fn(&Symbol, &Symbol) -> Option<(Rank, u32)>,
    ) {
        if left == NO_SYMBOL || right == NO_SYMBOL {
            return;
        }
        let (first, second) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some((rank, id)) = pair(first, second) {
            let len = first.len + second.len;
            let left = std::cmp::Reverse(left);
            self.candidates.push(Candidate { rank, left, right, len, id });
        }
    }
}
