//! `F16`: half-precision numbers (IEEE 754 binary16). Page: `formats/f16.md`.

use half::f16;

use super::block::{decode_blocks, encode_blocks, half_at};
use super::{Block, Kernel, Rows, TensorType};

const LEN: usize = 1;
const BYTES: usize = 2;

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

    fn can_encode(&self) -> bool {
        true
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        for (block, out) in decode_blocks::<BYTES, LEN>(rows, out) {
            *out = [half_at(block, 0)];
        }
    }

    fn encode(&self, values: &[f32], cols: usize, _group: usize, codes: &mut [u8], _: &mut [u8]) {
        for ([value], code) in encode_blocks::<BYTES, LEN>(values, cols, codes) {
            *code = f16::from_f32(*value).to_le_bytes();
        }
    }
}
