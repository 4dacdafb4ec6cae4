//! `Q1_0`: 128 signs of one half-precision number. Page: `formats/q1_0.md`.

use super::block::{bit, decode_integers, half_at, unpack_integers};
use super::{Block, Int8Row, Kernel, Rows, SUB, TensorType};

const LEN: usize = 128;
const SUBS: usize = LEN / SUB;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + LEN / 8, "a scale and a bit per value");

pub(super) struct Q1_0;

impl TensorType for Q1_0 {
    fn name(&self) -> &'static str {
        "Q1_0"
    }

    fn id(&self) -> u32 {
        41
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: LEN, mins: false }
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        decode_integers(rows, out, integers);
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        unpack_integers(row, out, integers);
    }
}

fn integers(block: &[u8; BYTES], values: &mut [i8; LEN], scales: &mut [f32; SUBS]) {
    *scales = [half_at(block, 0); SUBS];
    for (i, value) in values.iter_mut().enumerate() {
        *value = 2 * bit(&block[2..], i) as i8 - 1;
    }
}
