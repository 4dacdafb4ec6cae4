// The output of attention, put together from the partial results of its splits.
// import splits

@group(0) @binding(0) var<storage, read> partials: array<f32>;

fn input_value(t: u32, c: u32) -> f32 {
    let head = c / HEAD_LEN;
    let i = c % HEAD_LEN;
    let count = splits_of(t);
    var peak = -3.0e38;
    for (var s = 0u; s < count; s += 1u) {
        peak = max(peak, partials[partial_at(t, head, s) + HEAD_LEN]);
    }
    var sum = 0.0;
    var total = 0.0;
    for (var s = 0u; s < count; s += 1u) {
        let at = partial_at(t, head, s);
        let weight = exp(partials[at + HEAD_LEN] - peak);
        sum += weight * partials[at + i];
        total += weight * partials[at + HEAD_LEN + 1u];
    }
    return sum / total;
}
