// Thirty-two neighbouring weights of a row, as every type of small integers offers them:
// weight = scale * q + low, with scale.x and low.x for the first sixteen, .y for the others.
struct Run {
    lo: vec4<u32>, // sixteen q, four to a word
    hi: vec4<u32>,
    scale: vec2<f32>,
    low: vec2<f32>,
}
