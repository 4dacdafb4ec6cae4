// Q6_K: see formats/q6_k.md.
//
// A chunk is half a block: the low bits of its four runs of 32 are the halves of 64 bytes, the high
// bits quarters of 32 bytes. A block is 105 halves of words, so every other block begins in the
// middle of a word; words are kept as loaded, and moved into place when their values are needed.

const COLS = 256u;
const CHUNK = 128u;
const BLOCK_HALVES = 105u;
// In words from the first of the block.
const HIGH = 32u;
const SCALES = 48u;
const FACTOR = 52u;
const MINS = false;
const SPLIT = true;

@group(0) @binding(0) var<storage, read> codes: array<u32>;

struct Raw {
    low0: vec4<u32>,
    low1: vec4<u32>,
    low2: vec4<u32>,
    low3: vec4<u32>,
    low_end: u32,
    high0: vec4<u32>,
    high1: vec4<u32>,
    high_end: u32,
    scales: vec3<u32>,
    factor: u32,
    // Whether the block begins in the middle of a word.
    odd: bool,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    let half = (row * (COLS / 256u) + chunk / 2u) * BLOCK_HALVES;
    let at = half / 2u;
    let low = at + chunk % 2u * 16u;
    let high = at + HIGH + chunk % 2u * 8u;
    let scales = at + SCALES + chunk % 2u * 2u;
    return Raw(
        four_words(low),
        four_words(low + 4u),
        four_words(low + 8u),
        four_words(low + 12u),
        codes[low + 16u],
        four_words(high),
        four_words(high + 4u),
        codes[high + 8u],
        vec3(codes[scales], codes[scales + 1u], codes[scales + 2u]),
        codes[at + FACTOR],
        half % 2u == 1u,
    );
}

fn four_words(at: u32) -> vec4<u32> {
    return vec4(codes[at], codes[at + 1u], codes[at + 2u], codes[at + 3u]);
}

fn run_of(raw: Raw, i: u32) -> Run {
    let factor = unpack2x16float(select(raw.factor, raw.factor >> 16u, raw.odd)).x;
    let ahead = i % 2u == 1u;
    let low_lo = select(raw.low0, raw.low2, ahead);
    let low_hi = select(raw.low1, raw.low3, ahead);
    let low_end = select(raw.low2.x, raw.low_end, ahead);
    let low0 = placed(low_lo, low_hi.x, raw.odd);
    let low1 = placed(low_hi, low_end, raw.odd);
    let high0 = placed(raw.high0, raw.high1.x, raw.odd);
    let high1 = placed(raw.high1, raw.high_end, raw.odd);
    let scales = placed(vec4(raw.scales, 0u), 0u, raw.odd).xy;
    let bytes = select(scales.x, scales.y, i >= 2u) >> (i % 2u * 16u);
    let signed = vec2<f32>(unpack4xI8(bytes).xy);
    return Run(joined(low0, high0, i), joined(low1, high1, i), factor * signed, vec2(0.0));
}

// Four words of a block, and `next` the word after them.
fn placed(words: vec4<u32>, next: u32, odd: bool) -> vec4<u32> {
    let later = vec4(words.yzw, next);
    return select(words, (words >> vec4(16u)) | (later << vec4(16u)), odd);
}

fn joined(low: vec4<u32>, high: vec4<u32>, i: u32) -> vec4<u32> {
    let four = (low >> vec4(i / 2u * 4u)) & vec4(0x0f0f0f0fu);
    let two = (high >> vec4(2u * i)) & vec4(0x03030303u);
    let six = four | (two << vec4(4u));
    // Less 32: adding 96 carries nowhere, and the top bit takes 128 back.
    return (six + vec4(0x60606060u)) ^ vec4(0x80808080u);
}

fn fill_table(thread: u32, threads: u32) {}
