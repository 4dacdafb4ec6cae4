// How many rows this run has; the rest of a grid that was made for more returns at once.
struct Batch {
    rows: u32,
    logit_rows: u32,
    context: u32,
    spare: u32,
}

@group(0) @binding(0) var<storage, read> batch: Batch;
