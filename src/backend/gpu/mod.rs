//! The GPU backend: WGSL compute shaders through wgpu, on Vulkan, Metal or DX12.
//!
//! An op becomes one or two dispatches, made once: pipeline, bind group, grid. A run of ops is one
//! command buffer with one pass. Few rows and many rows have kernels of their own; which one runs
//! depends on the batch alone.

mod attention;
pub mod device;
mod experts;
mod lower;
mod mat_mul;
mod memory;
mod profile;
mod sample;
pub mod shader;
pub mod tune;
mod upload;
mod weights;

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use super::{Backend, Capacity, Timing, Values, check, in_bytes, kv};
use crate::error::{Error, Result};
use crate::plan::{Batch, Format, Op, Plan, Slot, SlotInfo};
use device::{Device, Kernel};
use lower::{Dispatch, Form};
use memory::{Cache, Place};
use sample::Sampler;
use shader::Recipe;
pub use tune::{Tuning, Variant};
use upload::Uploader;
use weights::Weights;

/// How to set up the backend.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What [`Backend::tune`] gave for this device before; anything else is taken for nothing.
    pub tuning: String,
}

/// Runs plans, or some of their ops, on a GPU.
pub struct Gpu {
    /// As it was given; that of the core may hold weights in other types.
    plan: Arc<Plan>,
    core: Core,
    ops: Range<usize>,
    rows: usize,
    logit_rows: usize,
    /// The last cell that a row of the batch sees.
    position_max: usize,
    programs: HashMap<(usize, Form), Vec<Dispatch>>,
    logits: Vec<f32>,
    sampler: Sampler,
    readback: Readback,
}

/// What the dispatches are made of.
struct Core {
    device: Arc<Device>,
    plan: Arc<Plan>,
    capacity: Capacity,
    places: Vec<Place>,
    caches: Vec<Cache>,
    weights: Weights,
    batch: wgpu::Buffer,
    work: lower::Work,
    tuning: Tuning,
    kernels: HashMap<String, Arc<Kernel>>,
}

/// A buffer of the CPU's, for what comes back.
struct Readback {
    buffer: wgpu::Buffer,
}

/// What a text says about a device; nothing if it says nothing that makes sense.
fn tuning(text: &str) -> Tuning {
    let mut tuning: Tuning = serde_json::from_str(text).unwrap_or_default();
    tuning.0.retain(|_, variant| variant.is_sane());
    tuning
}

/// Bytes that ops need on a device: weights, caches, slots.
pub fn needed_bytes(plan: &Plan, capacity: Capacity, ops: Range<usize>) -> u64 {
    let mut weights = std::collections::HashSet::new();
    let mut bytes = 0_u64;
    for op in &plan.ops[ops] {
        match op {
            Op::Embed { table, .. } => {
                weights.insert(*table);
            }
            Op::MatMul { parts, .. } => weights.extend(parts.iter().map(|part| part.weight)),
            Op::ExpertMatMul { parts, .. } => {
                weights.extend(parts.iter().map(|part| part.weight));
            }
            Op::Rope { layer, .. } => {
                let info = plan.caches[*layer];
                let cells = (capacity.sequences as u64).saturating_mul(capacity.context as u64);
                let head = memory::head_bytes(capacity.kv, info.head_len) as u64;
                bytes = bytes.saturating_add(cells.saturating_mul(2 * info.heads as u64 * head));
                bytes = bytes.saturating_add(attention::turn_bytes(info) as u64);
            }
            Op::Angles { .. }
            | Op::Prepare { .. }
            | Op::Route { .. }
            | Op::Mix { .. }
            | Op::Attend { .. }
            | Op::AddNorm { .. }
            | Op::SoftCap { .. } => {}
        }
    }
    let weights = weights.iter().map(|weight| &plan.weights[weight.0]);
    let weights: u64 = weights.map(|tensor| weights::device_bytes(tensor) as u64).sum();
    let slots = plan.slots.iter().map(|slot| {
        let rows = slot.extent.rows(capacity.rows, capacity.logit_rows);
        4 * (rows * slot.width) as u64
    });
    bytes.saturating_add(weights).saturating_add(slots.sum::<u64>())
}

impl Gpu {
    /// Reserves memory for some ops of a plan, uploads their weights and compiles their kernels.
    ///
    /// # Errors
    /// If heads have an odd width, the device has not enough
    /// memory, or is lost.
    pub fn new(
        device: Arc<Device>,
        plan: Arc<Plan>,
        capacity: Capacity,
        ops: Range<usize>,
        options: Options,
    ) -> Result<Gpu> {
        if let Some(info) = plan.caches.iter().find(|info| !info.head_len.is_multiple_of(8)) {
            let message =
                format!("expected heads of a multiple of 8 values, found {}", info.head_len);
            return Err(Error::new(message).with_hint("--device cpu runs the model"));
        }
        let is_coarse = |slot: &SlotInfo| matches!(slot.format, Format::Int8 { coarse: 1.., .. });
        if plan.slots.iter().any(is_coarse) {
            let error = Error::new("expected activations of 8 bits on a GPU, found some of 4");
            return Err(error.with_hint("--device cpu runs them"));
        }
        kv::check(&plan, capacity, ops.clone())?;
        let given = plan.clone();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let plan = in_bytes(plan, ops.clone(), threads, weights::has_no_form);
        // What is larger than any buffer may be counts as too little memory, too.
        let scopes = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation]
            .map(|filter| device.device.push_error_scope(filter));
        let uses = |layer: usize| {
            let runs = |op: &Op| matches!(op, Op::Rope { layer: l, .. } if *l == layer);
            plan.ops[ops.clone()].iter().any(runs)
        };
        let mut core = Core {
            places: memory::places(&device, &plan, capacity),
            caches: memory::caches(&device, &plan, capacity, uses),
            weights: Weights::default(),
            batch: memory::buffer(&device, "batch", 16),
            work: lower::Work::new(&device, &plan, capacity),
            tuning: tuning(&options.tuning),
            kernels: HashMap::new(),
            device: device.clone(),
            plan: plan.clone(),
            capacity,
        };
        let uploaded = core.upload(ops.clone());
        let [memory, validation] = scopes;
        let (validation, memory) =
            (pollster::block_on(validation.pop()), pollster::block_on(memory.pop()));
        if let Some(error) = memory.or(validation) {
            let needed = needed_bytes(&plan, capacity, ops) as f64 / 1e9;
            let text = error.to_string();
            let text = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            return Err(Error::new(format!("{needed:.2} GB are needed: {text}"))
                .at(format_args!("device {}", device.info.name))
                .with_hint("--gpu-layers keeps some layers on the CPU, --ctx reserves less"));
        }
        uploaded?;
        let width = plan.slots[plan.logits.0].width;
        let mut gpu = Gpu {
            plan: given,
            sampler: Sampler::new(&device),
            readback: Readback::new(&device, 4 * capacity.logit_rows * width),
            core,
            ops: ops.clone(),
            rows: 0,
            logit_rows: 0,
            position_max: 0,
            programs: HashMap::new(),
            logits: Vec::new(),
        };
        gpu.core.compile(lower::recipes(&gpu.core, ops));
        device.check()?;
        Ok(gpu)
    }

    /// The dispatches of some ops for the batch that was loaded.
    fn prepare_programs(&mut self, ops: Range<usize>) -> Vec<(usize, Form)> {
        let plan = self.core.plan.clone();
        let mut forms = Vec::new();
        for at in ops.clone() {
            let form = lower::form(&plan, at, &ops, self.rows, self.logit_rows);
            if !self.programs.contains_key(&(at, form)) {
                let dispatches = lower::lower(&mut self.core, at, form);
                self.programs.insert((at, form), dispatches);
            }
            forms.push((at, form));
        }
        forms
    }

    fn encode(&self, encoder: &mut wgpu::CommandEncoder, forms: &[(usize, Form)]) {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for key in forms {
            for dispatch in &self.programs[key] {
                self.dispatch(&mut pass, dispatch);
            }
        }
    }

    fn dispatch(&self, pass: &mut wgpu::ComputePass, dispatch: &Dispatch) {
        let size = lower::Size {
            rows: self.rows,
            logit_rows: self.logit_rows,
            cells: self.position_max + 1,
        };
        let [x, y, z] = dispatch.grid.map(|count| count.of(size));
        pass.set_pipeline(&dispatch.kernel.pipeline);
        pass.set_bind_group(0, &dispatch.group, &[]);
        pass.dispatch_workgroups(x, y, z);
    }

    fn set_batch(&mut self, rows: usize, logit_rows: usize) {
        (self.rows, self.logit_rows) = (rows, logit_rows);
        let values = [rows, logit_rows, self.core.capacity.context, 0].map(|v| v as u32);
        self.core.device.queue.write_buffer(&self.core.batch, 0, bytemuck::cast_slice(&values));
    }

    fn extent(&self, slot: Slot) -> usize {
        self.core.plan.slots[slot.0].extent.rows(self.rows, self.logit_rows)
    }
}

impl Backend for Gpu {
    fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    fn capacity(&self) -> Capacity {
        self.core.capacity
    }

    fn notes(&self) -> Vec<String> {
        let (plan, info) = (&self.core.plan, &self.core.device.info);
        let all = plan.layers.len() - 1;
        let here = plan.layers[..all].iter().filter(|at| self.ops.contains(at)).count();
        let mut notes = vec![format!("{}: {here} of {all} layers", info.name)];
        let transcoded = &self.core.weights.transcoded;
        if let Some(first) = transcoded.first() {
            let count = transcoded.len();
            notes.push(format!(
                "{}: {count} tensors ({first} ...) are held as 8-bit integers, since no shader \
                 reads their type",
                info.name
            ));
        }
        notes
    }

    /// Two factors of half precision, each off by up to 2^-11 of itself.
    fn product_error(&self) -> f64 {
        if self.core.device.mask.matrix { 0.5_f64.powi(10) } else { 0.0 }
    }

    fn load(&mut self, batch: &Batch) -> Result<()> {
        let plan = self.core.plan.clone();
        check(batch, &plan, self.core.capacity)?;
        self.set_batch(batch.len(), batch.logit_rows.len());
        self.position_max = batch.positions.iter().copied().max().unwrap_or(0) as usize;
        let inputs = [
            (plan.tokens, &batch.tokens),
            (plan.positions, &batch.positions),
            (plan.sequences, &batch.sequences),
            (plan.logit_rows, &batch.logit_rows),
        ];
        for (slot, values) in inputs {
            let buffer = &self.core.places[slot.0].buffer;
            self.core.device.queue.write_buffer(buffer, 0, bytemuck::cast_slice(values));
        }
        self.core.device.check()
    }

    fn run_ops(&mut self, ops: Range<usize>) -> Result<()> {
        let forms = self.prepare_programs(ops);
        let mut encoder = self.core.device.device.create_command_encoder(&Default::default());
        self.encode(&mut encoder, &forms);
        self.core.device.queue.submit([encoder.finish()]);
        self.core.device.check()
    }

    fn logits(&mut self) -> Result<&mut [f32]> {
        let slot = self.core.plan.logits;
        let bytes = 4 * self.logit_rows * self.core.plan.slots[slot.0].width;
        let place = &self.core.places[slot.0];
        let all = self.readback.read(&self.core.device, &place.buffer, bytes)?;
        self.logits.clear();
        self.logits.extend_from_slice(bytemuck::cast_slice(&all));
        Ok(&mut self.logits)
    }

    fn read(&mut self, slot: Slot) -> Result<Values> {
        let (rows, info) = (self.extent(slot), &self.core.plan.slots[slot.0]);
        let (place, width) = (&self.core.places[slot.0], info.width);
        let read = |buffer: &wgpu::Buffer, bytes: usize| -> Result<Vec<u8>> {
            let mut readback = Readback::new(&self.core.device, bytes);
            readback.read(&self.core.device, buffer, bytes)
        };
        Ok(match info.format {
            Format::U32 => {
                let bytes = read(&place.buffer, 4 * rows * width)?;
                Values::U32(bytemuck::pod_collect_to_vec(&bytes))
            }
            Format::F32 => {
                let bytes = read(&place.buffer, 4 * rows * place.stride)?;
                let all: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
                let line = |row: &[f32]| row[place.offset..place.offset + width].to_vec();
                Values::F32(all.chunks_exact(place.stride).flat_map(line).collect())
            }
            Format::Int8 { group, .. } => {
                let codes = read(&place.buffer, rows * width)?;
                let scales = place.scales.as_ref().expect("int8 slots have scales");
                let scales = read(scales, 4 * rows * width / group)?;
                Values::Int8 {
                    codes: bytemuck::cast_slice(&codes).to_vec(),
                    scales: bytemuck::pod_collect_to_vec(&scales),
                }
            }
        })
    }

    fn write(&mut self, slot: Slot, values: &Values) -> Result<()> {
        let (rows, width) = (self.extent(slot), self.core.plan.slots[slot.0].width);
        let place = &self.core.places[slot.0];
        let queue = &self.core.device.queue;
        match values {
            Values::U32(values) => {
                assert_eq!(values.len(), rows * width, "a value per row");
                queue.write_buffer(&place.buffer, 0, bytemuck::cast_slice(values));
            }
            Values::F32(values) => {
                assert_eq!(values.len(), rows * width, "whole rows");
                for (row, values) in values.chunks_exact(width).enumerate() {
                    let at = 4 * (row * place.stride + place.offset);
                    queue.write_buffer(&place.buffer, at as u64, bytemuck::cast_slice(values));
                }
            }
            Values::Int8 { codes, scales } => {
                assert_eq!(codes.len(), rows * width, "a code per value");
                queue.write_buffer(&place.buffer, 0, bytemuck::cast_slice(codes));
                let to = place.scales.as_ref().expect("int8 slots have scales");
                queue.write_buffer(to, 0, bytemuck::cast_slice(scales));
            }
        }
        self.core.device.check()
    }

    fn profile(&mut self) -> Result<Option<Vec<Timing>>> {
        profile::profile(self)
    }

    fn tune(
        &mut self,
        again: bool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Option<String>> {
        let is_new = tune::tune(self, again, progress)?;
        let text = || serde_json::to_string_pretty(&self.core.tuning).expect("plain numbers");
        Ok(is_new.then(text))
    }

    fn top(&mut self, k: usize) -> Result<Vec<(u32, f32)>> {
        sample::top(self, k)
    }

    fn greedy(
        &mut self,
        position: u32,
        sequence: u32,
        steps: usize,
        take: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<()> {
        sample::greedy(self, position, sequence, steps, take)
    }
}

impl Core {
    /// Uploads what some ops use.
    fn upload(&mut self, ops: Range<usize>) -> Result<()> {
        let (device, plan) = (self.device.clone(), self.plan.clone());
        let mut up = Uploader::new(&device);
        for op in &plan.ops[ops] {
            lower::upload(self, &device, &mut up, &plan, op)?;
        }
        up.finish()
    }

    /// Compiles recipes, side by side, unless they are there.
    fn compile(&mut self, recipes: Vec<Recipe>) {
        let mut missing: Vec<(&'static str, shader::Shader)> = Vec::new();
        for recipe in recipes {
            let shader = shader::assemble(&recipe);
            let known = self.kernels.contains_key(&shader.text)
                || missing.iter().any(|(_, other)| other.text == shader.text);
            if !known {
                missing.push((recipe.kernel, shader));
            }
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let share = missing.len().div_ceil(threads).max(1);
        let device = &self.device;
        let compiled: Vec<Arc<Kernel>> = std::thread::scope(|scope| {
            let compile = |(name, shader): &(&'static str, shader::Shader)| {
                Arc::new(device.compile(name, shader.clone()))
            };
            let shares: Vec<_> = missing
                .chunks(share)
                .map(|share| scope.spawn(move || share.iter().map(compile).collect::<Vec<_>>()))
                .collect();
            shares.into_iter().flat_map(|share| share.join().expect("no panic")).collect()
        });
        for kernel in compiled {
            self.kernels.insert(kernel.shader.text.clone(), kernel);
        }
    }

    /// Whether the weights of a product come with a table.
    fn has_table(&self, at: usize) -> bool {
        let Op::MatMul { parts, .. } = &self.plan.ops[at] else { return false };
        self.weights.matrix(&weights::key(parts)).iter().any(|section| section.table_words() > 0)
    }

    fn dispatch_step(&mut self, step: lower::Step) -> Dispatch {
        let mut dispatch = self.dispatch(&step.recipe, &step.buffers, step.grid);
        if !step.what.is_empty() {
            dispatch.label = format!("{} {}", dispatch.label, step.what);
        }
        dispatch.bytes = step.bytes;
        dispatch
    }

    fn kernel(&mut self, recipe: &Recipe) -> Arc<Kernel> {
        let shader = shader::assemble(recipe);
        if let Some(kernel) = self.kernels.get(&shader.text) {
            return kernel.clone();
        }
        let kernel = Arc::new(self.device.compile(recipe.kernel, shader));
        self.kernels.insert(kernel.shader.text.clone(), kernel.clone());
        kernel
    }

    /// A dispatch whose buffers are found by name.
    fn dispatch(
        &mut self,
        recipe: &Recipe,
        buffers: &[(String, wgpu::Buffer)],
        grid: lower::Grid,
    ) -> Dispatch {
        let label = recipe.kernel.to_string();
        let kernel = self.kernel(recipe);
        let entry = |(number, binding): (usize, &shader::Binding)| {
            let found = buffers.iter().find(|(name, _)| *name == binding.name);
            let found = match (found, binding.name.as_str()) {
                (Some((_, buffer)), _) => buffer,
                (None, "batch") => &self.batch,
                (None, name) => panic!("{}: no buffer `{name}`", recipe.kernel),
            };
            wgpu::BindGroupEntry { binding: number as u32, resource: found.as_entire_binding() }
        };
        let entries: Vec<_> = kernel.shader.bindings.iter().enumerate().map(entry).collect();
        let group = self.device.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(recipe.kernel),
            layout: &kernel.layout,
            entries: &entries,
        });
        Dispatch { kernel, group, grid, label, bytes: 0 }
    }
}

impl Readback {
    fn new(device: &Device, bytes: usize) -> Readback {
        let buffer = device.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size: bytes.max(16).next_multiple_of(16) as u64,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Readback { buffer }
    }

    /// The first bytes of a buffer, after everything submitted so far.
    fn read(&mut self, device: &Device, from: &wgpu::Buffer, bytes: usize) -> Result<Vec<u8>> {
        let padded = bytes.next_multiple_of(4) as u64;
        let mut encoder = device.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(from, 0, &self.buffer, 0, padded);
        device.queue.submit([encoder.finish()]);
        self.buffer.map_async(wgpu::MapMode::Read, ..padded, |_| ());
        device.wait()?;
        let view = self.buffer.get_mapped_range(..padded);
        let view = view.map_err(|error| {
            Error::new(error.to_string()).at(format_args!("device {}", device.info.name))
        })?;
        let result = view[..bytes].to_vec();
        drop(view);
        self.buffer.unmap();
        Ok(result)
    }
}
