// cap * tanh(x / cap); tanh by its series where the exponential would cancel.
fn capped(x: f32, cap: f32) -> f32 {
    let y = x / cap;
    let square = y * y;
    let series = y * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 - square * 17.0 / 315.0)));
    let direct = 1.0 - 2.0 / (exp(2.0 * y) + 1.0);
    return cap * select(direct, series, abs(y) < 0.1);
}
