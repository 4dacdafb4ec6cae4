// HIGGS_P2_N64: see formats/higgs.md. A code is six bits and stands for two values; the low four
// bits of the first run are the low halves of 16 bytes, those of the second run the high halves.
//
// One lookup per code: an entry of the workgroup's table is the pair, once in each half of the
// word, so that a half is kept where it is needed and nothing is shifted. The table is there COPIES
// times, entry beside entry; each thread reads its own copy, so that neighbours meet in fewer
// banks.

const COLS = 64u;
const GROUP = 32u;
const COPIES = 1u;
const CHUNK = 64u;
const POINTS = 64u;
const MINS = false;
const SPLIT = GROUP % 32u != 0u;

@group(0) @binding(0) var<storage, read> codes: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
// import norms
// import pairs

var<workgroup> points: array<u32, POINTS * COPIES>;
var<private> copy: u32;

struct Raw {
    low: vec4<u32>,
    high: vec2<u32>,
    norms: vec4<u32>,
    // How far up in their words the norms are, two to a run.
    shifts: vec4<u32>,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    let block = 3u * (row * (COLS / CHUNK) + chunk);
    let first = norms_at(row, chunk * CHUNK);
    let next = norms_at(row, chunk * CHUNK + 32u);
    return Raw(
        vec4(codes[block], codes[block + 1u]),
        codes[block + 2u],
        vec4(norms[first.x / 2u], norms[first.y / 2u], norms[next.x / 2u], norms[next.y / 2u]),
        vec4(first, next) % 2u * 16u,
    );
}

fn run_of(raw: Raw, i: u32) -> Run {
    let low = (raw.low >> vec4(4u * i)) & vec4(0x0f0f0f0fu);
    let high = (raw.high.xyxy >> (vec4(0u, 0u, 2u, 2u) + 4u * i)) & vec4(0x03030303u);
    let four = low | (high << vec4(4u));
    let words = select(raw.norms.xy, raw.norms.zw, i == 1u);
    let shifts = select(raw.shifts.xy, raw.shifts.zw, i == 1u);
    return Run(
        vec4(eight(four.x), eight(four.y)),
        vec4(eight(four.z), eight(four.w)),
        norm_scales(words, shifts),
        vec2(0.0),
    );
}
