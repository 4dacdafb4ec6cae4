//! `Q5_1`: 32 five-bit values with a half-precision scale and minimum. Page: `formats/q5_1.md`.

use half::f16;

use super::block::{
    bit, bounds, decode_blocks, encode_blocks, half_at, unpack_blocks_with_mins, unpack_fives,
};
use super::f16::F16;
use super::{Block, High, Int8Row, Kernel, Layout, Plane, Planes, Rows, SUB, Shader, TensorType};

const LEN: usize = 32;
const BYTES: usize = 24;
const _: () = assert!(BYTES == 4 + LEN / 8 + LEN / 2, "two halves, the fifth bits, the low four");

pub(super) struct Q5_1;

impl TensorType for Q5_1 {
    fn name(&self) -> &'static str {
        "Q5_1"
    }

    fn id(&self) -> u32 {
        7
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: LEN, mins: true }
    }

    fn shader(&self) -> Option<Shader> {
        Some(Shader {
            text: include_str!("../../shaders/types/q4_0.wgsl"),
            constants: &[("BITS", 5), ("MIN_COUNT", 1)],
            chunk: 32,
            table_words: 0,
        })
    }

    fn layout(&self) -> Layout {
        Layout::Planes(Planes {
            len: LEN,
            bytes: BYTES,
            low: Plane { at: 8, bits: 4, run: LEN / 2 },
            high: High::Bits { at: 4 },
            offset: 0,
            levels: None,
            factor: 0,
            min_factor: Some(2),
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
            let (scale, min, high) = (half_at(block, 0), half_at(block, 2), &block[4..8]);
            // The low halves of the bytes are the first 16 values, the high halves the last 16;
            // the fifth bits are in the order of the values.
            for (i, &q) in block[8..].iter().enumerate() {
                let (low, last) = (q & 0xf | bit(high, i) << 4, q >> 4 | bit(high, i + 16) << 4);
                out[i] = scale * f32::from(low) + min;
                out[i + LEN / 2] = scale * f32::from(last) + min;
            }
        }
    }

    fn encode(&self, values: &[f32], cols: usize, _group: usize, codes: &mut [u8], _: &mut [u8]) {
        for (values, block) in encode_blocks::<BYTES, LEN>(values, cols, codes) {
            let (min, max) = bounds(values);
            let scale = (max - min) / 31.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let code = |value: f32| (((value - min) * inverse + 0.5) as u8).min(31);
            *block = [0; BYTES];
            block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            block[2..4].copy_from_slice(&f16::from_f32(min).to_le_bytes());
            for (i, &value) in values.iter().enumerate() {
                let q = code(value);
                block[4 + i / 8] |= (q >> 4) << (i % 8);
                block[8 + i % 16] |= (q & 0xf) << (i / 16 * 4);
            }
        }
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        for (block, out) in unpack_blocks_with_mins::<BYTES, LEN, { LEN / SUB }>(row, out) {
            *out.scales = [half_at(block, 0); LEN / SUB];
            *out.mins = [half_at(block, 2); LEN / SUB];
            unpack_fives(&block[8..], &block[4..8], 0, out.values);
        }
    }
}
