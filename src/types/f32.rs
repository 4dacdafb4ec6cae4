//! `F32`: single-precision numbers, as they are. Page: `formats/f32.md`.

use super::block::{decode_blocks, encode_blocks};
use super::{Block, Kernel, Layout, Rows, Shader, TensorType};

const LEN: usize = 1;
const BYTES: usize = 4;

pub(super) struct F32;

impl TensorType for F32 {
    fn name(&self) -> &'static str {
        "F32"
    }

    fn id(&self) -> u32 {
        0
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Float
    }

    fn shader(&self) -> Option<Shader> {
        Some(Shader {
            text: include_str!("../../shaders/types/f32.wgsl"),
            constants: &[],
            chunk: 0,
            table_words: 0,
        })
    }

    fn layout(&self) -> Layout {
        Layout::F32
    }

    fn can_encode(&self) -> bool {
        true
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        for (block, out) in decode_blocks::<BYTES, LEN>(rows, out) {
            *out = [f32::from_le_bytes(*block)];
        }
    }

    fn encode(&self, values: &[f32], cols: usize, _group: usize, codes: &mut [u8], _: &mut [u8]) {
        for ([value], code) in encode_blocks::<BYTES, LEN>(values, cols, codes) {
            *code = value.to_le_bytes();
        }
    }
}
