// import in_order

fn sign_of(place: u32) -> f32 {
    return 1.0;
}

fn turn(t: u32, thread: u32) {}

fn turned(t: u32, i: u32) -> f32 {
    return line_at(t, i);
}
