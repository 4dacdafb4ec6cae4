// BF16: see formats/bf16.md. A value is the upper half of a float.

const COLS = 64u;

@group(0) @binding(0) var<storage, read> codes: array<vec2<u32>>;

fn value(row: u32, col: u32) -> f32 {
    let at = row * COLS + col;
    return bitcast<f32>(codes[at / 4u][at / 2u % 2u] >> (at % 2u * 16u) << 16u);
}

fn four(row: u32, at: u32) -> vec4<f32> {
    let words = codes[(row * COLS + at) / 4u];
    let upper = words & vec2(0xffff0000u);
    let lower = words << vec2(16u);
    return bitcast<vec4<f32>>(vec4(lower.x, upper.x, lower.y, upper.y));
}
