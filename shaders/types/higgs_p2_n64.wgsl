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
@group(0) @binding(1) var<storage, read> norms: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<u32>;

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

// Which norms the first and the last 16 of 32 values have.
fn norms_at(row: u32, col: u32) -> vec2<u32> {
    let first = row * (COLS / GROUP);
    return vec2(first) + vec2(col, select(col, col + 16u, SPLIT)) / GROUP;
}

fn norm_scales(words: vec2<u32>, shifts: vec2<u32>) -> vec2<f32> {
    return vec2(unpack2x16float(words.x >> shifts.x).x, unpack2x16float(words.y >> shifts.y).x);
}

// The values of four codes.
fn eight(four: u32) -> vec2<u32> {
    return vec2(
        (point(four & 0xffu) & 0xffffu) | (point((four >> 8u) & 0xffu) & 0xffff0000u),
        (point((four >> 16u) & 0xffu) & 0xffffu) | (point(four >> 24u) & 0xffff0000u),
    );
}

fn point(code: u32) -> u32 {
    return points[code * COPIES + copy];
}

fn fill_table(thread: u32, threads: u32) {
    copy = thread % COPIES;
    for (var i = thread; i < POINTS * COPIES; i += threads) {
        let code = i / COPIES;
        // A point that is never written has -128, which reads as -127.
        let two = pack4xI8(max(unpack4xI8(table[code / 2u]), vec4(-127)));
        let pair = (two >> (code % 2u * 16u)) & 0xffffu;
        points[i] = pair | (pair << 16u);
    }
}
