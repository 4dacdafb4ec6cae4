//! A model in memory with its cache: prefill a prompt, decode a token.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::device::{self, Device, Opened};
#[cfg(feature = "gpu")]
use super::tuning::Tuning;
use super::{Activations, kv_basis};
#[cfg(feature = "gpu")]
use crate::backend::gpu;
use crate::backend::{Backend, Capacity, KvFormat, kv};
use crate::bail;
use crate::error::{Error, Result};
use crate::file::Source;
use crate::model::Model;
use crate::plan::{Batch, Plan};
use crate::simd::Level;

/// Bytes of logits kept at once where many rows ask for them.
const LOGITS_BYTES_MAX: usize = 32 << 20;

/// What hears of each batch, the number of its first token and its logit rows.
type After<'a> = &'a mut dyn FnMut(&mut dyn Backend, usize, &[u32]) -> Result<()>;

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
    /// How the inputs of weights of small integers are rounded.
    pub activations: Activations,
    /// How the cache is stored.
    pub kv: KvFormat,
    /// The bases of a cache that wants some; where [`kv_basis::beside`] says, if none.
    pub kv_basis: Option<PathBuf>,
    /// Layers on the GPU, the last ones; as many as fit, if none.
    pub gpu_layers: Option<usize>,
    /// Bytes that a model may take on the GPU; what the adapter has to spare, if none.
    pub gpu_bytes: Option<u64>,
    /// The folder in which measurements of GPUs are kept; they are not, if none.
    pub cache: Option<PathBuf>,
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

    /// Gives the activations of a model's plan their format, and its caches the basis that theirs
    /// wants.
    ///
    /// # Errors
    /// As [`Activations::fit`] and [`kv_basis::fit`].
    pub fn fit(&self, plan: &mut Plan, source: &Source) -> Result<()> {
        self.activations.fit(plan)?;
        let file = self.kv_basis.clone().unwrap_or_else(|| kv_basis::beside(source.path()));
        kv_basis::fit(plan, self.kv, &file)
    }

    fn rows(&self) -> usize {
        let rows = if self.device.may_be_gpu() { Options::GPU_ROWS } else { Options::ROWS };
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
            activations: Activations::Int8,
            kv: KvFormat::F16,
            kv_basis: None,
            gpu_layers: None,
            gpu_bytes: None,
            cache: None,
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
    device: String,
    notes: Vec<String>,
    #[cfg(feature = "gpu")]
    tuning: Option<Tuning>,
}

impl Session {
    /// Plans a model and reserves its memory.
    ///
    /// # Errors
    /// If the model is not one we can run, or a capacity is impossible.
    pub fn open(source: &Source, options: &Options) -> Result<Session> {
        let model = Model::new(source).map_err(|error| error.at(source.path().display()))?;
        let context = options.context.unwrap_or(model.hparams.context.min(Options::CONTEXT));
        let mut plan = model.plan_for(context);
        options.fit(&mut plan, source)?;
        let logits = 4 * model.hparams.vocabulary;
        let capacity = Capacity {
            rows: options.rows().min(context).max(options.sequences),
            logit_rows: (LOGITS_BYTES_MAX / logits).clamp(options.sequences, options.rows()),
            sequences: options.sequences,
            context,
            kv: options.kv,
        };
        Session::of_plan(Arc::new(plan), capacity, options)
    }

    /// A session that runs a plan.
    ///
    /// # Errors
    /// If no device can, or a capacity is impossible.
    pub fn of_plan(plan: Arc<Plan>, capacity: Capacity, options: &Options) -> Result<Session> {
        let opened = device::open(plan, capacity, options)?;
        Ok(Session {
            device: opened.device,
            notes: opened.notes,
            #[cfg(feature = "gpu")]
            tuning: opened.tuning,
            ..Session::new(opened.backend)
        })
    }

    /// A session over a backend that is already there.
    pub fn new(backend: Box<dyn Backend>) -> Session {
        let lengths = vec![0; backend.capacity().sequences];
        Session {
            backend,
            batch: Batch::default(),
            lengths,
            device: String::new(),
            notes: Vec::new(),
            #[cfg(feature = "gpu")]
            tuning: None,
        }
    }

    /// What runs it, as `--json` says.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// What a user should know by now: a line per fact, each told once.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Whether kernels should be measured before the first run, should they be new to the device.
    pub fn wants_tuning(&self) -> bool {
        #[cfg(feature = "gpu")]
        return self.tuning.as_ref().is_some_and(|tuning| tuning.is_worth_it);
        #[cfg(not(feature = "gpu"))]
        return false;
    }

    /// Where measurements of the device are kept.
    pub fn tuning_path(&self) -> Option<&Path> {
        #[cfg(feature = "gpu")]
        return self.tuning.as_ref()?.path.as_deref();
        #[cfg(not(feature = "gpu"))]
        return None;
    }

    /// Measures the kernels that are new to the device, or all of them `again`, and keeps what is
    /// found; `progress` as in [`Backend::tune`]. Returns whether there was something to measure.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn tune(&mut self, again: bool, progress: &mut dyn FnMut(usize, usize)) -> Result<bool> {
        let Some(text) = self.backend.tune(again, progress)? else { return Ok(false) };
        #[cfg(feature = "gpu")]
        if let Some(Err(error)) = self.tuning.as_ref().map(|tuning| tuning.keep(&text)) {
            // A cache: that it cannot be written costs a few seconds the next time, and no more.
            self.notes.push(format!("note: {error}"));
        }
        #[cfg(not(feature = "gpu"))]
        drop(text);
        Ok(true)
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

    /// Bytes of cache that each token takes.
    pub fn kv_token_bytes(&self) -> u64 {
        let plan = self.backend.plan();
        kv::token_bytes(plan, self.backend.capacity().kv, 0..plan.ops.len())
    }

    /// Bytes of cache that are reserved.
    pub fn kv_bytes(&self) -> u64 {
        let plan = self.backend.plan();
        kv::cache_bytes(plan, self.backend.capacity(), 0..plan.ops.len())
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
        after: After,
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
    let Opened { backend, .. } = device::open(plan, capacity, options)?;
    Ok(backend)
}
