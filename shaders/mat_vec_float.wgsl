// mat_vec_float: rows of plain floats times up to eight rows of float activations; see mat_vec.
//
// Grid: x, the blocks of all sections.
// import reduce
// import out
// import extent

const THREADS = 128u;
const COLS = 576u; // values of a row
const COLUMNS = 1u; // rows of activations at once
const ROWS = 2u; // rows of weights at once, per team
const BLOCK_ROWS = 32u; // rows of weights per workgroup
const IN_STRIDE = 576u;
const IN_OFFSET = 0u;
const OUT_STRIDE = 576u;

@group(0) @binding(0) var<storage, read> input: array<f32>;

fn input_four(column: u32, at: u32) -> vec4<f32> {
    let i = column * IN_STRIDE + IN_OFFSET + at;
    return vec4(input[i], input[i + 1u], input[i + 2u], input[i + 3u]);
}

// section
const HEIGHT = 576u; // rows of this matrix
const OUT_OFFSET = 0u; // where its products go
const BLOCKS = 18u; // workgroups of this matrix
// import type
// import bias

fn multiply(block: u32, id: Invocation) {
    let columns = extent();
    for (var step = 0u; step < BLOCK_ROWS; step += teams(id) * ROWS) {
        let row = block * BLOCK_ROWS + step + team(id) * ROWS;
        var sums: array<f32, ROWS * COLUMNS>;
        // unroll
        for (var i = 0u; i < ROWS * COLUMNS; i += 1u) {
            sums[i] = 0.0;
        }
        // Four at a time where rows begin on a boundary of four, one at a time elsewhere.
        let fours = select(0u, COLS / 4u, COLS % 4u == 0u);
        for (var i = lane(id); i < fours; i += lanes(id)) {
            // unroll
            for (var c = 0u; c < COLUMNS; c += 1u) {
                let x = input_four(min(c, columns - 1u), 4u * i);
                // unroll
                for (var r = 0u; r < ROWS; r += 1u) {
                    sums[r * COLUMNS + c] += dot(four(min(row + r, HEIGHT - 1u), 4u * i), x);
                }
            }
        }
        for (var i = 4u * fours + lane(id); i < COLS; i += lanes(id)) {
            // unroll
            for (var c = 0u; c < COLUMNS; c += 1u) {
                let x = input[min(c, columns - 1u) * IN_STRIDE + IN_OFFSET + i];
                // unroll
                for (var r = 0u; r < ROWS; r += 1u) {
                    sums[r * COLUMNS + c] += value(min(row + r, HEIGHT - 1u), i) * x;
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
fn mat_vec_float(@builtin(workgroup_id) group: vec3<u32>, id: Invocation) {
    var block = group.x;
    // section
    if (block < BLOCKS) {
        multiply(block, id);
        return;
    }
    block -= BLOCKS;
    // end section
}
