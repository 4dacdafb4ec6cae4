//! Flags that several commands share, and how their values are read.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::{devices, print};
use crate::backend::KvFormat;
use crate::error::{Error, Result};
use crate::file::{Source, cache};
use crate::run::{Activations, Device, Options, Session};
use crate::simd::Level;
use crate::text::SamplerConfig;

/// How to run a model.
#[derive(clap::Args)]
pub(super) struct RunFlags {
    /// What runs it: auto, cpu, gpu, a number or part of a name that `devices` lists, or reference
    /// (plain loops, slow and exact)
    #[arg(long, default_value = "auto", value_parser = Device::by_name)]
    device: Device,
    /// Layers on the GPU, the last ones; as many as fit unless said otherwise
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = gpu_layers)]
    gpu_layers: Layers,
    /// Memory of the GPU that the model may take, as 6GB; most of what it has
    #[arg(long, value_name = "SIZE", value_parser = size, allow_negative_numbers = true)]
    gpu_memory: Option<u64>,
    /// Threads of the CPU; all cores unless said otherwise
    #[arg(long, short = 't')]
    threads: Option<NonZeroUsize>,
    /// Instruction set of the CPU: portable, neon, avx2 or avx512; the best there is
    #[arg(long, value_name = "LEVEL", value_parser = level)]
    simd: Option<Level>,
    /// Tokens of context to reserve; up to 4096 of the model's own
    #[arg(long)]
    ctx: Option<NonZeroUsize>,
    /// How inputs of weights of small integers are rounded: int8, or paper (4 bits, and 8 for loud
    /// inputs, to see what the setting of a paper costs; on the CPU)
    #[arg(long, value_name = "KIND", default_value = "int8", value_parser = activations)]
    activations: Activations,
    /// How the cache of keys and values is stored: f32, f16, q8 (8 bits), q4 (4 bits after a
    /// Hadamard transform of each head), or resq4 (an eighth in 8 bits and the rest in 4, in a
    /// basis that `kv-basis` finds)
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = kv_format)]
    kv_type: KvFormat,
    /// The basis of resq4, as `kv-basis` writes it; MODEL.kv-basis.gguf beside the model
    #[arg(long, value_name = "FILE")]
    kv_basis: Option<PathBuf>,
}

impl RunFlags {
    pub(super) fn options(&self) -> Options {
        let default = Options::default();
        Options {
            device: self.device,
            threads: self.threads.map_or(default.threads, usize::from),
            level: self.simd.unwrap_or(default.level),
            context: self.ctx.map(usize::from),
            activations: self.activations,
            kv: self.kv_type,
            kv_basis: self.kv_basis.clone(),
            gpu_layers: self.gpu_layers.0,
            gpu_bytes: self.gpu_memory,
            cache: cache::folder(|name| std::env::var_os(name)).ok(),
            ..default
        }
    }

    pub(super) fn open(&self, source: &Source) -> anyhow::Result<Session> {
        self.open_with(source, &self.options())
    }

    /// Opens a session, says where it runs, and measures kernels that are new to this GPU.
    pub(super) fn open_with(&self, source: &Source, options: &Options) -> anyhow::Result<Session> {
        let mut session = Session::open(source, options)?;
        RunFlags::ready(&mut session)?;
        Ok(session)
    }

    /// The same for a session that was just opened.
    pub(super) fn ready(session: &mut Session) -> anyhow::Result<()> {
        session.take_notes().iter().for_each(print::note);
        if session.wants_tuning() {
            devices::tune(session, false)?;
        }
        Ok(())
    }
}

/// How to choose tokens; the defaults are llama.cpp's.
#[derive(clap::Args)]
pub(super) struct SamplerFlags {
    /// 0 takes the likeliest token every time
    #[arg(long, default_value_t = 0.8, value_parser = at_least_zero)]
    temp: f32,
    /// Keep the K likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Keep the likeliest tokens that together have probability P
    #[arg(long, value_name = "P", default_value_t = 0.95, value_parser = probability)]
    top_p: f32,
    /// Keep tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = probability)]
    min_p: f32,
    /// Divide the logits of recent tokens; 1 is off
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = at_least_zero)]
    repeat_penalty: f32,
    /// How many tokens are recent
    #[arg(long, value_name = "N", default_value_t = 64)]
    repeat_last_n: usize,
    /// Lower the logits of tokens that appeared
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Lower the logits of tokens for each time they appeared
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// The same seed gives the same text; a new one each time unless said
    #[arg(long, short = 's')]
    seed: Option<u64>,
}

impl SamplerFlags {
    pub(super) fn config(&self) -> SamplerConfig {
        SamplerConfig {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed.unwrap_or_else(fresh_seed),
        }
    }
}

fn fresh_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

/// Layers on the GPU, or as many as fit.
#[derive(Clone, Copy)]
struct Layers(Option<usize>);

fn gpu_layers(text: &str) -> Result<Layers, String> {
    if text == "auto" {
        return Ok(Layers(None));
    }
    let count = text.parse().map_err(|_| "expected a number of layers or auto".to_string())?;
    Ok(Layers(Some(count)))
}

/// Bytes, as `800MB`, `1.5GB`, `6GiB` or a plain number.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let units = [
        ("GiB", f64::from(1 << 30)),
        ("MiB", f64::from(1 << 20)),
        ("GB", 1e9),
        ("MB", 1e6),
        ("G", 1e9),
        ("M", 1e6),
        ("", 1.0),
    ];
    let (number, unit) = units
        .iter()
        .find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)))
        .expect("every text ends in nothing");
    let value = number.trim().parse().ok().filter(|value: &f64| value.is_finite());
    let bytes = value.map(|value| (value * unit) as u64).filter(|&bytes| bytes > 0);
    bytes.ok_or("expected a size such as 6GB".to_string())
}

fn level(name: &str) -> Result<Level> {
    let known = || Level::available().map(Level::name).collect::<Vec<_>>().join(", ");
    match Level::by_name(name) {
        Some(level) if level.is_available() => Ok(level),
        Some(_) => Err(Error::new(format!("this machine has no {name}, expected {}", known()))),
        None => Err(Error::new(format!("no instruction set `{name}`, expected {}", known()))),
    }
}

fn kv_format(name: &str) -> Result<KvFormat> {
    let found = KvFormat::ALL.iter().find(|(known, _)| *known == name);
    let known = KvFormat::ALL.map(|(known, _)| known).join(", ");
    let unknown = || Error::new(format!("no cache type `{name}`, expected {known}"));
    found.map(|&(_, format)| format).ok_or_else(unknown)
}

fn activations(name: &str) -> Result<Activations> {
    let found = Activations::ALL.iter().find(|(known, _)| *known == name);
    let known = Activations::ALL.map(|(known, _)| known).join(", ");
    let unknown = || Error::new(format!("no activations `{name}`, expected {known}"));
    found.map(|&(_, kind)| kind).ok_or_else(unknown)
}

fn at_least_zero(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "expected a number".to_string())?;
    if value >= 0.0 { Ok(value) } else { Err("expected a number of at least 0".to_string()) }
}

fn probability(text: &str) -> Result<f32, String> {
    let value: f32 = text.parse().map_err(|_| "expected a number".to_string())?;
    let is_probability = (0.0..=1.0).contains(&value);
    if is_probability { Ok(value) } else { Err("expected a number from 0 to 1".to_string()) }
}
