// The sum over a workgroup of THREADS, a multiple of sixteen, in two steps.
var<workgroup> addends: array<f32, THREADS>;
var<workgroup> sixteenths: array<f32, 16>;

fn sum_of_all(value: f32, thread: u32) -> f32 {
    addends[thread] = value;
    workgroupBarrier();
    if (thread < 16u) {
        var sum = 0.0;
        for (var i = 0u; i < THREADS / 16u; i += 1u) {
            sum += addends[thread + 16u * i];
        }
        sixteenths[thread] = sum;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < 16u; i += 1u) {
        sum += sixteenths[i];
    }
    return sum;
}
