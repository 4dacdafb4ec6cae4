//! Any bytes as rows of any type: decode and unpack must not panic, and agree on their lengths.
//!
//! Input: type, columns in blocks, group, rows and the first one (a byte each); then codes, norms
//! and table, each padded with zeros where the input is too short.

#![no_main]

use std::sync::LazyLock;

use gridmill::types::{
    Int8Row, Kernel, PRIVATE_IDS, Rows, SUB, TYPES, TensorType, by_name, learned,
};
use libfuzzer_sys::fuzz_target;

/// The next `count` bytes, then zeros.
fn take(bytes: &mut &[u8], count: usize) -> Vec<u8> {
    let (now, later) = bytes.split_at(count.min(bytes.len()));
    *bytes = later;
    let mut taken = now.to_vec();
    taken.resize(count, 0);
    taken
}

/// The types in the list, and some of learned points, which are made by name.
static KINDS: LazyLock<Vec<&'static dyn TensorType>> = LazyLock::new(|| {
    let learned = ["VPTQ_V3_K16", "VPTQ_V8_K4096", "VPTQ_V6_K256_R16"];
    TYPES.iter().copied().chain(learned.map(|name| by_name(name).expect("a valid shape"))).collect()
});

/// Numbers in a type's table.
fn table_len(kind: &dyn TensorType) -> usize {
    let Some(shape) = learned(kind) else { return kind.table().map_or(0, <[i8]>::len) };
    let second = if shape.residual_bits > 0 { 1 << shape.residual_bits } else { 0 };
    shape.v * ((1 << shape.bits) + second)
}

fuzz_target!(|bytes: &[u8]| {
    let [index, width, group, count, rest @ ..] = bytes else { return };
    let mut rest = rest;
    let kind = KINDS[usize::from(*index) % KINDS.len()];
    let own = kind.id() >= PRIVATE_IDS;
    let block = kind.block();
    // Types of ours take groups of 16 to 256 that divide the row; stock types have none.
    let group = if own { SUB << (group % 5) } else { 0 };
    let unit = if own { group.max(block.len) } else { block.len };
    let cols = unit * (1 + usize::from(width % 8));
    let count_of_rows = 1 + usize::from(count % 3);
    // The first row may lie inside a block of rows that share codes.
    let first = usize::from(count / 3) % kind.row_block();
    let Some(row_bytes) = kind.row_bytes(cols) else { return };
    let blocks = (first + count_of_rows).div_ceil(kind.row_block());
    let codes = take(&mut rest, blocks * row_bytes);
    let norms = take(&mut rest, if own { 2 * count_of_rows * (cols / group) } else { 0 });
    let table = take(&mut rest, table_len(kind));
    let table: Vec<i8> = table.into_iter().map(|byte| byte as i8).collect();
    let all = Rows {
        first,
        count: count_of_rows,
        cols,
        group,
        codes: &codes,
        norms: &norms,
        table: &table,
        columns: None,
    };
    let mut values = vec![0.0; count_of_rows * cols];
    kind.decode(&all, &mut values);
    if let Kernel::Int8 { .. } = kind.kernel()
        && cols.is_multiple_of(SUB)
    {
        let norm_bytes = norms.len() / count_of_rows;
        let one =
            Rows { count: 1, codes: &codes[..row_bytes], norms: &norms[..norm_bytes], ..all };
        let mut integers = vec![0; cols];
        let (mut scales, mut mins) = (vec![0.0; cols / SUB], vec![0.0; cols / SUB]);
        let mut out = Int8Row { values: &mut integers, scales: &mut scales, mins: &mut mins };
        kind.unpack(&one, &mut out);
    }
});
