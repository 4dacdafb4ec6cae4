//! From a token's text to its id.

use super::hash::KeyedHash;

/// The texts of a vocabulary, ready to be looked up.
pub(super) struct TokenIndex {
    tokens: Vec<String>,
    /// A hash table with open addressing, at most half full: `EMPTY` or an id. A map would hold
    /// every text a second time.
    slots: Vec<u32>,
    hash: KeyedHash,
}

const EMPTY: u32 = u32::MAX;

impl TokenIndex {
    /// Of two tokens with one text, the last one is found.
    pub(super) fn new(tokens: Vec<String>) -> TokenIndex {
        let len = (tokens.len() * 2).next_power_of_two();
        let mut index = TokenIndex { tokens, slots: vec![EMPTY; len], hash: KeyedHash::new() };
        for (id, token) in (0..).zip(&index.tokens) {
            let slot = index.slot(token);
            index.slots[slot] = id;
        }
        index
    }

    /// The token with this text.
    pub(super) fn get(&self, text: &str) -> Option<u32> {
        let id = self.slots[self.slot(text)];
        (id != EMPTY).then_some(id)
    }

    /// The token `<0x41>` of a byte.
    pub(super) fn byte_token(&self, byte: u8) -> Option<u32> {
        self.get(&format!("<0x{byte:02X}>"))
    }

    /// All texts, by id.
    pub(super) fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The slot that holds the text, or else the empty one where it belongs.
    fn slot(&self, text: &str) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hash.of(text.as_bytes()) as usize & mask;
        while self.slots[slot] != EMPTY && self.tokens[self.slots[slot] as usize] != text {
            slot = (slot + 1) & mask;
        }
        slot
    }
}
