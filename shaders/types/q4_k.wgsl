// Q4_K, Q5_K: see formats/q4_k.md and formats/q5_k.md.
//
// A chunk is two groups, whose four low bits are the halves of the same 32 bytes. A block is whole
// vectors: the factors and the packed scales, the fifth bits if there are any, the halves.

const COLS = 256u;
const CHUNK = 64u;
const BITS = 4u;
const HIGH = 1u;
const LOW = HIGH + 2u * (BITS - 4u);
const BLOCK_VECTORS = LOW + 8u;
const MINS = true;
const SPLIT = false;

@group(0) @binding(0) var<storage, read> codes: array<vec4<u32>>;

struct Raw {
    // The factors; the first scales; the first minimums; the low bits of the last of both.
    head: vec4<u32>,
    low: vec4<u32>,
    low_next: vec4<u32>,
    // Only with five bits.
    high: vec4<u32>,
    high_next: vec4<u32>,
    // Which pair of groups of its block the chunk is.
    pair: u32,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    let block = (row * (COLS / 256u) + chunk / 4u) * BLOCK_VECTORS;
    let pair = chunk % 4u;
    let at = block + LOW + 2u * pair;
    var high = vec4(0u);
    var high_next = vec4(0u);
    if BITS == 5u {
        high = codes[block + HIGH];
        high_next = codes[block + HIGH + 1u];
    }
    return Raw(codes[block], codes[at], codes[at + 1u], high, high_next, pair);
}

fn run_of(raw: Raw, i: u32) -> Run {
    let factors = unpack2x16float(raw.head.x);
    let packed = select(raw.head.yz & vec2(0x3f3f3f3fu), late(raw.head), raw.pair >= 2u);
    let six = (packed >> vec2(raw.pair % 2u * 16u + 8u * i)) & vec2(0xffu);
    var lo = (raw.low >> vec4(4u * i)) & vec4(0x0f0f0f0fu);
    var hi = (raw.low_next >> vec4(4u * i)) & vec4(0x0f0f0f0fu);
    if BITS == 5u {
        let group = vec4(2u * raw.pair + i);
        lo |= ((raw.high >> group) & vec4(0x01010101u)) << vec4(4u);
        hi |= ((raw.high_next >> group) & vec4(0x01010101u)) << vec4(4u);
    }
    return Run(lo, hi, vec2(factors.x * f32(six.x)), vec2(-(factors.y * f32(six.y))));
}

// The scales and the minimums of groups 4 to 7, a byte each.
fn late(head: vec4<u32>) -> vec2<u32> {
    let low = vec2(head.w, head.w >> 4u) & vec2(0x0f0f0f0fu);
    return low | ((head.yz >> vec2(2u)) & vec2(0x30303030u));
}

fn fill_table(thread: u32, threads: u32) {}
