@group(0) @binding(0) var<storage, read_write> out: array<f32>;

fn put(at: u32, value: f32) {
    out[at] += value;
}
