// Rows of int8 activations, and the scale of every ACTIVATION_GROUP of their values.
@group(0) @binding(0) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(0) var<storage, read> input_scales: array<f32>;

// The scales of the two halves of a run of an activation.
fn scales_of(column: u32, at: u32) -> vec2<f32> {
    let index = (column * COLS + at) / ACTIVATION_GROUP;
    if (ACTIVATION_GROUP >= 32u) {
        return vec2(input_scales[index]);
    }
    return vec2(input_scales[index], input_scales[index + 1u]);
}
