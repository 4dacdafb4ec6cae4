//! `F16`: half-precision numbers (IEEE 754 binary16). Page: `formats/f16.md`.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::block::{code_blocks, encode_blocks};
use super::{Block, Kernel, Layout, Rows, Shader, TensorType};

const LEN: usize = 1;
const BYTES: usize = 2;

/// Values converted at once, by the processor's instruction where it has one.
const RUN: usize = 64;

pub(super) struct F16;

impl TensorType for F16 {
    fn name(&self) -> &'static str {
        "F16"
    }

    fn id(&self) -> u32 {
        1
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Float
    }

    fn shader(&self) -> Option<Shader> {
        Some(Shader {
            text: include_str!("../../shaders/types/f16.wgsl"),
            constants: &[],
            chunk: 0,
            table_words: 0,
        })
    }

    fn layout(&self) -> Layout {
        Layout::F16
    }

    fn can_encode(&self) -> bool {
        true
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        assert_eq!(out.len(), rows.count * rows.cols, "decode has room for every value");
        let blocks = code_blocks::<BYTES, LEN>(rows);
        for (blocks, out) in blocks.chunks(RUN).zip(out.chunks_mut(RUN)) {
            let mut halves = [f16::ZERO; RUN];
            for (half, block) in halves.iter_mut().zip(blocks) {
                *half = f16::from_le_bytes(*block);
            }
            halves[..out.len()].convert_to_f32_slice(out);
        }
    }

    fn encode(&self, values: &[f32], cols: usize, _group: usize, codes: &mut [u8], _: &mut [u8]) {
        for ([value], code) in encode_blocks::<BYTES, LEN>(values, cols, codes) {
            *code = f16::from_f32(*value).to_le_bytes();
        }
    }
}
