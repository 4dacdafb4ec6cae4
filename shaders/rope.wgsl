// rope: rotates queries and keys by position, after a norm of each head where the model has one,
// turns them into the basis of the cache, and writes keys and values to it.
//
// Grid: x, the heads of q, then of k, then of v; y, rows.
const THREADS = 64u;
const HEADS = 9u;
const KV_HEADS = 3u;
const HEAD_LEN = 64u;
const PAIRS = 32u; // of values that turn; what is past them stays
const HALVES = false; // a pair is i and i + PAIRS, or 2 i and 2 i + 1
const STRIDE = 960u;
const Q_OFFSET = 0u;
const K_OFFSET = 576u;
const V_OFFSET = 768u;
const Q_NORM = false;
const K_NORM = false;
const Q_EPSILON = 1e-6;
const K_EPSILON = 1e-6;
// import batch
// import sum
// import cache
// import turn

@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
@group(0) @binding(0) var<storage, read> turns: array<f32>;
@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(0) var<storage, read> sequences: array<u32>;
@group(0) @binding(0) var<storage, read> q_norm: array<f32>;
@group(0) @binding(0) var<storage, read> k_norm: array<f32>;

var<workgroup> head: array<f32, HEAD_LEN>;

fn norm(is_query: bool, thread: u32) {
    var squares = 0.0;
    for (var i = thread; i < HEAD_LEN; i += THREADS) {
        squares += head[i] * head[i];
    }
    let mean = sum_of_all(squares, thread) / f32(HEAD_LEN);
    let factor = 1.0 / sqrt(mean + select(K_EPSILON, Q_EPSILON, is_query));
    for (var i = thread; i < HEAD_LEN; i += THREADS) {
        if (is_query) {
            head[i] *= factor * q_norm[i];
        } else {
            head[i] *= factor * k_norm[i];
        }
    }
    workgroupBarrier();
}

@compute @workgroup_size(THREADS)
fn rope(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let t = group.y;
    let is_query = group.x < HEADS;
    let is_key = !is_query && group.x < HEADS + KV_HEADS;
    var at = t * STRIDE;
    if (is_query) {
        at += Q_OFFSET + group.x * HEAD_LEN;
    } else if (is_key) {
        at += K_OFFSET + (group.x - HEADS) * HEAD_LEN;
    } else {
        at += V_OFFSET + (group.x - HEADS - KV_HEADS) * HEAD_LEN;
    }
    for (var i = thread; i < HEAD_LEN; i += THREADS) {
        head[i] = qkv[at + i];
    }
    workgroupBarrier();
    if ((is_query && Q_NORM) || (is_key && K_NORM)) {
        norm(is_query, thread);
    }
    let kv_head = select((group.x - HEADS) % KV_HEADS, group.x / (HEADS / KV_HEADS), is_query);
    if (is_query || is_key) {
        for (var i = thread; i < PAIRS; i += THREADS) {
            let a = select(2u * i, i, HALVES);
            let b = select(2u * i + 1u, i + PAIRS, HALVES);
            let cos = turns[(t * PAIRS + i) * 2u];
            let sin = turns[(t * PAIRS + i) * 2u + 1u];
            let x = head[a];
            let y = head[b];
            head[a] = x * cos - y * sin;
            head[b] = x * sin + y * cos;
        }
        workgroupBarrier();
        turn_head(0u, kv_head, thread);
        for (var i = thread; i < HEAD_LEN; i += THREADS) {
            qkv[at + i] = head[i];
        }
    } else {
        turn_head(1u, kv_head, thread);
    }
    if (!is_query) {
        let cell = sequences[t] * batch.context + positions[t];
        write_head(is_key, cell * KV_HEADS + kv_head, thread);
    }
}
