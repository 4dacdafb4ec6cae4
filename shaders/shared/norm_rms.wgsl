// x * weight / sqrt(mean(x^2) + EPSILON), over the whole row whichever part of it is wanted.
// import sum
const EPSILON = 1e-5;
const NORM_STEPS = WIDTH / THREADS;

@group(0) @binding(0) var<storage, read> norm_weight: array<f32>;

fn norm_factor(t: u32, thread: u32) -> f32 {
    var squares = 0.0;
    // unroll
    for (var i = 0u; i < NORM_STEPS; i += 1u) {
        let value = input_value(t, i * THREADS + thread);
        squares += value * value;
    }
    let rest = NORM_STEPS * THREADS + thread;
    if (rest < WIDTH) {
        let value = input_value(t, rest);
        squares += value * value;
    }
    return 1.0 / sqrt(sum_of_all(squares, thread) / f32(WIDTH) + EPSILON);
}

fn normed(value: f32, c: u32, factor: f32) -> f32 {
    return value * factor * norm_weight[c];
}
