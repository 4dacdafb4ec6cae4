// F32: see formats/f32.md.

const COLS = 64u;

@group(0) @binding(0) var<storage, read> codes: array<vec4<f32>>;

fn value(row: u32, col: u32) -> f32 {
    let at = row * COLS + col;
    return codes[at / 4u][at % 4u];
}

fn four(row: u32, at: u32) -> vec4<f32> {
    return codes[(row * COLS + at) / 4u];
}
