// expert_mat_vec_float: rows of the plain matrices of chosen experts times float activations; see
// expert_mat_vec.
//
// Grid: x, the blocks of an expert's rows; y, choices.
// import reduce
// import out
// import chosen

const THREADS = 128u;
const COLS = 2048u; // values of a row
const BLOCK_ROWS = 32u; // rows of weights per workgroup
const IN_STRIDE = 2048u;
const IN_OFFSET = 0u;
const OUT_STRIDE = 1536u;

@group(0) @binding(0) var<storage, read> input: array<f32>;

// section
const HEIGHT = 98304u; // rows of this piece
const FIRST = 0u; // the first of them among those of all experts
const OUT_OFFSET = 0u; // where an expert's products go
// import type

fn multiply(block: u32, choice: u32, id: Invocation) {
    let expert = chosen[choice];
    let x = choice / SHARING * IN_STRIDE + IN_OFFSET;
    for (var step = 0u; step < BLOCK_ROWS; step += teams(id)) {
        let r = block * BLOCK_ROWS + step + team(id);
        let row = row_here(expert, r, FIRST, HEIGHT);
        var sum = 0.0;
        for (var i = lane(id); i < COLS; i += lanes(id)) {
            sum += value(min(row, HEIGHT - 1u), i) * input[x + i];
        }
        sum = reduce(id, sum);
        if (lane(id) == 0u && step + team(id) < BLOCK_ROWS && row < HEIGHT) {
            put(choice * OUT_STRIDE + OUT_OFFSET + r, sum);
        }
    }
}
// end section

@compute @workgroup_size(THREADS)
fn expert_mat_vec_float(@builtin(workgroup_id) group: vec3<u32>, id: Invocation) {
    // section
    multiply(group.x, group.y, id);
    // end section
}
