// RESQ_P2_N256: see formats/resq.md. A byte for each pair of the LOW quiet values of a row, as in
// HIGGS_P2_N256, then the HIGH loud ones as they are. A row is whole vectors of words, and its two
// norms are one word.
//
// One lookup per code of a pair: see `pairs`.

const COLS = 128u;
const COPIES = 1u;
const CHUNK = 32u;
const POINTS = 256u;
const MINS = false;
const SPLIT = false;
// The multiple of 64 nearest to an eighth of the row, the larger of two.
const HIGH = 64u * max((COLS / 64u + 4u) / 8u, 1u);
const LOW = COLS - HIGH;
const ROW = (LOW / 2u + HIGH) / 16u;

@group(0) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> norms: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<u32>;
// import pairs

var<workgroup> points: array<u32, POINTS * COPIES>;
var<private> copy: u32;

struct Raw {
    // Sixteen codes of pairs, or the first half of the integers.
    lo: vec4<u32>,
    hi: vec4<u32>,
    is_loud: bool,
    norm: f32,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    let is_loud = chunk >= LOW / CHUNK;
    let quiet = row * ROW + chunk;
    let loud = row * ROW + LOW / CHUNK + 2u * (chunk - LOW / CHUNK);
    let both = unpack2x16float(norms[row]);
    return Raw(
        codes[select(quiet, loud, is_loud)],
        codes[select(quiet, loud + 1u, is_loud)],
        is_loud,
        select(both.x, both.y, is_loud),
    );
}

fn run_of(raw: Raw, i: u32) -> Run {
    if (raw.is_loud) {
        return Run(raw.lo, raw.hi, vec2(raw.norm), vec2(0.0));
    }
    return Run(
        vec4(eight(raw.lo.x), eight(raw.lo.y)),
        vec4(eight(raw.lo.z), eight(raw.lo.w)),
        vec2(raw.norm),
        vec2(0.0),
    );
}
