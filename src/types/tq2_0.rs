//! `TQ2_0`: 256 values of -1 to 2 under one half-precision scale. Page: `formats/tq2_0.md`.

use super::block::{decode_integers, half_at, unpack_integers};
use super::{Block, High, Int8Row, Kernel, Layout, Plane, Planes, Rows, SUB, TensorType};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const BYTES: usize = 66;
const FACTOR: usize = LEN / 4;
const _: () = assert!(BYTES == FACTOR + 2, "a quarter of a byte per value and a scale");

pub(super) struct Tq2_0;

impl TensorType for Tq2_0 {
    fn name(&self) -> &'static str {
        "TQ2_0"
    }

    fn id(&self) -> u32 {
        35
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: LEN, mins: false }
    }

    fn layout(&self) -> Layout {
        Layout::Planes(Planes {
            len: LEN,
            bytes: BYTES,
            low: Plane { at: 0, bits: 2, run: 32 },
            high: High::None,
            offset: 1,
            levels: None,
            factor: FACTOR,
            min_factor: None,
            integers: 0,
        })
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        decode_integers(rows, out, integers);
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        unpack_integers(row, out, integers);
    }
}

fn integers(block: &[u8; BYTES], values: &mut [i8; LEN], scales: &mut [f32; SUBS]) {
    *scales = [half_at(block, FACTOR); SUBS];
    // 32 bytes hold 128 values, the lowest bits the first 32 of them.
    for (i, value) in values.iter_mut().enumerate() {
        let byte = block[i / 128 * 32 + i % 32];
        *value = (byte >> (i / 32 % 4 * 2) & 3) as i8 - 1;
    }
}
