//! `TQ1_0`: 256 values of -1, 0 and 1 under one half-precision scale, five to a byte.
//! Page: `formats/tq1_0.md`.

use super::block::{decode_integers, half_at, unpack_integers};
use super::{Block, Int8Row, Kernel, Rows, SUB, TensorType};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const BYTES: usize = 54;
const FACTOR: usize = 52;
const _: () = assert!(BYTES == FACTOR + 2, "codes and a scale");

/// The runs of bytes and how many values a byte has: value `i` of every byte, then value `i + 1`.
const RUNS: [(usize, usize); 3] = [(32, 5), (16, 5), (4, 4)];
const _: () = assert!(RUNS[0].0 + RUNS[1].0 + RUNS[2].0 == FACTOR, "the runs are all codes");

pub(super) struct Tq1_0;

impl TensorType for Tq1_0 {
    fn name(&self) -> &'static str {
        "TQ1_0"
    }

    fn id(&self) -> u32 {
        34
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
    *scales = [half_at(block, FACTOR); SUBS];
    let (mut codes, mut values) = (&block[..FACTOR], &mut values[..]);
    for (bytes, count) in RUNS {
        let (run, rest) = codes.split_at(bytes);
        let (room, more) = values.split_at_mut(bytes * count);
        // A byte is a fraction of 256 in base three. Times a power of three, what is whole drops
        // out at the top, and the next digit is what three times the rest carries.
        for (values, power) in room.chunks_exact_mut(bytes).zip([1, 3, 9, 27, 81]) {
            for (value, &byte) in values.iter_mut().zip(run) {
                let rest = u16::from(byte.wrapping_mul(power));
                *value = ((rest * 3) >> 8) as i8 - 1;
            }
        }
        (codes, values) = (rest, more);
    }
}
