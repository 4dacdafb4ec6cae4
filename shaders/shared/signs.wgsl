@group(0) @binding(0) var<storage, read> signs: array<u32>;

fn sign_of(place: u32) -> f32 {
    return f32(extractBits(bitcast<i32>(signs[place / 4u]), 8u * (place % 4u), 8u));
}
