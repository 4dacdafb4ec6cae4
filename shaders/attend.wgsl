// attend: softmax(cap(scale * q K)) V over the cells that a row sees, for few rows.
//
// One row cannot fill a device, so its cells are split, and each split leaves a partial result; see
// shared/splits.wgsl. The query heads that share a key head share what is read of the cache, eight
// values at a time.
//
// Grid: x, splits; y, key heads; z, rows. A workgroup past the splits of its row returns.
// import batch
// import splits
// import cap
// import cache

const THREADS = 128u;
const KV_HEADS = 3u;
const SHARE = 3u; // query heads per key head
const STRIDE = 960u;
const Q_OFFSET = 0u;
const SCALE = 0.125;
const CAP = 0.0; // none if zero
const EIGHTS = HEAD_LEN / 8u;
const BANDS = THREADS / EIGHTS; // threads that share the cells of eight values
const HALVES = 2u; // threads that share a key
const LANES = 16u; // threads that look for a maximum or a sum

@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(0) var<storage, read> sequences: array<u32>;
@group(0) @binding(0) var<storage, read_write> partials: array<f32>;

var<workgroup> q: array<vec4<f32>, SHARE * EIGHTS * 2u>;
var<workgroup> scores: array<f32, SHARE * SPLIT_CELLS * HALVES>;
var<workgroup> lanes: array<f32, SHARE * LANES>;
var<workgroup> totals: array<f32, SHARE * LANES>;
var<workgroup> sums: array<vec4<f32>, THREADS * 2u>;

// Two threads to a cell: every other eight of its key each.
fn score(base: u32, cells: u32, thread: u32) {
    for (var i = thread; i < cells * HALVES; i += THREADS) {
        let c = i / HALVES;
        var dots: array<f32, SHARE>;
        // unroll
        for (var h = 0u; h < SHARE; h += 1u) {
            dots[h] = 0.0;
        }
        for (var e = i % HALVES; e < EIGHTS; e += HALVES) {
            let key = key_eight(base + c * KV_HEADS * HEAD_LEN + 8u * e);
            // unroll
            for (var h = 0u; h < SHARE; h += 1u) {
                let at = (h * EIGHTS + e) * 2u;
                dots[h] += dot(key[0], q[at]) + dot(key[1], q[at + 1u]);
            }
        }
        // unroll
        for (var h = 0u; h < SHARE; h += 1u) {
            scores[(h * SPLIT_CELLS + c) * HALVES + i % HALVES] = dots[h];
        }
    }
    workgroupBarrier();
}

// Scores to weights; the largest score of a head stays beside each weight.
fn weigh(cells: u32, thread: u32) {
    for (var i = thread; i < SHARE * LANES; i += THREADS) {
        var peak = -3.0e38;
        for (var c = i % LANES; c < cells; c += LANES) {
            let at = (i / LANES * SPLIT_CELLS + c) * HALVES;
            var score = scores[at] + scores[at + 1u];
            if (CAP > 0.0) {
                score = capped(score, CAP);
            }
            scores[at] = score;
            peak = max(peak, score);
        }
        lanes[i] = peak;
    }
    workgroupBarrier();
    // Every lane finds the maximum of its head by itself, then weighs its cells.
    for (var i = thread; i < SHARE * LANES; i += THREADS) {
        var peak = -3.0e38;
        for (var l = 0u; l < LANES; l += 1u) {
            peak = max(peak, lanes[i / LANES * LANES + l]);
        }
        var total = 0.0;
        for (var c = i % LANES; c < cells; c += LANES) {
            let at = (i / LANES * SPLIT_CELLS + c) * HALVES;
            let weight = exp(scores[at] - peak);
            scores[at] = weight;
            scores[at + 1u] = peak;
            total += weight;
        }
        totals[i] = total;
    }
    workgroupBarrier();
}

// Leaves one head's sums, added up over the bands, by a thread per vector of four.
fn leave(at: u32, low: vec4<f32>, high: vec4<f32>, thread: u32) {
    workgroupBarrier();
    sums[2u * thread] = low;
    sums[2u * thread + 1u] = high;
    workgroupBarrier();
    if (thread < 2u * EIGHTS) {
        var sum = sums[thread];
        for (var b = 1u; b < BANDS; b += 1u) {
            sum += sums[b * 2u * EIGHTS + thread];
        }
        // unroll
        for (var i = 0u; i < 4u; i += 1u) {
            partials[at + 4u * thread + i] = sum[i];
        }
    }
}

// A thread takes eight values of every so manieth cell, for all heads.
fn add_values(base: u32, cells: u32, to: u32, thread: u32) {
    let band = thread / EIGHTS;
    let e = thread % EIGHTS;
    var low: array<vec4<f32>, SHARE>;
    var high: array<vec4<f32>, SHARE>;
    // unroll
    for (var h = 0u; h < SHARE; h += 1u) {
        low[h] = vec4(0.0);
        high[h] = vec4(0.0);
    }
    if (band < BANDS) {
        for (var c = band; c < cells; c += BANDS) {
            let value = value_eight(base + c * KV_HEADS * HEAD_LEN + 8u * e);
            // unroll
            for (var h = 0u; h < SHARE; h += 1u) {
                let weight = scores[(h * SPLIT_CELLS + c) * HALVES];
                low[h] += weight * value[0];
                high[h] += weight * value[1];
            }
        }
    }
    // unroll
    for (var h = 0u; h < SHARE; h += 1u) {
        leave(to + h * SPLITS_MAX * PARTIAL, low[h], high[h], thread);
    }
}

@compute @workgroup_size(THREADS)
fn attend(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let split = group.x;
    let kv_head = group.y;
    let t = group.z;
    if (split >= splits_of(t)) {
        return;
    }
    let first = first_cell(t) + split * SPLIT_CELLS;
    let cells = min(SPLIT_CELLS, positions[t] + 1u - first);
    let base = ((sequences[t] * batch.context + first) * KV_HEADS + kv_head) * HEAD_LEN;
    for (var i = thread; i < SHARE * EIGHTS * 2u; i += THREADS) {
        let at = t * STRIDE + Q_OFFSET + kv_head * SHARE * HEAD_LEN + 4u * i;
        q[i] = vec4(qkv[at], qkv[at + 1u], qkv[at + 2u], qkv[at + 3u]) * SCALE;
    }
    workgroupBarrier();
    score(base, cells, thread);
    weigh(cells, thread);
    let to = partial_at(t, kv_head * SHARE, split);
    for (var h = thread; h < SHARE; h += THREADS) {
        var total = 0.0;
        for (var l = 0u; l < LANES; l += 1u) {
            total += totals[h * LANES + l];
        }
        let at = to + h * SPLITS_MAX * PARTIAL + HEAD_LEN;
        partials[at] = scores[h * SPLIT_CELLS * HALVES + 1u];
        partials[at + 1u] = total;
    }
    add_values(base, cells, to, thread);
}
