// mat_vec: rows of quantised weights times up to eight rows of int8 activations.
//
//     out[column][row] = sum over i of weight[row][i] * activation[column][i]
//
// A team of lanes takes a few rows at a time and walks along them, a chunk per lane, so that loads
// are wide and next to each other and each activation serves several rows; `walk_rows` does it for
// any type, `walk_points` where rows share codes. Integers are multiplied exactly in runs and
// scaled once per run. Matrices of one input are one dispatch: each is a section with a range of
// workgroups.
//
// Grid: x, the blocks of all sections.
// import run
// import dot
// import reduce
// import out
// import extent
// import activations

const THREADS = 128u;
const COLS = 576u; // values of a row
const COLUMNS = 1u; // rows of activations at once
const ROWS = 2u; // rows of weights at once, per team
const BLOCK_ROWS = 32u; // rows of weights per workgroup
const ACTIVATION_GROUP = 32u; // values that share an activation's scale
const OUT_STRIDE = 576u;

// section
const HEIGHT = 576u; // rows of this matrix
const OUT_OFFSET = 0u; // where its products go
const BLOCKS = 18u; // workgroups of this matrix
// import type
// import bias
// import walk
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
