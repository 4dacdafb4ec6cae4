// A workgroup's table of pairs: an entry is the pair in both halves of a word, so that a half is
// kept where it is needed and nothing is shifted.

// The values of four codes.
fn eight(four: u32) -> vec2<u32> {
    return vec2(
        (point(four & 0xffu) & 0xffffu) | (point((four >> 8u) & 0xffu) & 0xffff0000u),
        (point((four >> 16u) & 0xffu) & 0xffffu) | (point(four >> 24u) & 0xffff0000u),
    );
}

fn point(code: u32) -> u32 {
    return points[code * COPIES + copy];
}

fn fill_table(thread: u32, threads: u32) {
    copy = thread % COPIES;
    for (var i = thread; i < POINTS * COPIES; i += threads) {
        let code = i / COPIES;
        // A point that is never written has -128, which reads as -127.
        let two = pack4xI8(max(unpack4xI8(table[code / 2u]), vec4(-127)));
        let pair = (two >> (code % 2u * 16u)) & 0xffffu;
        points[i] = pair | (pair << 16u);
    }
}
