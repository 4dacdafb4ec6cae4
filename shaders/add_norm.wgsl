// add_norm: x += norm(y).
//
// Grid: y, rows.
const THREADS = 256u;
const WIDTH = 640u;
const Y_STRIDE = 640u;
const Y_OFFSET = 0u;
const OUT_STRIDE = 640u;
const OUT_OFFSET = 0u;

@group(0) @binding(0) var<storage, read> y: array<f32>;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;

fn input_value(t: u32, c: u32) -> f32 {
    return y[t * Y_STRIDE + Y_OFFSET + c];
}
// import norm_rms

@compute @workgroup_size(THREADS)
fn add_norm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let t = group.y;
    let factor = norm_factor(t, thread);
    for (var c = thread; c < WIDTH; c += THREADS) {
        out[t * OUT_STRIDE + OUT_OFFSET + c] += normed(input_value(t, c), c, factor);
    }
}
