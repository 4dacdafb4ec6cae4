// HIGGS_P2_N256: see formats/higgs.md. A code is a byte and stands for two values.
//
// One lookup per code: an entry of the workgroup's table is the pair, once in each half of the
// word, so that a half is kept where it is needed and nothing is shifted. The table is there COPIES
// times, entry beside entry; each thread reads its own copy, so that neighbours meet in fewer
// banks.

const COLS = 64u;
const GROUP = 32u;
const COPIES = 1u;
const CHUNK = 32u;
const POINTS = 256u;
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
    norms: vec2<u32>,
    // How far up in their words the norms are.
    shifts: vec2<u32>,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    let at = norms_at(row, chunk * CHUNK);
    return Raw(
        codes[row * (COLS / CHUNK) + chunk],
        vec2(norms[at.x / 2u], norms[at.y / 2u]),
        at % 2u * 16u,
    );
}

fn run_of(raw: Raw, i: u32) -> Run {
    return Run(
        vec4(eight(raw.codes.x), eight(raw.codes.y)),
        vec4(eight(raw.codes.z), eight(raw.codes.w)),
        norm_scales(raw.norms, raw.shifts),
        vec2(0.0),
    );
}
