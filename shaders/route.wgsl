// route: the experts of the largest scores of each row, largest first, of equal ones the smaller
// number first, and the softmax over their scores.
//
// Each choice is the best of those that come after the one before. Every thread looks at some of
// the experts, and the best of its own meets those of the others in workgroup memory.
//
// Grid: y, rows.
const THREADS = 64u;
const EXPERTS = 128u;
const USED = 8u;
const X_STRIDE = 128u;
const X_OFFSET = 0u;
const NONE = 0xffffffffu;

@group(0) @binding(0) var<storage, read> scores: array<f32>;
@group(0) @binding(0) var<storage, read_write> chosen: array<u32>;
@group(0) @binding(0) var<storage, read_write> shares: array<f32>;

var<workgroup> best: array<u32, THREADS>;

fn score(t: u32, expert: u32) -> f32 {
    return scores[t * X_STRIDE + X_OFFSET + expert];
}

// Whether a comes before b. Whatever is no expert comes last.
fn is_before(t: u32, a: u32, b: u32) -> bool {
    if (a == NONE || b == NONE) {
        return a != NONE;
    }
    let x = score(t, a);
    let y = score(t, b);
    return x > y || (x == y && a < b);
}

@compute @workgroup_size(THREADS)
fn route(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let t = group.y;
    var last = NONE;
    for (var place = 0u; place < USED; place += 1u) {
        var ours = NONE;
        for (var expert = thread; expert < EXPERTS; expert += THREADS) {
            let is_left = last == NONE || is_before(t, last, expert);
            if (is_left && is_before(t, expert, ours)) {
                ours = expert;
            }
        }
        workgroupBarrier();
        best[thread] = ours;
        workgroupBarrier();
        for (var half = THREADS / 2u; half > 0u; half /= 2u) {
            if (thread < half && is_before(t, best[thread + half], best[thread])) {
                best[thread] = best[thread + half];
            }
            workgroupBarrier();
        }
        // Scores that are no numbers come before and after nothing.
        last = min(best[0], EXPERTS - 1u);
        if (thread == 0u) {
            chosen[t * USED + place] = last;
        }
    }
    if (thread == 0u) {
        let peak = score(t, chosen[t * USED]);
        var total = 0.0;
        for (var place = 0u; place < USED; place += 1u) {
            let share = exp(score(t, chosen[t * USED + place]) - peak);
            shares[t * USED + place] = share;
            total += share;
        }
        for (var place = 0u; place < USED; place += 1u) {
            shares[t * USED + place] /= total;
        }
    }
}
