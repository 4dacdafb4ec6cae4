@group(0) @binding(0) var<storage, read> rows: array<u32>;

fn source_row(t: u32) -> u32 {
    return rows[t];
}
