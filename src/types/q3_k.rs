//! `Q3_K`: 256 three-bit values in groups of 16, each with a six-bit scale.
//! Page: `formats/q3_k.md`.

use super::block::{block_scales, decode_blocks, half_at, less_32, unpack_blocks};
use super::{
    Block, High, Int8Row, Kernel, Layout, Plane, Planes, Rows, SUB, ScaleIntegers, TensorType,
};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const BYTES: usize = 110;
const CODES: usize = LEN / 8;
const SCALES: usize = CODES + LEN / 4;
const FACTOR: usize = SCALES + 12;
const _: () = assert!(BYTES == FACTOR + 2, "third bits, low two bits, scales, and their factor");

pub(super) struct Q3K;

impl TensorType for Q3K {
    fn name(&self) -> &'static str {
        "Q3_K"
    }

    fn id(&self) -> u32 {
        11
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: SUB, mins: false }
    }

    fn layout(&self) -> Layout {
        Layout::Planes(Planes {
            len: LEN,
            bytes: BYTES,
            low: Plane { at: CODES, bits: 2, run: 32 },
            high: High::Plane(Plane { at: 0, bits: 1, run: 32 }),
            offset: 4,
            levels: None,
            factor: FACTOR,
            min_factor: None,
            integers: SUB,
        })
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        for (block, out) in decode_blocks::<BYTES, LEN>(rows, out) {
            let factor = half_at(block, FACTOR);
            let scales = scales(&block[SCALES..FACTOR]);
            for (group, out) in out.as_chunks_mut::<SUB>().0.iter_mut().enumerate() {
                let scale = factor * f32::from(scales[group]);
                // 32 bytes hold the low bits of 128 values: the lowest are the first 32 of them.
                // The third bits are in one run of 32 bytes, the lowest for the first 32 values,
                // and a bit that is not set takes 4 away.
                let low = &block[CODES + group / 8 * 32 + group % 2 * SUB..][..SUB];
                let third = &block[group % 2 * SUB..][..SUB];
                let (low_shift, third_shift) = (group / 2 % 4 * 2, group / 2);
                for ((out, &low), &third) in out.iter_mut().zip(low).zip(third) {
                    let q = (low >> low_shift & 3) | (third >> third_shift & 1) << 2;
                    *out = scale * (f32::from(q) - 4.0);
                }
            }
        }
    }

    fn scale_integers(&self, row: &Rows, out: &mut ScaleIntegers) {
        for (block, to) in block_scales::<BYTES, SUBS>(row, out.scales) {
            *to = scales(&block[SCALES..FACTOR]);
        }
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        for (block, values, out_scales) in unpack_blocks::<BYTES, LEN, SUBS>(row, out) {
            let factor = half_at(block, FACTOR);
            for (out, scale) in out_scales.iter_mut().zip(scales(&block[SCALES..FACTOR])) {
                *out = factor * f32::from(scale);
            }
            let (low, third) = (&block[CODES..SCALES], &block[..CODES]);
            let (low, values) = (low.as_chunks::<32>().0, values.as_chunks_mut::<128>().0);
            for (half, (low, values)) in low.iter().zip(values).enumerate() {
                for (i, (&low, third)) in low.iter().zip(third).enumerate() {
                    // The four bits of this half, moved to the bottom.
                    let third = third >> (4 * half);
                    values[i] = ((low & 3) | (third << 2 & 4)) as i8 - 4;
                    values[i + 32] = ((low >> 2 & 3) | (third << 1 & 4)) as i8 - 4;
                    values[i + 64] = ((low >> 4 & 3) | (third & 4)) as i8 - 4;
                    values[i + 96] = ((low >> 6) | (third >> 1 & 4)) as i8 - 4;
                }
            }
        }
    }
}

/// The 16 scales from their 12 bytes: four low bits in the halves of the first eight (the low
/// halves first), two high bits in the quarters of the last four (the low quarters first).
#[inline(always)]
fn scales(packed: &[u8]) -> [i8; SUBS] {
    let word =
        |at| u32::from_le_bytes([packed[at], packed[at + 1], packed[at + 2], packed[at + 3]]);
    let join = |a: u32, b: u32| u64::from(b) << 32 | u64::from(a);
    let (low, high) = (join(word(0), word(4)), word(8));
    // Eight at a time: no bit that is kept crosses from one byte to the next.
    let (four, two) = (u64::from_le_bytes([0xf; 8]), u64::from_le_bytes([3; 8]));
    let first = low & four | (join(high, high >> 2) & two) << 4;
    let last = low >> 4 & four | (join(high >> 4, high >> 6) & two) << 4;
    let all = u128::from(less_32(last)) << 64 | u128::from(less_32(first));
    bytemuck::cast(all.to_le_bytes())
}
