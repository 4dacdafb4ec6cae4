//! `gridmill devices` and `gridmill tune`: what could run a model, and how fast its kernels are.

use std::path::PathBuf;

use serde_json::json;

use super::flags::RunFlags;
use super::print;
use crate::error::{Error, Result};
use crate::file::{Source, cache};
use crate::run::{Device, Session};
use crate::simd::Level;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub(super) struct TuneArgs {
    /// A GGUF file, or the first shard of one: its matrices are measured
    model: PathBuf,
    #[command(flatten)]
    run: RunFlags,
}

/// What is told of an adapter.
pub(super) struct Row {
    name: String,
    kind: &'static str,
    backend: String,
    driver: String,
    memory_bytes: Option<u64>,
    subgroups: bool,
}

pub(super) fn devices(args: Args) -> anyhow::Result<()> {
    let rows = rows();
    let level = Level::best();
    if args.json {
        let gpu = |(index, row): (usize, &Row)| {
            json!({
                "index": index,
                "name": row.name,
                "kind": row.kind,
                "backend": row.backend,
                "driver": row.driver,
                "memory_bytes": row.memory_bytes,
                "subgroups": row.subgroups,
            })
        };
        let gpus: Vec<_> = rows.iter().enumerate().map(gpu).collect();
        return print::json(&json!({ "gpus": gpus, "cpu": { "simd": level.name() } }));
    }
    let head = ["device", "name", "kind", "backend", "driver", "memory", "subgroups"];
    let mut lines = vec![head.map(str::to_string).to_vec()];
    for (index, row) in rows.iter().enumerate() {
        lines.push(vec![
            index.to_string(),
            row.name.clone(),
            row.kind.to_string(),
            row.backend.clone(),
            row.driver.clone(),
            row.memory_bytes.map_or(String::new(), print::megabytes),
            if row.subgroups { "yes" } else { "no" }.to_string(),
        ]);
    }
    lines.push(vec!["cpu".to_string(), level.to_string()]);
    print::data(print::table(&lines, &[5]))
}

pub(super) fn tune_model(args: TuneArgs) -> anyhow::Result<()> {
    let source = Source::open(&args.model)?;
    let Some(device) = args.run.gpu() else {
        return Err(
            Error::new("there is no GPU to tune; `gridmill devices` lists what there is").into()
        );
    };
    let mut session = Session::open(&source, &args.run.options())?;
    let path = tune(device, &mut session, true)?;
    match path {
        Some(path) => print::line(path.display()),
        None => Err(Error::new("the model has nothing on the GPU to tune").into()),
    }
}

/// Measures kernels that were not measured on this device, or all of them `again`, and keeps what
/// is found for the next time; the result is where.
pub(super) fn tune(
    device: Device,
    session: &mut Session,
    again: bool,
) -> anyhow::Result<Option<PathBuf>> {
    let mut progress: Option<print::Progress> = None;
    let found = session.backend().tune(again, &mut |done, all| {
        if done < all {
            let bar = progress.get_or_insert_with(|| print::Progress::new("tuning", all as u64));
            bar.add(u64::from(done > 0));
        }
    })?;
    drop(progress);
    let (Some(text), Some(path)) = (found, tuning_path(device)) else { return Ok(None) };
    // A cache: that it cannot be written costs a few seconds next time, and no more.
    let written = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    match written.and_then(|()| std::fs::write(&path, text)) {
        Ok(()) => Ok(Some(path)),
        Err(error) => {
            print::note(format_args!("note: {}: {error}", path.display()));
            Ok(None)
        }
    }
}

/// What was measured on a device before; nothing if it was not.
pub(super) fn stored_tuning(device: Device) -> String {
    tuning_path(device).and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
}

fn tuning_path(device: Device) -> Option<PathBuf> {
    let identity = identity(device)?;
    let folder = cache::folder(|name| std::env::var_os(name)).ok()?;
    Some(folder.join("tuning").join(format!("{identity}.json")))
}

#[cfg(feature = "gpu")]
mod adapters {
    use super::{Device, Error, Result, Row};
    use crate::backend::gpu::device::{Adapter, adapters};

    pub(in crate::cli) fn rows() -> Vec<Row> {
        let row = |adapter: &Adapter| {
            let (kind, memory_bytes, subgroups) =
                (adapter.kind(), adapter.memory_bytes, adapter.has_subgroups());
            let info = adapter.info.clone();
            let driver = format!("{} {}", info.driver, info.driver_info).trim().to_string();
            let backend = info.backend.to_string();
            Row { name: info.name, kind, backend, driver, memory_bytes, subgroups }
        };
        adapters().iter().map(row).collect()
    }

    pub(in crate::cli) fn device(text: &str) -> Result<Device> {
        match text {
            "cpu" => return Ok(Device::Cpu),
            "reference" => return Ok(Device::Reference),
            _ => {}
        }
        let adapters = adapters();
        match text {
            // A GPU that the CPU plays is slower than the CPU itself.
            "auto" => {
                let found = adapters.iter().position(Adapter::is_hardware);
                return Ok(found.map_or(Device::Cpu, Device::Gpu));
            }
            "gpu" if adapters.is_empty() => {
                return Err(Error::new("no GPU was found through Vulkan, Metal or DX12")
                    .with_hint("its driver may lack Vulkan: `vulkaninfo --summary` shows"));
            }
            "gpu" => return Ok(Device::Gpu(0)),
            _ => {}
        }
        if let Some(index) = text.parse().ok().filter(|&index: &usize| index < adapters.len()) {
            return Ok(Device::Gpu(index));
        }
        let wish = text.to_lowercase();
        let matches = |adapter: &Adapter| adapter.info.name.to_lowercase().contains(&wish);
        let found: Vec<usize> = (0..adapters.len()).filter(|&i| matches(&adapters[i])).collect();
        let name = |(index, adapter): (usize, &Adapter)| format!("{index} ({})", adapter.info.name);
        let known: Vec<String> = adapters.iter().enumerate().map(name).collect();
        let known = ["auto, cpu, gpu, reference".to_string()].into_iter().chain(known);
        let known = known.collect::<Vec<_>>().join(", ");
        match found[..] {
            [index] => Ok(Device::Gpu(index)),
            [] => Err(Error::new(format!("no device `{text}`, expected {known}"))),
            _ => {
                Err(Error::new(format!("several devices match `{text}`, expected one of {known}")))
            }
        }
    }

    pub(in crate::cli) fn name(index: usize) -> String {
        adapters().get(index).map_or("gpu".to_string(), |adapter| adapter.info.name.clone())
    }

    pub(in crate::cli) fn is_hardware(device: Device) -> bool {
        let Device::Gpu(index) = device else { return false };
        adapters().get(index).is_some_and(Adapter::is_hardware)
    }

    pub(in crate::cli) fn identity(device: Device) -> Option<String> {
        let Device::Gpu(index) = device else { return None };
        adapters().get(index).map(Adapter::identity)
    }

    pub(in crate::cli) fn is_gpu(device: Device) -> bool {
        matches!(device, Device::Gpu(_))
    }
}

#[cfg(not(feature = "gpu"))]
mod adapters {
    use super::{Device, Error, Result, Row};

    pub(in crate::cli) fn rows() -> Vec<Row> {
        Vec::new()
    }

    pub(in crate::cli) fn device(text: &str) -> Result<Device> {
        match text {
            "auto" | "cpu" => Ok(Device::Cpu),
            "reference" => Ok(Device::Reference),
            "gpu" => Err(Error::new("this program was built without the `gpu` feature")),
            _ => Err(Error::new(format!("no device `{text}`, expected auto, cpu or reference"))),
        }
    }

    pub(in crate::cli) fn is_hardware(_: Device) -> bool {
        false
    }

    pub(in crate::cli) fn identity(_: Device) -> Option<String> {
        None
    }

    pub(in crate::cli) fn is_gpu(_: Device) -> bool {
        false
    }
}

pub(super) use adapters::*;
