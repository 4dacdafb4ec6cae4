//! Which device runs a plan, how many of its layers, and what is kept about it.

use std::sync::Arc;

use super::Options;
use super::memory;
#[cfg(feature = "gpu")]
use super::memory::size;
#[cfg(feature = "gpu")]
use super::tuning::Tuning;
use crate::backend::cpu::Cpu;
#[cfg(feature = "gpu")]
use crate::backend::gpu::{self, device::Adapter};
use crate::backend::reference::Reference;
#[cfg(feature = "gpu")]
use crate::backend::split::Split;
use crate::backend::{Backend, Capacity, KvFormat, kv};
use crate::bail;
use crate::error::{Error, Result};
use crate::plan::Plan;

/// What runs the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The first GPU that has room for the whole model, else the one that has room for most of its
    /// layers; the CPU where there is none. A GPU that the CPU plays is never taken: it is slower
    /// than the CPU itself.
    Auto,
    /// SIMD and threads.
    Cpu,
    /// Plain loops: the oracle.
    Reference,
    /// A GPU, by its place among the adapters; as many layers as fit.
    #[cfg(feature = "gpu")]
    Gpu(usize),
}

/// A GPU, as it is listed.
#[derive(Clone, Debug)]
pub struct Listed {
    /// What it calls itself.
    pub name: String,
    /// Discrete, integrated, virtual, cpu or other.
    pub kind: &'static str,
    /// The interface it is reached through.
    pub backend: String,
    /// The driver and its version.
    pub driver: String,
    /// Bytes of its memory, if the driver says.
    pub memory_bytes: Option<u64>,
    /// The least and most threads of a subgroup; `None` without subgroup operations.
    pub subgroups: Option<(u32, u32)>,
}

/// A backend that is ready, and what to say about it.
pub(super) struct Opened {
    pub(super) backend: Box<dyn Backend>,
    /// As `--json` calls it.
    pub(super) device: String,
    pub(super) notes: Vec<String>,
    #[cfg(feature = "gpu")]
    pub(super) tuning: Option<Tuning>,
}

impl Device {
    /// The device of this name: auto, cpu, gpu, reference, or a GPU's number or part of its name.
    ///
    /// # Errors
    /// If there is none, or several.
    pub fn by_name(text: &str) -> Result<Device> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "reference" => Ok(Device::Reference),
            text => gpu_by_name(text),
        }
    }

    /// Whether the plan may run on a GPU.
    pub(super) fn may_be_gpu(self) -> bool {
        match self {
            Device::Cpu | Device::Reference => false,
            #[cfg(not(feature = "gpu"))]
            Device::Auto => false,
            #[cfg(feature = "gpu")]
            Device::Auto => gpu::device::adapters().iter().any(Adapter::is_hardware),
            #[cfg(feature = "gpu")]
            Device::Gpu(_) => true,
        }
    }
}

#[cfg(not(feature = "gpu"))]
fn gpu_by_name(text: &str) -> Result<Device> {
    match text {
        "gpu" => bail!("this program was built without GPUs, expected auto, cpu or reference"),
        text => bail!("no device `{text}`, expected auto, cpu or reference"),
    }
}

#[cfg(feature = "gpu")]
fn gpu_by_name(text: &str) -> Result<Device> {
    let names: Vec<String> = list().into_iter().map(|gpu| gpu.name).collect();
    choose(text, &names).map(Device::Gpu)
}

/// The one of some adapters that a text means.
///
/// # Errors
/// If it means none, or several.
pub fn choose(text: &str, names: &[String]) -> Result<usize> {
    if names.is_empty() {
        let what = match text {
            "gpu" => String::new(),
            text => format!("no device `{text}`, expected auto, cpu or reference: "),
        };
        bail!(
            "{what}no GPU was found through Vulkan, Metal or DX12; `vulkaninfo --summary` shows \
             whether it has a driver for Vulkan"
        );
    }
    if text == "gpu" {
        return Ok(0);
    }
    let number: Option<usize> = text.parse().ok();
    if let Some(index) = number.filter(|&index| index < names.len()) {
        return Ok(index);
    }
    let known = |(index, name): (usize, &String)| format!("{index} ({name})");
    let known: Vec<String> = names.iter().enumerate().map(known).collect();
    let known = known.join(", ");
    let wish = text.to_lowercase();
    // A long number may be a model's: `4070`; a short one is not a part of one.
    let is_place = number.is_some_and(|number| number < 100);
    let matches = |&index: &usize| !is_place && names[index].to_lowercase().contains(&wish);
    match (0..names.len()).filter(matches).collect::<Vec<_>>()[..] {
        [index] => Ok(index),
        [] => bail!("no device `{text}`, expected auto, cpu, gpu, reference, {known}"),
        _ => bail!("several devices match `{text}`, expected one of {known}"),
    }
}

/// Every GPU there is, in the order of their numbers.
#[cfg(feature = "gpu")]
pub fn list() -> Vec<Listed> {
    let listed = |adapter: &Adapter| {
        let info = adapter.info.clone();
        Listed {
            kind: adapter.kind(),
            backend: info.backend.to_string(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            memory_bytes: adapter.memory_bytes,
            subgroups: adapter
                .has_subgroups()
                .then_some((info.subgroup_min_size, info.subgroup_max_size)),
            name: info.name,
        }
    };
    gpu::device::adapters().iter().map(listed).collect()
}

/// Every GPU there is: none, without the code for them.
#[cfg(not(feature = "gpu"))]
pub fn list() -> Vec<Listed> {
    Vec::new()
}

/// Makes the backend that runs a plan.
///
/// # Errors
/// If there is none that can, or not enough memory.
pub(super) fn open(plan: Arc<Plan>, capacity: Capacity, options: &Options) -> Result<Opened> {
    if capacity.context == 0 || capacity.sequences == 0 {
        bail!("context: expected at least one cell and one sequence, found none");
    }
    match options.device {
        #[cfg(feature = "gpu")]
        Device::Gpu(index) => {
            let adapters = gpu::device::adapters();
            let Some(adapter) = adapters.get(index) else {
                bail!("device {index}: expected one of the {} there are", adapters.len());
            };
            let room = Room::of(adapter, &plan, capacity, options);
            let cut = room.cut(options.gpu_layers)?;
            if cut == plan.ops.len() && options.gpu_layers.is_none() {
                return Err(room.too_small(1));
            }
            split(adapter, plan, capacity, options, cut)
        }
        #[cfg(feature = "gpu")]
        Device::Auto if options.device.may_be_gpu() => auto(plan, capacity, options),
        Device::Auto | Device::Cpu | Device::Reference => {
            if let Some(layers) = options.gpu_layers.filter(|&layers| layers > 0) {
                return Err(Error::new(format!("expected a GPU for {layers} layers, found none"))
                    .with_hint("`gridmill devices` lists what there is"));
            }
            without_gpu(plan, capacity, options)
        }
    }
}

fn without_gpu(plan: Arc<Plan>, capacity: Capacity, options: &Options) -> Result<Opened> {
    // The reference keeps what is left of codes as floats.
    let kv = if options.device == Device::Reference { KvFormat::F32 } else { capacity.kv };
    let kept = Capacity { kv, ..capacity };
    memory::check(kv::cache_bytes(&plan, kept, 0..plan.ops.len()), kept)?;
    let (backend, device): (Box<dyn Backend>, String) = match options.device {
        Device::Reference => (Box::new(Reference::new(plan, capacity)), "reference".to_string()),
        _ => {
            let cpu = Cpu::new(plan, capacity, options.threads, options.level)?;
            (Box::new(cpu), format!("cpu ({})", options.level))
        }
    };
    Ok(Opened {
        backend,
        device,
        notes: Vec::new(),
        #[cfg(feature = "gpu")]
        tuning: None,
    })
}

/// The first GPU that holds everything, else the one that holds most.
#[cfg(feature = "gpu")]
fn auto(plan: Arc<Plan>, capacity: Capacity, options: &Options) -> Result<Opened> {
    let hardware = gpu::device::adapters().iter().filter(|adapter| adapter.is_hardware());
    let mut best: Option<(&Adapter, usize)> = None;
    let mut refusal = None;
    for adapter in hardware {
        match Room::of(adapter, &plan, capacity, options).cut(options.gpu_layers) {
            Ok(cut) if best.is_none_or(|(_, other)| cut < other) => best = Some((adapter, cut)),
            Ok(_) => {}
            Err(error) => {
                refusal.get_or_insert(error);
            }
        }
    }
    match (best, refusal) {
        (Some((adapter, cut)), _) => split(adapter, plan, capacity, options, cut),
        (None, Some(error)) => Err(error),
        (None, None) => without_gpu(plan, capacity, options),
    }
}

/// A GPU for the ops from `cut` on, the CPU for those before.
#[cfg(feature = "gpu")]
fn split(
    adapter: &Adapter,
    plan: Arc<Plan>,
    capacity: Capacity,
    options: &Options,
    cut: usize,
) -> Result<Opened> {
    let room = Room::of(adapter, &plan, capacity, options);
    let all = plan.ops.len();
    if cut == all {
        let mut opened = without_gpu(plan.clone(), capacity, options)?;
        if options.gpu_layers.is_none() {
            let error = room.too_small(1);
            opened.notes.push(format!("all layers run on the CPU: {error}"));
        }
        return Ok(opened);
    }
    memory::check(kv::cache_bytes(&plan, capacity, 0..cut), capacity)?;
    if room.budget == u64::MAX {
        memory::check_somewhere(kv::cache_bytes(&plan, capacity, cut..all), capacity)?;
    }
    let (tuning, mut notes) = Tuning::open(options.cache.as_deref(), adapter);
    let settings = gpu::Options { tuning: tuning.known.clone() };
    let compiled = tuning.compiled();
    let device = Arc::new(adapter.open(options.mask, &compiled)?);
    let gpu = gpu::Gpu::new(device.clone(), plan.clone(), capacity, cut..all, settings)
        .map_err(|error| room.with_advice(error, cut))?;
    tuning.keep_compiled(&device.compiled(), &compiled);
    let (name, layers) = (&adapter.info.name, room.layers_before(cut));
    let cpu = |ops| Cpu::with_ops(plan.clone(), capacity, options.threads, options.level, ops);
    let (backend, device): (Box<dyn Backend>, String) = match cut {
        0 => (Box::new(gpu), name.clone()),
        cut => {
            let device = format!("{name}, cpu ({}) for {layers} layers", options.level);
            let cpu = Box::new(cpu(0..cut)?);
            (Box::new(Split::new(cpu, Box::new(gpu), cut)), device)
        }
    };
    notes.extend(backend.notes());
    if layers > 0 {
        let (level, needed) = (options.level, size(room.needed(0)));
        let budget = match room.budget {
            u64::MAX => String::new(),
            budget => format!(" of {}", size(budget)),
        };
        notes.push(format!(
            "cpu ({level}): the first {layers} layers; all on the GPU need {needed}{budget}"
        ));
    }
    Ok(Opened { backend, device, notes, tuning: Some(tuning) })
}

/// What a plan needs on a GPU, and what there is.
#[cfg(feature = "gpu")]
struct Room<'a> {
    name: &'a str,
    plan: &'a Plan,
    capacity: Capacity,
    /// In bytes.
    budget: u64,
}

#[cfg(feature = "gpu")]
impl<'a> Room<'a> {
    fn of(adapter: &'a Adapter, plan: &'a Plan, capacity: Capacity, options: &Options) -> Room<'a> {
        let budget = options.gpu_bytes.or_else(|| adapter.budget()).unwrap_or(u64::MAX);
        Room { name: &adapter.info.name, plan, capacity, budget }
    }

    fn layers(&self) -> usize {
        self.plan.layers.len() - 1
    }

    /// Layers that begin before an op.
    fn layers_before(&self, cut: usize) -> usize {
        self.plan.layers[..self.layers()].iter().filter(|&&layer| layer < cut).count()
    }

    /// Bytes for the ops from a cut on.
    fn needed(&self, cut: usize) -> u64 {
        gpu::needed_bytes(self.plan, self.capacity, cut..self.plan.ops.len())
    }

    /// Where the last layers begin, so many of them; the end of the plan for none.
    fn start(&self, layers: usize) -> usize {
        if layers == 0 { self.plan.ops.len() } else { self.plan.layers[self.layers() - layers] }
    }

    /// Layers that fit.
    fn fitting(&self) -> usize {
        let fits = |&layers: &usize| self.needed(self.start(layers)) <= self.budget;
        (1..=self.layers()).rev().find(fits).unwrap_or(0)
    }

    /// The op from which on the plan runs on the GPU: the last `layers` and the head, or as many as
    /// fit; everything, the embedding too, where all layers do and that fits as well.
    ///
    /// # Errors
    /// If the layers that are asked for need more than there is.
    fn cut(&self, layers: Option<usize>) -> Result<usize> {
        let fitting = self.fitting();
        let layers = layers.unwrap_or(fitting).min(self.layers());
        if layers > fitting {
            return Err(self.too_small(layers));
        }
        let is_whole = layers == self.layers() && layers > 0 && self.needed(0) <= self.budget;
        Ok(if is_whole { 0 } else { self.start(layers) })
    }

    fn too_small(&self, layers: usize) -> Error {
        let (needs, has) = (size(self.needed(self.start(layers))), size(self.budget));
        let what = if layers == 1 { "1 layer needs" } else { &format!("{layers} layers need") };
        Error::new(format!("{what} {needs}, expected at most {has} of memory"))
            .at(format_args!("device {}", self.name))
            .with_hint(match self.fitting() {
                0 => "none fits: --ctx reserves less, --device cpu needs no GPU".to_string(),
                fitting => format!("--gpu-layers {fitting} fits, --ctx reserves less"),
            })
    }

    /// An error with what fewer layers need, where memory that seemed to be there was not.
    fn with_advice(&self, error: Error, cut: usize) -> Error {
        let is_memory = error.hint().is_some_and(|hint| hint.contains("--gpu-layers"));
        let fewer = (self.layers() - self.layers_before(cut)) / 2;
        if !is_memory || fewer == 0 {
            return error;
        }
        let needs = size(self.needed(self.start(fewer)));
        error.with_hint(format!("--gpu-layers {fewer} needs {needs}, --ctx reserves less"))
    }
}
