@group(0) @binding(0) var<storage, read> keys: array<vec4<u32>>;
@group(0) @binding(0) var<storage, read> values: array<vec4<u32>>;

fn halves(words: vec4<u32>) -> array<vec4<f32>, 2> {
    return array(
        vec4(unpack2x16float(words.x), unpack2x16float(words.y)),
        vec4(unpack2x16float(words.z), unpack2x16float(words.w)),
    );
}

// Eight values from a multiple of eight.
fn key_eight(at: u32) -> array<vec4<f32>, 2> {
    return halves(keys[at / 8u]);
}

fn value_eight(at: u32) -> array<vec4<f32>, 2> {
    return halves(values[at / 8u]);
}
