//! `IQ4_XS`: 256 values from a table of 16, in groups of 32 with a six-bit scale.
//! Page: `formats/iq4_xs.md`.

use super::block::{block_scales, decode_blocks, half_at, less_32, unpack_blocks};
use super::iq4_nl::LEVELS;
use super::{
    Block, High, Int8Row, Kernel, Layout, Plane, Planes, Rows, SUB, ScaleIntegers, TensorType,
};

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

    fn layout(&self) -> Layout {
        Layout::Planes(Planes {
            len: LEN,
            bytes: BYTES,
            low: Plane { at: CODES, bits: 4, run: GROUP / 2 },
            high: High::None,
            offset: 0,
            levels: Some(&LEVELS),
            factor: 0,
            min_factor: None,
            integers: GROUP,
        })
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

    fn scale_integers(&self, row: &Rows, out: &mut ScaleIntegers) {
        for (block, to) in block_scales::<BYTES, { LEN / GROUP }>(row, out.scales) {
            *to = scales(&block[2..CODES]);
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
    // All at a time, by moving halves of what is left apart.
    let spread = |x: u64, steps: [(u32, u64); 3]| {
        steps.iter().fold(x, |x, (shift, mask)| (x | x << shift) & mask)
    };
    let high = u64::from(u16::from_le_bytes([packed[0], packed[1]]));
    let low = u64::from(u32::from_le_bytes([packed[2], packed[3], packed[4], packed[5]]));
    let high = spread(
        high,
        [(24, 0x0000_00ff_0000_00ff), (12, 0x000f_000f_000f_000f), (6, 0x0303_0303_0303_0303)],
    );
    let low = spread(
        low,
        [(16, 0x0000_ffff_0000_ffff), (8, 0x00ff_00ff_00ff_00ff), (4, 0x0f0f_0f0f_0f0f_0f0f)],
    );
    bytemuck::cast(less_32(low | high << 4).to_le_bytes())
}
