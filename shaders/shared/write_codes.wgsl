// import codes
@group(0) @binding(0) var<storage, read_write> keys: array<u32>;
@group(0) @binding(0) var<storage, read_write> values: array<u32>;

var<workgroup> scales: array<f32, GROUPS>; // as halves give them back

// The half that is nearest, the even one of two. Not pack2x16float and back: compilers leave the
// pair out, and codes are then of another scale than the one that is stored.
fn to_half(x: f32) -> f32 {
    let bits = bitcast<u32>(x);
    let normal = bitcast<f32>((bits + 0xfffu + ((bits >> 13u) & 1u)) & 0xffffe000u);
    let tiny = round(x * 0x1p24) * 0x1p-24; // steps of the smallest half
    return select(normal, tiny, abs(x) < 0x1p-14);
}

fn find_scale(group: u32) {
    let is_fine = group < FINE_GROUPS;
    let len = select(GROUP, FINE_GROUP, is_fine);
    let first = select(FINE + (group - FINE_GROUPS) * GROUP, group * FINE_GROUP, is_fine);
    var extreme = 0.0;
    for (var i = first; i < first + len; i += 1u) {
        extreme = select(extreme, head[i], abs(head[i]) > abs(extreme));
    }
    let scale = extreme / select(-8.0, -128.0, is_fine);
    // What is too large for a half is cut, and nothing becomes infinite.
    scales[group] = to_half(clamp(scale, -65504.0, 65504.0));
}

fn code(i: u32, middle: f32) -> u32 {
    let scale = scales[group_of(i)];
    if (scale == 0.0) {
        return u32(middle);
    }
    return u32(clamp(round(head[i] * (1.0 / scale)) + middle, 0.0, 2.0 * middle - 1.0));
}

// One word of the head.
fn coded(word: u32) -> u32 {
    var bits = 0u;
    if (word < FINE / 4u) {
        for (var k = 0u; k < 4u; k += 1u) {
            bits |= code(4u * word + k, 128.0) << (8u * k);
        }
    } else if (word < CODE_WORDS) {
        for (var k = 0u; k < 8u; k += 1u) {
            bits |= code(FINE + 8u * (word - FINE / 4u) + k, 8.0) << (4u * k);
        }
    } else {
        let group = 2u * (word - CODE_WORDS);
        let next = select(0.0, scales[min(group + 1u, GROUPS - 1u)], group + 1u < GROUPS);
        bits = pack2x16float(vec2(scales[group], next));
    }
    return bits;
}

// The workgroup's head, to its cell.
fn write_head(is_key: bool, cell_head: u32, thread: u32) {
    for (var group = thread; group < GROUPS; group += THREADS) {
        find_scale(group);
    }
    workgroupBarrier();
    for (var word = thread; word < WORDS; word += THREADS) {
        if (is_key) {
            keys[cell_head * WORDS + word] = coded(word);
        } else {
            values[cell_head * WORDS + word] = coded(word);
        }
    }
}
