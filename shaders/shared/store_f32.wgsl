const OUT_STRIDE = 576u;
const OUT_OFFSET = 0u;

@group(0) @binding(0) var<storage, read_write> out: array<f32>;

fn store(t: u32, first: u32, thread: u32) {
    for (var i = thread; i < SEGMENT; i += THREADS) {
        out[t * OUT_STRIDE + OUT_OFFSET + first + i] = turned(t, i);
    }
}
