// F16: see formats/f16.md.

const COLS = 64u;

@group(0) @binding(0) var<storage, read> codes: array<vec2<u32>>;

fn value(row: u32, col: u32) -> f32 {
    let at = row * COLS + col;
    return unpack2x16float(codes[at / 4u][at / 2u % 2u] >> (at % 2u * 16u)).x;
}

fn four(row: u32, at: u32) -> vec4<f32> {
    let words = codes[(row * COLS + at) / 4u];
    return vec4(unpack2x16float(words.x), unpack2x16float(words.y));
}
