//! How long each kernel takes on the device, by its own clock.

use super::Gpu;
use crate::backend::Timing;
use crate::error::Result;

/// Runs all ops on the batch that was loaded, a timestamp after every dispatch; `None` where the
/// device has no such clock.
pub(super) fn profile(gpu: &mut Gpu) -> Result<Option<Vec<Timing>>> {
    let device = gpu.core.device.clone();
    if !device.timestamps {
        return Ok(None);
    }
    let forms = gpu.prepare_programs(0..gpu.core.plan.ops.len());
    let steps: Vec<_> =
        forms.iter().flat_map(|key| (0..gpu.programs[key].len()).map(move |i| (*key, i))).collect();
    let count = steps.len() as u32 + 1;
    let queries = device.device.create_query_set(&wgpu::QuerySetDescriptor {
        label: Some("profile"),
        ty: wgpu::QueryType::Timestamp,
        count,
    });
    let bytes = 8 * u64::from(count);
    let resolved = device.device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("profile"),
        size: bytes,
        usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    });
    let mut encoder = device.device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.write_timestamp(&queries, 0);
        for (number, (key, i)) in steps.iter().enumerate() {
            gpu.dispatch(&mut pass, &gpu.programs[key][*i]);
            pass.write_timestamp(&queries, number as u32 + 1);
        }
    }
    encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
    device.queue.submit([encoder.finish()]);
    let bytes =
        super::Readback::new(&device, bytes as usize).read(&device, &resolved, bytes as usize)?;
    let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&bytes);
    let period = f64::from(device.queue.get_timestamp_period()) / 1000.0;
    let mut timings: Vec<Timing> = Vec::new();
    for ((key, i), pair) in steps.iter().zip(ticks.windows(2)) {
        let dispatch = &gpu.programs[key][*i];
        let micros = pair[1].saturating_sub(pair[0]) as f64 * period;
        match timings.iter_mut().find(|timing| timing.name == dispatch.label) {
            Some(timing) => {
                timing.count += 1;
                timing.micros += micros;
                timing.bytes += dispatch.bytes;
            }
            None => timings.push(Timing {
                name: dispatch.label.clone(),
                count: 1,
                micros,
                bytes: dispatch.bytes,
            }),
        }
    }
    Ok(Some(timings))
}
