@group(0) @binding(0) var<storage, read> keys: array<u32>;
@group(0) @binding(0) var<storage, read> values: array<u32>;

fn key_pair(at: u32) -> vec2<f32> {
    return unpack2x16float(keys[at / 2u]);
}

fn value_pair(at: u32) -> vec2<f32> {
    return unpack2x16float(values[at / 2u]);
}
