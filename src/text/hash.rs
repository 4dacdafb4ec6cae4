//! A fast hash for the tables of a vocabulary.
//!
//! Its key is random, so that no file can be made whose tokens all fall into one place.

use std::hash::{BuildHasher, Hasher, RandomState};

/// The key of a hash.
#[derive(Clone, Copy)]
pub(super) struct KeyedHash {
    key: u64,
}

/// A hash in the making.
pub(super) struct State(u64);

impl KeyedHash {
    pub(super) fn new() -> KeyedHash {
        KeyedHash { key: RandomState::new().hash_one(0) }
    }

    /// The hash of some bytes.
    pub(super) fn of(self, bytes: &[u8]) -> u64 {
        let mut state = self.build_hasher();
        state.write(bytes);
        state.finish()
    }
}

impl BuildHasher for KeyedHash {
    type Hasher = State;

    fn build_hasher(&self) -> State {
        State(self.key)
    }
}

impl Hasher for State {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.write_u64(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        // The length tells apart texts that end in zeros.
        last[7] = rest.len() as u8;
        self.write_u64(u64::from_le_bytes(last));
    }

    fn write_u64(&mut self, word: u64) {
        // The golden ratio's 64 bits, as in SplitMix64; both halves of the product are folded.
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15_u128;
        self.0 = (product as u64 ^ (product >> 64) as u64).rotate_left(23);
    }

    fn finish(&self) -> u64 {
        let product = u128::from(self.0) * 0xd6e8_feb8_6659_fd93_u128;
        product as u64 ^ (product >> 64) as u64
    }
}
