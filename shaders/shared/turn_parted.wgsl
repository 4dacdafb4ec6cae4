// Two parts of a row, each turned in blocks of its own: the stages that both have at once, then
// those of the part with longer blocks.
// import sylvester
const LOW = 512u; // values of the first part
const LOW_BLOCK = 512u;
const HIGH_BLOCK = 64u;
const LOW_SCALE = 0.0441941738;
const HIGH_SCALE = 0.125;

// For each place of the parted row the input that comes there, twice, and 1 if its sign is -1.
@group(0) @binding(0) var<storage, read> order: array<u32>;

fn source_of(place: u32) -> u32 {
    return order[place] / 2u;
}

fn sign_of(place: u32) -> f32 {
    return 1.0 - 2.0 * f32(order[place] % 2u);
}

fn turn(t: u32, thread: u32) {
    sylvester(t, thread);
    for (var half = BLOCK; half < max(LOW_BLOCK, HIGH_BLOCK); half *= 2u) {
        for (var k = thread; k < SEGMENT / 2u; k += THREADS) {
            let is_low = k < LOW / 2u;
            let pair = select(k - LOW / 2u, k, is_low);
            let at = select(LOW, 0u, is_low) + pair / half * (2u * half) + pair % half;
            if (half < select(HIGH_BLOCK, LOW_BLOCK, is_low)) {
                let a = line_at(t, at);
                let b = line_at(t, at + half);
                put_line(t, at, a + b);
                put_line(t, at + half, a - b);
            }
        }
        sync();
    }
}

fn turned(t: u32, i: u32) -> f32 {
    return line_at(t, i) * select(HIGH_SCALE, LOW_SCALE, i < LOW);
}
