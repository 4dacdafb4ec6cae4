//! `IQ2_XXS`: 256 values in groups of 32, each group four points of a table, their signs and a
//! four-bit scale. Page: `formats/iq2_xxs.md`.

use super::block::{decode_integers, half_at, unpack_integers};
use super::points::{even_signs, points, signed};
use super::{Block, Int8Row, Kernel, Rows, SUB, TensorType};

const LEN: usize = 256;
const SUBS: usize = LEN / SUB;
const GROUP: usize = 32;
const BYTES: usize = 66;
const _: () = assert!(BYTES == 2 + LEN / GROUP * 8, "a factor, a word pair per group");

static POINTS: [[i8; 8]; 256] = points(include_bytes!("grids/iq2_xxs.i8"));

pub(super) struct Iq2Xxs;

impl TensorType for Iq2Xxs {
    fn name(&self) -> &'static str {
        "IQ2_XXS"
    }

    fn id(&self) -> u32 {
        16
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
    let groups = block[2..].as_chunks::<8>().0.iter();
    let room = values.as_chunks_mut::<GROUP>().0.iter_mut().zip(scales.as_chunks_mut::<2>().0);
    for (&[a, b, c, d, word @ ..], (values, scales)) in groups.zip(room) {
        // Four times seven bits are signs, the highest four bits the scale.
        let word = u32::from_le_bytes(word);
        *scales = [factor * (0.5 + (word >> 28) as f32) * 0.25; 2];
        for (i, (code, values)) in
            [a, b, c, d].into_iter().zip(values.as_chunks_mut().0).enumerate()
        {
            let signs = even_signs(word >> (7 * i) & 0x7f, 8);
            *values = signed(&POINTS[usize::from(code)], signs);
        }
    }
}
