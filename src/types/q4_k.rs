//! `Q4_K`: 256 four-bit values in groups of 32, each with a six-bit scale and minimum.
//! Page: `formats/q4_k.md`.

use super::block::{
    block_scales, decode_blocks, encode_blocks, half_at, unpack_blocks_with_mins, unpack_halves,
};
use super::k_fit::with_mins;
use super::q5_0::Q5_0;
use super::{
    Block, High, Int8Row, Kernel, Layout, Plane, Planes, Rows, SUB, ScaleIntegers, Shader,
    TensorType,
};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const GROUP: usize = 32;
const BYTES: usize = 144;
const CODES: usize = 4 + 12;
const _: () = assert!(BYTES == CODES + LEN / 2, "two factors, scales and minimums, codes");

pub(super) struct Q4K;

impl TensorType for Q4K {
    fn name(&self) -> &'static str {
        "Q4_K"
    }

    fn id(&self) -> u32 {
        12
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
            constants: &[("BITS", 4)],
            chunk: 64,
            table_words: 0,
        })
    }

    fn layout(&self) -> Layout {
        Layout::Planes(Planes {
            len: LEN,
            bytes: BYTES,
            low: Plane { at: CODES, bits: 4, run: 32 },
            high: High::None,
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
            let fit = with_mins(values, 15);
            block.fill(0);
            block[..2].copy_from_slice(&fit.factor.to_le_bytes());
            block[2..4].copy_from_slice(&fit.min_factor.to_le_bytes());
            block[4..CODES].copy_from_slice(&packed(fit.scales, fit.mins));
            for (group, codes) in fit.codes.as_chunks::<GROUP>().0.iter().enumerate() {
                let bytes = &mut block[CODES + group / 2 * 32..][..GROUP];
                let shift = group % 2 * 4;
                bytes.iter_mut().zip(codes).for_each(|(byte, q)| *byte |= q << shift);
            }
        }
    }

    fn fallback(&self) -> Option<&'static dyn TensorType> {
        Some(&Q5_0)
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        for (block, out) in decode_blocks::<BYTES, LEN>(rows, out) {
            let (factor, min_factor) = (half_at(block, 0), half_at(block, 2));
            let (scales, mins) = scales_and_mins(&block[4..CODES]);
            for (group, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let scale = factor * f32::from(scales[group]);
                let min = min_factor * f32::from(mins[group]);
                // 32 bytes hold two groups: the low halves are the first, the high the second.
                let codes = &block[CODES + group / 2 * 32..][..GROUP];
                let shift = group % 2 * 4;
                for (out, &q) in out.iter_mut().zip(codes) {
                    *out = scale * f32::from(q >> shift & 0xf) - min;
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
            let (scales, mins) = scales_and_mins(&block[4..CODES]);
            for i in 0..SUBS {
                out.scales[i] = factor * f32::from(scales[i * SUB / GROUP]);
                out.mins[i] = -(min_factor * f32::from(mins[i * SUB / GROUP]));
            }
            let codes = block[CODES..].as_chunks::<32>().0;
            for (codes, values) in codes.iter().zip(out.values.as_chunks_mut::<64>().0) {
                unpack_halves(codes, values, |q| q as i8);
            }
        }
    }
}

/// The eight scales and eight minimums, six bits each, from their 12 bytes.
///
/// The first four scales are the low six bits of bytes 0 to 3, the first four minimums those of
/// bytes 4 to 7. Of the last four, the low four bits are the halves of bytes 8 to 11 (scales low,
/// minimums high) and the high two bits are what the first eight bytes have left.
#[inline(always)]
pub(super) fn scales_and_mins(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let word =
        |at| u32::from_le_bytes([packed[at], packed[at + 1], packed[at + 2], packed[at + 3]]);
    let (scales, mins, last) = (word(0), word(4), word(8));
    let (six, four, two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x3030_3030);
    // Four bytes at a time: no bit that is kept crosses from one byte to the next.
    let join = |first: u32, last: u32| (u64::from(last) << 32 | u64::from(first)).to_le_bytes();
    (
        join(scales & six, last & four | scales >> 2 & two),
        join(mins & six, last >> 4 & four | mins >> 2 & two),
    )
}

/// [`super::TensorType::scale_integers`] of types that have these 12 bytes after two factors.
pub(super) fn scale_integers<const BYTES: usize>(row: &Rows, out: &mut ScaleIntegers) {
    const GROUPS: usize = LEN / GROUP;
    let mins = out.mins.as_chunks_mut::<GROUPS>().0;
    for ((block, to), to_mins) in block_scales::<BYTES, GROUPS>(row, out.scales).zip(mins) {
        let (scales, mins) = scales_and_mins(&block[4..16]);
        (*to, *to_mins) = (bytemuck::cast(scales), bytemuck::cast(mins));
    }
}

/// The inverse of [`scales_and_mins`].
pub(super) fn packed(scales: [u8; 8], mins: [u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for i in 0..4 {
        packed[i] = scales[i] | scales[i + 4] >> 4 << 6;
        packed[i + 4] = mins[i] | mins[i + 4] >> 4 << 6;
        packed[i + 8] = scales[i + 4] & 0xf | mins[i + 4] << 4;
    }
    packed
}
