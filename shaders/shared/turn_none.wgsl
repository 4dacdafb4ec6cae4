fn sign_of(c: u32) -> f32 {
    return 1.0;
}

fn turn(t: u32, thread: u32) {}

fn turned(t: u32, i: u32) -> f32 {
    return line_at(t, i);
}
