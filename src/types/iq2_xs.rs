//! `IQ2_XS`: 256 values in groups of 16, each group two points of a table with their signs, and a
//! four-bit scale. Page: `formats/iq2_xs.md`.

use super::block::{decode_integers, half_at, nibble, unpack_integers};
use super::points::{even_signs, points, signed};
use super::{Block, Int8Row, Kernel, Rows, SUB, TensorType};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const BYTES: usize = 74;
const SCALES: usize = 2 + LEN / 8 * 2;
const _: () = assert!(BYTES == SCALES + SUBS / 2, "a factor, 16 bits per point, scales");

static POINTS: [[i8; 8]; 512] = points(include_bytes!("grids/iq2_xs.i8"));

pub(super) struct Iq2Xs;

impl TensorType for Iq2Xs {
    fn name(&self) -> &'static str {
        "IQ2_XS"
    }

    fn id(&self) -> u32 {
        17
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
    let codes = block[2..SCALES].as_chunks().0;
    for (&code, values) in codes.iter().zip(values.as_chunks_mut().0) {
        // Nine bits are the point, seven its signs.
        let code = u16::from_le_bytes(code);
        *values = signed(&POINTS[usize::from(code & 0x1ff)], even_signs(u32::from(code >> 9), 8));
    }
}
