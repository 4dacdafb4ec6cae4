// A team is a subgroup; its size is known at run time only, and may differ from one to the next.
struct Invocation {
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) team: u32,
    @builtin(num_subgroups) teams: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(subgroup_size) lanes: u32,
}

fn team(id: Invocation) -> u32 {
    return id.team;
}

fn teams(id: Invocation) -> u32 {
    return id.teams;
}

fn lane(id: Invocation) -> u32 {
    return id.lane;
}

fn lanes(id: Invocation) -> u32 {
    return id.lanes;
}

// The sum over the team, for its first lane at least.
fn reduce(id: Invocation, value: f32) -> f32 {
    return subgroupAdd(value);
}
