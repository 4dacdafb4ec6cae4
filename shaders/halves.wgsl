enable f16;
// halves: int8 activations to half-precision numbers, for mat_mat_f16.
//
// A value keeps its integer, times its scale over the largest scale of its row, so that it fits a
// half whatever its size; the largest scale is kept beside the row.
//
// Grid: y, rows.
const THREADS = 256u;
const COLS = 576u; // values of a row
const ACTIVATION_GROUP = 32u; // values that share a scale

@group(0) @binding(0) var<storage, read> input: array<u32>;
@group(0) @binding(0) var<storage, read> input_scales: array<f32>;
@group(0) @binding(0) var<storage, read_write> to: array<vec4<f16>>;
@group(0) @binding(0) var<storage, read_write> peaks: array<f32>;

var<workgroup> largest: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn halves(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let t = group.y;
    var peak = 0.0;
    for (var i = thread; i < COLS / ACTIVATION_GROUP; i += THREADS) {
        peak = max(peak, input_scales[t * (COLS / ACTIVATION_GROUP) + i]);
    }
    largest[thread] = peak;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if (thread < half) {
            largest[thread] = max(largest[thread], largest[thread + half]);
        }
        workgroupBarrier();
    }
    peak = largest[0];
    if (thread == 0u) {
        peaks[t] = peak;
    }
    for (var i = thread; i < COLS / 4u; i += THREADS) {
        let scale = input_scales[(t * COLS + 4u * i) / ACTIVATION_GROUP];
        let share = select(scale / peak, 0.0, peak == 0.0);
        let values = vec4<f32>(unpack4xI8(input[t * (COLS / 4u) + i]));
        to[t * (COLS / 4u) + i] = vec4<f16>(values * share);
    }
}
