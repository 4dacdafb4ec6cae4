//! `Q5_K`: 256 five-bit values in groups of 32, each with a six-bit scale and minimum.
//! Page: `formats/q5_k.md`.

use super::block::{decode_blocks, encode_blocks, half_at, unpack_blocks_with_mins};
use super::k_fit::with_mins;
use super::q4_k::{packed, scale_integers, scales_and_mins};
use super::q5_1::Q5_1;
use super::{
    Block, High, Int8Row, Kernel, Layout, Plane, Planes, Rows, SUB, ScaleIntegers, Shader,
    TensorType,
};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const GROUP: usize = 32;
const BYTES: usize = 176;
const HIGH: usize = 4 + 12;
const CODES: usize = HIGH + LEN / 8;
const _: () = assert!(BYTES == CODES + LEN / 2, "factors, scales and minimums, fifth bits, codes");

pub(super) struct Q5K;

impl TensorType for Q5K {
    fn name(&self) -> &'static str {
        "Q5_K"
    }

    fn id(&self) -> u32 {
        13
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: GROUP, mins: true }
    }

    fn shader(&self) -> Option<Shader> {
        Some(Shader {
            text: include_str!("../../shaders/types/q4_k.wgsl"),
            constants: &[("BITS", 5)],
            chunk: 64,
            table_words: 0,
        })
    }

    fn layout(&self) -> Layout {
        Layout::Planes(Planes {
            len: LEN,
            bytes: BYTES,
            low: Plane { at: CODES, bits: 4, run: 32 },
            high: High::Plane(Plane { at: HIGH, bits: 1, run: 32 }),
            offset: 0,
            levels: None,
            factor: 0,
            min_factor: Some(2),
            integers: GROUP,
        })
    }

    fn can_encode(&self) -> bool {
        true
    }

    fn encode(&self, values: &[f32], cols: usize, _group: usize, codes: &mut [u8], _: &mut [u8]) {
        for (values, block) in encode_blocks::<BYTES, LEN>(values, cols, codes) {
            let fit = with_mins(values, 31);
            block.fill(0);
            block[..2].copy_from_slice(&fit.factor.to_le_bytes());
            block[2..4].copy_from_slice(&fit.min_factor.to_le_bytes());
            block[4..HIGH].copy_from_slice(&packed(fit.scales, fit.mins));
            let (head, bytes) = block.split_at_mut(CODES);
            for (group, codes) in fit.codes.as_chunks::<GROUP>().0.iter().enumerate() {
                let bytes = &mut bytes[group / 2 * 32..][..GROUP];
                let shift = group % 2 * 4;
                for ((byte, fifth), q) in bytes.iter_mut().zip(&mut head[HIGH..]).zip(codes) {
                    *byte |= (q & 0xf) << shift;
                    *fifth |= q >> 4 << group;
                }
            }
        }
    }

    fn fallback(&self) -> Option<&'static dyn TensorType> {
        Some(&Q5_1)
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        for (block, out) in decode_blocks::<BYTES, LEN>(rows, out) {
            let (factor, min_factor) = (half_at(block, 0), half_at(block, 2));
            let (scales, mins) = scales_and_mins(&block[4..HIGH]);
            for (group, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let scale = factor * f32::from(scales[group]);
                let min = min_factor * f32::from(mins[group]);
                // 32 bytes hold two groups: the low halves are the first, the high the second.
                // The fifth bits are in one run of 32 bytes, the lowest for the first group.
                let codes = &block[CODES + group / 2 * 32..][..GROUP];
                let shift = group % 2 * 4;
                for ((out, &low), &fifth) in out.iter_mut().zip(codes).zip(&block[HIGH..CODES]) {
                    let q = (low >> shift & 0xf) | (fifth >> group & 1) << 4;
                    *out = scale * f32::from(q) - min;
                }
            }
        }
    }

    fn scale_integers(&self, row: &Rows, out: &mut ScaleIntegers) {
        scale_integers::<BYTES>(row, out);
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        for (block, out) in unpack_blocks_with_mins::<BYTES, LEN, SUBS>(row, out) {
            let (factor, min_factor) = (half_at(block, 0), half_at(block, 2));
            let (scales, mins) = scales_and_mins(&block[4..HIGH]);
            for i in 0..SUBS {
                out.scales[i] = factor * f32::from(scales[i * SUB / GROUP]);
                out.mins[i] = -(min_factor * f32::from(mins[i * SUB / GROUP]));
            }
            let codes = block[CODES..].as_chunks::<32>().0;
            let values = out.values.as_chunks_mut::<64>().0;
            for (pair, (codes, values)) in codes.iter().zip(values).enumerate() {
                for (i, (&q, fifth)) in codes.iter().zip(&block[HIGH..CODES]).enumerate() {
                    // The two bits of this pair of groups, moved to the bottom.
                    let fifth = fifth >> (2 * pair);
                    values[i] = (q & 0xf | fifth << 4 & 0x10) as i8;
                    values[i + 32] = (q >> 4 | fifth << 3 & 0x10) as i8;
                }
            }
        }
    }
}
