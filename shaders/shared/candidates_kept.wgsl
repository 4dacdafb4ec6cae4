@group(0) @binding(0) var<storage, read> candidates: array<Peak>;

fn candidate(at: u32) -> Peak {
    return candidates[at];
}
