// import signs
// import sylvester
const TURN_SCALE = 0.125;

fn turned(t: u32, i: u32) -> f32 {
    return line_at(t, i) * TURN_SCALE;
}
