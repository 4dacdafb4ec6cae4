// mat_mat: rows of quantised weights times many rows of int8 activations; see mat_vec for the sum.
//
// A workgroup computes a tile of TILE_ROWS x TILE_COLUMNS products. Weights are decoded once per
// tile, to integers in workgroup memory, 32 values of each row at a time; each thread keeps 8 x 4
// products in registers, so that a word that it reads serves several.
//
// Grid: x, the tiles of rows of all sections; y, tiles of columns.
// import run
// import dot
// import out
// import extent

const THREADS = 256u;
const TILE_ROWS = 128u;
const TILE_COLUMNS = 64u;
const COLS = 576u; // values of a row
const ACTIVATION_GROUP = 32u; // values that share an activation's scale
const OUT_STRIDE = 576u;

@group(0) @binding(0) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(0) var<storage, read> input_scales: array<f32>;

// Half runs, padded to three so that neighbouring rows lie in different banks.
var<workgroup> w_tile: array<vec4<u32>, TILE_ROWS * 3u>;
var<workgroup> x_tile: array<vec4<u32>, TILE_COLUMNS * 3u>;
var<workgroup> w_scales: array<vec4<f32>, TILE_ROWS>; // scales, then minimums
var<workgroup> x_scales: array<vec4<f32>, TILE_COLUMNS>; // scales, then scaled sums

// Loads 32 values of an activation, by one thread per column.
fn load_columns(first: u32, at: u32, thread: u32, columns: u32) {
    if (thread < TILE_COLUMNS) {
        let column = min(first + thread, columns - 1u);
        let x = input[(column * COLS + at) / 16u];
        let y = input[(column * COLS + at) / 16u + 1u];
        let index = (column * COLS + at) / ACTIVATION_GROUP;
        var scale = vec2(input_scales[index]);
        if (ACTIVATION_GROUP < 32u) {
            scale.y = input_scales[index + 1u];
        }
        x_tile[thread * 3u] = x;
        x_tile[thread * 3u + 1u] = y;
        x_scales[thread] = vec4(scale, sum16(x) * scale.x, sum16(y) * scale.y);
    }
}

// section
const HEIGHT = 576u; // rows of this matrix
const OUT_OFFSET = 0u; // where its products go
const BLOCKS = 5u; // tiles of rows of this matrix
// import type
// import bias

// Decodes 32 weights of a row, by one thread per row.
fn load_row(row: u32, r: u32, at: u32) {
    let raw = load_raw(row, at / CHUNK);
    var run: Run;
    // unroll
    for (var part = 0u; part < CHUNK / 32u; part += 1u) {
        if (at % CHUNK == part * 32u) {
            run = run_of(raw, part);
        }
    }
    w_tile[r * 3u] = run.lo;
    w_tile[r * 3u + 1u] = run.hi;
    w_scales[r] = vec4(run.scale, run.low);
}

fn multiply(block: u32, tile: u32, thread: u32) {
    fill_table(thread, THREADS);
    let columns = extent();
    let first_row = block * TILE_ROWS;
    let first_column = tile * TILE_COLUMNS;
    // Threads lie in a grid of 16 x 16; a thread's products are 16 apart in both directions.
    let tr = thread % 16u;
    let tc = thread / 16u;
    var sums: array<f32, 32>;
    // unroll
    for (var i = 0u; i < 32u; i += 1u) {
        sums[i] = 0.0;
    }
    for (var at = 0u; at < COLS; at += 32u) {
        workgroupBarrier();
        if (thread >= THREADS - TILE_ROWS) {
            let r = thread - (THREADS - TILE_ROWS);
            load_row(min(first_row + r, HEIGHT - 1u), r, at);
        } else {
            load_columns(first_column, at, thread, columns);
        }
        workgroupBarrier();
        var x: array<vec4<u32>, 8>;
        var xs: array<vec4<f32>, 4>;
        // unroll
        for (var c = 0u; c < 4u; c += 1u) {
            x[2u * c] = x_tile[(tc + 16u * c) * 3u];
            x[2u * c + 1u] = x_tile[(tc + 16u * c) * 3u + 1u];
            xs[c] = x_scales[tc + 16u * c];
        }
        // unroll
        for (var r = 0u; r < 8u; r += 1u) {
            let lo = w_tile[(tr + 16u * r) * 3u];
            let hi = w_tile[(tr + 16u * r) * 3u + 1u];
            let ws = w_scales[tr + 16u * r];
            // unroll
            for (var c = 0u; c < 4u; c += 1u) {
                if (SPLIT || ACTIVATION_GROUP < 32u) {
                    sums[4u * r + c] += dot16(lo, x[2u * c]) * (ws.x * xs[c].x)
                        + dot16(hi, x[2u * c + 1u]) * (ws.y * xs[c].y);
                } else {
                    sums[4u * r + c] += dot32(lo, hi, x[2u * c], x[2u * c + 1u])
                        * (ws.x * xs[c].x);
                }
                if (MINS) {
                    sums[4u * r + c] += ws.z * xs[c].z + ws.w * xs[c].w;
                }
            }
        }
    }
    // unroll
    for (var r = 0u; r < 8u; r += 1u) {
        // unroll
        for (var c = 0u; c < 4u; c += 1u) {
            let row = first_row + tr + 16u * r;
            let column = first_column + tc + 16u * c;
            if (row < HEIGHT && column < columns) {
                put(column * OUT_STRIDE + OUT_OFFSET + row, sums[4u * r + c] + bias_of(row));
            }
        }
    }
}
// end section

@compute @workgroup_size(THREADS)
fn mat_mat(
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
