//! The ops. Each has one spelling: the variant, the Rust function of a backend, the shader.

use super::{Slot, Weight};
use crate::types::Basis;

/// One step of a plan. Shapes are written (rows, width); `t` is a row of the batch.
#[derive(Clone, Debug)]
pub enum Op {
    /// `out[t] = scale * row tokens[t] of table`, in the model's own basis.
    Embed {
        /// `(Tokens, 1)` U32.
        tokens: Slot,
        /// `(vocabulary, width)`.
        table: Weight,
        /// What turns the table's rows back into the original basis.
        transform: Option<Transform>,
        /// Gemma multiplies by the square root of the width.
        scale: f32,
        /// `(Tokens, width)` F32.
        out: Slot,
    },
    /// `out[t] = amplitude * (cos, sin) of positions[t] * frequencies[i]`, interleaved, once for
    /// all layers.
    Angles {
        /// `(Tokens, 1)` U32.
        positions: Slot,
        /// `(1, pairs)` F32 radians per position.
        frequencies: Weight,
        /// What turned values are multiplied by; 1 in most models.
        amplitude: f32,
        /// `(Tokens, 2 * pairs)` F32: cos, sin, cos, sin, ...
        out: Slot,
    },
    /// What a matrix's input goes through, once for all matrices that share it: gather, gate, norm,
    /// transform, then the activation format.
    Prepare {
        /// Where the values come from.
        input: Input,
        /// The rows to take, `(LogitRows, 1)` U32; all if there is none.
        rows: Option<Slot>,
        /// Root-mean-square norm.
        norm: Option<Norm>,
        /// Signs and rotation.
        transform: Option<Transform>,
        /// `(rows, width)` in the format that the matrices want.
        out: Slot,
    },
    /// `part.out[t] = part.weight * input[t] + part.bias`, for every part.
    MatMul {
        /// `(rows, cols)`, prepared.
        input: Slot,
        /// The matrices that share this input.
        parts: Vec<Part>,
    },
    /// Chooses `n` experts for each row, `n` being the width of `chosen`: those of the largest
    /// scores, largest first, of equal ones the one of the smaller number first.
    /// `shares[t] = softmax(scores[t] at chosen[t])`: the softmax over all experts, the chosen
    /// ones' shares divided by their sum.
    Route {
        /// `(Tokens, experts)` F32.
        scores: Slot,
        /// `(Tokens, n)` U32, below the number of experts.
        chosen: Slot,
        /// `(Tokens, n)` F32, of sum 1.
        shares: Slot,
    },
    /// `part.out[t * n + i] = expert chosen[t][i] of part.weight * input[t]`, for every part; of
    /// `input[t * n + i]` where each chosen expert has an input of its own.
    ExpertMatMul {
        /// `(Tokens, cols)` or `(Chosen(n), cols)`, prepared.
        input: Slot,
        /// `(Tokens, n)` U32, as [`Op::Route`] leaves it.
        chosen: Slot,
        /// The matrices of experts that share this input.
        parts: Vec<ExpertPart>,
    },
    /// `x[t] += sum over i of shares[t][i] * y[t * n + i]`.
    Mix {
        /// `(Tokens, width)` F32, in place.
        x: Slot,
        /// `(Chosen(n), width)` F32.
        y: Slot,
        /// `(Tokens, n)` F32.
        shares: Slot,
    },
    /// Rotates queries and keys by position, after a norm of each head where the model has one, and
    /// writes keys and values to the cache. Where the cache has a basis of its own, queries and
    /// keys are turned into it in place, and values on their way.
    Rope {
        /// `(Tokens, heads * head_len)` F32, rotated in place.
        q: Slot,
        /// `(Tokens, kv_heads * head_len)` F32, rotated in place.
        k: Slot,
        /// `(Tokens, kv_heads * head_len)` F32.
        v: Slot,
        /// `(Tokens, 2 * pairs)`; values of a head past `2 * pairs` stay as they are.
        angles: Slot,
        /// Norm of each query head, `(1, head_len)`.
        q_norm: Option<Norm>,
        /// Norm of each key head, `(1, head_len)`.
        k_norm: Option<Norm>,
        /// Which values make a pair.
        pairing: Pairing,
        /// Values per head.
        head_len: usize,
        /// `(Tokens, 1)` U32: the cache cell.
        positions: Slot,
        /// `(Tokens, 1)` U32.
        sequences: Slot,
        /// Whose cache.
        layer: usize,
    },
    /// `out[t] = softmax(cap(scale * q[t] K)) V` per head, over the cells of the row's sequence up
    /// to its position, and within the window; turned back where values in the cache are turned.
    Attend {
        /// `(Tokens, heads * head_len)` F32.
        q: Slot,
        /// `(Tokens, 1)` U32.
        positions: Slot,
        /// `(Tokens, 1)` U32.
        sequences: Slot,
        /// Whose cache.
        layer: usize,
        /// Query heads; each run of `heads / kv_heads` shares a key head.
        heads: usize,
        /// What scores are multiplied by.
        scale: f32,
        /// Cells seen, the row's own among them; all if there is none.
        window: Option<u32>,
        /// `cap * tanh(score / cap)`.
        soft_cap: Option<f32>,
        /// `(Tokens, heads * head_len)` F32.
        out: Slot,
    },
    /// `x[t] += norm(y[t])`.
    AddNorm {
        /// `(Tokens, width)` F32, in place.
        x: Slot,
        /// `(Tokens, width)` F32.
        y: Slot,
        /// The norm.
        norm: Norm,
    },
    /// `x = cap * tanh(x / cap)`.
    SoftCap {
        /// F32, in place.
        x: Slot,
        /// The bound.
        cap: f32,
    },
}

impl Op {
    /// The spelling shared by the backends' functions, the shaders and the messages.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Embed { .. } => "embed",
            Op::Angles { .. } => "angles",
            Op::Prepare { .. } => "prepare",
            Op::MatMul { .. } => "mat_mul",
            Op::Route { .. } => "route",
            Op::ExpertMatMul { .. } => "expert_mat_mul",
            Op::Mix { .. } => "mix",
            Op::Rope { .. } => "rope",
            Op::Attend { .. } => "attend",
            Op::AddNorm { .. } => "add_norm",
            Op::SoftCap { .. } => "soft_cap",
        }
    }

    /// The slots that the op reads, those among them that it changes in place.
    pub fn reads(&self) -> Vec<Slot> {
        match self {
            Op::Embed { tokens, .. } => vec![*tokens],
            Op::Angles { positions, .. } => vec![*positions],
            Op::Prepare { input, rows, .. } => {
                let mut slots = match input {
                    Input::Rows(slot) => vec![*slot],
                    Input::Gated { gate, up, .. } => vec![*gate, *up],
                };
                slots.extend(*rows);
                slots
            }
            Op::MatMul { input, parts } => {
                let sums = parts.iter().filter(|part| part.add).map(|part| part.out);
                [*input].into_iter().chain(sums).collect()
            }
            Op::Route { scores, .. } => vec![*scores],
            Op::ExpertMatMul { input, chosen, .. } => vec![*input, *chosen],
            Op::Mix { x, y, shares } => vec![*x, *y, *shares],
            Op::Rope { q, k, v, angles, positions, sequences, .. } => {
                vec![*q, *k, *v, *angles, *positions, *sequences]
            }
            Op::Attend { q, positions, sequences, .. } => vec![*q, *positions, *sequences],
            Op::AddNorm { x, y, .. } => vec![*x, *y],
            Op::SoftCap { x, .. } => vec![*x],
        }
    }

    /// The layer whose cache the op writes or reads, if it does.
    pub fn cache(&self) -> Option<usize> {
        match self {
            Op::Rope { layer, .. } | Op::Attend { layer, .. } => Some(*layer),
            Op::Embed { .. }
            | Op::Angles { .. }
            | Op::Prepare { .. }
            | Op::MatMul { .. }
            | Op::Route { .. }
            | Op::ExpertMatMul { .. }
            | Op::Mix { .. }
            | Op::AddNorm { .. }
            | Op::SoftCap { .. } => None,
        }
    }

    /// The slots that the op writes.
    pub fn writes(&self) -> Vec<Slot> {
        match self {
            Op::Embed { out, .. }
            | Op::Angles { out, .. }
            | Op::Prepare { out, .. }
            | Op::Attend { out, .. } => vec![*out],
            Op::MatMul { parts, .. } => parts.iter().map(|part| part.out).collect(),
            Op::Route { chosen, shares, .. } => vec![*chosen, *shares],
            Op::ExpertMatMul { parts, .. } => parts.iter().map(|part| part.out).collect(),
            Op::Rope { q, k, .. } => vec![*q, *k],
            Op::Mix { x, .. } | Op::AddNorm { x, .. } | Op::SoftCap { x, .. } => vec![*x],
        }
    }
}

/// Where [`Op::Prepare`] takes its values from.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// `(Tokens, width)` F32.
    Rows(Slot),
    /// `activation(gate) * up`, both `(Tokens, width)` or `(Chosen(n), width)` F32.
    Gated {
        /// Goes through the activation.
        gate: Slot,
        /// Is multiplied by it.
        up: Slot,
        /// Which one.
        activation: Activation,
    },
}

/// The gate's non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    Gelu,
}

/// `x * weight / sqrt(mean(x^2) + epsilon)`.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// `(1, width)` F32.
    pub weight: Weight,
    /// Keeps the root away from zero.
    pub epsilon: f32,
}

/// Signs, then a rotation.
#[derive(Clone, Copy, Debug)]
pub struct Transform {
    /// Which rotation; never the original basis.
    pub basis: Basis,
    /// `(1, width)` int8, +1 or -1: the tensor whose `signs` plane it is.
    pub signs: Weight,
}

/// One matrix of a [`Op::MatMul`].
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// `(rows, cols)`.
    pub weight: Weight,
    /// `(1, rows)` F32.
    pub bias: Option<Weight>,
    /// Whether the product is added to what `out` holds: the residual stream.
    pub add: bool,
    /// `(rows of the input, rows of the weight)` F32.
    pub out: Slot,
}

/// The matrices of all experts of an [`Op::ExpertMatMul`].
#[derive(Clone, Copy, Debug)]
pub struct ExpertPart {
    /// `(experts * rows, cols)`: the rows of one expert after those of another.
    pub weight: Weight,
    /// `(Chosen(n), rows)` F32.
    pub out: Slot,
}

/// Which values of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Values 2i and 2i + 1: llama's order in GGUF files.
    Interleaved,
    /// Values i and i + pairs.
    Halves,
}

impl Pairing {
    /// The two values of pair `i` of so many.
    pub fn values(self, i: usize, pairs: usize) -> (usize, usize) {
        match self {
            Pairing::Interleaved => (2 * i, 2 * i + 1),
            Pairing::Halves => (i, i + pairs),
        }
    }
}
