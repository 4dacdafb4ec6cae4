// HIGGS_P4_N4096: see formats/higgs.md. A code is twelve bits and stands for four values. The low
// four bits of the first run are the low halves of eight bytes, those of the second run the high
// halves; the other bits of a code are a byte of the 16 that follow.
//
// An entry of the table is the whole word. There are too many for the workgroup's memory.

const COLS = 64u;
const GROUP = 32u;
const CHUNK = 64u;
const MINS = false;
const SPLIT = GROUP % 32u != 0u;

@group(0) @binding(0) var<storage, read> codes: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
// import norms

struct Raw {
    low: vec2<u32>,
    high: vec4<u32>,
    norms: vec4<u32>,
    // How far up in their words the norms are, two to a run.
    shifts: vec4<u32>,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    let block = 3u * (row * (COLS / CHUNK) + chunk);
    let first = norms_at(row, chunk * CHUNK);
    let next = norms_at(row, chunk * CHUNK + 32u);
    return Raw(
        codes[block],
        vec4(codes[block + 1u], codes[block + 2u]),
        vec4(norms[first.x / 2u], norms[first.y / 2u], norms[next.x / 2u], norms[next.y / 2u]),
        vec4(first, next) % 2u * 16u,
    );
}

fn run_of(raw: Raw, i: u32) -> Run {
    let low = (raw.low >> vec2(4u * i)) & vec2(0x0f0f0f0fu);
    let high = select(raw.high.xy, raw.high.zw, i == 1u);
    let words = select(raw.norms.xy, raw.norms.zw, i == 1u);
    let shifts = select(raw.shifts.xy, raw.shifts.zw, i == 1u);
    return Run(
        sixteen(low.x, high.x),
        sixteen(low.y, high.y),
        norm_scales(words, shifts),
        vec2(0.0),
    );
}

// The values of four codes: a byte of each word belongs to one.
fn sixteen(low: u32, high: u32) -> vec4<u32> {
    return vec4(
        point((low & 0xffu) | ((high << 4u) & 0xff0u)),
        point(((low >> 8u) & 0xffu) | ((high >> 4u) & 0xff0u)),
        point(((low >> 16u) & 0xffu) | ((high >> 12u) & 0xff0u)),
        point((low >> 24u) | ((high >> 20u) & 0xff0u)),
    );
}

fn point(code: u32) -> u32 {
    // A point that is never written has -128, which reads as -127: the lowest bit is set in each
    // byte that is 0x80.
    let word = table[code];
    let rest = word ^ 0x80808080u;
    let differs = ((rest & 0x7f7f7f7fu) + 0x7f7f7f7fu) | rest;
    return word | ((~differs >> 7u) & 0x01010101u);
}

fn fill_table(thread: u32, threads: u32) {}
