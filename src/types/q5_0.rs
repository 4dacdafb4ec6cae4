//! `Q5_0`: 32 five-bit values under one half-precision scale. Page: `formats/q5_0.md`.

use half::f16;

use super::block::{
    bit, decode_blocks, encode_blocks, extreme, half_at, unpack_blocks, unpack_fives,
};
use super::f16::F16;
use super::{Block, High, Int8Row, Kernel, Layout, Plane, Planes, Rows, SUB, Shader, TensorType};

const LEN: usize = 32;
const BYTES: usize = 22;
const _: () = assert!(BYTES == 2 + LEN / 8 + LEN / 2, "a scale, the fifth bits, the low four");

pub(super) struct Q5_0;

impl TensorType for Q5_0 {
    fn name(&self) -> &'static str {
        "Q5_0"
    }

    fn id(&self) -> u32 {
        6
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
            constants: &[("BITS", 5), ("MIN_COUNT", 0)],
            chunk: 32,
            table_words: 0,
        })
    }

    fn layout(&self) -> Layout {
        Layout::Planes(Planes {
            len: LEN,
            bytes: BYTES,
            low: Plane { at: 6, bits: 4, run: LEN / 2 },
            high: High::Bits { at: 2 },
            offset: 16,
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
            let (scale, high) = (half_at(block, 0), &block[2..6]);
            // The low halves of the bytes are the first 16 values, the high halves the last 16;
            // the fifth bits are in the order of the values.
            for (i, &q) in block[6..].iter().enumerate() {
                let (low, last) = (q & 0xf | bit(high, i) << 4, q >> 4 | bit(high, i + 16) << 4);
                out[i] = scale * (f32::from(low) - 16.0);
                out[i + LEN / 2] = scale * (f32::from(last) - 16.0);
            }
        }
    }

    fn encode(&self, values: &[f32], cols: usize, _group: usize, codes: &mut [u8], _: &mut [u8]) {
        for (values, block) in encode_blocks::<BYTES, LEN>(values, cols, codes) {
            // The value that is farthest from zero becomes -16, the end of the range without a
            // counterpart, so the scale has the opposite sign.
            let scale = extreme(values) / -16.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let code = |value: f32| ((value * inverse + 16.5) as u8).min(31);
            *block = [0; BYTES];
            block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            for (i, &value) in values.iter().enumerate() {
                let q = code(value);
                block[2 + i / 8] |= (q >> 4) << (i % 8);
                block[6 + i % 16] |= (q & 0xf) << (i / 16 * 4);
            }
        }
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        for (block, values, scales) in unpack_blocks::<BYTES, LEN, { LEN / SUB }>(row, out) {
            *scales = [half_at(block, 0); LEN / SUB];
            unpack_fives(&block[6..], &block[2..6], 16, values);
        }
    }
}
