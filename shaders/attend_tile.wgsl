// attend_tile: as attend, for many rows: a workgroup takes one head and QUERIES rows, walks along
// the cells CELLS at a time, and keeps the softmax up to date as it goes.
//
// The rows of a tile may belong to several sequences; each sequence has its own walk, in which the
// rows of the others are masked.
//
// Grid: x, heads; y, tiles of rows.
// import batch
// import cap
// import cache

const THREADS = 256u;
const QUERIES = 32u;
const CELLS = 32u;
const HEADS = 9u;
const KV_HEADS = 3u;
const HEAD_LEN = 64u;
const STRIDE = 960u;
const Q_OFFSET = 0u;
const OUT_STRIDE = 576u;
const OUT_OFFSET = 0u;
const SCALE = 0.125;
const CAP = 0.0; // none if zero
const WINDOW = 4294967295u;
const PAIRS = HEAD_LEN / 2u;
const EIGHTS = HEAD_LEN / 8u;
const LINE = PAIRS + 1u; // padded, so that rows begin in different banks
const OWN = QUERIES * PAIRS / THREADS; // pairs of results per thread

@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(0) var<storage, read> sequences: array<u32>;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;

var<workgroup> q: array<vec2<f32>, QUERIES * LINE>;
var<workgroup> kv: array<vec2<f32>, CELLS * LINE>;
var<workgroup> weights: array<f32, QUERIES * (CELLS + 1u)>;
var<workgroup> peaks: array<f32, QUERIES>;
var<workgroup> totals: array<f32, QUERIES>;
var<workgroup> fades: array<f32, QUERIES>; // what older sums are multiplied by
var<workgroup> seen: array<vec3<u32>, QUERIES>; // sequence, first cell, end of the cells

// The keys of CELLS cells from `base`, or their values; past the last cell, the last one again.
fn load_keys(base: u32, last: u32, thread: u32) {
    for (var i = thread; i < CELLS * EIGHTS; i += THREADS) {
        let c = min(i / EIGHTS, last);
        let eight = key_eight((base + c * KV_HEADS) * HEAD_LEN + 8u * (i % EIGHTS));
        put_eight(i, eight);
    }
}

fn load_values(base: u32, last: u32, thread: u32) {
    for (var i = thread; i < CELLS * EIGHTS; i += THREADS) {
        let c = min(i / EIGHTS, last);
        let eight = value_eight((base + c * KV_HEADS) * HEAD_LEN + 8u * (i % EIGHTS));
        put_eight(i, eight);
    }
}

fn put_eight(i: u32, eight: array<vec4<f32>, 2>) {
    let to = i / EIGHTS * LINE + 4u * (i % EIGHTS);
    kv[to] = eight[0].xy;
    kv[to + 1u] = eight[0].zw;
    kv[to + 2u] = eight[1].xy;
    kv[to + 3u] = eight[1].zw;
}

// Products of queries and keys, two by two per thread at a time.
fn score(thread: u32) {
    for (var i = thread; i < QUERIES * CELLS / 4u; i += THREADS) {
        let a = i / (CELLS / 2u);
        let b = i % (CELLS / 2u);
        var products = vec4(0.0);
        for (var p = 0u; p < PAIRS; p += 1u) {
            let q0 = q[a * LINE + p];
            let q1 = q[(a + QUERIES / 2u) * LINE + p];
            let k0 = kv[b * LINE + p];
            let k1 = kv[(b + CELLS / 2u) * LINE + p];
            products += vec4(dot(q0, k0), dot(q0, k1), dot(q1, k0), dot(q1, k1));
        }
        weights[a * (CELLS + 1u) + b] = products.x;
        weights[a * (CELLS + 1u) + b + CELLS / 2u] = products.y;
        weights[(a + QUERIES / 2u) * (CELLS + 1u) + b] = products.z;
        weights[(a + QUERIES / 2u) * (CELLS + 1u) + b + CELLS / 2u] = products.w;
    }
}

// Scores of one query to weights; what it has summed up so far fades as the maximum grows.
fn weigh(query: u32, sequence: u32, cell: u32) {
    let mine = seen[query];
    let at = query * (CELLS + 1u);
    var peak = peaks[query];
    for (var c = 0u; c < CELLS; c += 1u) {
        let is_seen = mine.x == sequence && cell + c >= mine.y && cell + c < mine.z;
        var score = weights[at + c];
        if (CAP > 0.0) {
            score = capped(score, CAP);
        }
        score = select(-3.4e38, score, is_seen);
        weights[at + c] = score;
        peak = max(peak, score);
    }
    let fade = exp(peaks[query] - peak);
    var total = totals[query] * fade;
    for (var c = 0u; c < CELLS; c += 1u) {
        let score = weights[at + c];
        let weight = select(exp(score - peak), 0.0, score <= -3.2e38);
        weights[at + c] = weight;
        total += weight;
    }
    peaks[query] = peak;
    totals[query] = total;
    fades[query] = fade;
}

// The walk of a sequence belongs to its first row in the tile; it covers the cells that all its
// rows see. No cells where `r` is not the first.
fn cells_of(first_row: u32, rows: u32, r: u32) -> vec2<u32> {
    let sequence = sequences[first_row + r];
    var begin = 0xffffffffu;
    var end = 0u;
    for (var other = 0u; other < rows; other += 1u) {
        if (sequences[first_row + other] == sequence) {
            if (other < r) {
                return vec2(0u);
            }
            let last = positions[first_row + other] + 1u;
            begin = min(begin, select(0u, last - WINDOW, last > WINDOW));
            end = max(end, last);
        }
    }
    return vec2(begin, end);
}

fn load_queries(first_row: u32, rows: u32, head: u32, thread: u32) {
    for (var i = thread; i < QUERIES * PAIRS; i += THREADS) {
        let row = first_row + min(i / PAIRS, rows - 1u);
        let at = row * STRIDE + Q_OFFSET + head * HEAD_LEN + 2u * (i % PAIRS);
        q[i / PAIRS * LINE + i % PAIRS] = vec2(qkv[at], qkv[at + 1u]) * SCALE;
    }
    if (thread < QUERIES) {
        let row = first_row + min(thread, rows - 1u);
        let end = positions[row] + 1u;
        seen[thread] = vec3(sequences[row], select(0u, end - WINDOW, end > WINDOW), end);
        peaks[thread] = -3.0e38;
        totals[thread] = 0.0;
    }
}

@compute @workgroup_size(THREADS)
fn attend_tile(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let head = group.x;
    let kv_head = head / (HEADS / KV_HEADS);
    let first_row = group.y * QUERIES;
    let rows = min(QUERIES, batch.rows - first_row);
    load_queries(first_row, rows, head, thread);
    // A thread owns one pair of values in every so manieth row.
    let own_query = thread / PAIRS;
    let own_pair = thread % PAIRS;
    var own: array<vec2<f32>, OWN>;
    // unroll
    for (var i = 0u; i < OWN; i += 1u) {
        own[i] = vec2(0.0);
    }
    for (var r = 0u; r < rows; r += 1u) {
        let sequence = sequences[first_row + r];
        let range = cells_of(first_row, rows, r);
        for (var cell = range.x; cell < range.y; cell += CELLS) {
            let base = (sequence * batch.context + cell) * KV_HEADS + kv_head;
            workgroupBarrier();
            load_keys(base, range.y - 1u - cell, thread);
            workgroupBarrier();
            score(thread);
            workgroupBarrier();
            load_values(base, range.y - 1u - cell, thread);
            if (thread < QUERIES) {
                weigh(thread, sequence, cell);
            }
            workgroupBarrier();
            // unroll
            for (var i = 0u; i < OWN; i += 1u) {
                own[i] *= fades[own_query + i * (THREADS / PAIRS)];
            }
            for (var c = 0u; c < CELLS; c += 1u) {
                let value = kv[c * LINE + own_pair];
                // unroll
                for (var i = 0u; i < OWN; i += 1u) {
                    let query = own_query + i * (THREADS / PAIRS);
                    own[i] += weights[query * (CELLS + 1u) + c] * value;
                }
            }
        }
    }
    // unroll
    for (var i = 0u; i < OWN; i += 1u) {
        let query = own_query + i * (THREADS / PAIRS);
        if (query < rows) {
            let row = (first_row + query) * OUT_STRIDE + OUT_OFFSET;
            let at = row + head * HEAD_LEN + 2u * own_pair;
            let result = own[i] / totals[query];
            out[at] = result.x;
            out[at + 1u] = result.y;
        }
    }
}
