//! `Q4_0`: 32 four-bit values under one half-precision scale. Page: `formats/q4_0.md`.

use half::f16;

use super::block::{decode_blocks, encode_blocks, extreme, half_at, unpack_blocks, unpack_halves};
use super::f16::F16;
use super::{Block, High, Int8Row, Kernel, Layout, Plane, Planes, Rows, SUB, Shader, TensorType};

const LEN: usize = 32;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + LEN / 2, "a block is a scale and half a byte per value");

pub(super) struct Q4_0;

impl TensorType for Q4_0 {
    fn name(&self) -> &'static str {
        "Q4_0"
    }

    fn id(&self) -> u32 {
        2
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: LEN, mins: false }
    }

    fn shader(&self) -> Option<Shader> {
        Some(Shader {
            text: include_str!("../../shaders/types/q4_0.wgsl"),
            constants: &[("BITS", 4), ("MIN_COUNT", 0)],
            chunk: 32,
            table_words: 0,
        })
    }

    fn layout(&self) -> Layout {
        Layout::Planes(Planes {
            len: LEN,
            bytes: BYTES,
            low: Plane { at: 2, bits: 4, run: LEN / 2 },
            high: High::None,
            offset: 8,
            levels: None,
            factor: 0,
            min_factor: None,
            integers: 0,
        })
    }

    fn can_encode(&self) -> bool {
        true
    }

    fn fallback(&self) -> Option<&'static dyn TensorType> {
        Some(&F16)
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        for (block, out) in decode_blocks::<BYTES, LEN>(rows, out) {
            let scale = half_at(block, 0);
            // The low halves of the bytes are the first 16 values, the high halves the last 16.
            for (i, &q) in block[2..].iter().enumerate() {
                out[i] = scale * (f32::from(q & 0xf) - 8.0);
                out[i + LEN / 2] = scale * (f32::from(q >> 4) - 8.0);
            }
        }
    }

    fn encode(&self, values: &[f32], cols: usize, _group: usize, codes: &mut [u8], _: &mut [u8]) {
        for (values, block) in encode_blocks::<BYTES, LEN>(values, cols, codes) {
            // The value that is farthest from zero becomes -8, the end of the range without a
            // counterpart, so the scale has the opposite sign.
            let scale = extreme(values) / -8.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let code = |value: f32| ((value * inverse + 8.5) as u8).min(15);
            block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            for (i, q) in block[2..].iter_mut().enumerate() {
                *q = code(values[i]) | code(values[i + LEN / 2]) << 4;
            }
        }
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        for (block, values, scales) in unpack_blocks::<BYTES, LEN, { LEN / SUB }>(row, out) {
            *scales = [half_at(block, 0); LEN / SUB];
            let codes = block[2..].as_chunks::<{ LEN / 2 }>().0;
            unpack_halves(&codes[0], values, |q| q as i8 - 8);
        }
    }
}
