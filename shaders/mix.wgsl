// mix: x[t] += sum over i of shares[t][i] * y[t * USED + i].
//
// Grid: x, blocks of 256 values; y, rows.
const WIDTH = 2048u;
const USED = 8u;
const Y_STRIDE = 2048u;
const Y_OFFSET = 0u;
const OUT_STRIDE = 2048u;
const OUT_OFFSET = 0u;

@group(0) @binding(0) var<storage, read> y: array<f32>;
@group(0) @binding(0) var<storage, read> shares: array<f32>;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn mix(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let t = group.y;
    let c = group.x * 256u + thread;
    if (c >= WIDTH) {
        return;
    }
    var sum = 0.0;
    for (var i = t * USED; i < (t + 1u) * USED; i += 1u) {
        sum += shares[i] * y[i * Y_STRIDE + Y_OFFSET + c];
    }
    out[t * OUT_STRIDE + OUT_OFFSET + c] += sum;
}
