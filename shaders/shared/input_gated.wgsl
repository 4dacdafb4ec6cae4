// activation(gate) * up.
const X_STRIDE = 3072u;
const GATE_OFFSET = 0u;
const UP_OFFSET = 1536u;
const GELU = false;

@group(0) @binding(0) var<storage, read> gate_up: array<f32>;

fn input_value(t: u32, c: u32) -> f32 {
    let gate = gate_up[t * X_STRIDE + GATE_OFFSET + c];
    let up = gate_up[t * X_STRIDE + UP_OFFSET + c];
    if (GELU) {
        // sqrt(2 / pi); tanh through exp, which overflows to the right limits.
        let inner = 0.7978845608 * (gate + 0.044715 * gate * gate * gate);
        return gate * (1.0 - 1.0 / (exp(2.0 * inner) + 1.0)) * up;
    }
    return gate / (1.0 + exp(-gate)) * up;
}
