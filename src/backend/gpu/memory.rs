//! Slots and caches on a device: which buffers there are, and where in them a slot lies.
//!
//! Slots that one op writes together (queries, keys and values; gate and up) are columns of one
//! buffer, so that the op binds it once.

use super::device::Device;
use crate::backend::{Capacity, KvFormat};
use crate::plan::{Extent, Format, Input, Op, Plan, Slot};

/// Where a slot lies.
pub(super) struct Place {
    /// Indices, floats, or int8 codes.
    pub(super) buffer: wgpu::Buffer,
    /// The scales of int8 codes.
    pub(super) scales: Option<wgpu::Buffer>,
    /// From one row to the next, in values.
    pub(super) stride: usize,
    /// The first column.
    pub(super) offset: usize,
}

/// Keys and values of a layer.
pub(super) struct Cache {
    pub(super) keys: wgpu::Buffer,
    pub(super) values: wgpu::Buffer,
}

/// A buffer of so many bytes, as a binding needs it: whole words, never empty.
pub(super) fn buffer(device: &Device, label: &str, bytes: usize) -> wgpu::Buffer {
    device.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: bytes.max(16).next_multiple_of(16) as u64,
        usage: wgpu::BufferUsages::STORAGE
            | wgpu::BufferUsages::COPY_DST
            | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    })
}

/// A buffer for weights: mapped and zero where the CPU writes them in place (see `upload.rs`).
pub(super) fn weight_buffer(device: &Device, label: &str, bytes: usize) -> wgpu::Buffer {
    if !device.is_unified {
        return buffer(device, label, bytes);
    }
    device.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size: bytes.max(16).next_multiple_of(16) as u64,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::MAP_WRITE,
        mapped_at_creation: true,
    })
}

/// Rows of a slot at most.
fn rows(extent: Extent, capacity: Capacity) -> usize {
    extent.rows(capacity.rows, capacity.logit_rows)
}

/// Gives every slot its place.
pub(super) fn places(device: &Device, plan: &Plan, capacity: Capacity) -> Vec<Place> {
    let family = families(plan);
    let mut places: Vec<Option<Place>> = plan.slots.iter().map(|_| None).collect();
    for first in 0..plan.slots.len() {
        if places[first].is_some() {
            continue;
        }
        let members: Vec<usize> =
            (first..plan.slots.len()).filter(|&slot| family[slot] == family[first]).collect();
        let stride: usize = members.iter().map(|&slot| plan.slots[slot].width).sum();
        let info = &plan.slots[first];
        let rows = rows(info.extent, capacity);
        let bytes = match info.format {
            Format::U32 | Format::F32 => 4 * rows * stride,
            Format::Int8 { .. } => rows * stride,
        };
        let shared = buffer(device, info.name, bytes);
        let mut offset = 0;
        for slot in members {
            let scales = match info.format {
                Format::Int8 { group, .. } => {
                    Some(buffer(device, info.name, 4 * rows * stride / group))
                }
                Format::U32 | Format::F32 => None,
            };
            places[slot] = Some(Place { buffer: shared.clone(), scales, stride, offset });
            offset += plan.slots[slot].width;
        }
    }
    places.into_iter().flatten().collect()
}

/// For each slot, the first of those that it must share a buffer with.
fn families(plan: &Plan) -> Vec<usize> {
    let mut family: Vec<usize> = (0..plan.slots.len()).collect();
    let mut unite = |slots: &[Slot]| {
        for pair in slots.windows(2) {
            let (a, b) = (family[pair[0].0], family[pair[1].0]);
            let first = a.min(b);
            family.iter_mut().filter(|f| **f == a || **f == b).for_each(|f| *f = first);
        }
    };
    for op in &plan.ops {
        match op {
            Op::MatMul { parts, .. } => {
                unite(&parts.iter().map(|part| part.out).collect::<Vec<_>>());
            }
            Op::ExpertMatMul { parts, .. } => {
                unite(&parts.iter().map(|part| part.out).collect::<Vec<_>>());
            }
            Op::Rope { q, k, v, .. } => unite(&[*q, *k, *v]),
            Op::Prepare { input: Input::Gated { gate, up, .. }, .. } => unite(&[*gate, *up]),
            Op::Prepare { .. }
            | Op::Embed { .. }
            | Op::Angles { .. }
            | Op::Route { .. }
            | Op::Mix { .. }
            | Op::Attend { .. }
            | Op::AddNorm { .. }
            | Op::SoftCap { .. } => {}
        }
    }
    family
}

/// Bytes of one head of one key or value: whole words.
pub(super) fn head_bytes(kv: KvFormat, head_len: usize) -> usize {
    kv.head_bytes(head_len).next_multiple_of(4)
}

/// Reserves the caches of some layers; the others get the least there is.
pub(super) fn caches(
    device: &Device,
    plan: &Plan,
    capacity: Capacity,
    uses: impl Fn(usize) -> bool,
) -> Vec<Cache> {
    let cells = capacity.sequences * capacity.context;
    let cache = |(layer, info): (usize, &crate::plan::CacheInfo)| {
        let heads = if uses(layer) { cells * info.heads } else { 0 };
        let bytes = heads * head_bytes(capacity.kv, info.head_len);
        Cache { keys: buffer(device, "keys", bytes), values: buffer(device, "values", bytes) }
    };
    plan.caches.iter().enumerate().map(cache).collect()
}
