// The integer form of types that have no shader of their own: they are unpacked when the weights
// are uploaded. Rows follow each other; every 16 values have a scale and, with MINS, a minimum.

const COLS = 64u;
const CHUNK = 32u;
const MINS = true;
const SPLIT = true;

@group(0) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> scales: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read> lows: array<vec2<f32>>;

struct Raw {
    lo: vec4<u32>,
    hi: vec4<u32>,
    scale: vec2<f32>,
    low: vec2<f32>,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    let at = row * (COLS / CHUNK) + chunk;
    var low = vec2(0.0);
    if MINS {
        low = lows[at];
    }
    return Raw(codes[2u * at], codes[2u * at + 1u], scales[at], low);
}

fn run_of(raw: Raw, i: u32) -> Run {
    return Run(raw.lo, raw.hi, raw.scale, raw.low);
}

fn fill_table(thread: u32, threads: u32) {}
