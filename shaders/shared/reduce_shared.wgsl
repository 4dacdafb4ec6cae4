// A team is sixteen threads that add up through workgroup memory, for GPUs without subgroups. All
// threads of the workgroup must come here together.
const TEAM = 16u;

struct Invocation {
    @builtin(local_invocation_index) thread: u32,
}

fn team(id: Invocation) -> u32 {
    return id.thread / TEAM;
}

fn teams(id: Invocation) -> u32 {
    return THREADS / TEAM;
}

fn lane(id: Invocation) -> u32 {
    return id.thread % TEAM;
}

fn lanes(id: Invocation) -> u32 {
    return TEAM;
}

var<workgroup> addends: array<f32, THREADS>;

// The sum over the team, for its first lane.
fn reduce(id: Invocation, value: f32) -> f32 {
    workgroupBarrier();
    addends[id.thread] = value;
    workgroupBarrier();
    for (var half = TEAM / 2u; half > 0u; half /= 2u) {
        if (id.thread % TEAM < half) {
            addends[id.thread] += addends[id.thread + half];
        }
        workgroupBarrier();
    }
    return addends[id.thread / TEAM * TEAM];
}
