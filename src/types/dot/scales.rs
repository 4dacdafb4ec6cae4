//! The scales and minimums of rows whose layout is [`super::super::Layout::Planes`].

use crate::simd::Simd;

use super::super::{Planes, Rows, SUB, ScaleIntegers, Tensor};
use super::subs_stride;

/// Memory for the scales of a row.
pub(super) struct Buffers {
    halves: Vec<u16>,
    factors: Vec<f32>,
    integers: [Vec<i8>; 2],
    scales: Vec<f32>,
    mins: Vec<f32>,
}

impl Buffers {
    /// For rows of up to `cols` values.
    pub(super) fn new(cols: usize) -> Buffers {
        let subs = subs_stride(cols);
        Buffers {
            halves: vec![0; subs],
            factors: vec![0.0; subs],
            integers: [vec![0; subs], vec![0; subs]],
            scales: vec![0.0; subs],
            mins: vec![0.0; subs],
        }
    }

    /// The scales that were taken in, and what is left of earlier ones.
    pub(super) fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The same of minimums, where blocks have them.
    pub(super) fn mins(&self) -> &[f32] {
        &self.mins
    }

    /// Takes the scales of a row in, and its minimums.
    #[inline(always)]
    pub(super) fn read_scales<S: Simd>(
        &mut self,
        s: S,
        planes: &Planes,
        weight: &Tensor,
        row: &Rows,
    ) {
        if let Some(count) = row.cols.checked_div(planes.integers) {
            let [scales, mins] = &mut self.integers;
            let has_mins = planes.min_factor.is_some();
            let mins = &mut mins[..if has_mins { count } else { 0 }];
            let mut out = ScaleIntegers { scales: &mut scales[..count], mins };
            weight.kind.scale_integers(row, &mut out);
        }
        for (which, at) in [Some(planes.factor), planes.min_factor].into_iter().enumerate() {
            let Some(at) = at else { continue };
            if planes.integers > 0 {
                self.scale_integers(s, planes, row, which, at);
            } else {
                self.spread_halves(s, planes, row, which, at);
            }
        }
    }

    /// The scales, or the minimums, that are integers times the factor of their block.
    #[inline(always)]
    fn scale_integers<S: Simd>(
        &mut self,
        s: S,
        planes: &Planes,
        row: &Rows,
        which: usize,
        at: usize,
    ) {
        let (subs, each) = (row.cols / SUB, planes.len / SUB);
        assert!(each.is_multiple_of(S::LANES), "whole vectors of scales");
        read_halves(&mut self.halves, planes, row, at, 1);
        let blocks = subs / each;
        for at in (0..blocks).step_by(S::LANES) {
            // SAFETY: both are `subs_stride` long, whole vectors.
            unsafe {
                s.store(
                    self.factors.as_mut_ptr().add(at),
                    s.load_f16(self.halves.as_ptr().add(at)),
                );
            }
        }
        let to = if which == 0 { &mut self.scales } else { &mut self.mins };
        let integers = &self.integers[which];
        assert!(subs <= to.len() && subs <= integers.len(), "room for every scale");
        let is_twice = planes.integers == 2 * SUB;
        for block in 0..blocks {
            let factor = self.factors[block];
            let factor = s.splat(if which == 0 { factor } else { -factor });
            for at in (block * each..(block + 1) * each).step_by(S::LANES) {
                // SAFETY: below `subs`, as just asserted; a block is whole vectors.
                unsafe {
                    let integers = if is_twice {
                        s.load_i8_twice(integers.as_ptr().add(at / 2))
                    } else {
                        s.load_i8(integers.as_ptr().add(at))
                    };
                    s.store(to.as_mut_ptr().add(at), s.mul(factor, integers));
                }
            }
        }
    }

    /// The scales, or the minimums, that are those of their block.
    #[inline(always)]
    fn spread_halves<S: Simd>(
        &mut self,
        s: S,
        planes: &Planes,
        row: &Rows,
        which: usize,
        at: usize,
    ) {
        let subs = row.cols / SUB;
        // Blocks of 32 are the usual ones.
        match planes.len / SUB {
            2 => read_halves(&mut self.halves, planes, row, at, 2),
            each => read_halves(&mut self.halves, planes, row, at, each),
        }
        let to = if which == 0 { &mut self.scales } else { &mut self.mins };
        for at in (0..subs).step_by(S::LANES) {
            // SAFETY: both are `subs_stride` long, whole vectors.
            unsafe { s.store(to.as_mut_ptr().add(at), s.load_f16(self.halves.as_ptr().add(at))) };
        }
    }
}

/// The half-precision numbers at a place of each block, `each` times.
#[inline(always)]
fn read_halves(to: &mut [u16], planes: &Planes, row: &Rows, at: usize, each: usize) {
    let blocks = row.codes.len() / planes.bytes;
    assert!(at + 2 <= planes.bytes && to.len() >= blocks * each, "a number of each block");
    // Plain loops: a chain of iterators is not inlined here.
    let (mut from, mut to) = (row.codes.as_ptr().wrapping_add(at), to.as_mut_ptr());
    for _ in 0..blocks {
        // SAFETY: every block has the number, and there is room, as just asserted.
        unsafe {
            let half = u16::from_le(from.cast::<u16>().read_unaligned());
            if each == 2 {
                to.cast::<u32>().write_unaligned(u32::from(half) * 0x1_0001);
            } else {
                for i in 0..each {
                    to.add(i).write(half);
                }
            }
            from = from.wrapping_add(planes.bytes);
            to = to.add(each);
        }
    }
}
