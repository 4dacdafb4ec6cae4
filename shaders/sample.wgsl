// sample: the likeliest token becomes the next one: it goes into the batch, the position moves on,
// and the token is kept where the CPU finds it later. So the next step needs no CPU.
//
// Grid: one workgroup.
const THREADS = 256u;
const RUNS = 48u; // peaks that sample_peaks left
const CHOSEN = 8u; // tokens that are kept

struct Peak {
    logit: f32,
    id: u32,
}

@group(0) @binding(0) var<storage, read> peaks: array<Peak>;
@group(0) @binding(0) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(0) var<storage, read_write> positions: array<u32>;
@group(0) @binding(0) var<storage, read_write> chosen: array<u32>;

var<workgroup> best: array<Peak, THREADS>;

fn better(a: Peak, b: Peak) -> bool {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

@compute @workgroup_size(THREADS)
fn sample(@builtin(local_invocation_index) thread: u32) {
    var own = Peak(-3.4e38, 0xffffffffu);
    for (var i = thread; i < RUNS; i += THREADS) {
        if (better(peaks[i], own)) {
            own = peaks[i];
        }
    }
    best[thread] = own;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if (thread < half && better(best[thread + half], best[thread])) {
            best[thread] = best[thread + half];
        }
        workgroupBarrier();
    }
    if (thread == 0u) {
        // No number among the logits: the first token, as on the CPU.
        let id = select(best[0].id, 0u, best[0].id == 0xffffffffu);
        positions[0] += 1u;
        tokens[0] = id;
        chosen[positions[0] % CHOSEN] = id;
    }
}
