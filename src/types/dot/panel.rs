//! Many columns.
//!
//! A panel is `2 * LANES` rows of the weight with the inputs as the slow index, a tile a few
//! columns of activations with the inputs as the slow index. Int8 weights and activations come in
//! fours, the bytes of a [`Simd::dot4`] lane:
//!
//! ```text
//! panel[k][row]      tile[k][column]      sum[row][column] += panel[k][row] * tile[k][column]
//! ```

use std::ptr;

use crate::simd::{Level, Simd, WithSimd};

use half::f16;

use super::super::{Int8Row, Kernel, Layout, Rows, SUB, Tensor};
use super::scales::Buffers;
use super::{Columns, FloatColumns, Int8Columns, Lookup, codes_stride, points, subs_stride};
use super::{abreast, planes};

/// The most lanes of any instruction set, times two.
const PANEL_MAX: usize = 32;

/// How the columns of a batch are packed into tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Rows of a panel.
    pub rows: usize,
    /// Columns of a tile.
    pub columns: usize,
    /// Words of a packed tile: values, and for int8 also scales and sums.
    pub words: usize,
}

impl Packing {
    /// For columns of `cols` floats, or int8 values.
    pub fn new(level: Level, cols: usize, int8: bool) -> Packing {
        let wide = matches!(level, Level::Avx512);
        let rows = match level {
            Level::Avx512 => 32,
            Level::Avx2 => 16,
            Level::Neon | Level::Portable => 8,
        };
        let columns = match (wide, int8) {
            (true, true) => 6,
            (true, false) => 12,
            (false, true) => 4,
            (false, false) => 6,
        };
        let words = if int8 { cols.div_ceil(4) + 2 * cols.div_ceil(SUB) } else { cols };
        Packing { rows, columns, words: words * columns }
    }

    /// Tiles of `count` columns.
    pub fn tiles(&self, count: usize) -> usize {
        count.div_ceil(self.columns)
    }
}

/// Packs tile `tile` of the columns into `words`; columns past the last are zeros.
///
/// # Panics
/// If a length does not fit.
pub fn pack_columns(packing: &Packing, columns: &Columns, tile: usize, words: &mut [u32]) {
    assert_eq!(words.len(), packing.words, "a tile's words");
    let width = packing.columns;
    words.fill(0);
    let first = tile * width;
    let count = width.min(columns.count() - first);
    for c in 0..count {
        match columns {
            Columns::Float(FloatColumns { cols, values, .. }) => {
                let column = &values[(first + c) * cols..][..*cols];
                for (to, value) in words[c..].iter_mut().step_by(width).zip(column) {
                    *to = value.to_bits();
                }
            }
            Columns::Int8(Int8Columns { cols, codes, scales, sums, .. }) => {
                let (fours, subs) = (cols.div_ceil(4), cols / SUB);
                let column = &codes[(first + c) * codes_stride(*cols)..][..*cols];
                let (values, rest) = words.split_at_mut(fours * width);
                let (to_scales, to_sums) = rest.split_at_mut(subs * width);
                let fours = column.as_chunks::<4>().0;
                for (to, four) in values[c..].iter_mut().step_by(width).zip(fours) {
                    *to = u32::from_le_bytes(four.map(i8::cast_unsigned));
                }
                let at = (first + c) * subs_stride(*cols);
                for (to, scale) in to_scales[c..].iter_mut().step_by(width).zip(&scales[at..]) {
                    *to = scale.to_bits();
                }
                for (to, sum) in to_sums[c..].iter_mut().step_by(width).zip(&sums[at..]) {
                    *to = sum.cast_unsigned();
                }
            }
        }
    }
}

/// Some rows of a weight, decoded; memory for one worker, made once.
pub struct Panel {
    /// Rows as the type decodes them: floats, or fours of int8 values.
    rows: Vec<u32>,
    /// `(inputs, rows)`, the same numbers.
    packed: Vec<u32>,
    /// `(runs, rows)`.
    scales: Vec<f32>,
    /// `(runs, rows)`.
    mins: Vec<f32>,
    /// `(2, runs)`, of one row.
    row_scales: Vec<f32>,
    planes: Buffers,
    filled: Filled,
}

/// What a panel holds.
#[derive(Clone, Copy, Default)]
struct Filled {
    rows: usize,
    cols: usize,
    int8: bool,
    /// Values that share a scale in the weight.
    group: usize,
    mins: bool,
}

impl Panel {
    /// For weights of up to `floats` float inputs and `ints` int8 inputs.
    pub fn new(level: Level, floats: usize, ints: usize) -> Panel {
        let rows = Packing::new(level, 0, false).rows;
        let words = rows * floats.max(ints.div_ceil(4));
        let subs = ints.div_ceil(SUB);
        Panel {
            rows: vec![0; words],
            packed: vec![0; words],
            scales: vec![0.0; rows * subs],
            mins: vec![0.0; rows * subs],
            row_scales: vec![0.0; 2 * subs],
            planes: Buffers::new(ints),
            filled: Filled::default(),
        }
    }

    /// Decodes rows `first..first + count`, at most a panel's.
    ///
    /// # Panics
    /// If there are too many, or [`super::refusal`] has one.
    pub fn fill(
        &mut self,
        level: Level,
        weight: &Tensor,
        lookup: &Lookup,
        first: usize,
        count: usize,
    ) {
        level.dispatch(Fill { level, panel: self, weight, lookup, first, count });
    }

    /// Multiplies with a tile of columns of which `columns` are real.
    ///
    /// # Safety
    /// `out` must be valid as its fields say, for the panel's rows and `columns` columns.
    ///
    /// # Panics
    /// If the tile was packed for another width.
    pub unsafe fn multiply(
        &self,
        level: Level,
        packing: &Packing,
        words: &[u32],
        columns: usize,
        group: usize,
        out: &Output,
    ) {
        assert!(words.len() == packing.words && columns <= packing.columns, "a packed tile");
        assert_eq!(*packing, Packing::new(level, self.filled.cols, self.filled.int8), "its width");
        level.dispatch(Multiply { panel: self, words, columns, group, out });
    }
}

/// Where products go.
pub struct Output {
    /// The first row's product with the first column; the next row's lies beside it.
    pub at: *mut f32,
    /// From one column to the next.
    pub stride: usize,
    /// Added to each row's products, unless null.
    pub bias: *const f32,
    /// Whether products are added to what is there.
    pub add: bool,
}

struct Fill<'a> {
    level: Level,
    panel: &'a mut Panel,
    weight: &'a Tensor,
    lookup: &'a Lookup,
    first: usize,
    count: usize,
}

impl WithSimd for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Fill { level, panel, weight, lookup, first, count } = self;
        let (cols, rows) = (weight.cols, 2 * S::LANES);
        assert!(count <= rows, "a panel has {rows} rows");
        let kernel = weight.kind.kernel();
        let words = match kernel {
            Kernel::Float => {
                let values: &mut [f32] = bytemuck::cast_slice_mut(&mut panel.rows[..count * cols]);
                weight.kind.decode(&weight.rows(first..first + count), values);
                panel.filled = Filled { rows: count, cols, ..Filled::default() };
                cols
            }
            Kernel::Int8 { group, mins } => {
                let group = if group == 0 { weight.group } else { group };
                panel.filled = Filled { rows: count, cols, int8: true, group, mins };
                if let (Some(points), Some(places)) = (&lookup.points, &lookup.places) {
                    unpack_norms(panel, &weight.rows(first..first + count), rows);
                    let packed = &mut panel.packed[..rows * cols / 4];
                    return points::fill(s, points, places, first..first + count, packed);
                }
                if let Some(lanes) = &lookup.lanes {
                    let room = abreast::Room {
                        packed: &mut panel.packed[..rows * cols / 4],
                        scales: &mut panel.scales,
                        mins: &mut panel.mins,
                    };
                    return abreast::fill(level, lanes, lookup.pairs.as_deref(), first, room);
                }
                unpack_rows(level, panel, weight, first, rows);
                cols / 4
            }
        };
        panel.rows[count * words..rows * words].fill(0);
        let flip =
            if matches!(kernel, Kernel::Int8 { .. }) && S::BIAS != 0 { 0x8080_8080 } else { 0 };
        transpose::<S>(&panel.rows[..rows * words], &mut panel.packed[..rows * words], flip);
    }
}

/// `to[k][row] = from[row][k] ^ flip`.
#[inline(always)]
fn transpose<S: Simd>(from: &[u32], to: &mut [u32], flip: u32) {
    let rows = 2 * S::LANES;
    let words = from.len() / rows;
    for (k, line) in to.chunks_exact_mut(rows).enumerate() {
        for (row, to) in line.iter_mut().enumerate() {
            *to = from[row * words + k] ^ flip;
        }
    }
}

/// The integers, scales and minimums of the rows.
#[inline(always)]
fn unpack_rows(level: Level, panel: &mut Panel, weight: &Tensor, first: usize, rows: usize) {
    let Filled { rows: count, cols, mins: has_mins, .. } = panel.filled;
    let subs = cols / SUB;
    panel.scales[..rows * subs].fill(0.0);
    if has_mins {
        panel.mins[..rows * subs].fill(0.0);
    }
    let (scales, mins) = panel.row_scales.split_at_mut(panel.scales.len() / rows);
    let (scales, mins) = (&mut scales[..subs], &mut mins[..subs]);
    let integers: &mut [i8] = bytemuck::cast_slice_mut(&mut panel.rows);
    for (r, values) in integers.chunks_exact_mut(cols).take(count).enumerate() {
        let mut row = Int8Row { values, scales, mins };
        match weight.kind.layout() {
            Layout::Planes(layout) => {
                planes::unpack(level, &layout, weight, first + r, &mut panel.planes, &mut row);
            }
            _ => weight.kind.unpack(&weight.rows(first + r..first + r + 1), &mut row),
        }
        for (sub, &scale) in row.scales.iter().enumerate() {
            panel.scales[sub * rows + r] = scale;
        }
        if has_mins {
            for (sub, &min) in row.mins.iter().enumerate() {
                panel.mins[sub * rows + r] = min;
            }
        }
    }
}

/// The scales of rows that have nothing but norms.
#[inline(always)]
fn unpack_norms(panel: &mut Panel, planes: &Rows, rows: usize) {
    let (subs, groups) = (planes.cols / SUB, planes.cols / planes.group);
    panel.scales[..rows * subs].fill(0.0);
    for (r, norms) in planes.norms.as_chunks::<2>().0.chunks_exact(groups).enumerate() {
        for sub in 0..subs {
            let norm = f16::from_le_bytes(norms[sub * SUB / planes.group]).to_f32();
            panel.scales[sub * rows + r] = norm;
        }
    }
}

struct Multiply<'a> {
    panel: &'a Panel,
    words: &'a [u32],
    columns: usize,
    group: usize,
    out: &'a Output,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with<S: Simd>(self, s: S) {
        let Filled { int8, mins, .. } = self.panel.filled;
        match (S::LANES == 16, int8) {
            (true, true) if mins => store(s, &self, &int8_tile::<S, 6, true>(s, &self)),
            (true, true) => store(s, &self, &int8_tile::<S, 6, false>(s, &self)),
            (true, false) => store(s, &self, &float_tile::<S, 12>(s, &self)),
            (false, true) if mins => store(s, &self, &int8_tile::<S, 4, true>(s, &self)),
            (false, true) => store(s, &self, &int8_tile::<S, 4, false>(s, &self)),
            (false, false) => store(s, &self, &float_tile::<S, 6>(s, &self)),
        }
    }
}

#[inline(always)]
fn float_tile<S: Simd, const T: usize>(s: S, work: &Multiply) -> [[S::F32; 2]; T] {
    let cols = work.panel.filled.cols;
    let mut sums = [[s.splat(0.0); 2]; T];
    assert!(work.words.len() >= cols * T && work.panel.packed.len() >= cols * 2 * S::LANES);
    let mut x: *const f32 = work.words.as_ptr().cast();
    let mut w: *const f32 = work.panel.packed.as_ptr().cast();
    for _ in 0..cols {
        // SAFETY: line k of the tile and of the panel, as just asserted.
        unsafe {
            let (low, high) = (s.load(w), s.load(w.add(S::LANES)));
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = s.splat(*x.add(t));
                *sums = [s.fma(low, x, sums[0]), s.fma(high, x, sums[1])];
            }
            x = x.add(T);
            w = w.add(2 * S::LANES);
        }
    }
    sums
}

#[inline(always)]
fn int8_tile<S: Simd, const T: usize, const MINS: bool>(s: S, work: &Multiply) -> [[S::F32; 2]; T] {
    let Filled { cols, group, .. } = work.panel.filled;
    let (fours, subs, rows) = (cols / 4, cols / SUB, 2 * S::LANES);
    let run = greatest_common_divisor(group, work.group);
    assert!(work.words.len() >= (fours + 2 * subs) * T, "a packed tile");
    assert!(work.panel.packed.len() >= fours * rows && work.panel.scales.len() >= subs * rows);
    assert!(!MINS || work.panel.mins.len() >= subs * rows, "minimums");
    assert!(run.is_multiple_of(SUB) && cols.is_multiple_of(run), "runs that fit");
    let mut sums = [[s.splat(0.0); 2]; T];
    let mut x: *const i8 = work.words.as_ptr().cast();
    let mut w: *const i8 = work.panel.packed.as_ptr().cast();
    for sub in (0..subs).step_by(run / SUB) {
        // SAFETY: runs of the tile and of the panel, as just asserted.
        unsafe {
            let scales: *const f32 = work.words.as_ptr().add((fours + sub) * T).cast();
            let code_sums: *const i32 = work.words.as_ptr().add((fours + subs + sub) * T).cast();
            let total = |t: usize| {
                let mut total = 0;
                for i in 0..run / SUB {
                    total += *code_sums.add(i * T + t);
                }
                total
            };
            let mut totals = [0; T];
            let mut dots = [[s.splat_i32(0); 2]; T];
            if S::BIAS != 0 || MINS {
                for t in 0..T {
                    totals[t] = total(t);
                    dots[t] = [s.splat_i32(-S::BIAS * totals[t]); 2];
                }
            }
            for _ in 0..run / 4 {
                let (low, high) = (s.load_bytes(w), s.load_bytes(w.add(4 * S::LANES)));
                for (t, dots) in dots.iter_mut().enumerate() {
                    let x = s.splat_4(x.add(4 * t));
                    *dots = [s.dot4(dots[0], low, x), s.dot4(dots[1], high, x)];
                }
                x = x.add(4 * T);
                w = w.add(4 * rows);
            }
            let at = work.panel.scales.as_ptr().add(sub * rows);
            let weight = [s.load(at), s.load(at.add(S::LANES))];
            for t in 0..T {
                let scale = s.splat(*scales.add(t));
                for (half, sum) in sums[t].iter_mut().enumerate() {
                    let product = s.mul(weight[half], scale);
                    *sum = s.fma(s.to_f32(dots[t][half]), product, *sum);
                    if MINS {
                        let at = work.panel.mins.as_ptr().add(sub * rows + half * S::LANES);
                        let total = s.splat(*scales.add(t) * totals[t] as f32);
                        *sum = s.fma(s.load(at), total, *sum);
                    }
                }
            }
        }
    }
    sums
}

pub(super) fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Adds bias and what is there, and writes the real rows and columns.
#[inline(always)]
fn store<S: Simd, const T: usize>(s: S, work: &Multiply, sums: &[[S::F32; 2]; T]) {
    let rows = work.panel.filled.rows;
    let out = work.out;
    for (c, sums) in sums.iter().enumerate().take(work.columns) {
        // SAFETY: the caller vouches for `rows` rows of `columns` columns.
        unsafe {
            let at = out.at.add(c * out.stride);
            if rows == 2 * S::LANES {
                finish(s, sums, at, out);
            } else {
                let mut line = [0.0; PANEL_MAX];
                let mut bias = [0.0; PANEL_MAX];
                ptr::copy_nonoverlapping(at, line.as_mut_ptr(), rows);
                if !out.bias.is_null() {
                    ptr::copy_nonoverlapping(out.bias, bias.as_mut_ptr(), rows);
                }
                finish(s, sums, line.as_mut_ptr(), &Output { bias: bias.as_ptr(), ..*out });
                ptr::copy_nonoverlapping(line.as_ptr(), at, rows);
            }
        }
    }
}

/// # Safety
/// `at` is valid for a panel's rows, and so is the bias unless null.
#[inline(always)]
unsafe fn finish<S: Simd>(s: S, sums: &[S::F32; 2], at: *mut f32, out: &Output) {
    for (half, &sum) in sums.iter().enumerate() {
        // SAFETY: as the caller vouches.
        unsafe {
            let at = at.add(half * S::LANES);
            let mut sum = sum;
            if !out.bias.is_null() {
                sum = s.add(sum, s.load(out.bias.add(half * S::LANES)));
            }
            if out.add {
                sum = s.add(sum, s.load(at));
            }
            s.store(at, sum);
        }
    }
}
