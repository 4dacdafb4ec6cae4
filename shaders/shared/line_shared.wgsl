// The values that a workgroup works on, in its own memory.
var<workgroup> line: array<f32, SEGMENT>;

fn begin_line(base: u32) {}

fn line_at(t: u32, i: u32) -> f32 {
    return line[i];
}

fn put_line(t: u32, i: u32, value: f32) {
    line[i] = value;
}

fn sync() {
    workgroupBarrier();
}
