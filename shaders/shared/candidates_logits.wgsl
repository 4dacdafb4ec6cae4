const OFFSET = 0u;

@group(0) @binding(0) var<storage, read> logits: array<f32>;

fn candidate(at: u32) -> Peak {
    return Peak(logits[OFFSET + at], at);
}
