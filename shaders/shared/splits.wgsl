// Where the partial results of attend lie, and how many a row has. A row sees `cells_of` cells from
// `first_cell`; every SPLIT_CELLS of them make one partial result, HEAD_LEN sums, then the largest
// score and the sum of the weights.
const HEADS = 9u;
const HEAD_LEN = 64u;
const SPLIT_CELLS = 64u;
const SPLITS_MAX = 64u;
const WINDOW = 4294967295u;
const PARTIAL = HEAD_LEN + 2u;

@group(0) @binding(0) var<storage, read> positions: array<u32>;

fn first_cell(t: u32) -> u32 {
    let cells = positions[t] + 1u;
    return select(0u, cells - WINDOW, cells > WINDOW);
}

fn splits_of(t: u32) -> u32 {
    return (positions[t] + 1u - first_cell(t) + SPLIT_CELLS - 1u) / SPLIT_CELLS;
}

fn partial_at(t: u32, head: u32, split: u32) -> u32 {
    return ((t * HEADS + head) * SPLITS_MAX + split) * PARTIAL;
}
