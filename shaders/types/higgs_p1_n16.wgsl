// HIGGS_P1_N16: see formats/higgs.md. A code is half a byte and stands for one value: the low
// halves are the first 16 values, the high halves the last 16.
//
// Both halves are looked up at once: an entry of the workgroup's table is for a byte, and has the
// value of the low half in its bytes 0 and 2, that of the high half in 1 and 3. The table is there
// COPIES times, entry beside entry; each thread reads its own copy, so that neighbours meet in
// fewer banks.

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
    let a = eight(raw.codes.x);
    let b = eight(raw.codes.y);
    let c = eight(raw.codes.z);
    let d = eight(raw.codes.w);
    return Run(
        vec4(a.x, b.x, c.x, d.x),
        vec4(a.y, b.y, c.y, d.y),
        norm_scales(raw.norms, raw.shifts),
        vec2(0.0),
    );
}

// The values of the low halves of four bytes, and of the high halves.
fn eight(four: u32) -> vec2<u32> {
    let even = (point(four & 0xffu) & 0xffffu) | (point((four >> 16u) & 0xffu) & 0xffff0000u);
    let odd = (point((four >> 8u) & 0xffu) & 0xffffu) | (point(four >> 24u) & 0xffff0000u);
    return vec2(
        (even & 0x00ff00ffu) | ((odd << 8u) & 0xff00ff00u),
        ((even >> 8u) & 0x00ff00ffu) | (odd & 0xff00ff00u),
    );
}

fn point(code: u32) -> u32 {
    return points[code * COPIES + copy];
}

fn fill_table(thread: u32, threads: u32) {
    copy = thread % COPIES;
    for (var i = thread; i < POINTS * COPIES; i += threads) {
        let code = i / COPIES;
        let pair = value_of(code % 16u) | (value_of(code / 16u) << 8u);
        points[i] = pair | (pair << 16u);
    }
}

// The value of a code, in the lowest byte.
fn value_of(code: u32) -> u32 {
    // A point that is never written has -128, which reads as -127.
    let four = pack4xI8(max(unpack4xI8(table[code / 4u]), vec4(-127)));
    return (four >> (code % 4u * 8u)) & 0xffu;
}
