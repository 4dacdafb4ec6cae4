//! A model in memory with its cache: prefill a prompt, decode a token.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::backend::cpu::Cpu;
#[cfg(feature = "gpu")]
use crate::backend::gpu;
use crate::backend::reference::Reference;
#[cfg(feature = "gpu")]
use crate::backend::split::Split;
use crate::backend::{Backend, Capacity, KvFormat};
use crate::bail;
use crate::error::{Error, Result};
use crate::file::Source;
use crate::model::Model;
use crate::plan::{Batch, Plan};
use crate::simd::Level;

/// Bytes of logits kept at once where many rows ask for them.
const LOGITS_BYTES_MAX: usize = 32 << 20;

/// What runs the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// SIMD and threads.
    Cpu,
    /// Plain loops: the oracle.
    Reference,
    /// A GPU, by its place among the adapters; as many layers as fit.
    #[cfg(feature = "gpu")]
    Gpu(usize),
}

/// How to run a model.
#[derive(Clone, Debug)]
pub struct Options {
    /// What runs the plan.
    pub device: Device,
    /// Threads of the CPU backend.
    pub threads: usize,
    /// Instruction set of the CPU backend.
    pub level: Level,
    /// Cells per sequence; the model's own context, but at most [`Options::CONTEXT`], if none.
    pub context: Option<usize>,
    /// Conversations that share the cache.
    pub sequences: usize,
    /// Rows of the largest batch; what suits the device, if none.
    pub rows: Option<usize>,
    /// How the cache is stored.
    pub kv: KvFormat,
    /// Layers on the GPU, the last ones; as many as fit, if none.
    pub gpu_layers: Option<usize>,
    /// Bytes that a model may take on the GPU; what the adapter has to spare, if none.
    pub gpu_bytes: Option<u64>,
    /// What was measured on the GPU before.
    pub tuning: String,
    /// Features of the GPU that are left unused.
    #[cfg(feature = "gpu")]
    pub mask: gpu::device::Mask,
}

impl Options {
    /// Context reserved where nobody asks: models claim far more than a laptop should set aside.
    pub const CONTEXT: usize = 4096;

    /// Rows of a prefill batch: enough to keep the kernels busy, few enough to stay in cache.
    pub const ROWS: usize = 256;

    /// The same for a GPU, where a batch fills more units.
    pub const GPU_ROWS: usize = 512;

    fn rows(&self) -> usize {
        let rows = match self.device {
            Device::Cpu | Device::Reference => Options::ROWS,
            #[cfg(feature = "gpu")]
            Device::Gpu(_) => Options::GPU_ROWS,
        };
        self.rows.unwrap_or(rows).max(1)
    }
}

impl Default for Options {
    fn default() -> Options {
        Options {
            device: Device::Cpu,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            level: Level::best(),
            context: None,
            sequences: 1,
            rows: None,
            kv: KvFormat::F16,
            gpu_layers: None,
            gpu_bytes: None,
            tuning: String::new(),
            #[cfg(feature = "gpu")]
            mask: gpu::device::Mask::NONE,
        }
    }
}

/// A model in memory, and what it has read so far.
pub struct Session {
    backend: Box<dyn Backend>,
    batch: Batch,
    /// Cells in use per sequence.
    lengths: Vec<usize>,
}

impl Session {
    /// Plans a model and reserves its memory.
    ///
    /// # Errors
    /// If the model is not one we can run, or a capacity is impossible.
    pub fn open(source: &Source, options: &Options) -> Result<Session> {
        let model = Model::new(source).map_err(|error| error.at(source.path().display()))?;
        let context = options.context.unwrap_or(model.hparams.context.min(Options::CONTEXT));
        let plan = Arc::new(model.plan());
        let logits = 4 * model.hparams.vocabulary;
        let capacity = Capacity {
            rows: options.rows().min(context).max(options.sequences),
            logit_rows: (LOGITS_BYTES_MAX / logits).clamp(options.sequences, options.rows()),
            sequences: options.sequences,
            context,
            kv: options.kv,
        };
        Ok(Session::new(backend(plan, capacity, options)?))
    }

    /// A session over a backend that is already there.
    pub fn new(backend: Box<dyn Backend>) -> Session {
        let lengths = vec![0; backend.capacity().sequences];
        Session { backend, batch: Batch::default(), lengths }
    }

    /// The backend, for whoever reads slots.
    pub fn backend(&mut self) -> &mut dyn Backend {
        &mut *self.backend
    }

    /// Entries of the vocabulary, as many as a row of logits has.
    pub fn vocabulary(&self) -> usize {
        let plan = self.backend.plan();
        plan.slots[plan.logits.0].width
    }

    /// Cells per sequence.
    pub fn context(&self) -> usize {
        self.backend.capacity().context
    }

    /// Tokens that a sequence has read.
    pub fn len(&self, sequence: usize) -> usize {
        self.lengths[sequence]
    }

    /// Whether a sequence has read nothing.
    pub fn is_empty(&self, sequence: usize) -> bool {
        self.len(sequence) == 0
    }

    /// Forgets all tokens of a sequence past the first `len`.
    pub fn truncate(&mut self, sequence: usize, len: usize) {
        self.lengths[sequence] = self.lengths[sequence].min(len);
    }

    /// Reads tokens; the result is the logits after the last one.
    ///
    /// # Errors
    /// If there are none, one is outside the vocabulary, or the context is full.
    pub fn feed(&mut self, sequence: usize, tokens: &[u32]) -> Result<&mut [f32]> {
        self.read(sequence, tokens)?;
        self.backend.logits()
    }

    /// Reads tokens, and leaves the logits after the last one on the device, for [`Session::top`]
    /// and [`Session::greedy`].
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn read(&mut self, sequence: usize, tokens: &[u32]) -> Result<()> {
        let Some(last) = tokens.len().checked_sub(1) else { bail!("there are no tokens to read") };
        self.run(sequence, tokens, &mut |i| i == last, &mut |_, _, _| Ok(()))
    }

    /// The logits after what was read last.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn logits(&mut self) -> Result<&mut [f32]> {
        self.backend.logits()
    }

    /// The `k` likeliest tokens after what was read last, and their logits, in order; a device may
    /// give fewer.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn top(&mut self, k: usize) -> Result<Vec<(u32, f32)>> {
        self.backend.top(k)
    }

    /// Takes the likeliest token after what was read last, reads it, and so on, up to `steps`
    /// tokens; `take` may end it. The last token is not read.
    ///
    /// # Errors
    /// If the device is lost, or the context is too short.
    pub fn greedy(
        &mut self,
        sequence: usize,
        steps: usize,
        take: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<()> {
        let start = self.lengths[sequence];
        let mut taken = 0;
        let result = self.backend.greedy(start as u32, sequence as u32, steps, &mut |token| {
            taken += 1;
            take(token)
        });
        self.lengths[sequence] = start + usize::saturating_sub(taken, 1);
        result
    }

    /// Reads tokens; `wants` says for which of them `take` gets the logits.
    ///
    /// # Errors
    /// As [`Session::feed`].
    pub fn feed_rows(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        wants: &mut dyn FnMut(usize) -> bool,
        take: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        let vocabulary = self.vocabulary();
        self.run(sequence, tokens, wants, &mut |backend, first, rows| {
            let logits = backend.logits()?.chunks_exact(vocabulary);
            rows.iter().zip(logits).for_each(|(&row, logits)| take(first + row as usize, logits));
            Ok(())
        })
    }

    /// Runs tokens in batches; `wants` says which of them have logits, `after` hears of each batch
    /// the number of its first token and its logit rows.
    fn run(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        wants: &mut dyn FnMut(usize) -> bool,
        after: &mut dyn FnMut(&mut dyn Backend, usize, &[u32]) -> Result<()>,
    ) -> Result<()> {
        let (start, context) = (self.lengths[sequence], self.context());
        if start + tokens.len() > context {
            let found = start + tokens.len();
            return Err(Error::new(format!(
                "context: expected at most {context} tokens, found {found}"
            ))
            .with_hint("--ctx reserves more"));
        }
        let Capacity { rows, logit_rows, .. } = self.backend.capacity();
        let mut next = 0;
        while next < tokens.len() {
            self.batch.clear();
            let first = next;
            while next < tokens.len() && next - first < rows {
                let wants = wants(next);
                if wants && self.batch.logit_rows.len() == logit_rows {
                    break;
                }
                let position = (start + next) as u32;
                self.batch.push(tokens[next], position, sequence as u32, wants);
                next += 1;
            }
            self.backend.run(&self.batch)?;
            after(&mut *self.backend, first, &self.batch.logit_rows)?;
            self.lengths[sequence] = start + next;
        }
        Ok(())
    }
}

/// The backend that runs a plan on a device.
///
/// # Errors
/// If it cannot run the plan.
pub fn backend(plan: Arc<Plan>, capacity: Capacity, options: &Options) -> Result<Box<dyn Backend>> {
    if capacity.context == 0 || capacity.sequences == 0 {
        bail!("context: expected at least one cell and one sequence, found none");
    }
    Ok(match options.device {
        Device::Reference => Box::new(Reference::new(plan, capacity)),
        Device::Cpu => Box::new(Cpu::new(plan, capacity, options.threads, options.level)?),
        #[cfg(feature = "gpu")]
        Device::Gpu(index) => split(plan, capacity, options, index)?,
    })
}

/// A GPU, with the layers that do not fit it on the CPU.
#[cfg(feature = "gpu")]
fn split(
    plan: Arc<Plan>,
    capacity: Capacity,
    options: &Options,
    index: usize,
) -> Result<Box<dyn Backend>> {
    let adapters = gpu::device::adapters();
    let Some(adapter) = adapters.get(index) else {
        bail!("device {index}: expected one of the {} there are", adapters.len());
    };
    let budget = options.gpu_bytes.or_else(|| adapter.budget()).unwrap_or(u64::MAX);
    let cut = cut(&plan, capacity, options.gpu_layers, budget)
        .map_err(|error| error.at(format_args!("device {}", adapter.info.name)))?;
    let all = plan.ops.len();
    let cpu = |ops| Cpu::with_ops(plan.clone(), capacity, options.threads, options.level, ops);
    if cut == all {
        return Ok(Box::new(cpu(0..all)?));
    }
    let device = Arc::new(adapter.open(options.mask)?);
    let settings = gpu::Options { tuning: options.tuning.clone() };
    let gpu = gpu::Gpu::new(device, plan.clone(), capacity, cut..all, settings)?;
    if cut == 0 {
        return Ok(Box::new(gpu));
    }
    Ok(Box::new(Split::new(Box::new(cpu(0..cut)?), Box::new(gpu), cut)))
}

/// The op from which on a plan runs on a GPU: the last `layers` and the head, or as many as the
/// budget in bytes allows; everything, the embedding too, where all layers do.
///
/// # Errors
/// If the layers that are asked for need more than the budget.
#[cfg(feature = "gpu")]
fn cut(plan: &Plan, capacity: Capacity, layers: Option<usize>, budget: u64) -> Result<usize> {
    let (all, count) = (plan.ops.len(), plan.layers.len() - 1);
    let needed = |cut: usize| gpu::needed_bytes(plan, capacity, cut..all);
    // The cuts, from everything on the GPU to nothing.
    let mut cuts = vec![0];
    cuts.extend((0..count).map(|layer| plan.layers[layer]));
    cuts.push(all);
    let fits = cuts.iter().position(|&cut| cut == all || needed(cut) <= budget);
    let fits = fits.expect("nothing always fits");
    let layers_of = |place: usize| count - place.saturating_sub(1).min(count);
    let Some(wish) = layers else { return Ok(cuts[fits]) };
    let wish = wish.min(count);
    let place = if wish == count { fits.min(1) } else { count - wish + 1 };
    if place < fits {
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        let (needs, has) = (gigabytes(needed(cuts[place])), gigabytes(budget));
        let message =
            format!("{wish} layers need {needs:.2} GB, expected at most {has:.2} GB of memory");
        let hint = format!("--gpu-layers {} fits", layers_of(fits));
        return Err(Error::new(message).with_hint(hint));
    }
    Ok(cuts[place])
}
