// embed_float: rows of a table of floats.
//
// Grid: y, rows of the batch.
const THREADS = 256u;
const SCALE = 1.0;
const OUT_STRIDE = 576u;
const OUT_OFFSET = 0u;

@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;

// section
const FIRST_ROW = 0u;
const HEIGHT = 49152u;
// import type

fn copy_row(t: u32, row: u32, thread: u32) {
    for (var i = thread; i < COLS; i += THREADS) {
        out[t * OUT_STRIDE + OUT_OFFSET + i] = value(row, i) * SCALE;
    }
}
// end section

@compute @workgroup_size(THREADS)
fn embed_float(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let t = group.y;
    let token = tokens[t];
    // section
    if (token >= FIRST_ROW && token - FIRST_ROW < HEIGHT) {
        copy_row(t, token - FIRST_ROW, thread);
    }
    // end section
}
