// attend: softmax(cap(scale * q K)) V over the cells that a row sees, for few rows.
//
// One row cannot fill a device, so its cells are split, and each split leaves a partial result; see
// shared/splits.wgsl. The query heads that share a key head share what is read of the cache.
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
const PAIRS = HEAD_LEN / 2u;

@group(0) @binding(0) var<storage, read> qkv: array<f32>;
@group(0) @binding(0) var<storage, read> sequences: array<u32>;
@group(0) @binding(0) var<storage, read_write> partials: array<f32>;

var<workgroup> q: array<vec2<f32>, SHARE * PAIRS>;
var<workgroup> scores: array<f32, SHARE * SPLIT_CELLS>;
var<workgroup> maxima: array<f32, SHARE>;
var<workgroup> sums: array<vec2<f32>, THREADS>;

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
    for (var i = thread; i < SHARE * PAIRS; i += THREADS) {
        let at = t * STRIDE + Q_OFFSET + kv_head * SHARE * HEAD_LEN + 2u * i;
        q[i] = vec2(qkv[at], qkv[at + 1u]) * SCALE;
    }
    workgroupBarrier();
    for (var c = thread; c < cells; c += THREADS) {
        var dots: array<f32, SHARE>;
        // unroll
        for (var h = 0u; h < SHARE; h += 1u) {
            dots[h] = 0.0;
        }
        for (var i = 0u; i < PAIRS; i += 1u) {
            let key = key_pair(base + c * KV_HEADS * HEAD_LEN + 2u * i);
            // unroll
            for (var h = 0u; h < SHARE; h += 1u) {
                dots[h] += dot(key, q[h * PAIRS + i]);
            }
        }
        // unroll
        for (var h = 0u; h < SHARE; h += 1u) {
            var score = dots[h];
            if (CAP > 0.0) {
                score = capped(score, CAP);
            }
            scores[h * SPLIT_CELLS + c] = score;
        }
    }
    workgroupBarrier();
    if (thread < SHARE) {
        var peak = -3.0e38;
        for (var c = 0u; c < cells; c += 1u) {
            peak = max(peak, scores[thread * SPLIT_CELLS + c]);
        }
        maxima[thread] = peak;
    }
    workgroupBarrier();
    for (var i = thread; i < SHARE * SPLIT_CELLS; i += THREADS) {
        if (i % SPLIT_CELLS < cells) {
            scores[i] = exp(scores[i] - maxima[i / SPLIT_CELLS]);
        }
    }
    workgroupBarrier();
    // Threads in bands of PAIRS (at most THREADS): a band takes every so manieth cell, a thread one
    // pair of values, for all heads.
    let bands = THREADS / PAIRS;
    let band = thread / PAIRS;
    let p = thread % PAIRS;
    var own: array<vec2<f32>, SHARE>;
    // unroll
    for (var h = 0u; h < SHARE; h += 1u) {
        own[h] = vec2(0.0);
    }
    if (band < bands) {
        for (var c = band; c < cells; c += bands) {
            let value = value_pair(base + c * KV_HEADS * HEAD_LEN + 2u * p);
            // unroll
            for (var h = 0u; h < SHARE; h += 1u) {
                own[h] += scores[h * SPLIT_CELLS + c] * value;
            }
        }
    }
    // unroll
    for (var h = 0u; h < SHARE; h += 1u) {
        sums[thread] = own[h];
        workgroupBarrier();
        if (band == 0u) {
            var sum = own[h];
            for (var b = 1u; b < bands; b += 1u) {
                sum += sums[b * PAIRS + p];
            }
            let at = partial_at(t, kv_head * SHARE + h, split) + 2u * p;
            partials[at] = sum.x;
            partials[at + 1u] = sum.y;
        }
        workgroupBarrier();
    }
    if (thread < SHARE) {
        var total = 0.0;
        for (var c = 0u; c < cells; c += 1u) {
            total += scores[thread * SPLIT_CELLS + c];
        }
        let at = partial_at(t, kv_head * SHARE + thread, split) + HEAD_LEN;
        partials[at] = maxima[thread];
        partials[at + 1u] = total;
    }
}
