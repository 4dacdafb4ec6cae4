//! The kernels of products against plain loops.

use gridmill::simd::Level;
use gridmill::types::dot::{self, Columns, FloatColumns, Int8Columns, Lookup, Scratch};
use gridmill::types::dot::{Output, Packing, Panel, pack_columns};
use gridmill::types::{Int8Row, Kernel, Layout, SUB, TYPES, Tensor, TensorType, by_name};

use crate::cpu::{Random, tensor};

/// Int8 activations in the layout of the kernels.
struct Quantised {
    codes: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

fn quantised(count: usize, cols: usize, group: usize) -> Quantised {
    let mut random = Random(count as u64);
    let (codes_stride, subs_stride) = (dot::codes_stride(cols), dot::subs_stride(cols));
    let mut codes = vec![0; count * codes_stride];
    let mut scales = vec![0.0; count * subs_stride];
    let mut sums = vec![0; count * subs_stride];
    for c in 0..count {
        for i in 0..cols {
            let code = (random.bits() % 255) as i32 - 127;
            codes[c * codes_stride + i] = code as i8;
            sums[c * subs_stride + i / SUB] += code;
            if i % group == 0 {
                let scale = random.float() * 0.01 + 0.02;
                scales[c * subs_stride + i / SUB..][..group / SUB].fill(scale);
            }
        }
    }
    Quantised { codes, scales, sums }
}

/// `(columns, rows)`, in f64, and beside each the size of the terms it is made of.
fn plain(weight: &Tensor, columns: &[Vec<f32>]) -> Vec<(f64, f64)> {
    let mut values = vec![0.0; weight.len()];
    weight.kind.decode(&weight.rows(0..weight.rows), &mut values);
    let sizes = sizes(weight, &values);
    let rows = values.chunks_exact(weight.cols).zip(sizes.chunks_exact(weight.cols));
    let product = |(row, sizes): (&[f32], &[f32]), column: &[f32]| {
        let dot = |a: &[f32], sign: fn(f64) -> f64| {
            a.iter().zip(column).map(|(&w, &x)| sign(f64::from(w) * f64::from(x))).sum::<f64>()
        };
        (dot(row, |x| x), dot(sizes, f64::abs))
    };
    columns.iter().flat_map(|column| rows.clone().map(move |row| product(row, column))).collect()
}

/// How large the terms of each value are: a scaled integer and a minimum may cancel.
fn sizes(weight: &Tensor, values: &[f32]) -> Vec<f32> {
    if weight.kind.kernel() == Kernel::Float {
        return values.to_vec();
    }
    let cols = weight.cols;
    let mut sizes = Vec::new();
    for row in 0..weight.rows {
        let (mut values, mut scales) = (vec![0; cols], vec![0.0; cols / SUB]);
        let mut mins = vec![0.0; cols / SUB];
        let (values, scales, mins) = (&mut values[..], &mut scales[..], &mut mins[..]);
        let mut out = Int8Row { values, scales, mins };
        weight.kind.unpack(&weight.rows(row..row + 1), &mut out);
        let size = |i: usize| {
            (out.scales[i / SUB] * f32::from(out.values[i])).abs() + out.mins[i / SUB].abs()
        };
        sizes.extend((0..cols).map(size));
    }
    sizes
}

/// Every instruction set against sums in f64, for few and for many columns.
pub(crate) fn check_products(
    kind: &'static dyn TensorType,
    rows: usize,
    cols: usize,
    group: usize,
) {
    let activation_group = [64, 32, 16].into_iter().find(|&g| cols.is_multiple_of(g)).unwrap();
    check_groups(kind, (rows, cols), group, activation_group);
}

/// As `check_products`, with activations that share a scale over so many inputs.
fn check_groups(
    kind: &'static dyn TensorType,
    (rows, cols): (usize, usize),
    group: usize,
    activation_group: usize,
) {
    let weight = tensor(kind, rows, cols, group);
    for count in [1, 2, 7, 8, 9, 33] {
        let is_int8 = matches!(kind.kernel(), Kernel::Int8 { .. });
        let floats = Random(7).floats(count * cols);
        let ints = quantised(count, cols, activation_group);
        let (columns, exact): (Columns, Vec<Vec<f32>>) = if is_int8 {
            let (stride, subs) = (dot::codes_stride(cols), dot::subs_stride(cols));
            let value = |c: usize, i: usize| {
                ints.scales[c * subs + i / SUB] * f32::from(ints.codes[c * stride + i])
            };
            let exact = (0..count).map(|c| (0..cols).map(|i| value(c, i)).collect()).collect();
            let Quantised { codes, scales, sums } = &ints;
            let group = activation_group;
            (Columns::Int8(Int8Columns { count, cols, group, codes, scales, sums }), exact)
        } else {
            let columns = FloatColumns { count, cols, values: &floats };
            (Columns::Float(columns), floats.chunks_exact(cols).map(<[f32]>::to_vec).collect())
        };
        let expected = plain(&weight, &exact);
        for level in Level::available() {
            let found = match count {
                ..=8 => few(level, &weight, &columns),
                _ => many(level, &weight, &columns, activation_group),
            };
            for (i, (&found, &(sum, size))) in found.iter().zip(&expected).enumerate() {
                // Rounding of a few hundred float additions, and of the scales' products.
                let bound = 4e-6 * size + 1e-9;
                assert!(
                    (f64::from(found) - sum).abs() <= bound,
                    "{} {rows} x {cols}, {count} columns, {level}, product {i}: expected {sum}, \
                     found {found}, bound {bound}",
                    kind.name(),
                );
            }
        }
    }
}

fn few(level: Level, weight: &Tensor, columns: &Columns) -> Vec<f32> {
    let lookup = Lookup::new(weight, level);
    let mut scratch = Scratch::new(weight.cols);
    let mut out = vec![f32::NAN; columns.count() * weight.rows];
    for first in (0..weight.rows).step_by(24) {
        let count = 24.min(weight.rows - first);
        let mut part = vec![f32::NAN; columns.count() * count];
        dot::mat_vec(level, weight, &lookup, first, count, columns, &mut scratch, &mut part);
        for (c, part) in part.chunks_exact(count).enumerate() {
            out[c * weight.rows + first..][..count].copy_from_slice(part);
        }
    }
    out
}

fn many(level: Level, weight: &Tensor, columns: &Columns, group: usize) -> Vec<f32> {
    let is_int8 = matches!(columns, Columns::Int8(_));
    let packing = Packing::new(level, weight.cols, is_int8);
    let (floats, ints) = if is_int8 { (0, weight.cols) } else { (weight.cols, 0) };
    let mut panel = Panel::new(level, floats, ints);
    let mut out = vec![f32::NAN; columns.count() * weight.rows];
    for first in (0..weight.rows).step_by(packing.rows) {
        let count = packing.rows.min(weight.rows - first);
        panel.fill(level, weight, &Lookup::new(weight, level), first, count);
        for tile in 0..packing.tiles(columns.count()) {
            let mut words = vec![0; packing.words];
            pack_columns(&packing, columns, tile, &mut words);
            let column = tile * packing.columns;
            let real = packing.columns.min(columns.count() - column);
            let at = out[column * weight.rows + first..].as_mut_ptr();
            let to = Output { at, stride: weight.rows, bias: std::ptr::null(), add: false };
            // SAFETY: the output has every row of every real column.
            unsafe { panel.multiply(level, &packing, &words, real, group, &to) };
        }
    }
    out
}

#[test]
fn products_of_every_type_match_plain_loops() {
    check_every_type(&[(7, 576, 64), (33, 64, 32), (192, 32, 32), (1, 1536, 128)]);
}

/// Apart from the others, since an emulator takes minutes for either.
#[test]
fn products_of_many_wide_rows_match_plain_loops() {
    check_every_type(&[(50, 512, 64)]);
}

fn check_every_type(shapes: &[(usize, usize, usize)]) {
    for &kind in TYPES {
        for &(rows, cols, group) in shapes {
            let cols = if kind.row_bytes(cols).is_some() { cols } else { 768 };
            check_products(kind, rows, cols, group);
        }
    }
}

#[test]
fn products_of_odd_shapes_match_plain_loops() {
    for name in ["F32", "Q8_0", "HIGGS_P2_N256"] {
        let kind = by_name(name).unwrap();
        for cols in [576, 640, 896, 1536, 96] {
            check_products(kind, 33, cols, if cols % 64 == 0 { 64 } else { 32 });
        }
    }
}

/// Rows that are held side by side want activations that share scales as they do; others are
/// multiplied all the same.
#[test]
fn products_of_short_groups_match_plain_loops() {
    for name in ["Q4_0", "Q4_K", "Q6_K", "Q8_0", "HIGGS_P2_N256", "HIGGS_P1_N256"] {
        for activation_group in [16, 32] {
            check_groups(by_name(name).unwrap(), (18, 512), 64, activation_group);
        }
    }
}

/// What the kernels read of a row is what the type says it is, to the bit.
#[test]
fn kernels_read_planes_as_their_types_do() {
    let mut checked = 0;
    for &kind in TYPES.iter().filter(|kind| matches!(kind.layout(), Layout::Planes(_))) {
        for cols in [32, 96, 160, 256, 512, 1120] {
            if kind.row_bytes(cols).is_none() {
                continue;
            }
            let weight = random_blocks(kind, 3, cols);
            for level in Level::available() {
                let mut scratch = Scratch::new(cols);
                for row in 0..weight.rows {
                    let read = |unpack: &mut dyn FnMut(&mut Int8Row)| {
                        let (mut values, mut scales) = (vec![0; cols], vec![0.0; cols / SUB]);
                        let mut mins = vec![0.0; cols / SUB];
                        let (values_out, scales_out) = (&mut values[..], &mut scales[..]);
                        let mins_out = &mut mins[..];
                        let mut out =
                            Int8Row { values: values_out, scales: scales_out, mins: mins_out };
                        unpack(&mut out);
                        let bits = |floats: &[f32]| -> Vec<u32> {
                            // A minimum that is nothing may have either sign.
                            floats.iter().map(|x| (x + 0.0).to_bits()).collect()
                        };
                        (values, bits(&scales), bits(&mins))
                    };
                    let expected = read(&mut |out| kind.unpack(&weight.rows(row..row + 1), out));
                    let found =
                        read(&mut |out| dot::unpack(level, &weight, row, &mut scratch, out));
                    assert_eq!(found, expected, "{} {cols} {level} row {row}", kind.name());
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 100, "types with planes: {checked} rows");
}

/// Any bytes, but no half that is infinite or no number.
fn random_blocks(kind: &'static dyn TensorType, rows: usize, cols: usize) -> Tensor {
    let mut random = Random(cols as u64);
    let Layout::Planes(planes) = kind.layout() else { panic!("a type with planes") };
    let mut codes: Vec<u8> =
        (0..rows * kind.row_bytes(cols).unwrap()).map(|_| random.bits() as u8).collect();
    for block in codes.chunks_exact_mut(planes.bytes) {
        for at in [Some(planes.factor), planes.min_factor].into_iter().flatten() {
            block[at + 1] &= 0xbf;
        }
    }
    Tensor { codes: codes.into(), ..tensor(kind, rows, cols, 64) }
}
