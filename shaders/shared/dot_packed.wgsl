// Products of sixteen small integers in integers, exact: the instruction that most GPUs have.
fn dot16(w: vec4<u32>, x: vec4<u32>) -> f32 {
    return f32(dot4I8Packed(w.x, x.x) + dot4I8Packed(w.y, x.y)
        + dot4I8Packed(w.z, x.z) + dot4I8Packed(w.w, x.w));
}

fn dot32(a: vec4<u32>, b: vec4<u32>, x: vec4<u32>, y: vec4<u32>) -> f32 {
    return f32(dot4I8Packed(a.x, x.x) + dot4I8Packed(a.y, x.y)
        + dot4I8Packed(a.z, x.z) + dot4I8Packed(a.w, x.w)
        + dot4I8Packed(b.x, y.x) + dot4I8Packed(b.y, y.y)
        + dot4I8Packed(b.z, y.z) + dot4I8Packed(b.w, y.w));
}

fn sum16(x: vec4<u32>) -> f32 {
    return dot16(vec4(0x01010101u), x);
}
