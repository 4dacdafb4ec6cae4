// import signs
// import sylvester
// import in_order
const TURN_SCALE = 0.125;

fn turn(t: u32, thread: u32) {
    sylvester(t, thread);
}

fn turned(t: u32, i: u32) -> f32 {
    return line_at(t, i) * TURN_SCALE;
}
