// import batch
fn extent() -> u32 {
    return batch.logit_rows;
}
