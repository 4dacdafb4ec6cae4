//! `NVFP4`: 64 four-bit floats in groups of 16 with an eight-bit float as scale.
//! Page: `formats/nvfp4.md`.

use super::block::{decode_integers, unpack_halves, unpack_integers};
use super::mxfp4::LEVELS;
use super::{Block, Int8Row, Kernel, Rows, SUB, TensorType};

const LEN: usize = 64;
const SUBS: usize = LEN / SUB;
const BYTES: usize = 36;
const _: () = assert!(BYTES == SUBS + LEN / 2, "a scale per group and half a byte per value");

pub(super) struct Nvfp4;

impl TensorType for Nvfp4 {
    fn name(&self) -> &'static str {
        "NVFP4"
    }

    fn id(&self) -> u32 {
        40
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
    *scales = std::array::from_fn(|i| half_scale(block[i]));
    let codes = block[SUBS..].as_chunks::<{ SUB / 2 }>().0;
    for (codes, values) in codes.iter().zip(values.as_chunks_mut::<SUB>().0) {
        unpack_halves(codes, values, |q| LEVELS[usize::from(q)]);
    }
}

/// Half of a float with four exponent bits, biased by 7, and three mantissa bits; the top bit is
/// not read. As in ggml, not-a-number is zero, but not if the top bit is set.
#[inline(always)]
fn half_scale(bits: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(bits >> 3 & 0xf), u32::from(bits & 7));
    match (bits, exponent) {
        (0x7f, _) => 0.0,
        // Subnormal: half of a multiple of 2^-9.
        (_, 0) => mantissa as f32 * (1.0 / 1024.0),
        // Single precision has a bias of 127 and 23 mantissa bits; half is one exponent less.
        _ => f32::from_bits((exponent + 127 - 7 - 1) << 23 | mantissa << 20),
    }
}
