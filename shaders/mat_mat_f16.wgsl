enable f16;
enable wgpu_cooperative_matrix;
// mat_mat_f16: as mat_mat, on units that multiply tiles of half-precision numbers.
//
// Weights become halves with their scales. An activation keeps its integer, times its scale over
// Weights become halves with their scales. An activation keeps its integer, times its scale over
// the sums, which are single precision. A subgroup of LANES computes 32 x 64 products of a tile of
// 128 x 128. What the next step needs is asked for before this one is multiplied.
//
// Grid: x, the tiles of rows of all sections; y, tiles of columns.
// import run
// import out
// import extent

const THREADS = 256u;
const LANES = 32u;
const TILE = 128u;
const COLS = 576u; // values of a row
const ACTIVATION_GROUP = 32u; // values that share an activation's scale
const OUT_STRIDE = 576u;
// Vectors of four halves from one row of a tile to the next: eight for 32 values, and two so that
// neighbouring rows lie in different banks.
const LINE = 10u;

@group(0) @binding(0) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(0) var<storage, read> input_scales: array<f32>;

var<workgroup> w_tile: array<vec4<f16>, TILE * LINE>;
var<workgroup> x_tile: array<vec4<f16>, TILE * LINE>;
var<workgroup> peaks: array<f32, TILE>;
var<workgroup> patches: array<f32, THREADS / LANES * 256u>;

// Thirty-two values of an activation, and the scales of its two halves.
struct Values {
    lo: vec4<u32>,
    hi: vec4<u32>,
    scale: vec2<f32>,
}

fn load_column(column: u32, at: u32) -> Values {
    let index = (column * COLS + at) / ACTIVATION_GROUP;
    var scale = vec2(input_scales[index]);
    if (ACTIVATION_GROUP < 32u) {
        scale.y = input_scales[index + 1u];
    }
    let i = (column * COLS + at) / 16u;
    return Values(input[i], input[i + 1u], scale);
}

fn put_column(c: u32, values: Values) {
    let scale = select(values.scale / peaks[c], vec2(0.0), peaks[c] == 0.0);
    // unroll
    for (var i = 0u; i < 4u; i += 1u) {
        let lo = vec4<f32>(unpack4xI8(values.lo[i]));
        let hi = vec4<f32>(unpack4xI8(values.hi[i]));
        x_tile[c * LINE + i] = vec4<f16>(lo * scale.x);
        x_tile[c * LINE + 4u + i] = vec4<f16>(hi * scale.y);
    }
}

fn put_row(r: u32, run: Run) {
    // unroll
    for (var i = 0u; i < 4u; i += 1u) {
        let lo = vec4<f32>(unpack4xI8(run.lo[i])) * run.scale.x + run.low.x;
        let hi = vec4<f32>(unpack4xI8(run.hi[i])) * run.scale.y + run.low.y;
        w_tile[r * LINE + i] = vec4<f16>(lo);
        w_tile[r * LINE + 4u + i] = vec4<f16>(hi);
    }
}

// The largest scale of each column of the tile.
fn find_peaks(first: u32, thread: u32, columns: u32) {
    if (thread < TILE) {
        let at = min(first + thread, columns - 1u) * (COLS / ACTIVATION_GROUP);
        var peak = 0.0;
        for (var i = 0u; i < COLS / ACTIVATION_GROUP; i += 1u) {
            peak = max(peak, input_scales[at + i]);
        }
        peaks[thread] = peak;
    }
    workgroupBarrier();
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
    let columns = extent();
    find_peaks(tile * TILE, thread, columns);
    let is_row = thread < TILE;
    let row = min(block * TILE + thread % TILE, HEIGHT - 1u);
    let column = min(tile * TILE + thread % TILE, columns - 1u);
    let team = thread / LANES;
    let team_row = team % 4u * 32u;
    let team_column = team / 4u * 64u;
    var sums: array<coop_mat16x16<f32, C>, 8>;
    // unroll
    for (var i = 0u; i < 8u; i += 1u) {
        sums[i] = coop_mat16x16<f32, C>();
    }
    var raw: Raw;
    var values: Values;
    if (is_row) {
        raw = load_raw(row, 0u);
    } else {
        values = load_column(column, 0u);
    }
    for (var at = 0u; at < COLS; at += 32u) {
        if (is_row) {
            put_row(thread, part_of(raw, at));
        } else {
            put_column(thread - TILE, values);
        }
        workgroupBarrier();
        if (at + 32u < COLS) {
            if (is_row) {
                raw = load_raw(row, (at + 32u) / CHUNK);
            } else {
                values = load_column(column, at + 32u);
            }
        }
        // unroll
        for (var k = 0u; k < 2u; k += 1u) {
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
            put_patch(first_row, tile * TILE, team_column + 16u * j, thread, columns);
            workgroupBarrier();
        }
    }
}

// Sixteen by sixteen sums to where they belong, by the lanes of the team that has them.
fn put_patch(first_row: u32, first_column: u32, tile_column: u32, thread: u32, columns: u32) {
    // unroll
    for (var e = 0u; e < 8u; e += 1u) {
        let i = e * LANES + thread % LANES;
        let row = first_row + i % 16u;
        let c = tile_column + i / 16u;
        let column = first_column + c;
        if (row < HEIGHT && column < columns) {
            let sum = patches[thread / LANES * 256u + i] * peaks[c];
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
