// VPTQ_V*_K*: see formats/vptq.md. A code names a point of V rows in one column, and its upper bits
// perhaps a second point, or which numbers are turned; a thread takes the number that is its row's,
// or all of them. Codes follow each other bit by bit, 32 of them in WIDTH words. Points are padded
// to STRIDE words; where there are few, the workgroup has COPIES of their words, side by side, and
// each thread reads its own, so that neighbours meet in fewer banks.

const COLS = 64u;
const GROUP = 32u;
const CHUNK = 32u;
const MINS = false;
const SPLIT = GROUP % 32u != 0u;
const V = 8u; // rows of a point
const STRIDE = 2u; // words of a point
const BITS = 12u; // of the first code
const MORE = 8u; // bits of the second code; 0 for none
const SIGNS = 0u; // 1 where the rest of a code are signs
const WIDTH = 20u; // bits of all
const KEPT = 0u; // words of the table that the workgroup has: all or none
const COPIES = 1u;
const SKIP = 0u; // rows of the first block that are another matrix's

@group(0) @binding(0) var<storage, read> codes: array<u32>;
@group(0) @binding(1) var<storage, read> table: array<u32>;
// import norms

var<workgroup> points: array<u32, max(KEPT, 1u) * COPIES>;
var<private> copy: u32;

struct Raw {
    // One more than there are: what the last code does not need.
    words: array<u32, WIDTH + 1u>,
    // The place of the row in its points.
    place: u32,
    norms: vec2<u32>,
    // How far up in their words the norms are.
    shifts: vec2<u32>,
}

fn load_raw(row: u32, chunk: u32) -> Raw {
    var raw: Raw;
    let here = row + SKIP;
    let word = (here / V * (COLS / CHUNK) + chunk) * WIDTH;
    // unroll
    for (var i = 0u; i < WIDTH; i += 1u) {
        raw.words[i] = codes[word + i];
    }
    let at = norms_at(row, chunk * CHUNK);
    raw.place = here % V;
    raw.norms = vec2(norms[at.x / 2u], norms[at.y / 2u]);
    raw.shifts = at % 2u * 16u;
    return raw;
}

fn run_of(raw: Raw, i: u32) -> Run {
    var bytes: array<u32, 8>;
    // unroll
    for (var j = 0u; j < 32u; j += 1u) {
        var code = raw.words[j * WIDTH / 32u] >> (j * WIDTH % 32u);
        if (j * WIDTH % 32u + WIDTH > 32u) {
            code |= raw.words[j * WIDTH / 32u + 1u] << ((32u - j * WIDTH % 32u) % 32u);
        }
        bytes[j / 4u] |= (number(code, raw.place) & 0xffu) << (j % 4u * 8u);
    }
    return Run(
        vec4(bytes[0], bytes[1], bytes[2], bytes[3]),
        vec4(bytes[4], bytes[5], bytes[6], bytes[7]),
        norm_scales(raw.norms, raw.shifts),
        vec2(0.0),
    );
}

fn number(code: u32, place: u32) -> u32 {
    var sum = entry(code & ((1u << BITS) - 1u), place);
    if (SIGNS > 0u) {
        sum = max(sum, -127);
        sum = select(sum, -sum, (signs_of(code) >> place & 1u) == 1u);
    }
    if (MORE > 0u) {
        sum += entry((1u << BITS) + ((code >> BITS) & ((1u << MORE) - 1u)), place);
    }
    return u32(clamp(sum, -127, 127));
}

fn entry(point: u32, place: u32) -> i32 {
    return extractBits(i32(entries(point * STRIDE + place / 4u)), place % 4u * 8u, 8u);
}

// Four numbers of points.
fn entries(word: u32) -> u32 {
    if (KEPT > 0u) {
        return points[word * COPIES + copy];
    }
    return table[word];
}

// A bit for each number; the last one makes the number of minus signs even.
fn signs_of(code: u32) -> u32 {
    let signs = (code >> BITS) & ((1u << (V - 1u)) - 1u);
    return signs | (countOneBits(signs) & 1u) << (V - 1u);
}

// Four of the numbers that a code stands for.
fn four(code: u32, word: u32) -> vec4<i32> {
    let first = unpack4xI8(entries((code & ((1u << BITS) - 1u)) * STRIDE + word));
    if (SIGNS > 0u) {
        let signs = vec4(signs_of(code) >> (4u * word)) >> vec4(0u, 1u, 2u, 3u);
        let minus = -vec4<i32>(signs & vec4(1u));
        return (max(first, vec4(-127)) ^ minus) - minus;
    }
    if (MORE == 0u) {
        return max(first, vec4(-127));
    }
    let second = (1u << BITS) + ((code >> BITS) & ((1u << MORE) - 1u));
    return clamp(first + unpack4xI8(entries(second * STRIDE + word)), vec4(-127), vec4(127));
}

fn fill_table(thread: u32, threads: u32) {
    copy = thread % COPIES;
    for (var i = thread; i < KEPT * COPIES; i += threads) {
        points[i] = table[i / COPIES];
    }
}
