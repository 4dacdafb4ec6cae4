// angles: (cos, sin) of each row's position, from a table that the CPU has made: a device's own
// sine is good to three digits where the angle is large.
//
// Grid: x, runs of a row; y, rows.
const THREADS = 64u;
const WIDTH = 64u;

@group(0) @binding(0) var<storage, read> positions: array<u32>;
@group(0) @binding(0) var<storage, read> turns: array<f32>;
@group(0) @binding(0) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(THREADS)
fn angles(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let c = group.x * THREADS + thread;
    if (c < WIDTH) {
        out[group.y * WIDTH + c] = turns[positions[group.y] * WIDTH + c];
    }
}
