// HIGGS_P2_N32, HIGGS_P2_N128: see formats/higgs.md. A code is five or seven bits and stands for
// two values. The low four bits of the first run are the low halves of 16 bytes, those of the
// second run the high halves; with seven bits, two more are in the eight bytes that follow; the
// highest is in the last four.
//
// One lookup per code: an entry of the workgroup's table is the pair, once in each half of the
// word, so that a half is kept where it is needed and nothing is shifted. The table is there COPIES
// times, entry beside entry; each thread reads its own copy, so that neighbours meet in fewer
// banks. A block is an odd number of words, so that no longer loads are aligned.

const COLS = 64u;
const GROUP = 32u;
const COPIES = 1u;
const CHUNK = 64u;
const BITS = 7u;
const POINTS = 1u << BITS;
const MINS = false;
const SPLIT = GROUP % 32u != 0u;

@group(0) @binding(0) var<storage, read> codes: array<u32>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
// import norms
// import pairs

var<workgroup> points: array<u32, POINTS * COPIES>;
var<private> copy: u32;

struct Raw {
    low: vec4<u32>,
    // Bits 4 and 5, only with seven bits.
    middle: vec2<u32>,
    high: u32,
    norms: vec4<u32>,
    // How far up in their words the norms are, two to a run.
    shifts: vec4<u32>,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    // 32 codes of BITS bits are BITS words.
    let block = BITS * (row * (COLS / CHUNK) + chunk);
    let first = norms_at(row, chunk * CHUNK);
    let next = norms_at(row, chunk * CHUNK + 32u);
    var middle = vec2(0u);
    if BITS == 7u {
        middle = vec2(codes[block + 4u], codes[block + 5u]);
    }
    return Raw(
        vec4(codes[block], codes[block + 1u], codes[block + 2u], codes[block + 3u]),
        middle,
        codes[block + BITS - 1u],
        vec4(norms[first.x / 2u], norms[first.y / 2u], norms[next.x / 2u], norms[next.y / 2u]),
        vec4(first, next) % 2u * 16u,
    );
}

fn run_of(raw: Raw, i: u32) -> Run {
    var four = (raw.low >> vec4(4u * i)) & vec4(0x0f0f0f0fu);
    if BITS == 7u {
        let middle = (raw.middle.xyxy >> (vec4(0u, 0u, 2u, 2u) + 4u * i)) & vec4(0x03030303u);
        four |= middle << vec4(4u);
    }
    let high = (vec4(raw.high) >> (vec4(0u, 1u, 2u, 3u) + 4u * i)) & vec4(0x01010101u);
    four |= high << vec4(BITS - 1u);
    let words = select(raw.norms.xy, raw.norms.zw, i == 1u);
    let shifts = select(raw.shifts.xy, raw.shifts.zw, i == 1u);
    return Run(
        vec4(eight(four.x), eight(four.y)),
        vec4(eight(four.z), eight(four.w)),
        norm_scales(words, shifts),
        vec2(0.0),
    );
}
