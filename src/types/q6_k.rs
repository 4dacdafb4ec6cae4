//! `Q6_K`: 256 six-bit values in groups of 16, each with an eight-bit scale.
//! Page: `formats/q6_k.md`.

use super::block::{block_scales, decode_blocks, encode_blocks, half_at, unpack_blocks};
use super::k_fit::symmetric;
use super::q8_0::Q8_0;
use super::{
    Block, High, Int8Row, Kernel, Layout, Plane, Planes, Rows, SUB, ScaleIntegers, Shader,
    TensorType,
};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const BYTES: usize = 210;
const HIGH: usize = LEN / 2;
const SCALES: usize = HIGH + LEN / 4;
const FACTOR: usize = SCALES + SUBS;
const _: () = assert!(BYTES == FACTOR + 2, "low four bits, high two bits, scales, their factor");

pub(super) struct Q6K;

impl TensorType for Q6K {
    fn name(&self) -> &'static str {
        "Q6_K"
    }

    fn id(&self) -> u32 {
        14
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: SUB, mins: false }
    }

    fn shader(&self) -> Option<Shader> {
        Some(Shader {
            text: include_str!("../../shaders/types/q6_k.wgsl"),
            constants: &[],
            chunk: 128,
            table_words: 0,
        })
    }

    fn layout(&self) -> Layout {
        Layout::Planes(Planes {
            len: LEN,
            bytes: BYTES,
            low: Plane { at: 0, bits: 4, run: 64 },
            high: High::Plane(Plane { at: HIGH, bits: 2, run: 32 }),
            offset: 32,
            levels: None,
            factor: FACTOR,
            min_factor: None,
            integers: SUB,
        })
    }

    fn can_encode(&self) -> bool {
        true
    }

    fn encode(&self, values: &[f32], cols: usize, _group: usize, codes: &mut [u8], _: &mut [u8]) {
        for (values, block) in encode_blocks::<BYTES, LEN>(values, cols, codes) {
            let fit = symmetric(values);
            block.fill(0);
            block[FACTOR..].copy_from_slice(&fit.factor.to_le_bytes());
            block[SCALES..FACTOR].copy_from_slice(bytemuck::cast_slice(&fit.scales));
            let (low, high) = block.split_at_mut(HIGH);
            for (group, codes) in fit.codes.as_chunks::<SUB>().0.iter().enumerate() {
                let low = &mut low[group / 8 * 64 + group % 4 * SUB..][..SUB];
                let high = &mut high[group / 8 * 32 + group % 2 * SUB..][..SUB];
                let (low_shift, high_shift) = (group / 4 % 2 * 4, group / 2 % 4 * 2);
                for ((low, high), q) in low.iter_mut().zip(high).zip(codes) {
                    *low |= (q & 0xf) << low_shift;
                    *high |= q >> 4 << high_shift;
                }
            }
        }
    }

    fn fallback(&self) -> Option<&'static dyn TensorType> {
        Some(&Q8_0)
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        for (block, out) in decode_blocks::<BYTES, LEN>(rows, out) {
            let factor = half_at(block, FACTOR);
            for (group, out) in out.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
                let scale = factor * f32::from(block[SCALES + group] as i8);
                // 64 bytes hold the low bits of 128 values, the low halves those of the first 64;
                // 32 bytes hold their high bits, the lowest those of the first 32.
                let low = &block[group / 8 * 64 + group % 4 * SUB..][..SUB];
                let high = &block[HIGH + group / 8 * 32 + group % 2 * SUB..][..SUB];
                let (low_shift, high_shift) = (group / 4 % 2 * 4, group / 2 % 4 * 2);
                for ((out, &low), &high) in out.iter_mut().zip(low).zip(high) {
                    let q = (low >> low_shift & 0xf) | (high >> high_shift & 3) << 4;
                    *out = scale * (f32::from(q) - 32.0);
                }
            }
        }
    }

    fn scale_integers(&self, row: &Rows, out: &mut ScaleIntegers) {
        for (block, scales) in block_scales::<BYTES, SUBS>(row, out.scales) {
            scales.copy_from_slice(bytemuck::cast_slice(&block[SCALES..FACTOR]));
        }
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        for (block, values, scales) in unpack_blocks::<BYTES, LEN, SUBS>(row, out) {
            let factor = half_at(block, FACTOR);
            for (out, &scale) in scales.iter_mut().zip(&block[SCALES..FACTOR]) {
                *out = factor * f32::from(scale as i8);
            }
            let low = block[..HIGH].as_chunks::<64>().0;
            let high = block[HIGH..SCALES].as_chunks::<32>().0;
            let values = values.as_chunks_mut::<128>().0;
            for ((low, high), values) in low.iter().zip(high).zip(values) {
                for (i, &high) in high.iter().enumerate() {
                    let (a, b) = (low[i], low[i + 32]);
                    values[i] = (a & 0xf | high << 4 & 0x30) as i8 - 32;
                    values[i + 32] = (b & 0xf | high << 2 & 0x30) as i8 - 32;
                    values[i + 64] = (a >> 4 | high & 0x30) as i8 - 32;
                    values[i + 96] = (b >> 4 | high >> 2 & 0x30) as i8 - 32;
                }
            }
        }
    }
}
