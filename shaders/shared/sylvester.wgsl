// Sylvester's matrix on every run of BLOCK values of the line, not normalised: stages at distance
// 1, 2, 4, ..., three at a time in registers where there are three left. The additions are those of
// the plain stages, so the bits are too.
const BLOCK = 64u;

fn sylvester(t: u32, thread: u32) {
    var half = 1u;
    for (; half * 8u <= BLOCK; half *= 8u) {
        for (var k = thread; k < SEGMENT / 8u; k += THREADS) {
            let at = k / half * (8u * half) + k % half;
            let a0 = line_at(t, at);
            let a1 = line_at(t, at + half);
            let a2 = line_at(t, at + 2u * half);
            let a3 = line_at(t, at + 3u * half);
            let a4 = line_at(t, at + 4u * half);
            let a5 = line_at(t, at + 5u * half);
            let a6 = line_at(t, at + 6u * half);
            let a7 = line_at(t, at + 7u * half);
            let even = vec4(a0, a2, a4, a6);
            let odd = vec4(a1, a3, a5, a7);
            let p = even + odd;
            let m = even - odd;
            let pp = vec2(p.x + p.y, p.z + p.w);
            let pm = vec2(p.x - p.y, p.z - p.w);
            let mp = vec2(m.x + m.y, m.z + m.w);
            let mm = vec2(m.x - m.y, m.z - m.w);
            put_line(t, at, pp.x + pp.y);
            put_line(t, at + half, mp.x + mp.y);
            put_line(t, at + 2u * half, pm.x + pm.y);
            put_line(t, at + 3u * half, mm.x + mm.y);
            put_line(t, at + 4u * half, pp.x - pp.y);
            put_line(t, at + 5u * half, mp.x - mp.y);
            put_line(t, at + 6u * half, pm.x - pm.y);
            put_line(t, at + 7u * half, mm.x - mm.y);
        }
        sync();
    }
    for (; half < BLOCK; half *= 2u) {
        for (var k = thread; k < SEGMENT / 2u; k += THREADS) {
            let at = k / half * (2u * half) + k % half;
            let a = line_at(t, at);
            let b = line_at(t, at + half);
            put_line(t, at, a + b);
            put_line(t, at + half, a - b);
        }
        sync();
    }
}
