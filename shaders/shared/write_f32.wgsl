@group(0) @binding(0) var<storage, read_write> keys: array<f32>;
@group(0) @binding(0) var<storage, read_write> values: array<f32>;

// The workgroup's head, to its cell.
fn write_head(is_key: bool, cell_head: u32, thread: u32) {
    for (var i = thread; i < HEAD_LEN; i += THREADS) {
        if (is_key) {
            keys[cell_head * HEAD_LEN + i] = head[i];
        } else {
            values[cell_head * HEAD_LEN + i] = head[i];
        }
    }
}
