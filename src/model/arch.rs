//! `models/*.toml` to [`Arch`]: a closed vocabulary, in which a mistake fails the tests.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::plan::{Activation, Pairing};

/// The descriptions, one line each; everything else about an architecture is in its file.
const DESCRIPTIONS: &[&str] = &[
    include_str!("../../models/gemma3.toml"),
    include_str!("../../models/llama.toml"),
    include_str!("../../models/phi3.toml"),
    include_str!("../../models/qwen2.toml"),
    include_str!("../../models/qwen3.toml"),
    include_str!("../../models/qwen3moe.toml"),
    include_str!("../../models/smollm3.toml"),
];

/// Every architecture.
pub static ARCHS: LazyLock<Vec<Arch>> = LazyLock::new(|| {
    let parse = |text: &&str| toml::from_str(text).expect("the descriptions are tested");
    DESCRIPTIONS.iter().map(parse).collect()
});

/// What sets an architecture apart.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arch {
    /// `general.architecture`.
    pub name: String,
    /// The shape of one layer.
    pub block: BlockWords,
    /// How Hugging Face folders say the same; none where they are not read.
    pub huggingface: Option<FolderWords>,
    /// Every tensor that a file may hold.
    #[serde(rename = "tensor")]
    pub tensors: Vec<TensorWords>,
}

/// What a Hugging Face folder calls things.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FolderWords {
    /// The classes of `transformers` that are this architecture.
    pub classes: Vec<String>,
    /// What is added to the weights of norms.
    pub norm_shift: f32,
    /// The number of `config.json` that says what scores are divided by the root of, or empty.
    pub query_scale: String,
    /// The number of `config.json` that says how much of a head is rotated, or empty.
    pub rope_share: String,
    /// Beginnings of the names of tensors that are not the text's.
    pub other_parts: Vec<String>,
    /// Beginnings of names, and those that the names of the tensors begin with instead.
    pub renames: BTreeMap<String, String>,
    /// What `transformers` takes where `config.json` says nothing.
    pub defaults: BTreeMap<String, serde_json::Value>,
    /// What `config.json` may say besides, with every value that is supported.
    pub fixed: BTreeMap<String, Vec<serde_json::Value>>,
    /// Keys of GGUF, without the architecture, and the integers of `config.json` that they are.
    pub integers: BTreeMap<String, String>,
    /// The same for numbers that are no integers.
    pub floats: BTreeMap<String, String>,
}

/// The words that describe a layer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockWords {
    rope: RopeWord,
    gate: GateWord,
    /// What embeddings are multiplied by.
    pub embed_scale: EmbedScale,
    /// Every n-th layer sees the whole context, the others a window; none does if this is 0.
    pub global_every: usize,
    /// The RoPE base of layers with a window, where the file has none; 0 if they have the angles of
    /// the others.
    local_rope_base: f32,
    /// Every n-th layer has no RoPE; 0 for none.
    pub rope_skip_every: usize,
    /// Scores are divided by the square root of this.
    pub query_scale: QueryScale,
    /// The number of layers of the one size that divides by `embed / heads` instead; 0 for none.
    pub query_scale_layers: usize,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RopeWord {
    Interleaved,
    Halves,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum GateWord {
    Silu,
    Gelu,
}

/// What embeddings are multiplied by.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbedScale {
    /// Nothing.
    One,
    /// The square root of the width.
    SqrtEmbed,
}

/// What scores are divided by the square root of.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueryScale {
    /// The length of a head.
    HeadLen,
    /// The width over the number of heads.
    EmbedPerHead,
}

/// One tensor of an architecture.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorWords {
    /// Its name in GGUF, with `{layer}` for the number.
    pub name: String,
    /// Its name in a Hugging Face folder, if it is there. With `{expert}` for the number of one, it
    /// is that of each expert's part.
    pub huggingface: Option<String>,
    /// What the forward pass uses it for.
    pub role: Role,
    /// Outputs first.
    pub shape: Vec<Dim>,
    /// Whether a file may lack it.
    pub need: Need,
}

/// Whether a file may lack a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// It may not.
    Always,
    /// It may.
    Sometimes,
}

/// What the forward pass uses a tensor for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is the name of a tensor in the descriptions")]
pub enum Role {
    Embedding,
    OutputNorm,
    Head,
    RopeFactors,
    RopeFactorsLong,
    RopeFactorsShort,
    AttnNorm,
    AttnQkv,
    AttnQ,
    AttnQBias,
    AttnQNorm,
    AttnK,
    AttnKBias,
    AttnKNorm,
    AttnV,
    AttnVBias,
    AttnOutput,
    AttnOutputBias,
    AttnPostNorm,
    FfnNorm,
    FfnGateUp,
    FfnGate,
    FfnUp,
    FfnDown,
    FfnRouter,
    FfnGateExperts,
    FfnUpExperts,
    FfnDownExperts,
    FfnPostNorm,
}

impl Role {
    /// Whether it is a matrix of a layer: what a conversion quantises.
    pub fn is_layer_matrix(self) -> bool {
        use Role::{AttnK, AttnOutput, AttnQ, AttnV, FfnDown, FfnGate, FfnUp};
        let is_fused = !self.parts().is_empty();
        is_fused
            || self.is_of_experts()
            || matches!(self, AttnQ | AttnK | AttnV | AttnOutput | FfnGate | FfnUp | FfnDown)
    }

    /// Whether it divides the frequencies of RoPE.
    pub fn is_rope_factors(self) -> bool {
        matches!(self, Role::RopeFactors | Role::RopeFactorsLong | Role::RopeFactorsShort)
    }

    /// Where several matrices lie in one: which ones, with their rows, in their order.
    pub fn parts(self) -> &'static [(Role, Dim)] {
        match self {
            Role::AttnQkv => &[
                (Role::AttnQ, Dim::Query),
                (Role::AttnK, Dim::KeyValue),
                (Role::AttnV, Dim::KeyValue),
            ],
            Role::FfnGateUp => &[(Role::FfnGate, Dim::Ffn), (Role::FfnUp, Dim::Ffn)],
            _ => &[],
        }
    }

    /// Whether RoPE turns what its rows give: queries and keys.
    pub fn is_rotated(self) -> bool {
        matches!(self, Role::AttnQ | Role::AttnQBias | Role::AttnK | Role::AttnKBias)
    }

    /// Whether it is the weight of a norm.
    pub fn is_norm(self) -> bool {
        use Role::{
            AttnKNorm, AttnNorm, AttnPostNorm, AttnQNorm, FfnNorm, FfnPostNorm, OutputNorm,
        };
        let of_attention = matches!(self, AttnNorm | AttnQNorm | AttnKNorm | AttnPostNorm);
        of_attention || matches!(self, FfnNorm | FfnPostNorm | OutputNorm)
    }

    /// Whether it holds a matrix of every expert, the rows of one after those of another.
    pub fn is_of_experts(self) -> bool {
        matches!(self, Role::FfnGateExperts | Role::FfnUpExperts | Role::FfnDownExperts)
    }

    /// Whether it maps tokens to the stream or back.
    pub fn is_vocabulary_matrix(self) -> bool {
        matches!(self, Role::Embedding | Role::Head)
    }
}

/// A number that shapes are made of; see [`super::Hparams::dim`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is a field of `Hparams`, or made of some")]
pub enum Dim {
    Embed,
    Query,
    KeyValue,
    QueryKeyValue,
    HeadLen,
    Ffn,
    GateUp,
    Experts,
    ExpertFfn,
    Vocabulary,
    RopePairs,
}

impl Arch {
    /// The architecture of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn by_name(name: &str) -> Result<&'static Arch> {
        ARCHS.iter().find(|arch| arch.name == name).ok_or_else(|| {
            let known: Vec<&str> = ARCHS.iter().map(|arch| arch.name.as_str()).collect();
            Error::new(format!("unknown architecture `{name}`, expected {}", known.join(", ")))
        })
    }

    /// The architecture of this class of `transformers`.
    ///
    /// # Errors
    /// If there is none.
    pub fn by_class(class: &str) -> Result<&'static Arch> {
        let classes =
            |arch: &'static Arch| arch.huggingface.iter().flat_map(|words| &words.classes);
        let found = ARCHS.iter().find(|arch| classes(arch).any(|known| known == class));
        found.ok_or_else(|| {
            let known: Vec<&str> = ARCHS.iter().flat_map(classes).map(String::as_str).collect();
            Error::new(format!("unknown class `{class}`, expected {}", known.join(", ")))
        })
    }

    /// Which values of a head are rotated together.
    pub fn pairing(&self) -> Pairing {
        match self.block.rope {
            RopeWord::Interleaved => Pairing::Interleaved,
            RopeWord::Halves => Pairing::Halves,
        }
    }

    /// The RoPE base of layers with a window, where they have angles of their own.
    pub fn local_rope_base(&self) -> Option<f32> {
        Some(self.block.local_rope_base).filter(|&base| base > 0.0)
    }

    /// Whether the values that are rotated together are neighbours.
    pub fn pairs_neighbours(&self) -> bool {
        self.pairing() == Pairing::Interleaved
    }

    /// Whether a router chooses among experts in the feed-forward blocks.
    pub fn has_experts(&self) -> bool {
        self.tensors.iter().any(|words| words.role == Role::FfnRouter)
    }

    /// The gate's non-linearity.
    pub fn activation(&self) -> Activation {
        match self.block.gate {
            GateWord::Silu => Activation::Silu,
            GateWord::Gelu => Activation::Gelu,
        }
    }
}
