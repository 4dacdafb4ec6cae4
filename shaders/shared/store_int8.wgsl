// Codes and scales as formats/activations.md has them; a thread makes four codes, one word.
const ACTIVATION_GROUP = 32u;

@group(0) @binding(0) var<storage, read_write> out_codes: array<u32>;
@group(0) @binding(0) var<storage, read_write> out_scales: array<f32>;

var<workgroup> peaks: array<f32, SEGMENT / 4u>;

fn four_turned(t: u32, word: u32) -> vec4<f32> {
    let i = 4u * word;
    return vec4(turned(t, i), turned(t, i + 1u), turned(t, i + 2u), turned(t, i + 3u));
}

fn store(t: u32, first: u32, thread: u32) {
    for (var word = thread; word < SEGMENT / 4u; word += THREADS) {
        let values = abs(four_turned(t, word));
        peaks[word] = max(max(values.x, values.y), max(values.z, values.w));
    }
    workgroupBarrier();
    for (var word = thread; word < SEGMENT / 4u; word += THREADS) {
        let group = word / (ACTIVATION_GROUP / 4u);
        var peak = 0.0;
        for (var i = 0u; i < ACTIVATION_GROUP / 4u; i += 1u) {
            peak = max(peak, peaks[group * (ACTIVATION_GROUP / 4u) + i]);
        }
        let values = four_turned(t, word);
        var codes = vec4(0.0);
        if (peak > 0.0) {
            // Infinite for a tiny peak; zeros stay zeros.
            let inverse = 127.0 / peak;
            codes = clamp(round(values * inverse), vec4(-127.0), vec4(127.0));
            codes = select(codes, vec4(0.0), values == vec4(0.0));
        }
        out_codes[(t * WIDTH + first) / 4u + word] = pack4xI8(vec4<i32>(codes));
        if (word % (ACTIVATION_GROUP / 4u) == 0u) {
            out_scales[(t * WIDTH + first) / ACTIVATION_GROUP + group] = peak / 127.0;
        }
    }
}
