//! `Q2_K`: 256 two-bit values in groups of 16, each with a four-bit scale and minimum.
//! Page: `formats/q2_k.md`.

use super::block::{block_scales, decode_blocks, half_at, unpack_blocks_with_mins};
use super::{
    Block, High, Int8Row, Kernel, Layout, Plane, Planes, Rows, SUB, ScaleIntegers, TensorType,
};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const BYTES: usize = 84;
const CODES: usize = SUBS;
const HALVES: usize = CODES + LEN / 4;
const _: () = assert!(BYTES == HALVES + 4, "scales and minimums, codes, and their two factors");

pub(super) struct Q2K;

impl TensorType for Q2K {
    fn name(&self) -> &'static str {
        "Q2_K"
    }

    fn id(&self) -> u32 {
        10
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: SUB, mins: true }
    }

    fn layout(&self) -> Layout {
        Layout::Planes(Planes {
            len: LEN,
            bytes: BYTES,
            low: Plane { at: CODES, bits: 2, run: 32 },
            high: High::None,
            offset: 0,
            levels: None,
            factor: HALVES,
            min_factor: Some(HALVES + 2),
            integers: SUB,
        })
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        for (block, out) in decode_blocks::<BYTES, LEN>(rows, out) {
            let (factor, min_factor) = (half_at(block, HALVES), half_at(block, HALVES + 2));
            for (group, out) in out.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
                let packed = block[group];
                let scale = factor * f32::from(packed & 0xf);
                let min = min_factor * f32::from(packed >> 4);
                // 32 bytes hold 128 values: the lowest bits of the bytes are the first 32 of them.
                let codes = &block[CODES + group / 8 * 32 + group % 2 * SUB..][..SUB];
                let shift = group / 2 % 4 * 2;
                for (out, &q) in out.iter_mut().zip(codes) {
                    *out = scale * f32::from(q >> shift & 3) - min;
                }
            }
        }
    }

    fn scale_integers(&self, row: &Rows, out: &mut ScaleIntegers) {
        let mins = out.mins.as_chunks_mut::<SUBS>().0;
        for ((block, scales), mins) in block_scales::<BYTES, SUBS>(row, out.scales).zip(mins) {
            // All at a time: no bit that is kept crosses from one byte to the next.
            let packed = u128::from_le_bytes(*block[..CODES].as_array().expect("16 bytes"));
            let low = u128::from_le_bytes([0xf; CODES]);
            *scales = bytemuck::cast((packed & low).to_le_bytes());
            *mins = bytemuck::cast((packed >> 4 & low).to_le_bytes());
        }
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        for (block, out) in unpack_blocks_with_mins::<BYTES, LEN, SUBS>(row, out) {
            let (factor, min_factor) = (half_at(block, HALVES), half_at(block, HALVES + 2));
            for (i, &packed) in block[..CODES].iter().enumerate() {
                out.scales[i] = factor * f32::from(packed & 0xf);
                out.mins[i] = -(min_factor * f32::from(packed >> 4));
            }
            let codes = block[CODES..HALVES].as_chunks::<32>().0;
            for (codes, values) in codes.iter().zip(out.values.as_chunks_mut::<128>().0) {
                for (i, &q) in codes.iter().enumerate() {
                    values[i] = (q & 3) as i8;
                    values[i + 32] = (q >> 2 & 3) as i8;
                    values[i + 64] = (q >> 4 & 3) as i8;
                    values[i + 96] = (q >> 6) as i8;
                }
            }
        }
    }
}
