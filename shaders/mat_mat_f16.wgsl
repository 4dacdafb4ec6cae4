enable f16;
enable wgpu_cooperative_matrix;
// mat_mat_f16: as mat_mat, on units that multiply tiles of half-precision numbers.
//
// Weights become halves with their scales; activations are halves already (see halves), and the
// largest scale of a row multiplies the sums, which are single precision. A subgroup of LANES
// computes 32 x 64 products of a tile of 128 x 128. What the next step needs is asked for before
// this one is multiplied.
//
// Grid: x, the tiles of rows of all sections; y, tiles of columns.
// import run
// import out
// import extent

const THREADS = 256u;
const LANES = 32u;
const TILE = 128u;
const STEP = 64u; // values of a row at a time: 32 for each of two threads
const COLS = 576u; // values of a row, a multiple of STEP
const OUT_STRIDE = 576u;
// Vectors of four halves from one row of a tile to the next: those of a step, and two so that
// neighbouring rows lie in different banks.
const VECTORS = STEP / 4u;
const LINE = VECTORS + 2u;
const SHARE = TILE * VECTORS / THREADS; // vectors of activations per thread and step

@group(0) @binding(0) var<storage, read> activations: array<vec4<f16>>;
@group(0) @binding(0) var<storage, read> peaks: array<f32>;

var<workgroup> w_tile: array<vec4<f16>, TILE * LINE>;
var<workgroup> x_tile: array<vec4<f16>, TILE * LINE>;
var<workgroup> patches: array<f32, THREADS / LANES * 256u>;

// This thread's vectors of the tile's activations, neighbours beside each other.
fn load_columns(first: u32, at: u32, thread: u32, columns: u32) -> array<vec4<f16>, SHARE> {
    var values: array<vec4<f16>, SHARE>;
    // unroll
    for (var i = 0u; i < SHARE; i += 1u) {
        let place = i * THREADS + thread;
        let column = min(first + place / VECTORS, columns - 1u);
        values[i] = activations[(column * COLS + at) / 4u + place % VECTORS];
    }
    return values;
}

fn put_columns(values: array<vec4<f16>, SHARE>, thread: u32) {
    // unroll
    for (var i = 0u; i < SHARE; i += 1u) {
        let place = i * THREADS + thread;
        x_tile[place / VECTORS * LINE + place % VECTORS] = values[i];
    }
}

fn put_run(at: u32, run: Run) {
    // unroll
    for (var i = 0u; i < 4u; i += 1u) {
        let lo = vec4<f32>(unpack4xI8(run.lo[i])) * run.scale.x + run.low.x;
        let hi = vec4<f32>(unpack4xI8(run.hi[i])) * run.scale.y + run.low.y;
        w_tile[at + i] = vec4<f16>(lo);
        w_tile[at + 4u + i] = vec4<f16>(hi);
    }
}

// section
const HEIGHT = 576u; // rows of this matrix
const OUT_OFFSET = 0u; // where its products go
const BLOCKS = 5u; // tiles of rows of this matrix
// import type
// import bias

fn part_of(raw: Raw, at: u32) -> Run {
    var run: Run;
    // unroll
    for (var part = 0u; part < CHUNK / 32u; part += 1u) {
        if (at % CHUNK == part * 32u) {
            run = run_of(raw, part);
        }
    }
    return run;
}

fn multiply(block: u32, tile: u32, thread: u32) {
    fill_table(thread, THREADS);
    workgroupBarrier();
    let columns = extent();
    let row = min(block * TILE + thread % TILE, HEIGHT - 1u);
    let half = thread / TILE * 32u;
    let team = thread / LANES;
    let team_row = team % 4u * 32u;
    let team_column = team / 4u * 64u;
    var sums: array<coop_mat16x16<f32, C>, 8>;
    // unroll
    for (var i = 0u; i < 8u; i += 1u) {
        sums[i] = coop_mat16x16<f32, C>();
    }
    var raw = load_raw(row, half / CHUNK);
    var values = load_columns(tile * TILE, 0u, thread, columns);
    for (var at = 0u; at < COLS; at += STEP) {
        put_run(thread % TILE * LINE + half / 4u, part_of(raw, at + half));
        put_columns(values, thread);
        workgroupBarrier();
        if (at + STEP < COLS) {
            raw = load_raw(row, (at + STEP + half) / CHUNK);
            values = load_columns(tile * TILE, at + STEP, thread, columns);
        }
        // unroll
        for (var k = 0u; k < 4u; k += 1u) {
            var a: array<coop_mat16x16<f16, A>, 2>;
            // unroll
            for (var i = 0u; i < 2u; i += 1u) {
                let place = (team_row + 16u * i) * LINE + 4u * k;
                a[i] = coopLoadT<coop_mat16x16<f16, A>>(&w_tile[place], LINE);
            }
            // unroll
            for (var j = 0u; j < 4u; j += 1u) {
                let place = (team_column + 16u * j) * LINE + 4u * k;
                let b = coopLoad<coop_mat16x16<f16, B>>(&x_tile[place], LINE);
                // unroll
                for (var i = 0u; i < 2u; i += 1u) {
                    sums[2u * j + i] = coopMultiplyAdd(a[i], b, sums[2u * j + i]);
                }
            }
        }
        workgroupBarrier();
    }
    // unroll
    for (var j = 0u; j < 4u; j += 1u) {
        // unroll
        for (var i = 0u; i < 2u; i += 1u) {
            coopStore(sums[2u * j + i], &patches[team * 256u], 16u);
            workgroupBarrier();
            let first_row = block * TILE + team_row + 16u * i;
            put_patch(first_row, tile * TILE + team_column + 16u * j, thread, columns);
            workgroupBarrier();
        }
    }
}

// Sixteen by sixteen sums to where they belong, by the lanes of the team that has them.
fn put_patch(first_row: u32, first_column: u32, thread: u32, columns: u32) {
    // unroll
    for (var e = 0u; e < 8u; e += 1u) {
        let i = e * LANES + thread % LANES;
        let row = first_row + i % 16u;
        let column = first_column + i / 16u;
        if (row < HEIGHT && column < columns) {
            let sum = patches[thread / LANES * 256u + i] * peaks[column];
            put(column * OUT_STRIDE + OUT_OFFSET + row, sum + bias_of(row));
        }
    }
}
// end section

@compute @workgroup_size(THREADS)
fn mat_mat_f16(
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
