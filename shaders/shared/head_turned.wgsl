// A head times the matrix of its key head, for keys (way 0), values (1) or values back (2). Rows
// are inputs, so that neighbouring threads read neighbouring values.
const MATRICES = 1u; // per way: one, or one for every key head
const OWN_VALUES = (HEAD_LEN + THREADS - 1u) / THREADS;

@group(0) @binding(0) var<storage, read> basis: array<f32>;

fn turn_head(way: u32, kv_head: u32, thread: u32) {
    let base = (way * MATRICES + kv_head % MATRICES) * HEAD_LEN * HEAD_LEN;
    var own: array<f32, OWN_VALUES>;
    for (var k = 0u; k < OWN_VALUES; k += 1u) {
        let to = thread + k * THREADS;
        var sum = 0.0;
        if (to < HEAD_LEN) {
            for (var i = 0u; i < HEAD_LEN; i += 1u) {
                sum += head[i] * basis[base + i * HEAD_LEN + to];
            }
        }
        own[k] = sum;
    }
    workgroupBarrier();
    for (var k = 0u; k < OWN_VALUES; k += 1u) {
        let to = thread + k * THREADS;
        if (to < HEAD_LEN) {
            head[to] = own[k];
        }
    }
    workgroupBarrier();
}
