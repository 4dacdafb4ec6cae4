// Products of sixteen small integers in floats, exact below 2^24: for GPUs without an instruction
// for packed bytes.
fn bytes(w: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(w));
}

fn dot16(w: vec4<u32>, x: vec4<u32>) -> f32 {
    return dot(bytes(w.x), bytes(x.x)) + dot(bytes(w.y), bytes(x.y))
        + dot(bytes(w.z), bytes(x.z)) + dot(bytes(w.w), bytes(x.w));
}

fn dot32(a: vec4<u32>, b: vec4<u32>, x: vec4<u32>, y: vec4<u32>) -> f32 {
    return dot16(a, x) + dot16(b, y);
}

fn sum16(x: vec4<u32>) -> f32 {
    return dot16(vec4(0x01010101u), x);
}
