// turn_back: brings what attention has summed up of values back to the model's own basis.
//
// Grid: x, heads; y, rows.
// import turn
const THREADS = 64u;
const HEADS = 9u;
const KV_HEADS = 3u;
const HEAD_LEN = 64u;
const OUT_STRIDE = 576u;
const OUT_OFFSET = 0u;

@group(0) @binding(0) var<storage, read_write> out: array<f32>;

var<workgroup> head: array<f32, HEAD_LEN>;

@compute @workgroup_size(THREADS)
fn turn_back(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = group.y * OUT_STRIDE + OUT_OFFSET + group.x * HEAD_LEN;
    for (var i = thread; i < HEAD_LEN; i += THREADS) {
        head[i] = out[at + i];
    }
    workgroupBarrier();
    turn_head(2u, group.x / (HEADS / KV_HEADS), thread);
    for (var i = thread; i < HEAD_LEN; i += THREADS) {
        out[at + i] = head[i];
    }
}
