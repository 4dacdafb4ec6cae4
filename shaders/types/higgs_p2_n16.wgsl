// HIGGS_P2_N16: see formats/higgs.md. A code is half a byte and stands for two values; the low
// halves are the first run, the high halves the second.
//
// One lookup per code: an entry of the workgroup's table is the pair, once in each half of the
// word, so that a half is kept where it is needed and nothing is shifted. The table is there COPIES
// times, entry beside entry; each thread reads its own copy, so that neighbours meet in fewer
// banks.

const COLS = 64u;
const GROUP = 32u;
const COPIES = 1u;
const CHUNK = 64u;
const POINTS = 16u;
const MINS = false;
const SPLIT = GROUP % 32u != 0u;

@group(0) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
// import norms
// import pairs

var<workgroup> points: array<u32, POINTS * COPIES>;
var<private> copy: u32;

struct Raw {
    codes: vec4<u32>,
    norms: vec4<u32>,
    // How far up in their words the norms are, two to a run.
    shifts: vec4<u32>,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    let first = norms_at(row, chunk * CHUNK);
    let next = norms_at(row, chunk * CHUNK + 32u);
    return Raw(
        codes[row * (COLS / CHUNK) + chunk],
        vec4(norms[first.x / 2u], norms[first.y / 2u], norms[next.x / 2u], norms[next.y / 2u]),
        vec4(first, next) % 2u * 16u,
    );
}

fn run_of(raw: Raw, i: u32) -> Run {
    let four = (raw.codes >> vec4(4u * i)) & vec4(0x0f0f0f0fu);
    let words = select(raw.norms.xy, raw.norms.zw, i == 1u);
    let shifts = select(raw.shifts.xy, raw.shifts.zw, i == 1u);
    return Run(
        vec4(eight(four.x), eight(four.y)),
        vec4(eight(four.z), eight(four.w)),
        norm_scales(words, shifts),
        vec2(0.0),
    );
}
