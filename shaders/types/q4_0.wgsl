// Q4_0, Q4_1, Q5_0, Q5_1: see formats/q4_0.md and the others.
//
// A block is a scale, a minimum if the type has one, the fifth bits if it has five, and the halves
// of bytes. Without a minimum every other block begins in the middle of a word; either way it lies
// in the same number of words, which are kept as loaded, and moved into place when needed.

const COLS = 64u;
const CHUNK = 32u;
const BITS = 4u;
const MIN_COUNT = 0u;
const BLOCK_HALVES = 1u + MIN_COUNT + 2u * (BITS - 4u) + 8u;
const MINS = MIN_COUNT == 1u;
const SPLIT = false;

@group(0) @binding(0) var<storage, read> codes: array<u32>;

struct Raw {
    first: u32,
    next: vec4<u32>,
    // Only with five bits.
    last: u32,
    // How far up in the first word the scale is.
    shift: u32,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    let half = (row * (COLS / CHUNK) + chunk) * BLOCK_HALVES;
    let at = half / 2u;
    let next = vec4(codes[at + 1u], codes[at + 2u], codes[at + 3u], codes[at + 4u]);
    var last = 0u;
    if BITS == 5u {
        last = codes[at + 5u];
    }
    return Raw(codes[at], next, last, half % 2u * 16u);
}

fn run_of(raw: Raw, i: u32) -> Run {
    let scale = unpack2x16float(raw.first >> raw.shift).x;
    // What follows the scale and the minimum, as words.
    let aligned = MINS || raw.shift == 16u;
    let before = vec4(raw.first, raw.next.xyz);
    let body = select((before >> vec4(16u)) | (raw.next << vec4(16u)), raw.next, aligned);
    let end = select((raw.next.w >> 16u) | (raw.last << 16u), raw.last, aligned);
    var bytes = body;
    if BITS == 5u {
        bytes = vec4(body.yzw, end);
    }
    // The low halves of the bytes are the first 16 values, the high halves the last 16.
    var lo = bytes & vec4(0x0f0f0f0fu);
    var hi = (bytes >> vec4(4u)) & vec4(0x0f0f0f0fu);
    if BITS == 5u {
        lo |= fifths(body.x);
        hi |= fifths(body.x >> 16u);
    }
    if MINS {
        return Run(lo, hi, vec2(scale), vec2(unpack2x16float(raw.first).y));
    }
    return Run(centred(lo), centred(hi), vec2(scale), vec2(0.0));
}

// The lowest 16 bits as the fifth bits of 16 bytes.
fn fifths(bits: u32) -> vec4<u32> {
    // Each of four bits times the power that takes it to its byte; what else comes is masked.
    let fours = (vec4(bits) >> vec4(0u, 4u, 8u, 12u)) & vec4(0xfu);
    return (fours * 0x02040810u) & vec4(0x10101010u);
}

// Half the range less, in each byte.
fn centred(q: vec4<u32>) -> vec4<u32> {
    // Adding 128 less than that carries nowhere, and the top bit takes the 128 back.
    const HALF = 1u << (BITS - 1u);
    return (q + vec4((128u - HALF) * 0x01010101u)) ^ vec4(0x80808080u);
}

fn fill_table(thread: u32, threads: u32) {}
