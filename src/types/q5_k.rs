//! `Q5_K`: 256 five-bit values in groups of 32, each with a six-bit scale and minimum.
//! Page: `formats/q5_k.md`.

use super::block::{decode_blocks, half_at, unpack_blocks_with_mins};
use super::q4_k::scales_and_mins;
use super::{Block, Int8Row, Kernel, Rows, SUB, TensorType};

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

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        for (block, out) in decode_blocks::<BYTES, LEN>(rows, out) {
            let (factor, min_factor) = (half_at(block, 0), half_at(block, 2));
            let (scales, mins) = scales_and_mins(&block[4..HIGH]);
            for (i, out) in out.iter_mut().enumerate() {
                // 32 bytes hold two groups: the low halves are the first, the high the second.
                // The fifth bits are in one run of 32 bytes, the lowest for the first group.
                let (pair, shift, lane) = (i / 64, i / 32 % 2 * 4, i % 32);
                let low = block[CODES + pair * 32 + lane] >> shift & 0xf;
                let fifth = block[HIGH + lane] >> (i / 32) & 1;
                let scale = factor * f32::from(scales[i / GROUP]);
                let min = min_factor * f32::from(mins[i / GROUP]);
                *out = scale * f32::from(low | fifth << 4) - min;
            }
        }
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
