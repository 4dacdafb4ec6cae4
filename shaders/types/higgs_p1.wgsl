// HIGGS_P1_N32, HIGGS_P1_N64: see formats/higgs.md. A code is five or six bits and stands for one
// value. The low four bits of the first 16 values are the low halves of 16 bytes, those of the last
// 16 the high halves; the other bits are in the four or eight bytes that follow.
//
// An entry of the workgroup's table is the value, in each byte of the word, so that it is kept
// where it is needed and nothing is shifted. The table is there COPIES times, entry beside entry;
// each thread reads its own copy, so that neighbours meet in fewer banks.

const COLS = 64u;
const GROUP = 32u;
const COPIES = 1u;
const CHUNK = 32u;
const BITS = 6u;
const POINTS = 1u << BITS;
const MINS = false;
const SPLIT = GROUP % 32u != 0u;

@group(0) @binding(0) var<storage, read> codes: array<u32>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
// import norms

var<workgroup> points: array<u32, POINTS * COPIES>;
var<private> copy: u32;

struct Raw {
    low: vec4<u32>,
    // The second only with six bits.
    high: vec2<u32>,
    norms: vec2<u32>,
    // How far up in their words the norms are.
    shifts: vec2<u32>,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    // 32 codes of BITS bits are BITS words.
    let block = BITS * (row * (COLS / CHUNK) + chunk);
    var high = vec2(codes[block + 4u]);
    if BITS == 6u {
        high.y = codes[block + 5u];
    }
    let at = norms_at(row, chunk * CHUNK);
    return Raw(
        vec4(codes[block], codes[block + 1u], codes[block + 2u], codes[block + 3u]),
        high,
        vec2(norms[at.x / 2u], norms[at.y / 2u]),
        at % 2u * 16u,
    );
}

fn run_of(raw: Raw, i: u32) -> Run {
    // What the other bits of each word of four codes are shifted by: with five bits a bit more for
    // every word, with six two bits more for every two, which take turns in two words.
    let lo_shifts = select(vec4(0u, 0u, 2u, 2u), vec4(0u, 1u, 2u, 3u), BITS == 5u);
    let mask = vec4(select(0x03030303u, 0x01010101u, BITS == 5u));
    let lo_high = (raw.high.xyxy >> lo_shifts) & mask;
    let hi_high = (raw.high.xyxy >> (lo_shifts + 4u)) & mask;
    let lo = (raw.low & vec4(0x0f0f0f0fu)) | (lo_high << vec4(4u));
    let hi = ((raw.low >> vec4(4u)) & vec4(0x0f0f0f0fu)) | (hi_high << vec4(4u));
    return Run(
        vec4(values(lo.x), values(lo.y), values(lo.z), values(lo.w)),
        vec4(values(hi.x), values(hi.y), values(hi.z), values(hi.w)),
        norm_scales(raw.norms, raw.shifts),
        vec2(0.0),
    );
}

// The values of four codes.
fn values(four: u32) -> u32 {
    let low = (point(four & 0xffu) & 0xffu) | (point((four >> 8u) & 0xffu) & 0xff00u);
    let high = (point((four >> 16u) & 0xffu) & 0xff0000u) | (point(four >> 24u) & 0xff000000u);
    return low | high;
}

fn point(code: u32) -> u32 {
    return points[code * COPIES + copy];
}

fn fill_table(thread: u32, threads: u32) {
    copy = thread % COPIES;
    for (var i = thread; i < POINTS * COPIES; i += threads) {
        let code = i / COPIES;
        // A point that is never written has -128, which reads as -127.
        let four = pack4xI8(max(unpack4xI8(table[code / 4u]), vec4(-127)));
        points[i] = ((four >> (code % 4u * 8u)) & 0xffu) * 0x01010101u;
    }
}
