// embed: rows of a table of small integers, turned back into the original basis.
//
// Grid: y, rows of the batch.
// import run
const THREADS = 256u;
const SEGMENT = 576u; // the whole row
const SCALE = 1.0;
const OUT_STRIDE = 576u;
const OUT_OFFSET = 0u;
// import line
// import turn

@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;

// section
const FIRST_ROW = 0u;
const HEIGHT = 49152u;
// import type

fn decode_row(t: u32, row: u32, thread: u32) {
    fill_table(thread, THREADS);
    workgroupBarrier();
    for (var chunk = thread; chunk < COLS / CHUNK; chunk += THREADS) {
        let raw = load_raw(row, chunk);
        // unroll
        for (var part = 0u; part < CHUNK / 32u; part += 1u) {
            let run = run_of(raw, part);
            // unroll
            for (var i = 0u; i < 4u; i += 1u) {
                let lo = vec4<f32>(unpack4xI8(run.lo[i])) * run.scale.x + run.low.x;
                let hi = vec4<f32>(unpack4xI8(run.hi[i])) * run.scale.y + run.low.y;
                // unroll
                for (var j = 0u; j < 4u; j += 1u) {
                    put_line(t, chunk * CHUNK + part * 32u + 4u * i + j, lo[j]);
                    put_line(t, chunk * CHUNK + part * 32u + 16u + 4u * i + j, hi[j]);
                }
            }
        }
    }
}
// end section

@compute @workgroup_size(THREADS)
fn embed(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let t = group.y;
    let token = tokens[t];
    begin_line(t * SEGMENT);
    // section
    if (token >= FIRST_ROW && token - FIRST_ROW < HEIGHT) {
        decode_row(t, token - FIRST_ROW, thread);
    }
    // end section
    sync();
    turn(t, thread);
    for (var i = thread; i < SEGMENT; i += THREADS) {
        let at = t * OUT_STRIDE + OUT_OFFSET + source_of(i);
        out[at] = turned(t, i) * sign_of(i) * SCALE;
    }
}
