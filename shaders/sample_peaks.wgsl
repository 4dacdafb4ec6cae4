// sample_peaks: the likeliest token of each run of logits, the first half of sample.
//
// Grid: x, runs of SLICE logits of the first row.
const THREADS = 256u;
const VOCABULARY = 49152u;
const SLICE = 1024u;
const OFFSET = 0u;

struct Peak {
    logit: f32,
    id: u32,
}

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(0) var<storage, read_write> peaks: array<Peak>;

var<workgroup> best: array<Peak, THREADS>;

fn better(a: Peak, b: Peak) -> bool {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

@compute @workgroup_size(THREADS)
fn sample_peaks(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    var own = Peak(-3.4e38, 0xffffffffu);
    for (var i = thread; i < SLICE; i += THREADS) {
        let id = group.x * SLICE + i;
        if (id < VOCABULARY) {
            let peak = Peak(logits[OFFSET + id], id);
            if (better(peak, own)) {
                own = peak;
            }
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
        peaks[group.x] = best[0];
    }
}
