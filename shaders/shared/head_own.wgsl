// A head stays in the model's own basis.
fn turn_head(way: u32, kv_head: u32, thread: u32) {}
