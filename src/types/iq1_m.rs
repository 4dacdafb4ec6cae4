//! `IQ1_M`: 256 values in groups of 16, each group two points of a table of 2048 with an offset
//! each, and a three-bit scale. Page: `formats/iq1_m.md`.

use super::block::{decode_integers, half_at, nibble, unpack_integers};
use super::iq1_s::{POINTS, eighth, in_eighths};
use super::{Block, Int8Row, Kernel, Rows, SUB, TensorType};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const BYTES: usize = 56;
const HIGH: usize = LEN / 8;
const SCALES: usize = HIGH + LEN / 8 / 2;
const _: () = assert!(BYTES == SCALES + SUBS / 4 * 2, "codes, high bits, a word per four scales");

pub(super) struct Iq1M;

impl TensorType for Iq1M {
    fn name(&self) -> &'static str {
        "IQ1_M"
    }

    fn id(&self) -> u32 {
        29
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: SUB, mins: false }
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        decode_integers(rows, out, integers);
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        unpack_integers(row, out, integers);
    }
}

fn integers(block: &[u8; BYTES], values: &mut [i8; LEN], scales: &mut [f32; SUBS]) {
    let words: [u16; SUBS / 4] = std::array::from_fn(|i| {
        u16::from_le_bytes([block[SCALES + 2 * i], block[SCALES + 2 * i + 1]])
    });
    // Four scales of three bits leave four bits of a word: a quarter of the factor, lowest first.
    let factor = words.iter().rev().fold(0, |factor, word| factor << 4 | word >> 12);
    let factor = half_at(&factor.to_le_bytes(), 0);
    for (i, scale) in scales.iter_mut().enumerate() {
        *scale = eighth(factor, words[i / 4] >> (i % 4 * 3) & 7);
    }
    for (i, values) in values.as_chunks_mut().0.iter_mut().enumerate() {
        // Three bits are the high bits of the code, one is the offset.
        let high = nibble(&block[HIGH..SCALES], i);
        let code = usize::from(block[i]) | usize::from(high & 7) << 8;
        *values = in_eighths(&POINTS[code], high & 8 != 0);
    }
}
