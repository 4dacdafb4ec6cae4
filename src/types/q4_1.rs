//! `Q4_1`: 32 four-bit values with a half-precision scale and minimum. Page: `formats/q4_1.md`.

use half::f16;

use super::block::{
    bounds, decode_blocks, encode_blocks, half_at, unpack_blocks_with_mins, unpack_halves,
};
use super::f16::F16;
use super::{Block, High, Int8Row, Kernel, Layout, Plane, Planes, Rows, SUB, Shader, TensorType};

const LEN: usize = 32;
const BYTES: usize = 20;
const _: () = assert!(BYTES == 4 + LEN / 2, "a scale, a minimum, and half a byte per value");

pub(super) struct Q4_1;

impl TensorType for Q4_1 {
    fn name(&self) -> &'static str {
        "Q4_1"
    }

    fn id(&self) -> u32 {
        3
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
            constants: &[("BITS", 4), ("MIN_COUNT", 1)],
            chunk: 32,
            table_words: 0,
        })
    }

    fn layout(&self) -> Layout {
        Layout::Planes(Planes {
            len: LEN,
            bytes: BYTES,
            low: Plane { at: 4, bits: 4, run: LEN / 2 },
            high: High::None,
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
            let (scale, min) = (half_at(block, 0), half_at(block, 2));
            // The low halves of the bytes are the first 16 values, the high halves the last 16.
            for (i, &q) in block[4..].iter().enumerate() {
                out[i] = scale * f32::from(q & 0xf) + min;
                out[i + LEN / 2] = scale * f32::from(q >> 4) + min;
            }
        }
    }

    fn encode(&self, values: &[f32], cols: usize, _group: usize, codes: &mut [u8], _: &mut [u8]) {
        for (values, block) in encode_blocks::<BYTES, LEN>(values, cols, codes) {
            let (min, max) = bounds(values);
            let scale = (max - min) / 15.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            let code = |value: f32| (((value - min) * inverse + 0.5) as u8).min(15);
            block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            block[2..4].copy_from_slice(&f16::from_f32(min).to_le_bytes());
            for (i, q) in block[4..].iter_mut().enumerate() {
                *q = code(values[i]) | code(values[i + LEN / 2]) << 4;
            }
        }
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        for (block, out) in unpack_blocks_with_mins::<BYTES, LEN, { LEN / SUB }>(row, out) {
            *out.scales = [half_at(block, 0); LEN / SUB];
            *out.mins = [half_at(block, 2); LEN / SUB];
            let codes = block[4..].as_chunks::<{ LEN / 2 }>().0;
            unpack_halves(&codes[0], out.values, |q| q as i8);
        }
    }
}
