//! A model's numbers: read from the metadata, bounded, and consistent with one another.

use super::arch::{Arch, Dim, QueryScale};
use super::yarn::{TURNS, Yarn};
use crate::bail;
use crate::error::{Error, Result};
use crate::file::{Metadata, Source, Value};
use crate::limits;
use crate::plan::Pairing;

/// A key of our own: which values of a head are rotated together, where that is not what the
/// architecture has in GGUF files.
pub const PAIRING: &str = "rope.pairing";
/// The value that it may have: values i and i + pairs.
pub const HALVES: &str = "halves";

/// What `rope.scaling.type` calls [`Yarn`].
pub const YARN: &str = "yarn";

/// The numbers of one model.
#[derive(Clone, Debug)]
pub struct Hparams {
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub embed: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values per head.
    pub head_len: usize,
    /// Width inside the feed-forward block; not of experts.
    pub ffn: usize,
    /// The experts of the feed-forward blocks, where there are any.
    pub experts: Option<Experts>,
    /// Tokens.
    pub vocabulary: usize,
    /// Tokens the model was trained to see at once.
    pub context: usize,
    /// Of every norm.
    pub epsilon: f32,
    /// Values of a head that are rotated.
    pub rope_len: usize,
    /// RoPE base of layers that see everything.
    pub rope_base: f32,
    /// What the angles of layers that see everything are multiplied by.
    pub rope_scale: f32,
    /// How the angles of layers that see everything are scaled for longer texts, if they are.
    pub yarn: Option<Yarn>,
    /// What turned values are multiplied by in layers that see everything.
    pub rope_amplitude: f32,
    /// Tokens the model was first trained to see at once, where longer texts have other angles.
    pub rope_context: Option<usize>,
    /// RoPE base of layers with a window, where they have angles of their own.
    pub local_rope_base: Option<f32>,
    /// Which values of a head are rotated together.
    pub pairing: Pairing,
    /// Cells that a layer with a window sees; no layer has one if there is none.
    pub window: Option<u32>,
    /// What scores are multiplied by.
    pub query_scale: f32,
    /// Bound of the scores.
    pub attn_soft_cap: Option<f32>,
    /// Bound of the logits.
    pub final_soft_cap: Option<f32>,
}

/// The experts of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Experts {
    /// How many there are.
    pub count: usize,
    /// How many are chosen for a token.
    pub used: usize,
    /// Width inside one.
    pub ffn: usize,
}

impl Hparams {
    /// Reads the numbers of `arch` from a file.
    ///
    /// # Errors
    /// If one is missing, has the wrong type, is out of its bound, or contradicts another.
    pub fn new(arch: &Arch, source: &Source) -> Result<Hparams> {
        let keys = Keys { metadata: source.metadata(), arch: &arch.name };
        let width = |key: &str| keys.required(key, limits::WIDTH_MAX);
        let embed = width("embedding_length")?;
        let heads = width("attention.head_count")?;
        let key_len = keys.optional("attention.key_length", limits::WIDTH_MAX)?;
        if key_len.is_none() && embed % heads != 0 {
            let key = format!("{}.attention.head_count", arch.name);
            bail!("{key}: {heads} heads do not divide a width of {embed}");
        }
        let head_default = (embed / heads).max(1);
        let width_or = |key: &str, default| {
            keys.optional(key, limits::WIDTH_MAX).map(|v| v.unwrap_or(default))
        };
        let head_len = key_len.unwrap_or(head_default);
        let value_len = width_or("attention.value_length", head_len)?;
        if value_len != head_len {
            bail!(
                "{}.attention.value_length: expected {head_len}, as keys have, found {value_len}",
                arch.name
            );
        }
        let layers = keys.required("block_count", limits::LAYERS_MAX)?;
        let kv_heads = width_or("attention.head_count_kv", heads)?;
        if heads % kv_heads != 0 {
            bail!(
                "{}.attention.head_count_kv: expected a divisor of {heads}, found {kv_heads}",
                arch.name
            );
        }
        let rope_len = keys.rope_len(head_len)?;
        let per_head = match arch.block.query_scale {
            QueryScale::HeadLen if layers != arch.block.query_scale_layers => head_len,
            QueryScale::HeadLen | QueryScale::EmbedPerHead => head_default,
        };
        let experts = arch.has_experts().then(|| keys.experts()).transpose()?;
        let ffn = match experts {
            // No tensor has this width, and not every file says it.
            Some(experts) => width_or("feed_forward_length", experts.ffn)?,
            None => width("feed_forward_length")?,
        };
        let window = keys.optional_or_zero("attention.sliding_window", limits::CONTEXT_MAX)?;
        let window = window.filter(|&cells| cells > 0 && arch.block.global_every != 1);
        Ok(Hparams {
            layers,
            embed,
            heads,
            kv_heads,
            head_len,
            ffn,
            experts,
            vocabulary: vocabulary(source)?,
            context: keys.context()?,
            epsilon: keys.float("attention.layer_norm_rms_epsilon")?.ok_or_else(|| {
                Error::new(format!("{}.attention.layer_norm_rms_epsilon is missing", arch.name))
            })?,
            rope_len,
            rope_base: keys.float("rope.freq_base")?.unwrap_or(10_000.0),
            rope_scale: keys.rope_scale()?,
            yarn: keys.yarn()?,
            rope_amplitude: keys.amplitude()?,
            rope_context: keys.first_context()?,
            local_rope_base: keys.float("rope.freq_base_swa")?.or(arch.local_rope_base()),
            pairing: keys.pairing()?.unwrap_or(arch.pairing()),
            window: window.map(|cells| cells as u32),
            query_scale: 1.0 / (per_head as f32).sqrt(),
            attn_soft_cap: keys.float("attn_logit_softcapping")?.filter(|&cap| cap != 0.0),
            final_soft_cap: keys.float("final_logit_softcapping")?.filter(|&cap| cap != 0.0),
        })
    }

    /// The number that a description's word stands for.
    pub fn dim(&self, dim: Dim) -> usize {
        match dim {
            Dim::Embed => self.embed,
            Dim::Query => self.heads * self.head_len,
            Dim::KeyValue => self.kv_heads * self.head_len,
            Dim::QueryKeyValue => (self.heads + 2 * self.kv_heads) * self.head_len,
            Dim::HeadLen => self.head_len,
            Dim::Ffn => self.ffn,
            Dim::GateUp => 2 * self.ffn,
            Dim::Experts => self.experts.map_or(0, |experts| experts.count),
            Dim::ExpertFfn => self.experts.map_or(0, |experts| experts.ffn),
            Dim::Vocabulary => self.vocabulary,
            Dim::RopePairs => self.rope_len / 2,
        }
    }

    /// Whether a layer sees only a window. (No number of layers is a multiple of zero.)
    pub fn is_local(&self, arch: &Arch, layer: usize) -> bool {
        self.window.is_some() && !(layer + 1).is_multiple_of(arch.block.global_every)
    }

    /// Whether a layer turns queries and keys by their positions.
    pub fn has_rope(&self, arch: &Arch, layer: usize) -> bool {
        !(layer + 1).is_multiple_of(arch.block.rope_skip_every)
    }
}

/// The vocabulary is as long as the embedding: `vocab_size` is often missing or padded.
fn vocabulary(source: &Source) -> Result<usize> {
    let Some(embedding) = source.tensor("token_embd.weight")? else {
        bail!("tensor `token_embd.weight` is missing");
    };
    if embedding.rows as u64 > limits::VOCABULARY_MAX {
        let (found, max) = (embedding.rows, limits::VOCABULARY_MAX);
        bail!("tensor `token_embd.weight`: expected at most {max} rows, found {found}");
    }
    Ok(embedding.rows)
}

struct Keys<'a> {
    metadata: &'a Metadata,
    arch: &'a str,
}

impl Keys<'_> {
    fn optional(&self, key: &str, max: u64) -> Result<Option<usize>> {
        self.within(key, 1, max)
    }

    fn optional_or_zero(&self, key: &str, max: u64) -> Result<Option<usize>> {
        self.within(key, 0, max)
    }

    fn within(&self, key: &str, min: u64, max: u64) -> Result<Option<usize>> {
        let key = format!("{}.{key}", self.arch);
        let Some(value) = self.uniform(&key)? else { return Ok(None) };
        if value < min || value > max {
            bail!("{key}: expected {min} to {max}, found {value}");
        }
        Ok(Some(value as usize))
    }

    /// Some files repeat a number once per layer.
    fn uniform(&self, key: &str) -> Result<Option<u64>> {
        if !matches!(self.metadata.get(key), Some(Value::Array(_))) {
            return self.metadata.get_u64(key);
        }
        let values = self.metadata.get_u64s(key)?.unwrap_or_default();
        let first = values.first().copied();
        if first.is_none_or(|first| values.iter().any(|&value| value != first)) {
            bail!("{key}: expected the same number for every layer, found {values:?}");
        }
        Ok(first)
    }

    fn required(&self, key: &str, max: u64) -> Result<usize> {
        let missing = || Error::new(format!("{}.{key} is missing", self.arch));
        self.optional(key, max)?.ok_or_else(missing)
    }

    fn rope_len(&self, head_len: usize) -> Result<usize> {
        let key = "rope.dimension_count";
        let len = self.optional(key, limits::WIDTH_MAX)?.unwrap_or(head_len);
        if len > head_len || len % 2 != 0 {
            bail!("{}.{key}: expected an even number up to {head_len}, found {len}", self.arch);
        }
        Ok(len)
    }

    fn experts(&self) -> Result<Experts> {
        let count = self.required("expert_count", limits::EXPERTS_MAX)?;
        Ok(Experts {
            count,
            used: self.required("expert_used_count", count as u64)?,
            ffn: self.required("expert_feed_forward_length", limits::WIDTH_MAX)?,
        })
    }

    fn float(&self, key: &str) -> Result<Option<f32>> {
        let key = format!("{}.{key}", self.arch);
        let value = self.metadata.get_f32(&key)?;
        match value {
            Some(found) if !found.is_finite() || found < 0.0 => {
                bail!("{key}: expected a number of at least 0, found {found}")
            }
            Some(found) if found == 0.0 && key.contains("freq_base") => {
                bail!("{key}: expected a number above 0, found {found}")
            }
            value => Ok(value),
        }
    }

    /// Weights whose neighbouring rows share codes keep the order of rows that a checkpoint has.
    fn pairing(&self) -> Result<Option<Pairing>> {
        let key = format!("{}.{PAIRING}", self.arch);
        match self.metadata.get_str(&key)? {
            None => Ok(None),
            Some(HALVES) => Ok(Some(Pairing::Halves)),
            Some(found) => bail!("{key}: expected `{HALVES}`, found `{found}`"),
        }
    }

    fn first_context(&self) -> Result<Option<usize>> {
        self.optional("rope.scaling.original_context_length", limits::CONTEXT_MAX)
    }

    /// A number that is nothing said where it is zero, as llama.cpp has it.
    fn above_zero(&self, key: &str) -> Result<Option<f32>> {
        Ok(self.float(key)?.filter(|&number| number != 0.0))
    }

    /// YaRN has an amplitude of its own, unless a file says what a configuration said.
    fn amplitude(&self) -> Result<f32> {
        let factor = self.above_zero("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let Some(yarn) = self.yarn()? else { return Ok(factor) };
        let said = self.above_zero("rope.scaling.yarn_attn_factor")?;
        let own = || Yarn::amplitude(f64::from(yarn.factor)) as f32;
        Ok(factor * said.unwrap_or_else(own))
    }

    /// Files with YaRN often say the context that the model was first trained on.
    fn context(&self) -> Result<usize> {
        let said = self.required("context_length", limits::CONTEXT_MAX)?;
        let Some(yarn) = self.yarn()? else { return Ok(said) };
        let scaled = f64::from(yarn.factor) * yarn.context as f64;
        Ok(said.max(scaled.min(limits::CONTEXT_MAX as f64) as usize))
    }

    fn yarn(&self) -> Result<Option<Yarn>> {
        if self.scaling()? != Some(YARN) {
            return Ok(None);
        }
        let Some(factor) = self.above_zero("rope.scaling.factor")? else {
            bail!("{}.rope.scaling.factor is missing, which `{YARN}` needs", self.arch);
        };
        let context = match self.first_context()? {
            Some(context) => context,
            None => self.required("context_length", limits::CONTEXT_MAX)?,
        };
        let [many, few] = TURNS;
        let fast = self.above_zero("rope.scaling.yarn_beta_fast")?.unwrap_or(many);
        let slow = self.above_zero("rope.scaling.yarn_beta_slow")?.unwrap_or(few);
        Ok(Some(Yarn { factor, context, turns: [fast, slow] }))
    }

    fn scaling(&self) -> Result<Option<&str>> {
        self.metadata.get_str(&format!("{}.rope.scaling.type", self.arch))
    }

    /// Positions are divided by the factor of linear scaling. Llama 3 scales by a tensor of factors
    /// instead and says nothing here.
    fn rope_scale(&self) -> Result<f32> {
        let factor = self.above_zero("rope.scaling.factor")?;
        match self.scaling()? {
            // The factors are tensors, or made for each pair.
            Some("none" | "longrope" | YARN) => Ok(1.0),
            None | Some("linear") => Ok(factor.map_or(1.0, |factor| 1.0 / factor)),
            Some(kind) => bail!(
                "{}.rope.scaling.type: `{kind}` is not supported, expected `none`, `linear`, \
                 `longrope` or `{YARN}`",
                self.arch
            ),
        }
    }
}
