// Q8_0: see formats/q8_0.md.
//
// A block is 17 halves of words, so every other block begins in the middle of a word. Either way it
// lies in nine words; they are kept as loaded, and moved into place when their values are needed.

const COLS = 64u;
const CHUNK = 32u;
const BLOCK_HALVES = 17u;
const MINS = false;
const SPLIT = false;

@group(0) @binding(0) var<storage, read> codes: array<u32>;

struct Raw {
    first: vec4<u32>,
    next: vec4<u32>,
    last: u32,
    // Whether the scale is the upper half of the first word, so that the values are whole words.
    aligned: bool,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    let half = (row * (COLS / CHUNK) + chunk) * BLOCK_HALVES;
    let at = half / 2u;
    return Raw(
        vec4(codes[at], codes[at + 1u], codes[at + 2u], codes[at + 3u]),
        vec4(codes[at + 4u], codes[at + 5u], codes[at + 6u], codes[at + 7u]),
        codes[at + 8u],
        half % 2u == 1u,
    );
}

fn run_of(raw: Raw, i: u32) -> Run {
    let scale = unpack2x16float(select(raw.first.x, raw.first.x >> 16u, raw.aligned)).x;
    return Run(
        joined(raw.first, vec4(raw.first.yzw, raw.next.x), raw.aligned),
        joined(raw.next, vec4(raw.next.yzw, raw.last), raw.aligned),
        vec2(scale),
        vec2(0.0),
    );
}

// Words that begin in the middle of `first`, or are `second`.
fn joined(first: vec4<u32>, second: vec4<u32>, aligned: bool) -> vec4<u32> {
    return select((first >> vec4(16u)) | (second << vec4(16u)), second, aligned);
}

fn fill_table(thread: u32, threads: u32) {}
