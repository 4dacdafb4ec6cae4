//! Tokens chosen on the device: the likeliest one, fed back, and the likeliest few.

use std::ops::ControlFlow;

use super::device::Device;
use super::lower::{Count, Dispatch, named};
use super::memory::buffer;
use super::shader::{Choices, Recipe, shared};
use super::{Core, Gpu};
use crate::bail;
use crate::error::{Error, Result};

/// Logits that a workgroup looks at, in the search for the likeliest and for the likeliest few.
const SLICE: usize = 1024;

/// The likeliest tokens that a slice keeps, and so the most that the device gives.
const KEEP: usize = 64;

/// Tokens that are kept for the CPU.
const CHOSEN: usize = 8;

/// Steps that the device is ahead of the CPU.
const AHEAD: usize = 2;

/// The dispatches and buffers of choosing.
pub(super) struct Sampler {
    greedy: Vec<Dispatch>,
    top: Vec<Dispatch>,
    /// The result of the last pass, pairs of a logit and an id.
    likeliest: wgpu::Buffer,
    chosen: wgpu::Buffer,
    /// One per step that may be under way.
    readbacks: Vec<wgpu::Buffer>,
}

impl Sampler {
    /// For logits of this width; nothing is compiled before it is used.
    pub(super) fn new(device: &Device) -> Sampler {
        let readback = |_| {
            device.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("chosen"),
                size: 4,
                usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                mapped_at_creation: false,
            })
        };
        Sampler {
            greedy: Vec::new(),
            top: Vec::new(),
            likeliest: buffer(device, "likeliest", 8 * KEEP),
            chosen: buffer(device, "chosen", 4 * CHOSEN),
            readbacks: (0..AHEAD).map(readback).collect(),
        }
    }

    fn prepare_greedy(&mut self, core: &mut Core) {
        if !self.greedy.is_empty() {
            return;
        }
        let vocabulary = core.plan.slots[core.plan.logits.0].width;
        let runs = vocabulary.div_ceil(SLICE);
        let peaks = buffer(&core.device, "peaks", 8 * runs);
        let choices = Choices::default().set("VOCABULARY", vocabulary).set("SLICE", SLICE);
        let buffers = [logits(core), named("peaks", &peaks)];
        let grid = [Count::Fixed(runs), Count::Fixed(1), Count::Fixed(1)];
        let first = core.dispatch(&Recipe::new("sample_peaks", choices), &buffers, grid);
        let choices = Choices::default().set("RUNS", runs).set("CHOSEN", CHOSEN);
        let buffers = [
            named("peaks", &peaks),
            named("tokens", &core.places[core.plan.tokens.0].buffer),
            named("positions", &core.places[core.plan.positions.0].buffer),
            named("chosen", &self.chosen),
        ];
        let second = core.dispatch(&Recipe::new("sample", choices), &buffers, [Count::Fixed(1); 3]);
        self.greedy = vec![first, second];
    }

    fn prepare_top(&mut self, core: &mut Core) {
        if !self.top.is_empty() {
            return;
        }
        let mut count = core.plan.slots[core.plan.logits.0].width;
        let mut from = logits(core);
        let mut file = "candidates_logits";
        loop {
            let slices = count.div_ceil(SLICE);
            let kept = match slices {
                1 => self.likeliest.clone(),
                slices => buffer(&core.device, "kept", 8 * slices * KEEP),
            };
            let choices = Choices::default()
                .import("candidates", shared(file))
                .set("COUNT", count)
                .set("SLICE", SLICE)
                .set("KEEP", KEEP);
            let buffers = [from, named("kept", &kept)];
            let grid = [Count::Fixed(slices), Count::Fixed(1), Count::Fixed(1)];
            self.top.push(core.dispatch(&Recipe::new("top", choices), &buffers, grid));
            if slices == 1 {
                return;
            }
            (count, from, file) = (slices * KEEP, named("candidates", &kept), "candidates_kept");
        }
    }
}

fn logits(core: &Core) -> (String, wgpu::Buffer) {
    named("logits", &core.places[core.plan.logits.0].buffer)
}

/// As `Backend::top`.
pub(super) fn top(gpu: &mut Gpu, k: usize) -> Result<Vec<(u32, f32)>> {
    gpu.sampler.prepare_top(&mut gpu.core);
    let device = gpu.core.device.clone();
    let mut encoder = device.device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());
    gpu.sampler.top.iter().for_each(|dispatch| gpu.dispatch(&mut pass, dispatch));
    drop(pass);
    device.queue.submit([encoder.finish()]);
    let bytes = gpu.readback.read(&device, &gpu.sampler.likeliest, 8 * KEEP)?;
    let vocabulary = gpu.core.plan.slots[gpu.core.plan.logits.0].width;
    let pair = |pair: &[u8; 8]| {
        let word = |at: usize| [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
        (u32::from_le_bytes(word(4)), f32::from_le_bytes(word(0)))
    };
    let pairs = bytes.as_chunks::<8>().0.iter().map(pair);
    let mut found: Vec<_> = pairs.filter(|(id, _)| (*id as usize) < vocabulary).take(k).collect();
    if found.is_empty() {
        found.push((0, f32::NEG_INFINITY)); // No logit is a number.
    }
    Ok(found)
}

/// As `Backend::greedy`: a step is encoded and submitted while the one before it runs.
pub(super) fn greedy(
    gpu: &mut Gpu,
    position: u32,
    sequence: u32,
    steps: usize,
    take: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<()> {
    let capacity = gpu.core.capacity;
    if position == 0 || position as usize > capacity.context {
        bail!("batch: position {position} is outside 1..={}", capacity.context);
    }
    gpu.sampler.prepare_greedy(&mut gpu.core);
    // `sample` moves the position on, so that the first step runs at `position`.
    let plan = gpu.core.plan.clone();
    for (slot, value) in
        [(plan.positions, position - 1), (plan.sequences, sequence), (plan.logit_rows, 0)]
    {
        let to = &gpu.core.places[slot.0].buffer;
        gpu.core.device.queue.write_buffer(to, 0, bytemuck::bytes_of(&value));
    }
    gpu.set_batch(1, 1);
    let forms = gpu.prepare_programs(0..plan.ops.len());
    let (mut submitted, mut heard) = (0, 0);
    for step in 0..steps {
        while submitted < steps && submitted < step + AHEAD {
            let at = position as usize + submitted;
            let runs_on = at < capacity.context && submitted + 1 < steps;
            submit(gpu, &forms, at, submitted, runs_on);
            submitted += 1;
        }
        let token = chosen(gpu, step)?;
        heard += 1;
        if take(token).is_break() || position as usize + step >= capacity.context {
            break;
        }
    }
    // The steps that ran past the end are waited for, so that their buffers can be used again.
    for step in heard..submitted {
        chosen(gpu, step)?;
    }
    Ok(())
}

/// Chooses a token and, unless it is the last, runs it.
fn submit(gpu: &mut Gpu, forms: &[(usize, super::Form)], at: usize, step: usize, runs_on: bool) {
    gpu.position_max = at;
    let device = gpu.core.device.clone();
    let mut encoder = device.device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        gpu.sampler.greedy.iter().for_each(|dispatch| gpu.dispatch(&mut pass, dispatch));
    }
    let to = &gpu.sampler.readbacks[step % AHEAD];
    encoder.copy_buffer_to_buffer(&gpu.sampler.chosen, 4 * (at % CHOSEN) as u64, to, 0, 4);
    device.queue.submit([encoder.finish()]);
    to.map_async(wgpu::MapMode::Read, .., |_| ());
    if runs_on {
        let mut encoder = device.device.create_command_encoder(&Default::default());
        gpu.encode(&mut encoder, forms);
        device.queue.submit([encoder.finish()]);
    }
}

/// Waits for the token of a step.
fn chosen(gpu: &mut Gpu, step: usize) -> Result<u32> {
    let device = &gpu.core.device;
    let buffer = &gpu.sampler.readbacks[step % AHEAD];
    loop {
        // Errors while it is not mapped yet.
        if let Ok(view) = buffer.get_mapped_range(..) {
            let token = u32::from_le_bytes([view[0], view[1], view[2], view[3]]);
            drop(view);
            buffer.unmap();
            return Ok(token);
        }
        device.check()?;
        device.device.poll(wgpu::PollType::Poll).map_err(|e| Error::new(e.to_string()))?;
    }
}
