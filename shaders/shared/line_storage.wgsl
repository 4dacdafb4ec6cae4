// The values that a workgroup works on, in the device's memory: a row that is too long for the
// workgroup's own.
@group(0) @binding(0) var<storage, read_write> line: array<f32>;

fn line_at(t: u32, i: u32) -> f32 {
    return line[t * SEGMENT + i];
}

fn put_line(t: u32, i: u32, value: f32) {
    line[t * SEGMENT + i] = value;
}

fn sync() {
    storageBarrier();
    workgroupBarrier();
}
