// A run of weights times a run of activations.
fn product(run: Run, x: vec4<u32>, y: vec4<u32>, scale: vec2<f32>) -> f32 {
    var value: f32;
    if (SPLIT || ACTIVATION_GROUP < 32u) {
        value = dot16(run.lo, x) * (run.scale.x * scale.x)
            + dot16(run.hi, y) * (run.scale.y * scale.y);
    } else {
        value = dot32(run.lo, run.hi, x, y) * (run.scale.x * scale.x);
    }
    if (MINS) {
        value += sum16(x) * (run.low.x * scale.x) + sum16(y) * (run.low.y * scale.y);
    }
    return value;
}
