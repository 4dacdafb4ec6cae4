//! Products with rows that are held side by side ([`super::lanes`]), and panels of them.
//!
//! ```text
//! for each 16 rows, a row in each lane:
//!     for each run of inputs that share scales:
//!         dots = 0
//!         for each four of its inputs, the same in every lane:
//!             dots += codes * activations
//!         sums += scales * activation_scale * dots
//!     out = sums
//! ```
//!
//! So nothing goes across lanes, scales are vectors, and what unpacks a vector of codes unpacks it
//! for 16 rows. What a code has too much, by an offset or by the bias of unsigned operands, is
//! taken off where the dots begin.

#![allow(clippy::needless_range_loop, reason = "columns in registers read best by number")]

use std::marker::PhantomData;

use crate::simd::{Level, PairTable, Simd, WithSimd};

use super::int8::MatVec;
use super::lanes::{Form, Lanes, Meaning, ROWS};
use super::{Int8Columns, SUB, codes_stride, subs_stride};

/// Four codes of each row.
const FOURS: usize = 4 * ROWS;
/// How far ahead of its use a weight is asked for: the machine's own guesses end with a page.
const AHEAD: usize = 4096;
/// The most columns at a time.
const COLUMNS: usize = 4;

/// What the kernels are compiled for.
trait Held {
    const MEANING: Meaning;
    const BITS: usize;
    const RUN: usize;
    const INTEGERS: bool;
    const MINS: bool;
    /// Bytes of a run's codes.
    const RUN_BYTES: usize = Self::RUN * ROWS * Self::BITS / 8;
}

/// Something to do for a form that is known.
trait WithForm {
    fn with<H: Held>(self);
}

/// The list of forms: what their codes stand for, their bits, inputs of a run, whether scales are
/// integers, whether there are minimums.
macro_rules! forms {
    ($(
        $name:ident: $meaning:ident, $bits:literal, $run:literal, $integers:literal, $mins:literal;
    )*) => {
        $(struct $name;

        impl Held for $name {
            const MEANING: Meaning = Meaning::$meaning;
            const BITS: usize = $bits;
            const RUN: usize = $run;
            const INTEGERS: bool = $integers;
            const MINS: bool = $mins;
        })*

        fn dispatch<W: WithForm>(form: &Form, work: W) {
            let Form { meaning, bits, run, integers, mins, .. } = *form;
            match (meaning, bits, run, integers, mins) {
                $((Meaning::$meaning, $bits, $run, $integers, $mins) => work.with::<$name>(),)*
                _ => panic!("no kernel for this form: {form:?}"),
            }
        }
    };
}

forms! {
    Twos: Numbers, 2, 32, false, false;
    TwosBoth: Numbers, 2, 16, true, true;
    Fours: Numbers, 4, 32, false, false;
    FoursIntegers: Numbers, 4, 16, true, false;
    FoursMin: Numbers, 4, 32, false, true;
    FoursBoth: Numbers, 4, 32, true, true;
    Fives: Numbers, 5, 32, false, false;
    FivesMin: Numbers, 5, 32, false, true;
    FivesBoth: Numbers, 5, 32, true, true;
    Sixes: Numbers, 6, 16, true, false;
    Bytes: Signed, 8, 32, false, false;
    GridBytes: Signed, 8, 64, false, false;
    Named: Levels, 4, 32, false, false;
    NamedIntegers: Levels, 4, 32, true, false;
    GridPairs: Pairs, 4, 64, false, false;
}

/// What columns bring, by run.
pub(super) struct Buffers {
    /// `(columns, runs)`: where dots begin.
    starts: Vec<i32>,
    /// `(columns, runs)`: their scales.
    scales: Vec<f32>,
    /// `(columns, runs)`: what minimums are multiplied with.
    leans: Vec<f32>,
}

impl Buffers {
    /// For columns of up to `cols` values.
    pub(super) fn new(cols: usize) -> Buffers {
        let len = COLUMNS * cols.div_ceil(SUB);
        Buffers { starts: vec![0; len], scales: vec![0.0; len], leans: vec![0.0; len] }
    }

    /// Takes columns in.
    #[inline(always)]
    fn read<S: Simd, H: Held>(&mut self, form: &Form, columns: &Int8Columns) {
        let (each, stride) = (H::RUN / SUB, subs_stride(columns.cols));
        let runs = columns.cols / H::RUN;
        let excess = match H::MEANING {
            Meaning::Numbers => i32::from(form.offset),
            Meaning::Signed | Meaning::Levels | Meaning::Pairs => S::BIAS,
        };
        for c in 0..columns.count {
            let sums = &columns.sums[c * stride..][..runs * each];
            let scales = &columns.scales[c * stride..][..runs * each];
            let to = c * runs..(c + 1) * runs;
            let starts = &mut self.starts[to.clone()];
            let (to_scales, leans) = (&mut self.scales[to.clone()], &mut self.leans[to]);
            for run in 0..runs {
                let mut sum = 0;
                for i in 0..each {
                    sum += sums[run * each + i];
                }
                starts[run] = -excess * sum;
                to_scales[run] = scales[run * each];
                if H::MINS {
                    leans[run] = scales[run * each] * sum as f32;
                }
            }
        }
    }
}

/// Whether the activations' groups allow it.
pub(super) fn fits(lanes: &Lanes, columns: &Int8Columns) -> bool {
    columns.group.is_multiple_of(lanes.form.run)
}

/// Every row, with up to four columns at a time.
pub(super) fn rows(level: Level, lanes: &Lanes, work: MatVec) {
    let MatVec { lookup, first, count, columns, scratch, out, .. } = work;
    assert!(first + count <= lanes.rows && columns.cols == lanes.cols, "rows of the weight");
    let mut done = 0;
    while done < columns.count {
        let part = columns.few(done);
        let step = part.count;
        let out = &mut out[done * count..(done + step) * count];
        let table = lookup.pairs.as_deref();
        let buffers = &mut scratch.lanes;
        let work = FewColumns { lanes, table, first, count, columns: &part, buffers, out };
        dispatch(&lanes.form, (level, work));
        done += step;
    }
}

struct FewColumns<'a> {
    lanes: &'a Lanes,
    table: Option<&'a PairTable>,
    first: usize,
    count: usize,
    columns: &'a Int8Columns<'a>,
    buffers: &'a mut Buffers,
    out: &'a mut [f32],
}

impl WithForm for (Level, FewColumns<'_>) {
    fn with<H: Held>(self) {
        let (level, work) = self;
        match work.columns.count {
            1 => level.dispatch(SomeColumns::<H, 1>(work, PhantomData)),
            2 => level.dispatch(SomeColumns::<H, 2>(work, PhantomData)),
            _ => level.dispatch(SomeColumns::<H, 4>(work, PhantomData)),
        }
    }
}

struct SomeColumns<'a, H, const C: usize>(FewColumns<'a>, PhantomData<H>);

impl<H: Held, const C: usize> WithSimd for SomeColumns<'_, H, C> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let FewColumns { lanes, table, first, count, columns, buffers, out } = self.0;
        assert!(columns.codes.len() >= C * codes_stride(columns.cols), "padded codes");
        buffers.read::<S, H>(&lanes.form, columns);
        let tables = Tables::new(s, &lanes.form, table);
        for group in first / ROWS..(first + count).div_ceil(ROWS) {
            let mut lines = [[0.0; ROWS]; C];
            for part in 0..ROWS / S::LANES {
                let sums = group_sums::<S, H, C>(s, lanes, &tables, columns, buffers, group, part);
                for c in 0..C {
                    // SAFETY: the lines are as many vectors as there are parts.
                    unsafe { s.store(lines[c].as_mut_ptr().add(part * S::LANES), sums[c]) };
                }
            }
            // The rows that were asked for.
            let start = (group * ROWS).max(first);
            let end = (group * ROWS + ROWS).min(first + count);
            for c in 0..C {
                let line = &lines[c][start - group * ROWS..end - group * ROWS];
                out[c * count + start - first..][..line.len()].copy_from_slice(line);
            }
        }
    }
}

/// What codes are looked up in.
struct Tables<'a, S: Simd> {
    levels: S::Bytes,
    pairs: Option<(S::Pairs, &'a PairTable)>,
}

impl<'a, S: Simd> Tables<'a, S> {
    #[inline(always)]
    fn new(s: S, form: &Form, table: Option<&'a PairTable>) -> Tables<'a, S> {
        let levels = match form.levels {
            // SAFETY: 16 bytes, again and again.
            Some(levels) => s.bias(unsafe { s.load_twice(levels.as_ptr(), 0) }),
            None => s.splat_byte(0),
        };
        Tables { levels, pairs: table.map(|table| (s.pairs(table), table)) }
    }
}

/// The products of a vector's rows, the `part`-th of a group, with each column.
#[inline(always)]
fn group_sums<S: Simd, H: Held, const C: usize>(
    s: S,
    lanes: &Lanes,
    tables: &Tables<S>,
    columns: &Int8Columns,
    buffers: &Buffers,
    group: usize,
    part: usize,
) -> [S::F32; C] {
    let (codes, scales) = lanes.group(group);
    let (mut at, mut scale_at) = (codes.as_ptr(), scales.as_ptr());
    let (tiles, runs) = (lanes.cols / (H::RUN * lanes.form.runs), lanes.form.runs);
    let all = tiles * runs;
    assert!(codes.len() == all * H::RUN_BYTES && buffers.starts.len() >= C * all, "every run");
    let zeros = [s.splat(0.0); C];
    let mut sums = zeros;
    for tile in 0..tiles {
        // SAFETY: `Lanes` lays scales out in this order, and columns have every run.
        unsafe {
            let (factor, min_factor);
            (factor, min_factor, scale_at) = factors::<S, H>(s, scale_at, part);
            let (mut scaled, mut leaned) = (zeros, zeros);
            for run in tile * runs..(tile + 1) * runs {
                let x = columns.codes.as_ptr().add(run * H::RUN);
                let stride = codes_stride(lanes.cols);
                let mut starts = [0; C];
                for c in 0..C {
                    starts[c] = *buffers.starts.as_ptr().add(c * all + run);
                }
                let dots = run_dots::<S, H, C>(s, tables, (at, part), (x, stride), starts);
                at = at.add(H::RUN_BYTES);
                let (mut scale, mut min) = (factor, min_factor);
                if H::INTEGERS {
                    scale = s.load_i8(scale_at.cast::<i8>().add(part * S::LANES));
                    scale_at = scale_at.add(ROWS);
                    if H::MINS {
                        min = s.load_i8(scale_at.cast::<i8>().add(part * S::LANES));
                        scale_at = scale_at.add(ROWS);
                    }
                }
                for c in 0..C {
                    let activation = s.splat(*buffers.scales.as_ptr().add(c * all + run));
                    let (dot, product) = (s.to_f32(dots[c]), s.mul(scale, activation));
                    let lean = s.splat(*buffers.leans.as_ptr().add(c * all + run));
                    if H::INTEGERS {
                        scaled[c] = s.fma(dot, product, scaled[c]);
                        leaned[c] = if H::MINS { s.fma(min, lean, leaned[c]) } else { leaned[c] };
                    } else {
                        sums[c] = s.fma(dot, product, sums[c]);
                        sums[c] = if H::MINS { s.fma(min, lean, sums[c]) } else { sums[c] };
                    }
                }
            }
            if H::INTEGERS {
                for c in 0..C {
                    sums[c] = s.fma(scaled[c], factor, sums[c]);
                    if H::MINS {
                        sums[c] = s.fma(leaned[c], min_factor, sums[c]);
                    }
                }
            }
        }
    }
    sums
}

/// The integer products of a run of a vector's rows with each column, and what they start with.
///
/// # Safety
/// `at` is valid for the codes of the run, `x` for its activations, a column every `stride` bytes.
#[inline(always)]
unsafe fn run_dots<S: Simd, H: Held, const C: usize>(
    s: S,
    tables: &Tables<S>,
    (at, part): (*const u8, usize),
    (x, stride): (*const i8, usize),
    starts: [i32; C],
) -> [S::I32; C] {
    if part == 0 {
        for line in 0..H::RUN_BYTES / FOURS {
            s.prefetch(at.wrapping_add(AHEAD + line * FOURS));
        }
    }
    let mut dots = [s.splat_i32(0); C];
    for c in 0..C {
        dots[c] = s.splat_i32(starts[c]);
    }
    // SAFETY: as the caller vouches.
    unsafe {
        fours::<S, H>(
            s,
            tables,
            at.add(4 * S::LANES * part),
            #[inline(always)]
            |four, w| {
                for c in 0..C {
                    let x = s.splat_4(x.add(c * stride + 4 * four));
                    dots[c] = match H::MEANING {
                        Meaning::Numbers => s.dot4_unsigned(dots[c], w, x),
                        _ => s.dot4(dots[c], w, x),
                    };
                }
            },
        );
    }
    dots
}

/// Gives `each` the codes of a run, four of each row at a time: numbers as they are, all others as
/// [`Simd::dot4`] takes weights.
///
/// # Safety
/// `at` is valid for the codes of the run.
#[inline(always)]
unsafe fn fours<S: Simd, H: Held>(
    s: S,
    tables: &Tables<S>,
    at: *const u8,
    mut each: impl FnMut(usize, S::Bytes),
) {
    // SAFETY: as the caller vouches.
    unsafe {
        match (H::MEANING, &tables.pairs) {
            (Meaning::Signed, _) => {
                for four in 0..H::RUN / 4 {
                    each(four, s.load_bytes(at.add(four * FOURS).cast()));
                }
            }
            (Meaning::Pairs, Some((pairs, table))) => {
                for two in 0..H::RUN / 8 {
                    let codes = s.load_bytes(at.add(two * FOURS).cast());
                    let (first, second) = s.look_up_pairs(pairs, table, codes);
                    each(2 * two, first);
                    each(2 * two + 1, second);
                }
            }
            (Meaning::Pairs, None) => unreachable!("pairs have a table"),
            (Meaning::Numbers | Meaning::Levels, _) => {
                // Bits of the low part, and fours of a vector.
                let low = if H::BITS < 4 { H::BITS } else { 4 };
                let count = 8 / low;
                let mask = s.splat_byte((1 << low) - 1);
                for vector in 0..H::RUN / 4 / count {
                    let all = s.load_bytes(at.add(vector * FOURS).cast());
                    for i in 0..count {
                        let four = vector * count + i;
                        let code = s.shift_down(all, s.splat_i32((low * i) as i32));
                        let mut code = s.and(code, mask);
                        if H::BITS > 4 {
                            code = s.or(code, high_bits::<S, H>(s, at, four));
                        }
                        if matches!(H::MEANING, Meaning::Levels) {
                            code = s.look_up_16(tables.levels, code);
                        }
                        each(four, code);
                    }
                }
            }
        }
    }
}

/// The bits of a four above the low ones, where they belong.
///
/// # Safety
/// As [`fours`].
#[inline(always)]
unsafe fn high_bits<S: Simd, H: Held>(s: S, at: *const u8, four: usize) -> S::Bytes {
    let bits = H::BITS - 4;
    let (vector, place) = (four / (8 / bits), four % (8 / bits) * bits);
    // SAFETY: they lie behind the low bits of the run.
    let all = unsafe { s.load_bytes(at.add((H::RUN / 8 + vector) * FOURS).cast()) };
    let moved = if place > 4 {
        s.shift_down(all, s.splat_i32(place as i32 - 4))
    } else {
        s.shift_up(all, s.splat_i32(4 - place as i32))
    };
    s.and(moved, s.splat_byte(((1 << bits) - 1) << 4))
}

/// Where [`fill`] writes, as a panel has them.
pub(super) struct Room<'a> {
    /// `(inputs / 4, rows)`.
    pub(super) packed: &'a mut [u32],
    /// `(inputs / 16, rows)`.
    pub(super) scales: &'a mut [f32],
    /// The same of minimums.
    pub(super) mins: &'a mut [f32],
}

/// A panel of the rows from `first` on, a multiple of a panel's rows; what is past the last is 0.
pub(super) fn fill(
    level: Level,
    lanes: &Lanes,
    table: Option<&PairTable>,
    first: usize,
    room: Room,
) {
    dispatch(&lanes.form, (level, Fill { lanes, table, first, room }));
}

/// The factors of a tile for a vector's rows, those of minimums where the form has them, and what
/// comes after them.
///
/// # Safety
/// As [`Lanes`] lays them out, they begin at `at`, and `part` is a vector of their rows.
#[inline(always)]
unsafe fn factors<S: Simd, H: Held>(
    s: S,
    at: *const u8,
    part: usize,
) -> (S::F32, S::F32, *const u8) {
    // SAFETY: the caller's.
    unsafe {
        let load = at.cast::<u16>().add(part * S::LANES);
        let (factor, next) = (s.load_f16(load), at.add(2 * ROWS));
        if !H::MINS {
            return (factor, factor, next);
        }
        (factor, s.load_f16(load.add(ROWS)), next.add(2 * ROWS))
    }
}

struct Fill<'a> {
    lanes: &'a Lanes,
    table: Option<&'a PairTable>,
    first: usize,
    room: Room<'a>,
}

impl WithForm for (Level, Fill<'_>) {
    fn with<H: Held>(self) {
        self.0.dispatch(FillForm::<H>(self.1, PhantomData));
    }
}

struct FillForm<'a, H>(Fill<'a>, PhantomData<H>);

impl<H: Held> WithSimd for FillForm<'_, H> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Fill { lanes, table, first, mut room } = self.0;
        let rows = 2 * S::LANES;
        let fours = lanes.cols / 4;
        assert!(room.packed.len() == fours * rows, "a panel's words");
        assert!(room.scales.len() >= lanes.cols / SUB * rows, "a panel's scales");
        assert!(!H::MINS || room.mins.len() >= lanes.cols / SUB * rows, "a panel's minimums");
        let tables = Tables::new(s, &lanes.form, table);
        for half in 0..2 {
            let row = first + half * S::LANES;
            if row / ROWS < lanes.rows.div_ceil(ROWS) {
                fill_half::<S, H>(s, lanes, &tables, row, half, &mut room);
                continue;
            }
            let words = room.packed.chunks_exact_mut(rows);
            words.for_each(|line| line[half * S::LANES..][..S::LANES].fill(0));
        }
    }
}

/// A vector's rows of a panel.
#[inline(always)]
fn fill_half<S: Simd, H: Held>(
    s: S,
    lanes: &Lanes,
    tables: &Tables<S>,
    row: usize,
    half: usize,
    room: &mut Room,
) {
    let rows = 2 * S::LANES;
    let (codes, scales) = lanes.group(row / ROWS);
    let part = row % ROWS / S::LANES;
    let (mut at, mut scale_at) = (codes.as_ptr(), scales.as_ptr());
    let (packed, to_scales) = (room.packed.as_mut_ptr(), room.scales.as_mut_ptr());
    let mins = room.mins.as_mut_ptr();
    let offset = s.splat_byte(lanes.form.offset);
    let runs = lanes.form.runs;
    for tile in 0..lanes.cols / (H::RUN * runs) {
        // SAFETY: `Lanes` lays codes and scales out in this order; the room was asserted.
        unsafe {
            let (factor, min_factor);
            (factor, min_factor, scale_at) = factors::<S, H>(s, scale_at, part);
            for run in tile * runs..(tile + 1) * runs {
                let (mut scale, mut min) = (factor, min_factor);
                if H::INTEGERS {
                    let integers = s.load_i8(scale_at.cast::<i8>().add(part * S::LANES));
                    scale = s.mul(factor, integers);
                    scale_at = scale_at.add(ROWS);
                    if H::MINS {
                        let integers = s.load_i8(scale_at.cast::<i8>().add(part * S::LANES));
                        min = s.mul(min_factor, integers);
                        scale_at = scale_at.add(ROWS);
                    }
                }
                for sub in run * (H::RUN / SUB)..(run + 1) * (H::RUN / SUB) {
                    s.store(to_scales.add(sub * rows + half * S::LANES), scale);
                    if H::MINS {
                        s.store(mins.add(sub * rows + half * S::LANES), min);
                    }
                }
                let to = packed.add(run * (H::RUN / 4) * rows + half * S::LANES);
                fours::<S, H>(
                    s,
                    tables,
                    at.add(4 * S::LANES * part),
                    #[inline(always)]
                    |four, w| {
                        let w = match H::MEANING {
                            Meaning::Numbers => s.bias(s.sub_bytes(w, offset)),
                            _ => w,
                        };
                        s.store_bytes(to.add(four * rows).cast(), w);
                    },
                );
                at = at.add(H::RUN_BYTES);
            }
        }
    }
}
