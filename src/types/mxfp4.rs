//! `MXFP4`: 32 four-bit floats under one power of two. Page: `formats/mxfp4.md`.

use super::block::{decode_integers, unpack_halves, unpack_integers};
use super::{Block, Int8Row, Kernel, Rows, SUB, TensorType};

const LEN: usize = 32;
const SUBS: usize = LEN / SUB;
const BYTES: usize = 17;
const _: () = assert!(BYTES == 1 + LEN / 2, "an exponent and half a byte per value");

/// What the 16 codes mean: twice the floats of two exponent bits and one mantissa bit, so that all
/// are integers. Of the Open Compute Project's microscaling formats.
pub(super) const LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(super) struct Mxfp4;

impl TensorType for Mxfp4 {
    fn name(&self) -> &'static str {
        "MXFP4"
    }

    fn id(&self) -> u32 {
        39
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: LEN, mins: false }
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        decode_integers(rows, out, integers);
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        unpack_integers(row, out, integers);
    }
}

fn integers(block: &[u8; BYTES], values: &mut [i8; LEN], scales: &mut [f32; SUBS]) {
    *scales = [half_power(block[0]); SUBS];
    let codes = block[1..].as_chunks::<{ LEN / 2 }>().0;
    unpack_halves(&codes[0], values, |q| LEVELS[usize::from(q)]);
}

/// Half of the power of two with this biased exponent. As in ggml there is no not-a-number.
#[inline(always)]
fn half_power(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        // Subnormal: 2^-128 and 2^-127.
        0..2 => 0x0020_0000 << exponent,
        2.. => (u32::from(exponent) - 1) << 23,
    })
}
