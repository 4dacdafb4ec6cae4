// The norms of a grid type: halves, two to a word, one per GROUP values of a row.
@group(0) @binding(0) var<storage, read> norms: array<u32>;

// Which norms the first and the last 16 of 32 values have.
fn norms_at(row: u32, col: u32) -> vec2<u32> {
    let first = row * (COLS / GROUP);
    return vec2(first) + vec2(col, select(col, col + 16u, SPLIT)) / GROUP;
}

fn norm_scales(words: vec2<u32>, shifts: vec2<u32>) -> vec2<f32> {
    return vec2(unpack2x16float(words.x >> shifts.x).x, unpack2x16float(words.y >> shifts.y).x);
}
