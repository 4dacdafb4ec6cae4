//! HIGGS checkpoints of random codes, packed by the formulas of FLUTE's layout.

use gridmill::quant::flute;
use gridmill::transform;
use gridmill::types::Basis;
use half::{bf16, f16};
use serde_json::json;

use crate::folder::{Folder, Stored, vocabulary};

/// A generator that `tests/data/flute/make.py` has too.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = (1_103_515_245 * self.0 + 12345) % (1 << 31);
        self.0 >> 16
    }
}

/// FLUTE's layout written down value by value: `code(output, input)` to words.
pub(crate) fn pack(
    (bits, tile): (usize, usize),
    (rows, cols): (usize, usize),
    code: impl Fn(usize, usize) -> u8,
) -> Vec<u8> {
    let mut words = vec![0u16; rows * bits / 16 * cols];
    let mut or = |row: usize, col: usize, bits: u16| words[row * cols + col] |= bits;
    for n in 0..rows {
        for k in 0..cols {
            let (value, r, a) = (u16::from(code(n, k)), k % 2, k / 2);
            if bits == 3 {
                let order = [0, 3, 6, 9, 12, 1, 4, 7, 10, 13, 2, 5, 8, 11, 14, 15];
                let (c, j, p) = (n / 512, n / 32 % 16, n % 32);
                let i = 2 * order.iter().position(|&tile| tile == j).unwrap() + 1 - r;
                for bit in 0..3 {
                    let at = 3 * i + bit;
                    // 30 bits of each plane, then two more of each.
                    let (plane, col, place) = match at {
                        90.. => ((at - 90) / 2, 2 * a + 1, 14 + at % 2),
                        _ if at % 30 < 16 => (at / 30, 2 * a, at % 30),
                        _ => (at / 30, 2 * a + 1, at % 30 - 16),
                    };
                    let row = match plane {
                        0 => c * 32 + p,
                        plane => rows / 16 + c * 64 + (plane - 1) * 32 + p,
                    };
                    or(row, col, (value >> bit & 1) << place);
                }
            } else {
                let tiles = 16 / bits;
                let (c, j, p) = (n / (tiles * tile), n / tile % tiles, n % tile);
                let slot = 2 * (j % (tiles / 2)) + 1 - r;
                or(c * tile + p, 2 * a + j / (tiles / 2), value << (slot * bits));
            }
        }
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Modules of a layer.
const MODULES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// Every width of the model.
pub(crate) const WIDTH: usize = 512;
pub(crate) const HEAD_LEN: usize = 128;

/// A HIGGS checkpoint of random codes.
pub(crate) struct Checkpoint {
    pub(crate) folder: Folder,
    /// The same model with decoded weights.
    pub(crate) decoded: Folder,
    /// Of `q_proj`, `(outputs, points)`.
    pub(crate) codes: Vec<u8>,
}

/// What a checkpoint is packed with.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) p: usize,
    pub(crate) bits: usize,
    pub(crate) tile: usize,
    pub(crate) hadamard: usize,
    /// The kernel that a newer file names.
    pub(crate) template: Option<u64>,
    pub(crate) is_bf16: bool,
}

pub(crate) const KIND: Kind =
    Kind { p: 2, bits: 4, tile: 32, hadamard: 128, template: None, is_bf16: false };

/// One layer of HIGGS, and an embedding and norms of floats.
pub(crate) fn checkpoint(kind: Kind) -> Checkpoint {
    let mut random = Random(kind.bits as u64);
    let mut tensors = floats(&mut random);
    let (mut decoded, mut codes, mut kernels) = (tensors.clone(), Vec::new(), json!({}));
    for module in MODULES {
        let module = format!("model.layers.0.{module}");
        let made = Module::new(kind, &mut random);
        tensors.extend(made.stored(kind, &module));
        if let Some(id) = kind.template {
            kernels[&module] = json!({"num_bits": kind.bits, "template_id": id});
        }
        decoded.push(f32s(&format!("{module}.weight"), &[WIDTH, WIDTH], &made.decode(kind)));
        if codes.is_empty() {
            codes = made.codes;
        }
    }
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "intermediate_size": WIDTH,
        "num_hidden_layers": 1, "num_attention_heads": WIDTH / HEAD_LEN, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "vocab_size": 128, "rope_theta": 10000.0,
        "tie_word_embeddings": true,
    });
    let folder = |config, tensors| {
        let (tokenizer, tokenizer_config) = (vocabulary(), json!({}));
        Folder { config, tokenizer, tokenizer_config, tensors }
    };
    let mut quantised = config.clone();
    quantised["quantization_config"] = json!({
        "quant_method": "higgs", "bits": kind.bits, "p": kind.p, "hadamard_size": kind.hadamard,
        "group_size": kind.hadamard / 2,
    });
    if kind.template.is_some() {
        quantised["quantization_config"]["tune_metadata"] = kernels;
    }
    Checkpoint { folder: folder(quantised, tensors), decoded: folder(config, decoded), codes }
}

/// What is not quantised.
fn floats(random: &mut Random) -> Vec<Stored> {
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut stored = |name: &str, shape: &[usize], mean: f32| {
        let count = shape.iter().product::<usize>();
        let mut value = || mean + random.next() as f32 / 32768.0 - 0.5;
        f32s(name, shape, &(0..count).map(|_| value()).collect::<Vec<f32>>())
    };
    vec![
        stored("model.embed_tokens.weight", &[128, WIDTH], 0.0),
        stored("model.norm.weight", &[WIDTH], 1.0),
        stored(&layer("input_layernorm"), &[WIDTH], 1.0),
        stored(&layer("post_attention_layernorm"), &[WIDTH], 1.0),
    ]
}

fn f32s(name: &str, shape: &[usize], values: &[f32]) -> Stored {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Stored { name: name.to_string(), dtype: "F32", shape: shape.to_vec(), bytes }
}

/// One weight.
struct Module {
    /// `(outputs, points)`.
    codes: Vec<u8>,
    /// `(outputs, blocks)`.
    scales: Vec<f32>,
    /// `(points, p)`.
    grid: Vec<f32>,
}

impl Module {
    fn new(kind: Kind, random: &mut Random) -> Module {
        let Kind { p, bits, hadamard, .. } = kind;
        let mask = (1 << (p * bits)) - 1;
        let codes = (0..WIDTH * WIDTH / p).map(|_| (random.next() & mask) as u8).collect();
        // Numbers that both forms of sixteen bits hold.
        let mut scale = || bf16::from_f32(0.02 + random.next() as f32 / 1e6).to_f32();
        let scales = (0..WIDTH * WIDTH / hadamard).map(|_| scale()).collect();
        let grid = flute::published_grid(p, bits).expect("a published grid");
        Module { codes, scales, grid }
    }

    /// As `transformers` stores it.
    fn stored(&self, kind: Kind, module: &str) -> Vec<Stored> {
        let Kind { p, bits, .. } = kind;
        let (side, points, grid) = (1 << bits, WIDTH / p, &self.grid);
        let part = |n: usize, k: usize| {
            let code = self.codes[n * points + k / p];
            if p == 2 && k.is_multiple_of(2) { code >> bits } else { code & ((1 << bits) - 1) }
        };
        let words = pack((bits, kind.tile), (WIDTH, WIDTH), part);
        let half = |values: &[f32]| -> Vec<u8> {
            let bits = |&value: &f32| match kind.is_bf16 {
                true => bf16::from_f32(value).to_bits(),
                false => f16::from_f32(value).to_bits(),
            };
            values.iter().flat_map(|value| bits(value).to_le_bytes()).collect()
        };
        let dtype = if kind.is_bf16 { "BF16" } else { "F16" };
        // Two scales, always equal, for each block.
        let twice: Vec<f32> = self.scales.iter().flat_map(|&scale| [scale, scale]).collect();
        let placeholder: Vec<f32> = (0..side).map(|i| i as f32).collect();
        let pairs: Vec<f32> = match p {
            1 => grid.iter().flat_map(|&a| grid.iter().flat_map(move |&b| [a, b])).collect(),
            _ => grid.clone(),
        };
        let scales = twice.len() / WIDTH;
        let mut parts = vec![
            ("weight", "I16", vec![WIDTH * bits / 16, WIDTH], words),
            ("scales", dtype, vec![WIDTH, scales], half(&twice)),
            ("tables", dtype, vec![side], half(if p == 1 { grid } else { &placeholder })),
            // Stored under the name of half precision, whatever the bits are.
            ("tables2", "F16", vec![side, side, 2], half(&pairs)),
        ];
        if kind.template.is_none() {
            parts.push(("num_sms_packed", "I32", vec![], vec![128, 0, 0, 0]));
        }
        let stored = |(part, dtype, shape, bytes)| {
            let name = format!("{module}.{part}");
            Stored { name, dtype, shape, bytes }
        };
        parts.into_iter().map(stored).collect()
    }

    /// Scale, grid, and the Hadamard transform by its definition.
    fn decode(&self, kind: Kind) -> Vec<f32> {
        let Kind { p, hadamard, .. } = kind;
        let point = |&code: &u8| &self.grid[code as usize * p..][..p];
        let mut values: Vec<f32> = self.codes.iter().flat_map(point).copied().collect();
        for (block, scale) in values.chunks_exact_mut(hadamard).zip(&self.scales) {
            block.iter_mut().for_each(|value| *value *= scale);
            transform::plain::inverse(Basis::Hadamard { block: hadamard as u32 }, &[], block);
        }
        values
    }
}
