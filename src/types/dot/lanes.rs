//! Rows held side by side: the order that a weight's codes are put into when it is loaded, where
//! that makes its products quicker.
//!
//! ```text
//! for each 16 rows:
//!     for each tile, the inputs that share a half-precision scale (and minimum) of each row:
//!         for each run of the tile, the inputs that also share an integer scale (and minimum):
//!             for each four inputs: four codes of row 0, four of row 1, ...
//! ```
//!
//! Codes of two or four bits lie four or two fours to a byte, the first in the lowest bits; a fifth
//! and a sixth bit lie behind those of the run, as many fours to a byte as there is room for.
//! Scales are a plane of their own, so that every vector of codes is aligned. [`super::abreast`]
//! multiplies.

use crate::simd::Level;

use super::super::{High, Int8Row, Layout, Planes, Rows, ScaleIntegers, Tensor};
use super::{SUB, Scratch, subs_stride};

/// Rows that are held together.
pub(super) const ROWS: usize = 16;
/// Four codes of each row.
const FOURS: usize = 4 * ROWS;
/// Inputs of a run where a block has one scale; activations have one for at least as many.
const BLOCK_RUN: usize = 32;
/// Inputs of a run of a grid type; their groups are multiples of it.
const GRID_RUN: usize = 64;

/// What codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Themselves, less an offset.
    Numbers,
    /// Themselves, with a sign.
    Signed,
    /// One of 16 integers.
    Levels,
    /// Two neighbours, a pair of a table of 256.
    Pairs,
}

/// How a weight is held.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Form {
    pub(super) meaning: Meaning,
    /// Bits per input.
    pub(super) bits: usize,
    /// Inputs of a run.
    pub(super) run: usize,
    /// Runs of a tile.
    pub(super) runs: usize,
    /// Whether runs have integer scales.
    pub(super) integers: bool,
    /// Whether there are minimums.
    pub(super) mins: bool,
    /// Taken from each code.
    pub(super) offset: i8,
    pub(super) levels: Option<&'static [i8; 16]>,
}

impl Form {
    /// None where the kernels read a type's own order as quickly.
    fn of(weight: &Tensor, level: Level) -> Option<Form> {
        match weight.kind.layout() {
            // Without vectors, the rows' own order is the oracle.
            _ if level == Level::Portable => None,
            Layout::Planes(planes) => Form::of_planes(&planes),
            // Others have no room for the table in registers.
            Layout::Pairs if level == Level::Avx512 => Form::of_grid(weight, Meaning::Pairs, 4),
            Layout::Integers => Form::of_grid(weight, Meaning::Signed, 8),
            _ => None,
        }
    }

    fn of_grid(weight: &Tensor, meaning: Meaning, bits: usize) -> Option<Form> {
        weight.group.is_multiple_of(GRID_RUN).then_some(Form {
            meaning,
            bits,
            run: GRID_RUN,
            runs: weight.group / GRID_RUN,
            integers: false,
            mins: false,
            offset: 0,
            levels: None,
        })
    }

    fn of_planes(planes: &Planes) -> Option<Form> {
        let high = match planes.high {
            High::None => 0,
            High::Plane(plane) => plane.bits,
            High::Bits { .. } => 1,
        };
        let run = if planes.integers > 0 { planes.integers } else { BLOCK_RUN };
        let fits = planes.len.is_multiple_of(run) && matches!(planes.low.bits + high, 2..=6 | 8);
        fits.then(|| Form {
            meaning: match (planes.low.bits, planes.levels) {
                (8, _) => Meaning::Signed,
                (_, Some(_)) => Meaning::Levels,
                _ => Meaning::Numbers,
            },
            // Three bits take the room of four.
            bits: planes.low.bits + high + usize::from(planes.low.bits + high == 3),
            run,
            runs: planes.len / run,
            integers: planes.integers > 0,
            mins: planes.min_factor.is_some(),
            offset: planes.offset,
            levels: planes.levels,
        })
    }

    /// Bytes of a run's codes.
    pub(super) fn run_bytes(&self) -> usize {
        self.run * ROWS * self.bits / 8
    }

    /// Bytes of a tile's scales and minimums.
    fn tile_scales(&self) -> usize {
        let each = 2 * ROWS + if self.integers { self.runs * ROWS } else { 0 };
        if self.mins { 2 * each } else { each }
    }
}

/// Codes that begin with a line of the cache.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; FOURS]);

/// A weight whose rows are held side by side.
pub(super) struct Lanes {
    pub(super) form: Form,
    pub(super) rows: usize,
    pub(super) cols: usize,
    codes: Vec<Line>,
    scales: Vec<u8>,
}

impl Lanes {
    /// Of a weight; none where it is multiplied as it is.
    pub(super) fn new(weight: &Tensor, level: Level) -> Option<Lanes> {
        let form = Form::of(weight, level)?;
        let (rows, cols) = (weight.rows, weight.cols);
        if !cols.is_multiple_of(form.run * form.runs) {
            return None;
        }
        let groups = rows.div_ceil(ROWS);
        let mut lanes = Lanes {
            codes: vec![Line([0; FOURS]); groups * cols / form.run * form.run_bytes() / FOURS],
            scales: vec![0; groups * cols / (form.run * form.runs) * form.tile_scales()],
            form,
            rows,
            cols,
        };
        let mut reader = Reader::new(weight, &form, level);
        let (codes_bytes, scales_bytes) = (lanes.group_codes(), lanes.group_scales());
        let codes = lanes.codes.as_flattened_mut_bytes().chunks_exact_mut(codes_bytes);
        let scales = lanes.scales.chunks_exact_mut(scales_bytes);
        for (group, (codes, scales)) in codes.zip(scales).enumerate() {
            let rows = group * ROWS..(group * ROWS + ROWS).min(rows);
            reader.codes.fill(0);
            for (lane, number) in rows.enumerate() {
                let row = weight.rows(number..number + 1);
                reader.read(&row, number, lane);
                reader.put_scales(&row, lane, scales);
            }
            reader.put_codes(codes);
        }
        Some(lanes)
    }

    /// Bytes of the codes of 16 rows.
    pub(super) fn group_codes(&self) -> usize {
        self.cols / self.form.run * self.form.run_bytes()
    }

    /// Bytes of the scales of 16 rows.
    pub(super) fn group_scales(&self) -> usize {
        self.cols / (self.form.run * self.form.runs) * self.form.tile_scales()
    }

    /// Codes and scales of the 16 rows from row `16 * group` on.
    pub(super) fn group(&self, group: usize) -> (&[u8], &[u8]) {
        let (codes, scales) = (self.group_codes(), self.group_scales());
        let bytes = self.codes.as_flattened_bytes();
        (&bytes[group * codes..][..codes], &self.scales[group * scales..][..scales])
    }
}

/// Lines as the bytes that they are.
trait Flat {
    fn as_flattened_bytes(&self) -> &[u8];
    fn as_flattened_mut_bytes(&mut self) -> &mut [u8];
}

impl Flat for [Line] {
    fn as_flattened_bytes(&self) -> &[u8] {
        // SAFETY: a line is an array of bytes and nothing else.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), size_of_val(self)) }
    }

    fn as_flattened_mut_bytes(&mut self) -> &mut [u8] {
        // SAFETY: a line is an array of bytes and nothing else, and any bytes are one.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), size_of_val(self)) }
    }
}

/// Reads rows in their own order.
struct Reader<'a> {
    weight: &'a Tensor,
    form: &'a Form,
    planes: Option<Planes>,
    level: Level,
    scratch: Scratch,
    values: Vec<i8>,
    floats: [Vec<f32>; 2],
    integers: [Vec<i8>; 2],
    /// The code of each level, by its byte.
    inverse: [u8; 256],
    /// `(rows, bytes of a row)`: a byte per code, not packed.
    codes: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(weight: &'a Tensor, form: &'a Form, level: Level) -> Reader<'a> {
        let mut inverse = [0; 256];
        for (code, &value) in form.levels.into_iter().flatten().enumerate() {
            inverse[usize::from(value.cast_unsigned())] = code as u8;
        }
        let planes = match weight.kind.layout() {
            Layout::Planes(planes) => Some(planes),
            _ => None,
        };
        let subs = subs_stride(weight.cols);
        let each = if form.meaning == Meaning::Pairs { 2 } else { 1 };
        Reader {
            weight,
            form,
            planes,
            level,
            scratch: Scratch::new(weight.cols),
            values: vec![0; weight.cols],
            floats: [vec![0.0; subs], vec![0.0; subs]],
            integers: [vec![0; subs], vec![0; subs]],
            inverse,
            codes: vec![0; ROWS * weight.cols / each],
        }
    }

    /// The codes of a row, the `number`-th of the weight.
    fn read(&mut self, row: &Rows, number: usize, lane: usize) {
        let len = self.codes.len() / ROWS;
        let codes = &mut self.codes[lane * len..][..len];
        let bias = if self.level.is_biased() { 0x80 } else { 0 };
        match (self.planes, self.form.meaning) {
            (None, Meaning::Signed) => {
                return codes.iter_mut().zip(row.codes).for_each(|(to, code)| *to = code ^ bias);
            }
            (None, _) => return codes.copy_from_slice(row.codes),
            (Some(_), _) => {}
        }
        let subs = row.cols / SUB;
        let [scales, mins] = &mut self.floats;
        let (scales, mins) = (&mut scales[..subs], &mut mins[..subs]);
        let mut out = Int8Row { values: &mut self.values, scales, mins };
        super::unpack(self.level, self.weight, number, &mut self.scratch, &mut out);
        let values = self.values.iter().map(|value| value.cast_unsigned());
        let pairs = codes.iter_mut().zip(values);
        match self.form.meaning {
            Meaning::Levels => {
                pairs.for_each(|(to, value)| *to = self.inverse[usize::from(value)]);
            }
            Meaning::Signed => pairs.for_each(|(to, value)| *to = value ^ bias),
            Meaning::Numbers | Meaning::Pairs => {
                let offset = self.form.offset.cast_unsigned();
                pairs.for_each(|(to, value)| *to = value.wrapping_add(offset));
            }
        }
    }

    /// The scales and minimums of a row, where they belong.
    fn put_scales(&mut self, row: &Rows, lane: usize, to: &mut [u8]) {
        let Form { runs, integers, mins, .. } = *self.form;
        if integers {
            let count = row.cols / self.form.run;
            let [scales, minimums] = &mut self.integers;
            let minimums = &mut minimums[..if mins { count } else { 0 }];
            let mut out = ScaleIntegers { scales: &mut scales[..count], mins: minimums };
            self.weight.kind.scale_integers(row, &mut out);
        }
        let planes = if mins { 2 } else { 1 };
        for (tile, to) in to.chunks_exact_mut(self.form.tile_scales()).enumerate() {
            for which in 0..planes {
                let mut half = self.half(row, tile, which);
                if which == 1 && integers {
                    // What such a minimum is multiplied with is taken away.
                    half[1] ^= 0x80;
                }
                to[2 * (which * ROWS + lane)..][..2].copy_from_slice(&half);
                for run in 0..if integers { runs } else { 0 } {
                    let integer = self.integers[which][tile * runs + run].cast_unsigned();
                    to[(2 + run) * planes * ROWS + which * ROWS + lane] = integer;
                }
            }
        }
    }

    /// The half-precision scale of a row's tile, or its minimum.
    fn half(&self, row: &Rows, tile: usize, which: usize) -> [u8; 2] {
        let from = match &self.planes {
            None => &row.norms[2 * tile..],
            Some(planes) if which == 0 => &row.codes[tile * planes.bytes + planes.factor..],
            Some(planes) => {
                let at = planes.min_factor.expect("a form with minimums has planes with them");
                &row.codes[tile * planes.bytes + at..]
            }
        };
        [from[0], from[1]]
    }

    /// The codes of the rows that were read, side by side.
    fn put_codes(&self, to: &mut [u8]) {
        let len = self.codes.len() / ROWS;
        for lane in 0..ROWS {
            let codes = &self.codes[lane * len..][..len];
            let runs = to.chunks_exact_mut(self.form.run_bytes());
            for (codes, to) in
                codes.chunks_exact(len / (self.weight.cols / self.form.run)).zip(runs)
            {
                match self.form.meaning {
                    Meaning::Signed => put_bytes(codes, lane, to),
                    Meaning::Pairs => put_pairs(codes, lane, to),
                    Meaning::Numbers | Meaning::Levels => {
                        let low = self.form.bits.min(4);
                        let (low_to, high_to) = to.split_at_mut(codes.len() * ROWS * low / 8);
                        put_bits(codes, 0, low, lane, low_to);
                        if self.form.bits > 4 {
                            put_bits(codes, 4, self.form.bits - 4, lane, high_to);
                        }
                    }
                }
            }
        }
    }
}

/// A lane's four bytes of each vector.
fn fours(to: &mut [u8], lane: usize) -> impl Iterator<Item = &mut [u8; 4]> {
    to.as_chunks_mut::<4>().0.iter_mut().skip(lane).step_by(ROWS)
}

fn put_bytes(codes: &[u8], lane: usize, to: &mut [u8]) {
    fours(to, lane).zip(codes.as_chunks::<4>().0).for_each(|(to, codes)| *to = *codes);
}

/// In the order in which [`crate::simd::Simd::look_up_pairs`] gives a four of each row.
fn put_pairs(codes: &[u8], lane: usize, to: &mut [u8]) {
    let to = to.as_chunks_mut::<2>().0.iter_mut().skip(lane).step_by(ROWS);
    to.zip(codes.as_chunks::<2>().0).for_each(|(to, codes)| *to = *codes);
}

/// Some bits of each code from bit `from` on, as many fours to a byte as there is room for.
fn put_bits(codes: &[u8], from: usize, bits: usize, lane: usize, to: &mut [u8]) {
    let mask = 0x0101_0101 * ((1_u32 << bits) - 1);
    let words = codes.as_chunks::<4>().0;
    for (to, some) in fours(to, lane).zip(words.chunks_exact(8 / bits)) {
        let part = |four: &[u8; 4]| u32::from_le_bytes(*four) >> from & mask;
        let all = some.iter().rev().fold(0, |all, four| all << bits | part(four));
        *to = all.to_le_bytes();
    }
}
