// As reduce_subgroup, where the device has one size of subgroup: loops have known lengths.
const LANES = 32u;

struct Invocation {
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) team: u32,
    @builtin(subgroup_invocation_id) lane: u32,
}

fn team(id: Invocation) -> u32 {
    return id.team;
}

fn teams(id: Invocation) -> u32 {
    return THREADS / LANES;
}

fn lane(id: Invocation) -> u32 {
    return id.lane;
}

fn lanes(id: Invocation) -> u32 {
    return LANES;
}

// The sum over the team, for its first lane at least.
fn reduce(id: Invocation, value: f32) -> f32 {
    return subgroupAdd(value);
}
