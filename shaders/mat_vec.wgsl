// mat_vec: rows of quantised weights times up to eight rows of int8 activations.
//
//     out[column][row] = sum over i of weight[row][i] * activation[column][i]
//
// A team of lanes takes ROWS rows at a time and walks along them, a chunk per lane, so that loads
// are wide and next to each other and each activation serves ROWS rows. Integers are multiplied
// exactly in runs of 32 and scaled once per run. Matrices of one input are one dispatch: each is a
// section with a range of workgroups.
//
// Grid: x, the blocks of all sections.
// import run
// import dot
// import reduce
// import out
// import extent

const THREADS = 128u;
const COLS = 576u; // values of a row
const COLUMNS = 1u; // rows of activations at once
const ROWS = 2u; // rows of weights at once, per team
const BLOCK_ROWS = 32u; // rows of weights per workgroup
const ACTIVATION_GROUP = 32u; // values that share an activation's scale
const OUT_STRIDE = 576u;

@group(0) @binding(0) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(0) var<storage, read> input_scales: array<f32>;

// The scales of the two halves of a run of an activation.
fn scales_of(column: u32, at: u32) -> vec2<f32> {
    let index = (column * COLS + at) / ACTIVATION_GROUP;
    if (ACTIVATION_GROUP >= 32u) {
        return vec2(input_scales[index]);
    }
    return vec2(input_scales[index], input_scales[index + 1u]);
}

// section
const HEIGHT = 576u; // rows of this matrix
const OUT_OFFSET = 0u; // where its products go
const BLOCKS = 18u; // workgroups of this matrix
// import type
// import bias

fn product(run: Run, x: vec4<u32>, y: vec4<u32>, scale: vec2<f32>) -> f32 {
    var value: f32;
    if (SPLIT || ACTIVATION_GROUP < 32u) {
        value = dot16(run.lo, x) * (run.scale.x * scale.x)
            + dot16(run.hi, y) * (run.scale.y * scale.y);
    } else {
        value = dot32(run.lo, run.hi, x, y) * (run.scale.x * scale.x);
    }
    if (MINS) {
        value += sum16(x) * (run.low.x * scale.x) + sum16(y) * (run.low.y * scale.y);
    }
    return value;
}

fn multiply(block: u32, id: Invocation) {
    fill_table(id.thread, THREADS);
    workgroupBarrier();
    let columns = extent();
    for (var step = 0u; step < BLOCK_ROWS; step += teams(id) * ROWS) {
        let row = block * BLOCK_ROWS + step + team(id) * ROWS;
        var sums: array<f32, ROWS * COLUMNS>;
        // unroll
        for (var i = 0u; i < ROWS * COLUMNS; i += 1u) {
            sums[i] = 0.0;
        }
        for (var chunk = lane(id); chunk < COLS / CHUNK; chunk += lanes(id)) {
            var raw: array<Raw, ROWS>;
            // unroll
            for (var r = 0u; r < ROWS; r += 1u) {
                raw[r] = load_raw(min(row + r, HEIGHT - 1u), chunk);
            }
            // unroll
            for (var part = 0u; part < CHUNK / 32u; part += 1u) {
                let at = chunk * CHUNK + part * 32u;
                var runs: array<Run, ROWS>;
                // unroll
                for (var r = 0u; r < ROWS; r += 1u) {
                    runs[r] = run_of(raw[r], part);
                }
                // unroll
                for (var c = 0u; c < COLUMNS; c += 1u) {
                    let column = min(c, columns - 1u);
                    let x = input[(column * COLS + at) / 16u];
                    let y = input[(column * COLS + at) / 16u + 1u];
                    let scale = scales_of(column, at);
                    // unroll
                    for (var r = 0u; r < ROWS; r += 1u) {
                        sums[r * COLUMNS + c] += product(runs[r], x, y, scale);
                    }
                }
            }
        }
        // unroll
        for (var r = 0u; r < ROWS; r += 1u) {
            // unroll
            for (var c = 0u; c < COLUMNS; c += 1u) {
                let sum = reduce(id, sums[r * COLUMNS + c]);
                let is_ours = lane(id) == 0u && step + team(id) * ROWS + r < BLOCK_ROWS;
                if (is_ours && row + r < HEIGHT && c < columns) {
                    put(c * OUT_STRIDE + OUT_OFFSET + row + r, sum + bias_of(row + r));
                }
            }
        }
    }
}
// end section

@compute @workgroup_size(THREADS)
fn mat_vec(@builtin(workgroup_id) group: vec3<u32>, id: Invocation) {
    var block = group.x;
    // section
    if (block < BLOCKS) {
        multiply(block, id);
        return;
    }
    block -= BLOCKS;
    // end section
}
