@group(0) @binding(0) var<storage, read_write> keys: array<f32>;
@group(0) @binding(0) var<storage, read_write> values: array<f32>;

fn write_pair(is_key: bool, at: u32, pair: vec2<f32>) {
    if (is_key) {
        keys[at] = pair.x;
        keys[at + 1u] = pair.y;
    } else {
        values[at] = pair.x;
        values[at + 1u] = pair.y;
    }
}
