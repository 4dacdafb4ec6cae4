@group(0) @binding(0) var<storage, read> keys: array<f32>;
@group(0) @binding(0) var<storage, read> values: array<f32>;

fn key_pair(at: u32) -> vec2<f32> {
    return vec2(keys[at], keys[at + 1u]);
}

fn value_pair(at: u32) -> vec2<f32> {
    return vec2(values[at], values[at + 1u]);
}
