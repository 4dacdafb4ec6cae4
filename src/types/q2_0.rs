//! `Q2_0`: 64 values of -1 to 2 under one half-precision scale. Page: `formats/q2_0.md`.

use super::block::{decode_integers, half_at, pair, unpack_integers};
use super::{Block, Int8Row, Kernel, Rows, SUB, TensorType};

const LEN: usize = 64;
const SUBS: usize = LEN / SUB;
const BYTES: usize = 18;
const _: () = assert!(BYTES == 2 + LEN / 4, "a scale and a quarter of a byte per value");

pub(super) struct Q2_0;

impl TensorType for Q2_0 {
    fn name(&self) -> &'static str {
        "Q2_0"
    }

    fn id(&self) -> u32 {
        42
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
        *value = pair(&block[2..], i) as i8 - 1;
    }
}
