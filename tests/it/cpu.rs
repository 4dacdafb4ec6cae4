//! The CPU backend against the reference backend.

use std::sync::Arc;

use gridmill::backend::cpu::Cpu;
use gridmill::backend::reference::Reference;
use gridmill::backend::{Backend, Capacity, KvFormat, Values};
use gridmill::plan::{
    Activation, Batch, CacheInfo, Extent, Format, Input, Norm, Op, Pairing, Part, Plan, Slot,
    SlotInfo, Transform, Weight,
};
use gridmill::simd::Level;
use gridmill::transform;
use gridmill::types::{
    Basis, Bytes, ColumnPlanes, Kernel, PRIVATE_IDS, Tensor, TensorType, by_name, learned,
};

use crate::kv;

/// Numbers that look random, and are the same every time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Within -1..1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// A weight of any type: encoded where the type can, else random codes with sane scales.
pub(crate) fn tensor(
    kind: &'static dyn TensorType,
    rows: usize,
    cols: usize,
    group: usize,
) -> Tensor {
    let mut random = Random((rows * 1000 + cols) as u64);
    let mut codes = vec![0; rows.div_ceil(kind.row_block()) * kind.row_bytes(cols).unwrap()];
    let is_int8 = matches!(kind.kernel(), Kernel::Int8 { .. });
    let is_grid = kind.id() >= PRIVATE_IDS && is_int8;
    let group = if is_grid { group } else { 0 };
    let mut norms = vec![0; (2 * rows * cols).checked_div(group).unwrap_or(0)];
    let shape = learned(kind);
    let mut table = kind.table().unwrap_or(&[]).to_vec();
    if let Some(shape) = shape {
        let residual = if shape.residual_bits > 0 { 1 << shape.residual_bits } else { 0 };
        // Large enough for sums to be cut.
        table =
            (0..shape.v * ((1 << shape.bits) + residual)).map(|_| random.bits() as i8).collect();
        codes.iter_mut().for_each(|byte| *byte = random.bits() as u8);
        norms
            .as_chunks_mut::<2>()
            .0
            .iter_mut()
            .for_each(|norm| *norm = [random.bits() as u8, 0x1c + (random.bits() % 8) as u8]);
    } else if kind.can_encode() {
        let values = random.floats(rows * cols);
        kind.encode(&values, cols, group, &mut codes, &mut norms);
    } else {
        // Bytes below 0x38 make half-precision scales below one, wherever the block has them.
        codes.iter_mut().for_each(|byte| *byte = (random.bits() % 0x38) as u8);
        // Below 0x38, an exponent for all of a block is so low that every product vanishes.
        if kind.name() == "MXFP4" {
            let blocks = codes.chunks_exact_mut(kind.block().bytes);
            blocks.for_each(|block| block[0] = 0x7b + (random.bits() % 4) as u8);
        }
    }
    let table: Vec<u8> = table.into_iter().map(i8::cast_unsigned).collect();
    Tensor {
        name: kind.name().into(),
        kind,
        rows,
        cols,
        first: 0,
        basis: Basis::Original,
        group,
        codes: codes.into(),
        norms: norms.into(),
        table: table.into(),
        signs: Bytes::empty(),
        columns: ColumnPlanes::default(),
    }
}

/// Plain floats.
pub(crate) fn floats(rows: usize, values: &[f32]) -> Tensor {
    let kind = by_name("F32").unwrap();
    let mut tensor = tensor(kind, rows, values.len() / rows, 0);
    tensor.codes = bytemuck::cast_slice::<f32, u8>(values).to_vec().into();
    tensor
}

/// What a small plan is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) kind: &'static str,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_len: usize,
    pub(crate) window: Option<u32>,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) pairing: Pairing,
    pub(crate) activation: Activation,
    pub(crate) basis: Basis,
    pub(crate) group: usize,
}

impl Shape {
    #[cfg(feature = "gpu")]
    pub(crate) fn with_heads(self, heads: usize, kv_heads: usize) -> Self {
        Self { heads, kv_heads, ..self }
    }
}

const WIDTH: usize = 192;
const VOCABULARY: usize = 50;

/// The slots of a small plan, past its inputs and logits.
struct Slots {
    x: Slot,
    y: Slot,
    angles: Slot,
    q: Slot,
    k: Slot,
    v: Slot,
    attended: Slot,
    gate: Slot,
    up: Slot,
    /// Prepared rows: for q, k, v and the gates; for the output; for the way down; for the head.
    prepared: [Slot; 4],
}

/// The weights of a small plan.
struct Weights {
    norms: [Norm; 3],
    bias: Weight,
    frequencies: Weight,
    table: Weight,
    /// q, k, v, output, gate, up, down.
    matrices: [Weight; 7],
}

fn slots(plan: &mut Plan, shape: Shape) -> Slots {
    let Shape { heads, kv_heads, head_len, group, .. } = shape;
    let int8 = matches!(by_name(shape.kind).unwrap().kernel(), Kernel::Int8 { .. });
    let format = if int8 { Format::Int8 { group, coarse: 0 } } else { Format::F32 };
    let mut slot = |name, extent, width, format| {
        plan.slots.push(SlotInfo { name, extent, width, format });
        Slot(plan.slots.len() - 1)
    };
    for name in ["tokens", "positions", "sequences"] {
        slot(name, Extent::Tokens, 1, Format::U32);
    }
    slot("logit_rows", Extent::LogitRows, 1, Format::U32);
    slot("logits", Extent::LogitRows, VOCABULARY, Format::F32);
    let mut float = |name, width| slot(name, Extent::Tokens, width, Format::F32);
    Slots {
        x: float("x", WIDTH),
        y: float("y", WIDTH),
        angles: float("angles", head_len / 2),
        q: float("q", heads * head_len),
        k: float("k", kv_heads * head_len),
        v: float("v", kv_heads * head_len),
        attended: float("attended", heads * head_len),
        gate: float("gate", 384),
        up: float("up", 384),
        prepared: [
            slot("prepared", Extent::Tokens, WIDTH, format),
            slot("prepared", Extent::Tokens, heads * head_len, format),
            slot("prepared", Extent::Tokens, 384, format),
            slot("prepared", Extent::LogitRows, WIDTH, format),
        ],
    }
}

fn weights(plan: &mut Plan, shape: Shape) -> Weights {
    let mut weight = |kind: &'static str, rows: usize, cols: usize, basis: Basis| {
        let mut weight = tensor(by_name(kind).unwrap(), rows, cols, 64);
        weight.basis = basis;
        if basis != Basis::Original {
            let signs = transform::signs(3, cols).into_iter().map(i8::cast_unsigned);
            weight.signs = signs.collect::<Vec<u8>>().into();
        }
        plan.weights.push(weight);
        Weight(plan.weights.len() - 1)
    };
    let (q, kv) = (shape.heads * shape.head_len, shape.kv_heads * shape.head_len);
    let mut vector = |width| weight("F32", 1, width, Basis::Original);
    let norms = [WIDTH, WIDTH, shape.head_len];
    let norms = norms.map(|width| Norm { weight: vector(width), epsilon: 1e-5 });
    let (bias, frequencies) = (vector(q), vector(shape.head_len / 4));
    let mut matrix = |(rows, cols)| weight(shape.kind, rows, cols, shape.basis);
    let table = matrix((VOCABULARY, WIDTH));
    let inputs = [(q, WIDTH), (kv, WIDTH), (kv, WIDTH), (WIDTH, q)];
    let [a, b, c, d] = inputs.map(&mut matrix);
    let [e, f, g] = [(384, WIDTH), (384, WIDTH), (WIDTH, 384)].map(matrix);
    Weights { norms, bias, frequencies, table, matrices: [a, b, c, d, e, f, g] }
}

/// One layer with everything in it; weights at random.
pub(crate) fn plan(shape: Shape) -> Plan {
    let mut plan = Plan {
        slots: Vec::new(),
        weights: Vec::new(),
        ops: Vec::new(),
        layers: vec![0],
        caches: vec![CacheInfo { heads: shape.kv_heads, head_len: shape.head_len, turn: None }],
        tokens: Slot(0),
        positions: Slot(1),
        sequences: Slot(2),
        logit_rows: Slot(3),
        logits: Slot(4),
    };
    let (slots, weights) = (slots(&mut plan, shape), weights(&mut plan, shape));
    let (table, tokens, positions) = (weights.table, plan.tokens, plan.positions);
    let transform = transform_of(shape, table);
    let frequencies = weights.frequencies;
    plan.ops = vec![
        Op::Embed { tokens, table, transform, scale: 1.5, out: slots.x },
        Op::Angles { positions, frequencies, amplitude: 1.25, out: slots.angles },
    ];
    plan.ops.extend(attention(shape, &slots, &weights, &plan));
    plan.ops.extend(feed_forward(shape, &slots, &weights));
    let (input, out) = (Input::Rows(slots.x), slots.prepared[3]);
    let (rows, norm) = (Some(plan.logit_rows), Some(weights.norms[0]));
    plan.ops.push(Op::Prepare { input, rows, norm, transform, out });
    plan.ops.push(Op::MatMul { input: out, parts: vec![part(table, plan.logits, false)] });
    plan.ops.push(Op::SoftCap { x: plan.logits, cap: 3.0 });
    plan
}

fn transform_of(shape: Shape, signs: Weight) -> Option<Transform> {
    (shape.basis != Basis::Original).then_some(Transform { basis: shape.basis, signs })
}

fn part(weight: Weight, out: Slot, add: bool) -> Part {
    Part { weight, bias: None, add, out }
}

fn attention(shape: Shape, slots: &Slots, weights: &Weights, plan: &Plan) -> Vec<Op> {
    let Shape { heads, head_len, pairing, window, soft_cap, .. } = shape;
    let Slots { x, angles, q, k, v, attended, prepared: [input, attended_input, ..], .. } = *slots;
    let [wq, wk, wv, wo, ..] = weights.matrices;
    let (positions, sequences) = (plan.positions, plan.sequences);
    let prepare = |slot, norm, signs, out| Op::Prepare {
        input: Input::Rows(slot),
        rows: None,
        norm,
        transform: transform_of(shape, signs),
        out,
    };
    let biased = Part { bias: Some(weights.bias), ..part(wq, q, false) };
    vec![
        prepare(x, Some(weights.norms[0]), wq, input),
        Op::MatMul { input, parts: vec![biased, part(wk, k, false), part(wv, v, false)] },
        Op::Rope {
            q,
            k,
            v,
            angles,
            q_norm: Some(weights.norms[2]),
            k_norm: None,
            pairing,
            head_len,
            positions,
            sequences,
            layer: 0,
        },
        Op::Attend {
            q,
            positions,
            sequences,
            layer: 0,
            heads,
            scale: 0.2,
            window,
            soft_cap,
            out: attended,
        },
        prepare(attended, None, wo, attended_input),
        Op::MatMul { input: attended_input, parts: vec![part(wo, x, true)] },
    ]
}

fn feed_forward(shape: Shape, slots: &Slots, weights: &Weights) -> Vec<Op> {
    let Slots { x, y, gate, up, prepared: [input, _, down_input, _], .. } = *slots;
    let [.., w_gate, w_up, w_down] = weights.matrices;
    let activation = shape.activation;
    let prepare = |input, norm, signs, out| Op::Prepare {
        input,
        rows: None,
        norm,
        transform: transform_of(shape, signs),
        out,
    };
    vec![
        prepare(Input::Rows(x), Some(weights.norms[0]), w_gate, input),
        Op::MatMul { input, parts: vec![part(w_gate, gate, false), part(w_up, up, false)] },
        prepare(Input::Gated { gate, up, activation }, None, w_down, down_input),
        Op::MatMul { input: down_input, parts: vec![part(w_down, y, false)] },
        Op::AddNorm { x, y, norm: weights.norms[1] },
    ]
}

/// Runs both backends op by op on the same inputs; the cache is filled by earlier batches.
pub(crate) fn check_plan(
    shape: Shape,
    kv: KvFormat,
    make: &mut dyn FnMut(Arc<Plan>, Capacity) -> Box<dyn Backend>,
) {
    let plan = Arc::new(kv::turned(plan(shape), kv));
    let capacity = Capacity { rows: 40, logit_rows: 12, sequences: 3, context: 330, kv };
    let mut tested = make(plan.clone(), capacity);
    let mut reference = Reference::new(plan.clone(), capacity);
    let mut random = Random(5);
    let mut lengths = [0_u32; 3];
    // A prompt, two conversations and a third, single rows, then several at once.
    let batches: &[&[(u32, usize)]] = &[
        &[(0, 40)],
        &[(1, 13), (0, 20)],
        &[(0, 1)],
        &[(2, 3), (0, 1), (1, 4)],
        &[(2, 9), (1, 31)],
    ];
    let long: &[&[(u32, usize)]] = &[&[(0, 40)], &[(0, 40)], &[(0, 40)], &[(0, 1), (1, 1)]];
    for rows in batches.iter().chain(long) {
        let mut batch = Batch::default();
        for &(sequence, count) in *rows {
            for i in 0..count {
                let token = (random.bits() % VOCABULARY as u64) as u32;
                batch.push(token, lengths[sequence as usize], sequence, i % 4 == 3);
                lengths[sequence as usize] += 1;
            }
        }
        tested.load(&batch).unwrap();
        reference.load(&batch).unwrap();
        for (i, op) in plan.ops.iter().enumerate() {
            tested.run_ops(i..i + 1).unwrap();
            reference.run_ops(i..i + 1).unwrap();
            for slot in op.writes() {
                let (found, expected) = (tested.read(slot).unwrap(), reference.read(slot).unwrap());
                let what = format!("{} {shape:?}", op.name());
                compare(&found, &expected, &what);
                tested.write(slot, &expected).unwrap();
                assert_eq!(tested.read(slot).unwrap(), expected, "a slot holds what is written");
            }
        }
    }
}

fn compare(found: &Values, expected: &Values, what: &str) {
    let (found, expected) = (found.to_f32(), expected.to_f32());
    assert_eq!(found.len(), expected.len(), "{what}");
    let square = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|x| f64::from(x).powi(2)).sum::<f64>()
    };
    let size = square(&mut expected.iter().copied());
    let error = square(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
    // Int8 codes may fall on the other side of a half when the floats before differ by rounding.
    assert!(error.sqrt() <= 1e-3 * size.sqrt() + 1e-30, "{what}: {error} of {size}");
}

pub(crate) const SHAPE: Shape = Shape {
    kind: "F32",
    heads: 6,
    kv_heads: 2,
    head_len: 32,
    window: None,
    soft_cap: None,
    pairing: Pairing::Interleaved,
    activation: Activation::Silu,
    basis: Basis::Original,
    group: 64,
};

/// Shapes that between them have every word of a plan.
pub(crate) fn shapes() -> [Shape; 6] {
    [
        SHAPE,
        Shape {
            kind: "HIGGS_P2_N256",
            pairing: Pairing::Halves,
            activation: Activation::Gelu,
            basis: Basis::Hadamard { block: 64 },
            ..SHAPE
        },
        Shape { kind: "Q8_0", window: Some(21), soft_cap: Some(2.0), group: 32, ..SHAPE },
        Shape { kind: "Q4_1", heads: 7, kv_heads: 1, head_len: 64, group: 32, ..SHAPE },
        Shape { heads: 16, kv_heads: 16, head_len: 12, window: Some(1), ..SHAPE },
        Shape { kind: "VPTQ_V6_K4096", ..SHAPE },
    ]
}

#[test]
fn plans_match_the_reference_op_by_op() {
    let check = |shape, level, threads, kv| {
        check_plan(shape, kv, &mut |plan, capacity| {
            Box::new(Cpu::new(plan, capacity, threads, level).unwrap())
        });
    };
    for shape in shapes() {
        for level in Level::available() {
            check(shape, level, 2, KvFormat::F16);
        }
        check(shape, Level::best(), 1, KvFormat::F32);
    }
}

#[test]
fn result_does_not_depend_on_threads() {
    let shape = Shape { kind: "HIGGS_P2_N256", ..SHAPE };
    let plan = Arc::new(plan(shape));
    let kv = KvFormat::F16;
    let capacity = Capacity { rows: 40, logit_rows: 1, sequences: 1, context: 200, kv };
    let logits = [1, 2, 3, 5].map(|threads| {
        let mut cpu = Cpu::new(plan.clone(), capacity, threads, Level::best()).unwrap();
        let mut all = Vec::new();
        let mut position = 0;
        for rows in [40, 40, 1, 40, 1, 7, 1] {
            let mut batch = Batch::default();
            for row in 0..rows {
                batch.push((position * 7) % VOCABULARY as u32, position, 0, row + 1 == rows);
                position += 1;
            }
            cpu.run(&batch).unwrap();
            all.extend(cpu.logits().unwrap().iter().map(|x| x.to_bits()));
        }
        all
    });
    assert!(logits.iter().all(|other| *other == logits[0]), "the same bits");
}

#[test]
fn plans_that_cannot_run_are_refused() {
    let capacity =
        Capacity { rows: 4, logit_rows: 1, sequences: 1, context: 16, kv: KvFormat::F16 };
    let check = |shape: Shape, expected: &str| {
        let plan = Arc::new(plan(shape));
        let found = Cpu::new(plan, capacity, 1, Level::Portable).err().expect("a refusal");
        assert!(found.to_string().contains(expected), "{found}");
    };
    check(Shape { kind: "Q8_0", group: 24, ..SHAPE }, "expected groups that are multiples of 16");
    check(Shape { heads: 7, ..SHAPE }, "expected heads in groups of 2, found 7");
}
