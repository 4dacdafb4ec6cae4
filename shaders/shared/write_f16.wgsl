@group(0) @binding(0) var<storage, read_write> keys: array<u32>;
@group(0) @binding(0) var<storage, read_write> values: array<u32>;

// The workgroup's head, to its cell.
fn write_head(is_key: bool, cell_head: u32, thread: u32) {
    for (var i = 2u * thread; i < HEAD_LEN; i += 2u * THREADS) {
        let pair = pack2x16float(vec2(head[i], head[i + 1u]));
        if (is_key) {
            keys[(cell_head * HEAD_LEN + i) / 2u] = pair;
        } else {
            values[(cell_head * HEAD_LEN + i) / 2u] = pair;
        }
    }
}
