// Paley's matrix across the runs that Sylvester's has turned. Each value adds up its column when it
// is asked for: there is no second line to write to.
// import signs
// import sylvester
// import in_order
const ORDER = 36u;
const TURN_SCALE = 0.125;

// A bit per place, row after row, set where the matrix has +1; transposed for the way back.
@group(0) @binding(0) var<storage, read> paley: array<u32>;

fn turn(t: u32, thread: u32) {
    sylvester(t, thread);
}

fn turned(t: u32, i: u32) -> f32 {
    let k = i / BLOCK;
    let lane = i % BLOCK;
    var all = line_at(t, lane);
    var plus = 0.0;
    if ((paley[k * ORDER / 32u] >> (k * ORDER % 32u) & 1u) == 1u) {
        plus = all;
    }
    for (var j = 1u; j < ORDER; j += 1u) {
        let value = line_at(t, j * BLOCK + lane);
        let bit = k * ORDER + j;
        all += value;
        if ((paley[bit / 32u] >> (bit % 32u) & 1u) == 1u) {
            plus += value;
        }
    }
    return ((plus + plus) - all) * TURN_SCALE;
}
