// HIGGS_P4_N256: see formats/higgs.md. A code is a byte and stands for four values: an entry of the
// workgroup's table is the whole word.
//
// The table is there COPIES times, entry beside entry; each thread reads its own copy, so that
// neighbours meet in fewer banks.

const COLS = 64u;
const GROUP = 32u;
const COPIES = 1u;
const CHUNK = 32u;
const POINTS = 256u;
const MINS = false;
const SPLIT = GROUP % 32u != 0u;

@group(0) @binding(0) var<storage, read> codes: array<vec2<u32>>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
// import norms

var<workgroup> points: array<u32, POINTS * COPIES>;
var<private> copy: u32;

struct Raw {
    codes: vec2<u32>,
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
        sixteen(raw.codes.x),
        sixteen(raw.codes.y),
        norm_scales(raw.norms, raw.shifts),
        vec2(0.0),
    );
}

// The values of four codes.
fn sixteen(four: u32) -> vec4<u32> {
    return vec4(
        point(four & 0xffu),
        point((four >> 8u) & 0xffu),
        point((four >> 16u) & 0xffu),
        point(four >> 24u),
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
        points[i] = pack4xI8(max(unpack4xI8(table[code]), vec4(-127)));
    }
}
