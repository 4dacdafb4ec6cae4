//! `IQ3_S`: 256 values in groups of 32, each group eight points of a table of 512, a sign per value
//! and a four-bit scale. Page: `formats/iq3_s.md`.

use super::block::{bit, decode_integers, half_at, nibble, unpack_integers};
use super::points::{points, signed};
use super::{Block, Int8Row, Kernel, Rows, SUB, TensorType};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const GROUP: usize = 32;
const BYTES: usize = 110;
const HIGH: usize = 2 + LEN / 4;
const SIGNS: usize = HIGH + LEN / 4 / 8;
const SCALES: usize = SIGNS + LEN / 8;
const _: () =
    assert!(BYTES == SCALES + LEN / GROUP / 2, "a factor, codes, high bits, signs, scales");

static POINTS: [[i8; 4]; 512] = points(include_bytes!("grids/iq3_s.i8"));

pub(super) struct Iq3S;

impl TensorType for Iq3S {
    fn name(&self) -> &'static str {
        "IQ3_S"
    }

    fn id(&self) -> u32 {
        21
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: GROUP, mins: false }
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
        let odd = 1 + 2 * nibble(&block[SCALES..], i * SUB / GROUP);
        *scale = factor * f32::from(odd);
    }
    for (i, values) in values.as_chunks_mut().0.iter_mut().enumerate() {
        let code = usize::from(block[2 + i]) | usize::from(bit(&block[HIGH..], i)) << 8;
        *values = signed(&POINTS[code], u32::from(nibble(&block[SIGNS..], i)));
    }
}
