// import batch
fn extent() -> u32 {
    return batch.rows;
}
