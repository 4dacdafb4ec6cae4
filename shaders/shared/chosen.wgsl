// Which experts each row chose, one after the other; so many choices in a row share an input.
const EXPERT_ROWS = 768u; // rows of one expert's matrix
const SHARING = 8u;

@group(0) @binding(0) var<storage, read> chosen: array<u32>;

// The row of a section in which row r of an expert lies, which has HEIGHT rows from FIRST on of the
// matrices of all experts; HEIGHT if it lies in another section.
fn row_here(expert: u32, r: u32, first: u32, height: u32) -> u32 {
    let row = expert * EXPERT_ROWS + r;
    let is_here = r < EXPERT_ROWS && row >= first && row - first < height;
    return select(height, row - first, is_here);
}
