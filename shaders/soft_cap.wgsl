// soft_cap: x = cap * tanh(x / cap).
//
// Grid: x, runs of a row; y, rows.
const THREADS = 256u;
const WIDTH = 49152u;
const OUT_STRIDE = 49152u;
const OUT_OFFSET = 0u;
const CAP = 30.0;
// import cap

@group(0) @binding(0) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(THREADS)
fn soft_cap(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let c = group.x * THREADS + thread;
    if (c < WIDTH) {
        let at = group.y * OUT_STRIDE + OUT_OFFSET + c;
        out[at] = capped(out[at], CAP);
    }
}
