// import codes
@group(0) @binding(0) var<storage, read> keys: array<u32>;
@group(0) @binding(0) var<storage, read> values: array<u32>;

// The word in which eight values begin that begin at a multiple of eight.
fn word_of(i: u32) -> u32 {
    return select(FINE / 4u + (max(i, FINE) - FINE) / 8u, i / 4u, i < FINE);
}

fn scale_of(word: u32, group: u32) -> f32 {
    let pair = unpack2x16float(word);
    return select(pair.x, pair.y, group % 2u == 1u);
}

// Eight codes of two words, or of the first alone, times the scales of each four.
fn decoded(i: u32, words: vec2<u32>, scales: vec2<f32>) -> array<vec4<f32>, 2> {
    if (i < FINE) {
        let low = (vec4(words.x) >> vec4(0u, 8u, 16u, 24u)) & vec4(255u);
        let high = (vec4(words.y) >> vec4(0u, 8u, 16u, 24u)) & vec4(255u);
        let middle = vec4(128.0);
        return array(scales.x * (vec4<f32>(low) - middle), scales.y * (vec4<f32>(high) - middle));
    }
    let low = (vec4(words.x) >> vec4(0u, 4u, 8u, 12u)) & vec4(15u);
    let high = (vec4(words.x) >> vec4(16u, 20u, 24u, 28u)) & vec4(15u);
    let middle = vec4(8.0);
    return array(scales.x * (vec4<f32>(low) - middle), scales.y * (vec4<f32>(high) - middle));
}

// Eight values from a multiple of eight.
fn key_eight(at: u32) -> array<vec4<f32>, 2> {
    let base = at / HEAD_LEN * WORDS;
    let i = at % HEAD_LEN;
    let groups = vec2(group_of(i), group_of(i + 4u));
    let word = base + word_of(i);
    let scales = vec2(
        scale_of(keys[base + CODE_WORDS + groups.x / 2u], groups.x),
        scale_of(keys[base + CODE_WORDS + groups.y / 2u], groups.y),
    );
    return decoded(i, vec2(keys[word], keys[word + 1u]), scales);
}

fn value_eight(at: u32) -> array<vec4<f32>, 2> {
    let base = at / HEAD_LEN * WORDS;
    let i = at % HEAD_LEN;
    let groups = vec2(group_of(i), group_of(i + 4u));
    let word = base + word_of(i);
    let scales = vec2(
        scale_of(values[base + CODE_WORDS + groups.x / 2u], groups.x),
        scale_of(values[base + CODE_WORDS + groups.y / 2u], groups.y),
    );
    return decoded(i, vec2(values[word], values[word + 1u]), scales);
}
