// prepare: what a matrix's input goes through: gather, gate, norm, signs and Hadamard transform,
// then floats or int8.
//
// Grid: x, segments of a row; y, rows of the output. A workgroup turns one segment in its own
// memory; the sum of a norm it makes for itself, because a dispatch costs more than the additions.
const THREADS = 256u;
const WIDTH = 576u;
const SEGMENT = 576u;
// import input
// import gather
// import norm
// import line
// import turn
// import store

@compute @workgroup_size(THREADS)
fn prepare(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let t = group.y;
    let first = group.x * SEGMENT;
    let row = source_row(t);
    begin_line(t * WIDTH + first);
    let factor = norm_factor(row, thread);
    for (var i = thread; i < SEGMENT; i += THREADS) {
        let c = source_of(first + i);
        put_line(t, i, normed(input_value(row, c), c, factor) * sign_of(first + i));
    }
    sync();
    turn(t, thread);
    store(t, first, thread);
}
