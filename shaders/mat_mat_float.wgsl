// mat_mat_float: rows of plain floats times many rows of float activations, a tile of 64 x 64
// products per workgroup, 4 x 4 per thread, sixteen values of each row at a time.
//
// Grid: x, the tiles of rows of all sections; y, tiles of columns.
// import out
// import extent

const THREADS = 256u;
const COLS = 576u; // values of a row
const IN_STRIDE = 576u;
const IN_OFFSET = 0u;
const OUT_STRIDE = 576u;

@group(0) @binding(0) var<storage, read> input: array<f32>;

// By place in the row, then by row, padded so that columns of threads use different banks.
var<workgroup> w_tile: array<f32, 16u * 65u>;
var<workgroup> x_tile: array<f32, 16u * 65u>;

// section
const HEIGHT = 576u; // rows of this matrix
const OUT_OFFSET = 0u; // where its products go
const BLOCKS = 9u; // tiles of rows of this matrix
// import type
// import bias

fn multiply(block: u32, tile: u32, thread: u32) {
    let columns = extent();
    let tr = thread % 16u;
    let tc = thread / 16u;
    var sums: array<f32, 16>;
    // unroll
    for (var i = 0u; i < 16u; i += 1u) {
        sums[i] = 0.0;
    }
    for (var at = 0u; at < COLS; at += 16u) {
        workgroupBarrier();
        // unroll
        for (var i = 0u; i < 4u; i += 1u) {
            let place = at + tr;
            let line = tc + 16u * i;
            let row = min(block * 64u + line, HEIGHT - 1u);
            let column = min(tile * 64u + line, columns - 1u);
            w_tile[tr * 65u + line] = 0.0;
            x_tile[tr * 65u + line] = 0.0;
            if (place < COLS) {
                w_tile[tr * 65u + line] = value(row, place);
                x_tile[tr * 65u + line] = input[column * IN_STRIDE + IN_OFFSET + place];
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < 16u; k += 1u) {
            var x: array<f32, 4>;
            // unroll
            for (var c = 0u; c < 4u; c += 1u) {
                x[c] = x_tile[k * 65u + tc + 16u * c];
            }
            // unroll
            for (var r = 0u; r < 4u; r += 1u) {
                let w = w_tile[k * 65u + tr + 16u * r];
                // unroll
                for (var c = 0u; c < 4u; c += 1u) {
                    sums[4u * r + c] += w * x[c];
                }
            }
        }
    }
    // unroll
    for (var r = 0u; r < 4u; r += 1u) {
        // unroll
        for (var c = 0u; c < 4u; c += 1u) {
            let row = block * 64u + tr + 16u * r;
            let column = tile * 64u + tc + 16u * c;
            if (row < HEIGHT && column < columns) {
                put(column * OUT_STRIDE + OUT_OFFSET + row, sums[4u * r + c] + bias_of(row));
            }
        }
    }
}
// end section

@compute @workgroup_size(THREADS)
fn mat_mat_float(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    var block = group.x;
    // section
    if (block < BLOCKS) {
        multiply(block, group.y, thread);
        return;
    }
    block -= BLOCKS;
    // end section
}
