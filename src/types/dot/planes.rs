//! Blocks whose codes lie in planes: the integer form of a row.
//!
//! ```text
//! for each vector of values:
//!     codes = the bytes that their bits are in, shifted and masked
//! ```
//!
//! A vector's codes are in the order of the values, so that nothing else has to be put into
//! another: where a byte has the codes of several runs of a vector, it is loaded as often. How
//! codes are cut into planes ([`Cut`]) is known when this is compiled; where a block has them is
//! not.

#![allow(clippy::needless_range_loop, reason = "tiles of registers read best by number")]

use std::marker::PhantomData;

use crate::simd::{Level, Simd, WithSimd};

use super::super::{High, Int8Row, Plane, Planes, Rows, SUB, Tensor};
use super::CODES_ALIGN;
use super::scales::Buffers;

/// Values of the blocks that a row may have fewer of than vectors go over at once.
const UNIT: usize = 2 * CODES_ALIGN;
/// Bytes of those blocks.
const UNIT_BYTES: usize = UNIT / 32 * (32 + 2);

/// How the codes of a block are cut into planes.
trait Codes {
    /// Runs of [`SUB`] values in a block.
    const SUBS: usize;
    /// Of the low plane.
    const RUN: usize;
    /// Of the low plane.
    const BITS: usize;
    /// Bits of the high plane; 0 for none, [`ORDERED`] for [`High::Bits`].
    const HIGH: usize;
    /// Whether codes are indices.
    const LEVELS: bool;
    /// By how much the codes of each lane of a block are shifted in the low plane.
    const LOW_COUNTS: &'static [i32; 64];
    /// The same in the high plane.
    const HIGH_COUNTS: &'static [i32; 64];
}

/// As [`Codes::HIGH`]: a bit for each value in their order.
const ORDERED: usize = 8;

struct Cut<
    const SUBS: usize,
    const RUN: usize,
    const BITS: usize,
    const HIGH: usize,
    const LEVELS: bool,
>;

impl<const SUBS: usize, const RUN: usize, const BITS: usize, const HIGH: usize, const LEVELS: bool>
    Codes for Cut<SUBS, RUN, BITS, HIGH, LEVELS>
{
    const SUBS: usize = SUBS;
    const RUN: usize = RUN;
    const BITS: usize = BITS;
    const HIGH: usize = HIGH;
    const LEVELS: bool = LEVELS;
    const LOW_COUNTS: &'static [i32; 64] = &counts(RUN, BITS);
    const HIGH_COUNTS: &'static [i32; 64] = &counts(32, HIGH);
}

/// The shifts of the lanes of 16 runs in a plane.
const fn counts(run: usize, bits: usize) -> [i32; 64] {
    let mut counts = [0; 64];
    let mut lane = 0;
    while lane < 64 && bits > 0 {
        let sub = lane / 4;
        counts[lane] = (sub / (run / SUB) % (8 / bits) * bits) as i32;
        lane += 1;
    }
    counts
}

/// Something to do for a cut that is known.
trait WithCut {
    fn with<K: Codes>(self);
}

/// Does it for the cut of some planes.
fn dispatch<W: WithCut>(planes: &Planes, work: W) {
    let high = match planes.high {
        High::None => 0,
        High::Plane(Plane { bits, run: 32, .. }) => bits,
        High::Plane(_) => panic!("no kernel for this high plane: {planes:?}"),
        High::Bits { .. } => ORDERED,
    };
    let Plane { bits, run, .. } = planes.low;
    match (planes.len / SUB, run, bits, high, planes.levels.is_some()) {
        (2, 16, 4, 0, false) => work.with::<Cut<2, 16, 4, 0, false>>(),
        (2, 16, 4, 0, true) => work.with::<Cut<2, 16, 4, 0, true>>(),
        (2, 16, 4, ORDERED, false) => work.with::<Cut<2, 16, 4, ORDERED, false>>(),
        (2, 32, 8, 0, false) => work.with::<Cut<2, 32, 8, 0, false>>(),
        (16, 16, 4, 0, true) => work.with::<Cut<16, 16, 4, 0, true>>(),
        (16, 32, 2, 0, false) => work.with::<Cut<16, 32, 2, 0, false>>(),
        (16, 32, 2, 1, false) => work.with::<Cut<16, 32, 2, 1, false>>(),
        (16, 32, 4, 0, false) => work.with::<Cut<16, 32, 4, 0, false>>(),
        (16, 32, 4, 1, false) => work.with::<Cut<16, 32, 4, 1, false>>(),
        (16, 64, 4, 2, false) => work.with::<Cut<16, 64, 4, 2, false>>(),
        _ => panic!("no kernel for these planes: {planes:?}"),
    }
}

/// Runs of [`SUB`] values that are worked on at once: a block, or the blocks of two vectors.
const fn unit<S: Simd, K: Codes>() -> usize {
    if S::LANES / 2 > K::SUBS { S::LANES / 2 } else { K::SUBS }
}

/// The codes of a vector, from run `sub` of a unit on; indices are looked up.
///
/// # Safety
/// `at` is valid for the blocks up to those of this vector, and `planes` is cut like `K`.
#[inline(always)]
unsafe fn codes<S: Simd, K: Codes>(
    s: S,
    planes: &Planes,
    levels: S::Bytes,
    at: *const u8,
    sub: usize,
) -> S::Bytes {
    // SAFETY: the planes of a unit's blocks lie within them, as the caller vouches.
    unsafe {
        let block = at.add(sub / K::SUBS * planes.bytes);
        let in_block = sub % K::SUBS;
        let low = block.add(planes.low.at).cast::<i8>();
        // Runs of 16 that a plane has in a run of bytes, and codes in a byte.
        let (wide, each) = (K::RUN / SUB, 8 / K::BITS);
        let low = low.add(in_block / (wide * each) * K::RUN + in_block % wide * SUB);
        let mut code = match K::RUN {
            16 => s.load_twice(low, if K::SUBS == 2 { planes.bytes } else { SUB }),
            32 => s.load_runs(low, if K::SUBS == 2 { planes.bytes } else { 0 }),
            _ => s.load_bytes(low),
        };
        if K::BITS < 8 {
            code = s.shift_down(code, s.load_i32(K::LOW_COUNTS.as_ptr().add(4 * in_block)));
            code = s.and(code, s.splat_byte((1 << K::BITS) - 1));
        }
        if K::HIGH > 0 {
            code = s.or(code, high_bits::<S, K>(s, planes, block, in_block));
        }
        if K::LEVELS { s.look_up_16(levels, code) } else { code }
    }
}

/// The high bits of a vector's codes, where they belong.
///
/// # Safety
/// As [`codes`]; `sub` is one of the block's.
#[inline(always)]
unsafe fn high_bits<S: Simd, K: Codes>(
    s: S,
    planes: &Planes,
    block: *const u8,
    sub: usize,
) -> S::Bytes {
    // SAFETY: the high bits of a unit's blocks lie within them, as the caller vouches.
    unsafe {
        match planes.high {
            High::Plane(plane) if K::HIGH < ORDERED => {
                let runs = 2 * (8 / K::HIGH);
                let at = block.add(plane.at + sub / runs * 32 + sub % 2 * SUB);
                let bytes = s.load_runs(at.cast(), 0);
                let counts = s.load_i32(K::HIGH_COUNTS.as_ptr().add(4 * sub));
                let bits = s.shift_down(bytes, counts);
                let bits = s.and(bits, s.splat_byte((1 << K::HIGH) - 1));
                s.shift_up(bits, s.splat_i32(K::BITS as i32))
            }
            High::Bits { at } => {
                let word = |block: *const u8| {
                    u64::from(u32::from_le(block.add(at).cast::<u32>().read_unaligned()))
                };
                let mut bits = word(block) >> (sub * SUB);
                if S::LANES / 4 > K::SUBS {
                    bits |= word(block.add(planes.bytes)) << 32;
                }
                s.and(s.spread_bits(bits), s.splat_byte(1 << K::BITS))
            }
            _ => unreachable!("a high plane, as the cut says"),
        }
    }
}

/// What [`codes`] looks indices up in.
#[inline(always)]
fn table<S: Simd>(s: S, planes: &Planes) -> S::Bytes {
    match planes.levels {
        // SAFETY: 16 bytes, again and again.
        Some(levels) => unsafe { s.load_twice(levels.as_ptr(), 0) },
        None => s.splat_byte(0),
    }
}

/// The blocks of a unit of which a row has only some, and zeros.
#[inline(always)]
fn last_unit(codes: &[u8]) -> [u8; UNIT_BYTES] {
    let mut copy = [0; UNIT_BYTES];
    copy[..codes.len()].copy_from_slice(codes);
    copy
}

/// As [`super::super::TensorType::unpack`], by the kernels' own reading, for one row of a weight.
///
/// # Panics
/// If a length does not fit.
pub(super) fn unpack(
    level: Level,
    planes: &Planes,
    weight: &Tensor,
    row: usize,
    buffers: &mut Buffers,
    out: &mut Int8Row,
) {
    let row = weight.rows(row..row + 1);
    let subs = row.cols / SUB;
    assert!(out.values.len() == row.cols && out.scales.len() == subs, "room for a row");
    level.dispatch(ReadScales { planes, weight, row: &row, buffers });
    out.scales.copy_from_slice(&buffers.scales()[..subs]);
    if planes.min_factor.is_some() {
        out.mins.copy_from_slice(&buffers.mins()[..subs]);
    }
    dispatch(planes, (level, Unpack { planes, codes: row.codes, values: out.values }));
}

struct ReadScales<'a> {
    planes: &'a Planes,
    weight: &'a Tensor,
    row: &'a Rows<'a>,
    buffers: &'a mut Buffers,
}

impl WithSimd for ReadScales<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        self.buffers.read_scales(s, self.planes, self.weight, self.row);
    }
}

struct Unpack<'a> {
    planes: &'a Planes,
    codes: &'a [u8],
    values: &'a mut [i8],
}

impl WithCut for (Level, Unpack<'_>) {
    fn with<K: Codes>(self) {
        self.0.dispatch(UnpackCut::<K>(self.1, PhantomData));
    }
}

struct UnpackCut<'a, K>(Unpack<'a>, PhantomData<K>);

impl<K: Codes> WithSimd for UnpackCut<'_, K> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Unpack { planes, codes: bytes, values } = self.0;
        let (subs, unit) = (values.len() / SUB, unit::<S, K>());
        assert_eq!(bytes.len() * K::SUBS, subs * planes.bytes, "whole blocks");
        let levels = table(s, planes);
        let offset = s.splat_byte(planes.offset);
        for start in (0..subs).step_by(unit) {
            let (from, to) = (&bytes[start / K::SUBS * planes.bytes..], &mut values[start * SUB..]);
            let last;
            let mut line = [0; UNIT];
            let is_whole = start + unit <= subs;
            let at = if is_whole {
                from.as_ptr()
            } else {
                last = last_unit(from);
                last.as_ptr()
            };
            let room = if is_whole { &mut to[..unit * SUB] } else { &mut line[..unit * SUB] };
            for sub in (0..unit).step_by(S::LANES / 4) {
                // SAFETY: `at` has a unit's blocks, and there is room for its values.
                unsafe {
                    let w = codes::<S, K>(s, planes, levels, at, sub);
                    s.store_bytes(room.as_mut_ptr().add(sub * SUB), s.sub_bytes(w, offset));
                }
            }
            if !is_whole {
                let count = to.len();
                to.copy_from_slice(&line[..count]);
            }
        }
    }
}
