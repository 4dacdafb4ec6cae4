@group(0) @binding(0) var<storage, read_write> keys: array<u32>;
@group(0) @binding(0) var<storage, read_write> values: array<u32>;

fn write_pair(is_key: bool, at: u32, pair: vec2<f32>) {
    if (is_key) {
        keys[at / 2u] = pack2x16float(pair);
    } else {
        values[at / 2u] = pack2x16float(pair);
    }
}
