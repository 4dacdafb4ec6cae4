//! `IQ1_S`: 256 values in groups of 32, each group four points of a table of 2048 with coordinates
//! -1, 0 and 1, an offset to all of them and a three-bit scale. Page: `formats/iq1_s.md`.

use super::block::{decode_integers, half_at, unpack_integers};
use super::points::points;
use super::{Block, Int8Row, Kernel, Rows, SUB, TensorType};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const GROUP: usize = 32;
const BYTES: usize = 50;
const WORDS: usize = 2 + LEN / 8;
const _: () = assert!(BYTES == WORDS + LEN / GROUP * 2, "a factor, codes, a word per group");

/// The points; those of the other one-bit type too.
pub(super) static POINTS: [[i8; 8]; 2048] = points(include_bytes!("grids/iq1.i8"));

pub(super) struct Iq1S;

impl TensorType for Iq1S {
    fn name(&self) -> &'static str {
        "IQ1_S"
    }

    fn id(&self) -> u32 {
        19
    }

    fn block(&self) -> Block {
        Block { len: LEN, bytes: BYTES }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: GROUP, mins: false }
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        decode_integers(rows, out, integers);
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        unpack_integers(row, out, integers);
    }
}

fn integers(block: &[u8; BYTES], values: &mut [i8; LEN], scales: &mut [f32; SUBS]) {
    let factor = half_at(block, 0);
    let (codes, words) = (block[2..WORDS].as_chunks::<4>().0, block[WORDS..].as_chunks().0);
    let room = values.as_chunks_mut::<GROUP>().0.iter_mut().zip(scales.as_chunks_mut::<2>().0);
    for ((codes, &word), (values, scales)) in codes.iter().zip(words).zip(room) {
        // Four times three bits are the high bits of the codes, three the scale, one the offset.
        let word = u16::from_le_bytes(word);
        *scales = [eighth(factor, word >> 12 & 7); 2];
        for (i, (&code, values)) in codes.iter().zip(values.as_chunks_mut().0).enumerate() {
            let high = usize::from(word >> (3 * i) & 7);
            *values = in_eighths(&POINTS[usize::from(code) | high << 8], word >> 15 != 0);
        }
    }
}

/// An eighth of the scale that three bits stand for. To divide by eight is exact: the smallest
/// factor is far from the smallest single-precision number.
#[inline(always)]
pub(super) fn eighth(factor: f32, scale: u16) -> f32 {
    factor * f32::from(2 * scale + 1) * 0.125
}

/// A point after its offset, which is an eighth up or down, in eighths.
#[inline(always)]
pub(super) fn in_eighths(point: &[i8; 8], is_down: bool) -> [i8; 8] {
    let offset = if is_down { -1 } else { 1 };
    point.map(|coordinate| 8 * coordinate + offset)
}
