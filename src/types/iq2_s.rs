//! `IQ2_S`: 256 values in groups of 16, each group two points of a table of 1024, a sign per value
//! and a four-bit scale. Page: `formats/iq2_s.md`.

use super::block::{decode_integers, half_at, nibble, pair, unpack_integers};
use super::points::{points, signed};
use super::{Block, Int8Row, Kernel, Rows, SUB, TensorType};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const BYTES: usize = 82;
const SIGNS: usize = 2 + LEN / 8;
const HIGH: usize = SIGNS + LEN / 8;
const SCALES: usize = HIGH + LEN / 8 / 4;
const _: () = assert!(BYTES == SCALES + SUBS / 2, "a factor, codes, signs, high bits, scales");

static POINTS: [[i8; 8]; 1024] = points(include_bytes!("grids/iq2_s.i8"));

pub(super) struct Iq2S;

impl TensorType for Iq2S {
    fn name(&self) -> &'static str {
        "IQ2_S"
    }

    fn id(&self) -> u32 {
        22
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
    let factor = half_at(block, 0);
    for (i, scale) in scales.iter_mut().enumerate() {
        *scale = factor * (0.5 + f32::from(nibble(&block[SCALES..], i))) * 0.25;
    }
    for (i, values) in values.as_chunks_mut().0.iter_mut().enumerate() {
        let code = usize::from(block[2 + i]) | usize::from(pair(&block[HIGH..], i)) << 8;
        *values = signed(&POINTS[code], u32::from(block[SIGNS + i]));
    }
}
