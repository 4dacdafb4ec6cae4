// expert_mat_vec: rows of the matrices of chosen experts times int8 activations; see mat_vec.
//
//     out[choice][r] = sum over i of weight[expert of choice][r][i] * activation of choice[i]
//
// Grid: x, the blocks of an expert's rows; y, choices.
// import run
// import dot
// import reduce
// import out
// import activations
// import chosen

const THREADS = 128u;
const COLS = 2048u; // values of a row
const BLOCK_ROWS = 32u; // rows of weights per workgroup
const ACTIVATION_GROUP = 32u; // values that share an activation's scale
const OUT_STRIDE = 1536u;

// section
const HEIGHT = 98304u; // rows of this piece
const FIRST = 0u; // the first of them among those of all experts
const OUT_OFFSET = 0u; // where an expert's products go
// import type
// import product

fn multiply(block: u32, choice: u32, id: Invocation) {
    fill_table(id.thread, THREADS);
    workgroupBarrier();
    let expert = chosen[choice];
    let column = choice / SHARING;
    for (var step = 0u; step < BLOCK_ROWS; step += teams(id)) {
        let r = block * BLOCK_ROWS + step + team(id);
        let row = row_here(expert, r, FIRST, HEIGHT);
        var sum = 0.0;
        for (var chunk = lane(id); chunk < COLS / CHUNK; chunk += lanes(id)) {
            let raw = load_raw(min(row, HEIGHT - 1u), chunk);
            // unroll
            for (var part = 0u; part < CHUNK / 32u; part += 1u) {
                let at = chunk * CHUNK + part * 32u;
                let x = input[(column * COLS + at) / 16u];
                let y = input[(column * COLS + at) / 16u + 1u];
                sum += product(run_of(raw, part), x, y, scales_of(column, at));
            }
        }
        sum = reduce(id, sum);
        if (lane(id) == 0u && step + team(id) < BLOCK_ROWS && row < HEIGHT) {
            put(choice * OUT_STRIDE + OUT_OFFSET + r, sum);
        }
    }
}
// end section

@compute @workgroup_size(THREADS)
fn expert_mat_vec(@builtin(workgroup_id) group: vec3<u32>, id: Invocation) {
    // section
    multiply(group.x, group.y, id);
    // end section
}
