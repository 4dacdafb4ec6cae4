fn norm_factor(t: u32, thread: u32) -> f32 {
    return 1.0;
}

fn normed(value: f32, c: u32, factor: f32) -> f32 {
    return value;
}
