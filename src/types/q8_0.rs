//! `Q8_0`: 32 eight-bit values under one half-precision scale. Page: `formats/q8_0.md`.

use half::f16;

use super::block::{decode_blocks, encode_blocks, half_at, unpack_blocks};
use super::f16::F16;
use super::{Block, High, Int8Row, Kernel, Layout, Plane, Planes, Rows, SUB, Shader, TensorType};

const LEN: usize = 32;
const BYTES: usize = 34;
const _: () = assert!(BYTES == 2 + LEN, "a block is a scale and a byte per value");

pub(super) struct Q8_0;

impl TensorType for Q8_0 {
    fn name(&self) -> &'static str {
        "Q8_0"
    }

    fn id(&self) -> u32 {
        8
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: LEN, mins: false }
    }

    fn shader(&self) -> Option<Shader> {
        Some(Shader {
            text: include_str!("../../shaders/types/q8_0.wgsl"),
            constants: &[],
            chunk: 32,
            table_words: 0,
        })
    }

    fn layout(&self) -> Layout {
        Layout::Planes(Planes {
            len: LEN,
            bytes: BYTES,
            low: Plane { at: 2, bits: 8, run: LEN },
            high: High::None,
            offset: 0,
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
            for (out, &q) in out.iter_mut().zip(&block[2..]) {
                *out = scale * f32::from(q as i8);
            }
        }
    }

    fn encode(&self, values: &[f32], cols: usize, _group: usize, codes: &mut [u8], _: &mut [u8]) {
        for (values, block) in encode_blocks::<BYTES, LEN>(values, cols, codes) {
            let scale = values.iter().fold(0.0f32, |max, value| max.max(value.abs())) / 127.0;
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            for (q, value) in block[2..].iter_mut().zip(values) {
                // `round` takes halves away from zero, which is what ggml does.
                *q = (value * inverse).round() as i8 as u8;
            }
        }
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        for (block, values, scales) in unpack_blocks::<BYTES, LEN, { LEN / SUB }>(row, out) {
            *scales = [half_at(block, 0); LEN / SUB];
            values.copy_from_slice(bytemuck::cast_slice(&block[2..]));
        }
    }
}
