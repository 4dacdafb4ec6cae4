@group(0) @binding(0) var<storage, read> keys: array<vec4<f32>>;
@group(0) @binding(0) var<storage, read> values: array<vec4<f32>>;

// Eight values from a multiple of eight.
fn key_eight(at: u32) -> array<vec4<f32>, 2> {
    return array(keys[at / 4u], keys[at / 4u + 1u]);
}

fn value_eight(at: u32) -> array<vec4<f32>, 2> {
    return array(values[at / 4u], values[at / 4u + 1u]);
}
