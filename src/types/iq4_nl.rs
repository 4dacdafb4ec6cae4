//! `IQ4_NL`: 32 values from a fixed table of 16, under one half-precision scale.
//! Page: `formats/iq4_nl.md`.

use super::block::{decode_blocks, half_at, unpack_blocks};
use super::{Block, High, Int8Row, Kernel, Layout, Plane, Planes, Rows, SUB, TensorType};

const LEN: usize = 32;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + LEN / 2, "a block is a scale and half a byte per value");

/// What the 16 codes mean: finer near zero, where most weights are. From llama.cpp.
pub(super) const LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

pub(super) struct Iq4Nl;

impl TensorType for Iq4Nl {
    fn name(&self) -> &'static str {
        "IQ4_NL"
    }

    fn id(&self) -> u32 {
        20
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: LEN, mins: false }
    }

    fn layout(&self) -> Layout {
        Layout::Planes(Planes {
            len: LEN,
            bytes: BYTES,
            low: Plane { at: 2, bits: 4, run: LEN / 2 },
            high: High::None,
            offset: 0,
            levels: Some(&LEVELS),
            factor: 0,
            min_factor: None,
            integers: 0,
        })
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        for (block, out) in decode_blocks::<BYTES, LEN>(rows, out) {
            let scale = half_at(block, 0);
            // The low halves of the bytes are the first 16 values, the high halves the last 16.
            for (i, &q) in block[2..].iter().enumerate() {
                out[i] = scale * f32::from(LEVELS[usize::from(q & 0xf)]);
                out[i + LEN / 2] = scale * f32::from(LEVELS[usize::from(q >> 4)]);
            }
        }
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        for (block, values, scales) in unpack_blocks::<BYTES, LEN, { LEN / SUB }>(row, out) {
            *scales = [half_at(block, 0); LEN / SUB];
            for (i, &q) in block[2..].iter().enumerate() {
                values[i] = LEVELS[usize::from(q & 0xf)];
                values[i + LEN / 2] = LEVELS[usize::from(q >> 4)];
            }
        }
    }
}
