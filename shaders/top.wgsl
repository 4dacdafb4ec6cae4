// top: the KEEP likeliest of every SLICE candidates, in order, of equal ones the smaller id first.
// Passes over what the pass before has left, until one slice is left, give the likeliest of all.
//
// Grid: x, slices.
const THREADS = 256u;
const COUNT = 49152u; // candidates
const SLICE = 1024u; // a power of two, sorted in workgroup memory
const KEEP = 64u;
// import candidates

struct Peak {
    logit: f32,
    id: u32,
}

@group(0) @binding(0) var<storage, read_write> kept: array<Peak>;

var<workgroup> peaks: array<Peak, SLICE>;

fn better(a: Peak, b: Peak) -> bool {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

@compute @workgroup_size(THREADS)
fn top(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    for (var i = thread; i < SLICE; i += THREADS) {
        let at = group.x * SLICE + i;
        peaks[i] = Peak(-3.4e38, 0xffffffffu);
        if (at < COUNT) {
            let found = candidate(at);
            // What is not a number ranks last.
            peaks[i] = Peak(select(-3.4e38, found.logit, found.logit > -3.4e38), found.id);
        }
    }
    // Bitonic: sorted runs of twice the length, over and over.
    for (var run = 2u; run <= SLICE; run *= 2u) {
        for (var half = run / 2u; half > 0u; half /= 2u) {
            workgroupBarrier();
            for (var i = thread; i < SLICE / 2u; i += THREADS) {
                let a = i / half * (2u * half) + i % half;
                let b = a + half;
                let falls = (a & run) == 0u;
                if (better(peaks[b], peaks[a]) == falls) {
                    let swapped = peaks[a];
                    peaks[a] = peaks[b];
                    peaks[b] = swapped;
                }
            }
        }
    }
    workgroupBarrier();
    for (var i = thread; i < KEEP; i += THREADS) {
        kept[group.x * KEEP + i] = peaks[i];
    }
}
