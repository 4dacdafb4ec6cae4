//! `BF16`: the upper halves of single-precision numbers. Page: `formats/bf16.md`.

use half::bf16;

use super::block::{decode_blocks, encode_blocks};
use super::{Block, Kernel, Layout, Rows, Shader, TensorType};

const LEN: usize = 1;
const BYTES: usize = 2;

pub(super) struct Bf16;

impl TensorType for Bf16 {
    fn name(&self) -> &'static str {
        "BF16"
    }

    fn id(&self) -> u32 {
        30
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Float
    }

    fn shader(&self) -> Option<Shader> {
        Some(Shader {
            text: include_str!("../../shaders/types/bf16.wgsl"),
            constants: &[],
            chunk: 0,
            table_words: 0,
        })
    }

    fn layout(&self) -> Layout {
        Layout::Bf16
    }

    fn can_encode(&self) -> bool {
        true
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        for (block, out) in decode_blocks::<BYTES, LEN>(rows, out) {
            *out = [f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16)];
        }
    }

    fn encode(&self, values: &[f32], cols: usize, _group: usize, codes: &mut [u8], _: &mut [u8]) {
        for ([value], code) in encode_blocks::<BYTES, LEN>(values, cols, codes) {
            *code = bf16::from_f32(*value).to_le_bytes();
        }
    }
}
