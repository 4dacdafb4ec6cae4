//! Adapters and devices: what is there, what it can do, what went wrong with it.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use super::shader::Shader;
use crate::error::{Error, Result};

/// A GPU that could run a model.
pub struct Adapter {
    adapter: wgpu::Adapter,
    /// What it calls itself.
    pub info: wgpu::AdapterInfo,
    /// Bytes of memory of its own (or shared, where it has none), if the driver says so.
    pub memory_bytes: Option<u64>,
}

/// What is left unused of an adapter, so that tests can be sure of the slower paths, and users can
/// get around a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Whether subgroup operations may be used.
    pub subgroups: bool,
    /// Whether packed products of bytes may be used.
    pub packed_dot: bool,
    /// Whether matrix units may be used.
    pub matrix: bool,
    /// Bytes of one binding at most, beside the adapter's own limit.
    pub binding_bytes_max: u64,
}

impl Mask {
    /// Everything may be used.
    pub const NONE: Mask =
        Mask { subgroups: true, packed_dot: true, matrix: true, binding_bytes_max: u64::MAX };
}

/// An open device.
pub struct Device {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    /// Of the adapter.
    pub info: wgpu::AdapterInfo,
    pub(super) limits: wgpu::Limits,
    pub(super) mask: Mask,
    pub(super) timestamps: bool,
    /// Whether weights are written straight into the memory that shaders read: the CPU's own.
    pub(super) is_unified: bool,
    cache: Option<wgpu::PipelineCache>,
    failure: Arc<Mutex<Option<String>>>,
}

/// What the kernel for matrix units needs.
const MATRIX_FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// A shader on a device.
pub struct Kernel {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    pub(super) shader: Shader,
}

/// Every adapter of the machine that could run a model, the fastest kind first. Drivers are asked
/// once per process.
pub fn adapters() -> &'static [Adapter] {
    static FOUND: LazyLock<Vec<Adapter>> = LazyLock::new(find_adapters);
    &FOUND
}

fn find_adapters() -> Vec<Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    // No layers between us and the driver: our shaders are validated by tests.
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
    let mut adapters: Vec<Adapter> = found.into_iter().map(Adapter::new).collect();
    adapters.sort_by_key(|adapter| match adapter.info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    });
    adapters
}

impl Adapter {
    fn new(adapter: wgpu::Adapter) -> Adapter {
        let info = adapter.get_info();
        let memory_bytes = memory_bytes(&adapter, &info);
        Adapter { adapter, info, memory_bytes }
    }

    /// Whether it is hardware, and not the CPU in disguise.
    pub fn is_hardware(&self) -> bool {
        self.info.device_type != wgpu::DeviceType::Cpu
    }

    /// As `devices` prints it: discrete, integrated, virtual, cpu or other.
    pub fn kind(&self) -> &'static str {
        match self.info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete",
            wgpu::DeviceType::IntegratedGpu => "integrated",
            wgpu::DeviceType::VirtualGpu => "virtual",
            wgpu::DeviceType::Cpu => "cpu",
            wgpu::DeviceType::Other => "other",
        }
    }

    /// A name for what was measured on it: the card and the driver, in letters that any folder
    /// takes.
    pub fn identity(&self) -> String {
        let wgpu::AdapterInfo { name, vendor, device, driver, driver_info, backend, .. } =
            &self.info;
        let text = format!("{name}-{vendor:x}-{device:x}-{backend}-{driver}-{driver_info}");
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        // File systems take names of up to 255 bytes.
        text.chars().map(plain).take(200).collect()
    }

    /// Bytes that a model may take of it: a tenth is left to others, at least 512 MiB.
    pub fn budget(&self) -> Option<u64> {
        self.memory_bytes.map(|bytes| bytes.saturating_sub((bytes / 10).max(512 << 20)))
    }

    /// Whether it has subgroup operations.
    pub fn has_subgroups(&self) -> bool {
        self.adapter.features().contains(wgpu::Features::SUBGROUP)
    }

    /// The feature that saves a copy of the weights, where the device's memory is the CPU's. A card
    /// of its own would read them over the bus, so it is not asked.
    fn mappable(&self) -> wgpu::Features {
        match self.info.device_type {
            wgpu::DeviceType::IntegratedGpu | wgpu::DeviceType::Cpu => {
                wgpu::Features::MAPPABLE_PRIMARY_BUFFERS
            }
            _ => wgpu::Features::empty(),
        }
    }

    /// Whether subgroups of 32 multiply 16 x 16 halves into single precision. Vulkan alone: Metal's
    /// loads want other pointers.
    pub fn has_matrix_units(&self) -> bool {
        let is_fit = |shape: &wgpu::CooperativeMatrixProperties| {
            [shape.m_size, shape.n_size, shape.k_size] == [16; 3]
                && shape.ab_type == wgpu::CooperativeScalarType::F16
                && shape.cr_type == wgpu::CooperativeScalarType::F32
        };
        let info = &self.info;
        info.backend == wgpu::Backend::Vulkan
            && [info.subgroup_min_size, info.subgroup_max_size] == [32; 2]
            && self.adapter.features().contains(MATRIX_FEATURES)
            && self.adapter.limits().max_compute_workgroup_storage_size >= 48 << 10
            && self.adapter.cooperative_matrix_properties().iter().any(is_fit)
    }

    /// Opens it; `compiled` is what [`Device::compiled`] gave on this adapter and driver before, or
    /// nothing.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn open(&self, mask: Mask, compiled: &[u8]) -> Result<Device> {
        let has = self.adapter.features();
        let wants = wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES
            | wgpu::Features::PIPELINE_CACHE
            | self.mappable();
        let mut features = has & wants;
        let matrix = mask.matrix && mask.subgroups && self.has_matrix_units();
        if matrix {
            features |= MATRIX_FEATURES;
        }
        let experimental_features = match matrix {
            // SAFETY: cooperative matrices are used by one kernel, which stays within what their
            // specification defines, and only where the driver offers the shape.
            true => unsafe { wgpu::ExperimentalFeatures::enabled() },
            false => wgpu::ExperimentalFeatures::disabled(),
        };
        if !mask.subgroups {
            features.remove(wgpu::Features::SUBGROUP);
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("gridmill"),
            required_features: features,
            required_limits: self.adapter.limits(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            experimental_features,
            ..Default::default()
        };
        let opened = pollster::block_on(self.adapter.request_device(&descriptor));
        let (device, queue) = opened.map_err(|error| {
            Error::new(error.to_string()).at(format_args!("device {}", self.info.name))
        })?;
        let failure = Arc::new(Mutex::new(None));
        let note = |failure: &Arc<Mutex<Option<String>>>, text: String| {
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
        };
        let to = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            note(&to, error.to_string());
        }));
        let to = failure.clone();
        device.set_device_lost_callback(move |reason, text| {
            note(&to, format!("the device was lost ({reason:?}): {text}"));
        });
        let mut limits = self.adapter.limits();
        limits.max_storage_buffer_binding_size =
            limits.max_storage_buffer_binding_size.min(mask.binding_bytes_max & !255);
        Ok(Device {
            mask: Mask { subgroups: features.contains(wgpu::Features::SUBGROUP), matrix, ..mask },
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES),
            cache: features
                .contains(wgpu::Features::PIPELINE_CACHE)
                .then(|| cache(&device, compiled)),
            is_unified: features.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            info: self.info.clone(),
            limits,
            device,
            queue,
            failure,
        })
    }
}

fn cache(device: &wgpu::Device, compiled: &[u8]) -> wgpu::PipelineCache {
    let descriptor = wgpu::PipelineCacheDescriptor {
        label: Some("gridmill"),
        data: Some(compiled).filter(|bytes| !bytes.is_empty()),
        fallback: true,
    };
    // SAFETY: the data is what a cache of this adapter and driver gave, or none: the caller keeps
    // it under the identity of both and with a checksum, and wgpu compares its header with the
    // device.
    unsafe { device.create_pipeline_cache(&descriptor) }
}

impl Device {
    /// What went wrong since the device was opened, if anything did.
    ///
    /// # Errors
    /// With the driver's words.
    pub fn check(&self) -> Result<()> {
        match &*self.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(text) => {
                let text = text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
                Err(Error::new(text)
                    .at(format_args!("device {}", self.info.name))
                    .with_hint("--device cpu runs the model without it"))
            }
        }
    }

    /// What the driver made of the shaders, so that the next start need not; nothing where the
    /// backend keeps it itself.
    pub fn compiled(&self) -> Vec<u8> {
        self.cache.as_ref().and_then(wgpu::PipelineCache::get_data).unwrap_or_default()
    }

    /// Waits until everything that was submitted is done.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn wait(&self) -> Result<()> {
        let done = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check()?;
        done.map(|_| ()).map_err(|error| {
            Error::new(error.to_string()).at(format_args!("device {}", self.info.name))
        })
    }

    /// Gives up the device, as a driver's reset would; for tests.
    pub fn lose(&self) {
        self.device.destroy();
    }

    /// Compiles a shader.
    ///
    /// # Panics
    /// If the shader is not valid: shaders are ours, and a test validates every one.
    pub fn compile(&self, name: &str, shader: Shader) -> Kernel {
        let entry = |(number, binding): (usize, &super::shader::Binding)| {
            let read_only = !binding.writes;
            wgpu::BindGroupLayoutEntry {
                binding: number as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            }
        };
        let entries: Vec<_> = shader.bindings.iter().enumerate().map(entry).collect();
        let device = &self.device;
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(name),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(name),
            source: wgpu::ShaderSource::Wgsl(shader.text.as_str().into()),
        };
        // SAFETY: the shaders are ours; they index within bounds that the plan has checked, and
        // their loops end. Tests run every one of them with the checks of a reference beside it.
        let module = unsafe {
            device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(name),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.cache.as_ref(),
        });
        Kernel { pipeline, layout, shader }
    }
}

/// The largest heap that is the device's own, in bytes; of the CPU's memory where there is none.
fn memory_bytes(adapter: &wgpu::Adapter, info: &wgpu::AdapterInfo) -> Option<u64> {
    if info.backend != wgpu::Backend::Vulkan {
        return None;
    }
    // SAFETY: the handles are read while the adapter is alive, and not kept.
    let adapter = unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }?;
    let instance = adapter.shared_instance().raw_instance();
    // SAFETY: the physical device belongs to this instance.
    let memory =
        unsafe { instance.get_physical_device_memory_properties(adapter.raw_physical_device()) };
    let heaps = &memory.memory_heaps[..memory.memory_heap_count as usize];
    // VK_MEMORY_HEAP_DEVICE_LOCAL_BIT is 1.
    heaps.iter().filter(|heap| heap.flags.as_raw() & 1 == 1).map(|heap| heap.size).max()
}
