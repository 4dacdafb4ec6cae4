const X_STRIDE = 576u;
const X_OFFSET = 0u;

@group(0) @binding(0) var<storage, read> x: array<f32>;

fn input_value(t: u32, c: u32) -> f32 {
    return x[t * X_STRIDE + X_OFFSET + c];
}
