// The values that a workgroup works on, in the device's memory: a row that is too long for the
// workgroup's own.
@group(0) @binding(0) var<storage, read_write> line: array<f32>;

var<private> line_base: u32;

fn begin_line(base: u32) {
    line_base = base;
}

fn line_at(t: u32, i: u32) -> f32 {
    return line[line_base + i];
}

fn put_line(t: u32, i: u32, value: f32) {
    line[line_base + i] = value;
}

fn sync() {
    storageBarrier();
    workgroupBarrier();
}
