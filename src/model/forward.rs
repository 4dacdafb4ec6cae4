//! The forward pass, once, for every architecture.
//!
//! What differs between models is data: which tensors exist, which words their description uses.
//! Matrices that share an input share its preparation; where their types need different ones, each
//! kind of preparation is an op of its own.

use std::collections::HashMap;

use super::arch::{EmbedScale, Role};
use super::hparams::Experts;
use super::{Hparams, Model};
use crate::plan::{
    CacheInfo, ExpertPart, Extent, Format, Input, Norm, Op, Part, Plan, Slot, SlotInfo, Transform,
    Weight,
};
use crate::types::{Basis, Bytes, ColumnPlanes, Kernel, Tensor, by_name};

/// Int8 activations share a scale over this many values, or fewer where a grid's group is shorter.
/// Stock types have blocks of 32; a rotated row is even enough for 64.
const STOCK_GROUP: usize = 32;
const GRID_GROUP: usize = 64;

/// `context` is how long texts may become.
pub(super) fn forward(model: &Model, context: usize) -> Plan {
    let hparams = &model.hparams;
    let mut build = Build::new(model);
    let x = build.float("x", Extent::Tokens, hparams.embed);
    build.embed(x);
    let factors = model.rope_factors(context);
    let mut global = model.frequencies(hparams.rope_base, hparams.rope_scale, factors);
    if let Some(yarn) = hparams.yarn {
        let scale = |pair| yarn.scale(pair, hparams.rope_base, hparams.rope_len) as f32;
        global.iter_mut().enumerate().for_each(|(pair, frequency)| *frequency *= scale(pair));
    }
    let global = build.angles("angles", &global, hparams.rope_amplitude);
    let local_base = hparams.window.and(hparams.local_rope_base);
    let local = local_base
        .map(|base| build.angles("local_angles", &model.frequencies(base, 1.0, None), 1.0));
    // A layer without rope turns by nothing: its keys and values go into the cache all the same.
    let skips = (0..hparams.layers).any(|layer| !hparams.has_rope(model.arch, layer));
    let none = skips.then(|| build.angles("no_angles", &vec![0.0; hparams.rope_len / 2], 1.0));
    for layer in 0..hparams.layers {
        build.plan.layers.push(build.plan.ops.len());
        let is_local = hparams.is_local(model.arch, layer);
        let angles = match hparams.has_rope(model.arch, layer) {
            true => local.filter(|_| is_local).unwrap_or(global),
            false => none.expect("made for such layers"),
        };
        build.attention(x, angles, layer);
        match hparams.experts {
            None => build.feed_forward(x, layer),
            Some(experts) => build.experts(x, experts, layer),
        }
    }
    build.plan.layers.push(build.plan.ops.len());
    build.head(x);
    build.plan
}

impl Model {
    /// The factors that some files bring; others where texts may become longer than those that
    /// the model was first trained on.
    fn rope_factors(&self, context: usize) -> Option<&Tensor> {
        let is_long = self.hparams.rope_context.is_some_and(|first| context > first);
        let role = if is_long { Role::RopeFactorsLong } else { Role::RopeFactorsShort };
        let get = |role| self.tensors.get(role, None);
        get(Role::RopeFactors).or_else(|| get(role))
    }

    /// Radians per position of each pair: `scale * base^(-2i / rope_len)`, over the factors.
    fn frequencies(&self, base: f32, scale: f32, factors: Option<&Tensor>) -> Vec<f32> {
        let len = self.hparams.rope_len;
        let tensor = factors;
        let mut factors = vec![1.0; len / 2];
        if let Some(tensor) = tensor {
            tensor.kind.decode(&tensor.rows(0..1), &mut factors);
        }
        let power = |i: usize| f64::from(base).powf(-2.0 * i as f64 / len as f64);
        let frequency = |(i, factor)| (f64::from(scale) * power(i) / f64::from(factor)) as f32;
        factors.into_iter().enumerate().map(frequency).collect()
    }
}

/// What sets a slot apart: its name and shape.
type SlotKey = (&'static str, Extent, usize, Format);

/// What becomes of the products of a linear layer.
#[derive(Clone, Copy)]
enum Way {
    /// They are the output.
    Set,
    /// They are added to it.
    Add,
    /// They are those of the experts that this slot names, row by row.
    Chosen(Slot),
}

struct Build<'a> {
    model: &'a Model,
    plan: Plan,
    slots: HashMap<SlotKey, Slot>,
    weights: HashMap<String, Weight>,
}

impl<'a> Build<'a> {
    fn new(model: &'a Model) -> Build<'a> {
        let Hparams { layers, kv_heads, head_len, vocabulary, .. } = model.hparams;
        let mut build = Build {
            model,
            plan: Plan {
                slots: Vec::new(),
                weights: Vec::new(),
                ops: Vec::new(),
                layers: Vec::new(),
                caches: vec![CacheInfo { heads: kv_heads, head_len, turn: None }; layers],
                tokens: Slot(0),
                positions: Slot(1),
                sequences: Slot(2),
                logit_rows: Slot(3),
                logits: Slot(4),
            },
            slots: HashMap::new(),
            weights: HashMap::new(),
        };
        for name in ["tokens", "positions", "sequences"] {
            build.slot(name, Extent::Tokens, 1, Format::U32);
        }
        build.slot("logit_rows", Extent::LogitRows, 1, Format::U32);
        build.float("logits", Extent::LogitRows, vocabulary);
        build
    }

    /// The slot of this name and shape; layers share them.
    fn slot(&mut self, name: &'static str, extent: Extent, width: usize, format: Format) -> Slot {
        let slots = &mut self.plan.slots;
        *self.slots.entry((name, extent, width, format)).or_insert_with(|| {
            slots.push(SlotInfo { name, extent, width, format });
            Slot(slots.len() - 1)
        })
    }

    fn float(&mut self, name: &'static str, extent: Extent, width: usize) -> Slot {
        self.slot(name, extent, width, Format::F32)
    }

    fn weight(&mut self, tensor: &Tensor) -> Weight {
        let weights = &mut self.plan.weights;
        *self.weights.entry(tensor.name.clone()).or_insert_with(|| {
            weights.push(tensor.clone());
            Weight(weights.len() - 1)
        })
    }

    fn tensor(&self, role: Role, layer: Option<usize>) -> &'a Tensor {
        let found = self.model.tensors.get(role, layer);
        found.unwrap_or_else(|| panic!("{role:?} was checked to be there"))
    }

    fn norm(&mut self, role: Role, layer: Option<usize>) -> Norm {
        let weight = self.weight(self.tensor(role, layer));
        Norm { weight, epsilon: self.model.hparams.epsilon }
    }

    fn norm_if_any(&mut self, role: Role, layer: Option<usize>) -> Option<Norm> {
        self.model.tensors.get(role, layer).is_some().then(|| self.norm(role, layer))
    }

    fn transform(&mut self, tensor: &Tensor) -> Option<Transform> {
        let signs = (tensor.basis != Basis::Original).then(|| self.weight(tensor))?;
        Some(Transform { basis: tensor.basis, signs })
    }

    fn embed(&mut self, out: Slot) {
        let table = self.tensor(Role::Embedding, None);
        let scale = match self.model.arch.block.embed_scale {
            EmbedScale::One => 1.0,
            EmbedScale::SqrtEmbed => (self.model.hparams.embed as f32).sqrt(),
        };
        let transform = self.transform(table);
        let table = self.weight(table);
        let tokens = self.plan.tokens;
        self.plan.ops.push(Op::Embed { tokens, table, transform, scale, out });
    }

    fn angles(&mut self, name: &'static str, frequencies: &[f32], amplitude: f32) -> Slot {
        let cols = frequencies.len();
        let out = self.float(name, Extent::Tokens, 2 * cols);
        let frequencies = self.weight(&constant(&format!("{name}.frequencies"), frequencies));
        let positions = self.plan.positions;
        self.plan.ops.push(Op::Angles { positions, frequencies, amplitude, out });
        out
    }

    fn attention(&mut self, x: Slot, angles: Slot, layer: usize) {
        let Hparams { heads, kv_heads, head_len, query_scale, attn_soft_cap, .. } =
            self.model.hparams;
        let at = Some(layer);
        let q = self.float("q", Extent::Tokens, heads * head_len);
        let k = self.float("k", Extent::Tokens, kv_heads * head_len);
        let v = self.float("v", Extent::Tokens, kv_heads * head_len);
        let outputs = [
            (Role::AttnQ, Some(Role::AttnQBias), q),
            (Role::AttnK, Some(Role::AttnKBias), k),
            (Role::AttnV, Some(Role::AttnVBias), v),
        ];
        let norm = self.norm(Role::AttnNorm, at);
        self.linear(Input::Rows(x), Some(norm), None, &outputs, at, Way::Set);

        let (positions, sequences) = (self.plan.positions, self.plan.sequences);
        let q_norm = self.norm_if_any(Role::AttnQNorm, at);
        let k_norm = self.norm_if_any(Role::AttnKNorm, at);
        let pairing = self.model.hparams.pairing;
        self.plan.ops.push(Op::Rope {
            q,
            k,
            v,
            angles,
            q_norm,
            k_norm,
            pairing,
            head_len,
            positions,
            sequences,
            layer,
        });
        let out = self.float("attended", Extent::Tokens, heads * head_len);
        let is_local = self.model.hparams.is_local(self.model.arch, layer);
        self.plan.ops.push(Op::Attend {
            q,
            positions,
            sequences,
            layer,
            heads,
            scale: query_scale,
            window: self.model.hparams.window.filter(|_| is_local),
            soft_cap: attn_soft_cap,
            out,
        });
        let role = (Role::AttnOutput, Some(Role::AttnOutputBias));
        self.residual(Input::Rows(out), x, role, Role::AttnPostNorm, layer);
    }

    fn feed_forward(&mut self, x: Slot, layer: usize) {
        let at = Some(layer);
        let gate = self.float("gate", Extent::Tokens, self.model.hparams.ffn);
        let up = self.float("up", Extent::Tokens, self.model.hparams.ffn);
        let norm = self.norm(Role::FfnNorm, at);
        let outputs = [(Role::FfnGate, None, gate), (Role::FfnUp, None, up)];
        self.linear(Input::Rows(x), Some(norm), None, &outputs, at, Way::Set);
        let input = Input::Gated { gate, up, activation: self.model.arch.activation() };
        self.residual(input, x, (Role::FfnDown, None), Role::FfnPostNorm, layer);
    }

    /// The feed-forward block of each expert that the router chooses, mixed by its shares.
    fn experts(&mut self, x: Slot, Experts { count, used, ffn }: Experts, layer: usize) {
        let at = Some(layer);
        let norm = self.norm(Role::FfnNorm, at);
        let scores = self.float("scores", Extent::Tokens, count);
        let outputs = [(Role::FfnRouter, None, scores)];
        self.linear(Input::Rows(x), Some(norm), None, &outputs, at, Way::Set);
        let chosen = self.slot("chosen", Extent::Tokens, used, Format::U32);
        let shares = self.float("shares", Extent::Tokens, used);
        self.plan.ops.push(Op::Route { scores, chosen, shares });

        let each = Extent::Chosen(used);
        let gate = self.float("gate", each, ffn);
        let up = self.float("up", each, ffn);
        let outputs = [(Role::FfnGateExperts, None, gate), (Role::FfnUpExperts, None, up)];
        self.linear(Input::Rows(x), Some(norm), None, &outputs, at, Way::Chosen(chosen));
        let input = Input::Gated { gate, up, activation: self.model.arch.activation() };
        let y = self.float("expert_out", each, self.model.hparams.embed);
        let outputs = [(Role::FfnDownExperts, None, y)];
        self.linear(input, None, None, &outputs, at, Way::Chosen(chosen));
        self.plan.ops.push(Op::Mix { x, y, shares });
    }

    /// `x += matrix * input`, or `x += norm(matrix * input)` where the model has such a norm.
    fn residual(
        &mut self,
        input: Input,
        x: Slot,
        (matrix, bias): (Role, Option<Role>),
        post_norm: Role,
        layer: usize,
    ) {
        match self.norm_if_any(post_norm, Some(layer)) {
            None => self.linear(input, None, None, &[(matrix, bias, x)], Some(layer), Way::Add),
            Some(norm) => {
                let y = self.float("block_out", Extent::Tokens, self.model.hparams.embed);
                self.linear(input, None, None, &[(matrix, bias, y)], Some(layer), Way::Set);
                self.plan.ops.push(Op::AddNorm { x, y, norm });
            }
        }
    }

    fn head(&mut self, x: Slot) {
        let norm = self.norm(Role::OutputNorm, None);
        let tied = self.model.tensors.get(Role::Head, None).is_none();
        let role = if tied { Role::Embedding } else { Role::Head };
        let (rows, logits) = (self.plan.logit_rows, self.plan.logits);
        let outputs = [(role, None, logits)];
        self.linear(Input::Rows(x), Some(norm), Some(rows), &outputs, None, Way::Set);
        if let Some(cap) = self.model.hparams.final_soft_cap {
            self.plan.ops.push(Op::SoftCap { x: logits, cap });
        }
    }

    /// Matrices of one input: each distinct preparation once, then the matrices that share it.
    fn linear(
        &mut self,
        input: Input,
        norm: Option<Norm>,
        rows: Option<Slot>,
        outputs: &[(Role, Option<Role>, Slot)],
        layer: Option<usize>,
        way: Way,
    ) {
        let mut shared: Vec<(Basis, Format, &Tensor, Vec<Part>)> = Vec::new();
        for &(role, bias, out) in outputs {
            let tensor = self.tensor(role, layer);
            let bias = bias.and_then(|role| self.model.tensors.get(role, layer));
            let bias = bias.map(|tensor| self.weight(tensor));
            let add = matches!(way, Way::Add);
            let part = Part { weight: self.weight(tensor), bias, add, out };
            let format = activation_format(tensor);
            let same = |(basis, other, first, _): &(Basis, Format, &Tensor, Vec<Part>)| {
                *basis == tensor.basis && *other == format && *first.signs == *tensor.signs
            };
            match shared.iter_mut().find(|entry| same(entry)) {
                Some((.., parts)) => parts.push(part),
                None => shared.push((tensor.basis, format, tensor, vec![part])),
            }
        }
        for (_, format, tensor, parts) in shared {
            let transform = self.transform(tensor);
            let input = self.prepare(input, rows, norm, transform, format, tensor.cols);
            self.plan.ops.push(match way {
                Way::Set | Way::Add => Op::MatMul { input, parts },
                Way::Chosen(chosen) => {
                    Op::ExpertMatMul { input, chosen, parts: of_experts(&parts) }
                }
            });
        }
    }

    fn prepare(
        &mut self,
        input: Input,
        rows: Option<Slot>,
        norm: Option<Norm>,
        transform: Option<Transform>,
        format: Format,
        width: usize,
    ) -> Slot {
        if let (Input::Rows(slot), Format::F32, None, None, None) =
            (input, format, norm, transform, rows)
        {
            return slot; // Nothing to prepare.
        }
        let extent = match (rows, input) {
            (Some(_), _) => Extent::LogitRows,
            (None, Input::Rows(slot) | Input::Gated { gate: slot, .. }) => {
                self.plan.slots[slot.0].extent
            }
        };
        let out = self.slot("prepared", extent, width, format);
        self.plan.ops.push(Op::Prepare { input, rows, norm, transform, out });
        out
    }
}

/// Experts have no biases.
fn of_experts(parts: &[Part]) -> Vec<ExpertPart> {
    parts.iter().map(|&Part { weight, out, .. }| ExpertPart { weight, out }).collect()
}

/// What the kernels of a weight multiply it with.
pub(crate) fn activation_format(tensor: &Tensor) -> Format {
    match tensor.kind.kernel() {
        Kernel::Float => Format::F32,
        Kernel::Int8 { .. } if tensor.group == 0 => Format::Int8 { group: STOCK_GROUP, coarse: 0 },
        Kernel::Int8 { .. } => {
            // The parts of a row are as even as whole rows, whatever its norms cover.
            let is_parted = matches!(tensor.basis, Basis::Parted { .. });
            let len = if is_parted { tensor.cols } else { tensor.group };
            let group = 1 << len.trailing_zeros();
            Format::Int8 { group: GRID_GROUP.min(group), coarse: 0 }
        }
    }
}

/// A vector of the plan's own.
fn constant(name: &str, values: &[f32]) -> Tensor {
    Tensor {
        name: name.to_string(),
        kind: by_name("F32").expect("plain floats are always there"),
        rows: 1,
        cols: values.len(),
        first: 0,
        basis: Basis::Original,
        group: 0,
        codes: Bytes::from(bytemuck::cast_slice(values).to_vec()),
        norms: Bytes::empty(),
        table: Bytes::empty(),
        signs: Bytes::empty(),
        columns: ColumnPlanes::default(),
    }
}
