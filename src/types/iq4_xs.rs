//! `IQ4_XS`: 256 values from a table of 16, in groups of 32 with a six-bit scale.
//! Page: `formats/iq4_xs.md`.

use super::block::{decode_blocks, half_at, unpack_blocks};
use super::iq4_nl::LEVELS;
use super::{Block, Int8Row, Kernel, Rows, SUB, TensorType};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const GROUP: usize = 32;
const BYTES: usize = 136;
const CODES: usize = 4 + LEN / GROUP / 2;
const _: () = assert!(BYTES == CODES + LEN / 2, "a factor, scales (high bits, low bits), codes");

pub(super) struct Iq4Xs;

impl TensorType for Iq4Xs {
    fn name(&self) -> &'static str {
        "IQ4_XS"
    }

    fn id(&self) -> u32 {
        23
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: GROUP, mins: false }
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        for (block, out) in decode_blocks::<BYTES, LEN>(rows, out) {
            let factor = half_at(block, 0);
            let scales = scales(&block[2..CODES]);
            for (group, out) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
                let scale = factor * f32::from(scales[group]);
                // 16 bytes hold a group: the low halves are its first 16 values.
                for (i, &q) in block[CODES + group * 16..][..16].iter().enumerate() {
                    out[i] = scale * f32::from(LEVELS[usize::from(q & 0xf)]);
                    out[i + GROUP / 2] = scale * f32::from(LEVELS[usize::from(q >> 4)]);
                }
            }
        }
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        for (block, values, out_scales) in unpack_blocks::<BYTES, LEN, SUBS>(row, out) {
            let factor = half_at(block, 0);
            let scales = scales(&block[2..CODES]);
            for (i, out) in out_scales.iter_mut().enumerate() {
                *out = factor * f32::from(scales[i * SUB / GROUP]);
            }
            let codes = block[CODES..].as_chunks::<16>().0;
            for (codes, values) in codes.iter().zip(values.as_chunks_mut::<GROUP>().0) {
                for (i, &q) in codes.iter().enumerate() {
                    values[i] = LEVELS[usize::from(q & 0xf)];
                    values[i + GROUP / 2] = LEVELS[usize::from(q >> 4)];
                }
            }
        }
    }
}

/// The eight scales: two high bits each in the first two bytes, as one word from the bottom up,
/// then four low bits each in the halves of the other four, the low halves first.
#[inline(always)]
fn scales(packed: &[u8]) -> [i8; LEN / GROUP] {
    let high = u16::from_le_bytes([packed[0], packed[1]]);
    std::array::from_fn(|i| {
        let low = packed[2 + i / 2] >> (i % 2 * 4) & 0xf;
        (low | ((high >> (2 * i) & 3) as u8) << 4) as i8 - 32
    })
}
