// combine: the output of attention from the partial results of its splits; where a matrix follows
// at once, its prepare does the same on the way.
//
// Grid: x, runs of a row; y, rows.
// import input_splits
const THREADS = 256u;
const WIDTH = 576u;
const OUT_STRIDE = 576u;
const OUT_OFFSET = 0u;

@group(0) @binding(0) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(THREADS)
fn combine(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let c = group.x * THREADS + thread;
    if (c < WIDTH) {
        out[group.y * OUT_STRIDE + OUT_OFFSET + c] = input_value(group.y, c);
    }
}
