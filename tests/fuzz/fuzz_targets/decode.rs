//! Any bytes as rows of any type: decode and unpack must not panic, and agree on their lengths.
//!
//! Input: type, columns in blocks, group, rows (a byte each); then codes, norms and table, each
//! padded with zeros where the input is too short.

#![no_main]

use gridmill::types::{Int8Row, Kernel, PRIVATE_IDS, Rows, SUB, TYPES};
use libfuzzer_sys::fuzz_target;

/// The next `count` bytes, then zeros.
fn take(bytes: &mut &[u8], count: usize) -> Vec<u8> {
    let (now, later) = bytes.split_at(count.min(bytes.len()));
    *bytes = later;
    let mut taken = now.to_vec();
    taken.resize(count, 0);
    taken
}

fuzz_target!(|bytes: &[u8]| {
    let [index, width, group, count, rest @ ..] = bytes else { return };
    if TYPES.is_empty() {
        return;
    }
    let mut rest = rest;
    let kind = TYPES[usize::from(*index) % TYPES.len()];
    let own = kind.id() >= PRIVATE_IDS;
    let block = kind.block();
    // Types of ours take groups of 16 to 256 that divide the row; stock types have none.
    let group = if own { SUB << (group % 5) } else { 0 };
    let unit = if own { group.max(block.len) } else { block.len };
    let cols = unit * (1 + usize::from(width % 8));
    let rows = 1 + usize::from(count % 3);
    let Some(row_bytes) = kind.row_bytes(cols) else { return };
    let codes = take(&mut rest, rows * row_bytes);
    let norms = take(&mut rest, if own { 2 * rows * (cols / group) } else { 0 });
    let table = take(&mut rest, kind.table().map_or(0, <[i8]>::len));
    let table: Vec<i8> = table.into_iter().map(|byte| byte as i8).collect();
    let all = Rows { count: rows, cols, group, codes: &codes, norms: &norms, table: &table };
    let mut values = vec![0.0; rows * cols];
    kind.decode(&all, &mut values);
    if let Kernel::Int8 { .. } = kind.kernel()
        && cols.is_multiple_of(SUB)
    {
        let norm_bytes = norms.len() / rows;
        let first =
            Rows { count: 1, codes: &codes[..row_bytes], norms: &norms[..norm_bytes], ..all };
        let mut integers = vec![0; cols];
        let (mut scales, mut mins) = (vec![0.0; cols / SUB], vec![0.0; cols / SUB]);
        let mut out = Int8Row { values: &mut integers, scales: &mut scales, mins: &mut mins };
        kind.unpack(&first, &mut out);
    }
});
