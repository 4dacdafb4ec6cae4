//! The GPU backend against the reference, op by op, on whatever adapter the machine has; without
//! one, only `shaders.rs` looks at it.

use std::ops::ControlFlow;
use std::sync::Arc;

use gridmill::backend::gpu::device::{Device, Mask, adapters};
use gridmill::backend::gpu::{Gpu, Options, needed_bytes};
use gridmill::backend::reference::Reference;
use gridmill::backend::{Backend, Capacity, KvFormat, Values};
use gridmill::file::Source;
use gridmill::plan::{
    Batch, Extent, Format, Input, Op, Part, Plan, Slot, SlotInfo, Transform, Weight,
};
use gridmill::run::verify::verify;
use gridmill::run::{self, Session};
use gridmill::types::{Basis, INT8_SHADER, Kernel, Resq, TYPES, TensorType, by_name};

use crate::cpu;
use crate::formats;
use crate::kv;

/// The first adapter, opened; `None`, said aloud, where there is none.
#[expect(clippy::print_stderr, reason = "a test that did nothing should say so")]
pub(crate) fn device(mask: Mask) -> Option<Arc<Device>> {
    let Some(adapter) = adapters().first() else {
        eprintln!("no GPU and no software adapter: skipped");
        return None;
    };
    Some(Arc::new(adapter.open(mask, &[]).expect("an adapter that opens")))
}

const MASKS: [(&str, Mask); 3] = [
    ("everything", Mask::NONE),
    ("no subgroups", Mask { subgroups: false, ..Mask::NONE }),
    ("no packed products", Mask { packed_dot: false, subgroups: false, ..Mask::NONE }),
];

/// A table looked up, prepared, and multiplied with two matrices of one input; then the rows that
/// want logits alone.
struct Product {
    kinds: [&'static dyn TensorType; 2],
    cols: usize,
    rows: [usize; 2],
    group: usize,
    basis: Basis,
}

impl Product {
    fn plan(&self) -> Plan {
        let slot = |name, extent, width, format| SlotInfo { name, extent, width, format };
        let is_float = self.kinds[0].kernel() == Kernel::Float;
        let activation = match is_float {
            true => Format::F32,
            false => Format::Int8 { group: self.group.min(32), coarse: 0 },
        };
        let (tokens, logit_rows) = (Extent::Tokens, Extent::LogitRows);
        let slots = vec![
            slot("tokens", tokens, 1, Format::U32),
            slot("positions", tokens, 1, Format::U32),
            slot("sequences", tokens, 1, Format::U32),
            slot("logit_rows", logit_rows, 1, Format::U32),
            slot("logits", logit_rows, self.rows[0], Format::F32),
            slot("x", tokens, self.cols, Format::F32),
            slot("prepared", tokens, self.cols, activation),
            slot("first", tokens, self.rows[0], Format::F32),
            slot("second", tokens, self.rows[1], Format::F32),
            slot("picked", logit_rows, self.cols, activation),
        ];
        let mut weights = Vec::new();
        for (kind, rows) in self.kinds.into_iter().zip(self.rows) {
            let mut tensor = cpu::tensor(kind, rows, self.cols, self.group);
            if self.basis != Basis::Original {
                let mut signs = gridmill::transform::signs(7, self.cols);
                if let Basis::Parted { high } = self.basis {
                    // Loud ones here and there, also the first and the last.
                    let high = high as usize;
                    let is_loud = |i: usize| (i + 1) * high / self.cols > i * high / self.cols;
                    let loud: Vec<bool> = (0..self.cols).rev().map(is_loud).collect();
                    gridmill::transform::mark(&mut signs, &loud);
                }
                tensor.basis = self.basis;
                tensor.signs = bytemuck::cast_slice::<i8, u8>(&signs).to_vec().into();
            }
            weights.push(tensor);
        }
        let transform = (self.basis != Basis::Original)
            .then_some(Transform { basis: self.basis, signs: Weight(0) });
        let part =
            |weight, out| Part { weight: Weight(weight), bias: None, add: false, out: Slot(out) };
        let prepare = |rows, out| Op::Prepare {
            input: Input::Rows(Slot(5)),
            rows,
            norm: None,
            transform,
            out: Slot(out),
        };
        let ops = vec![
            Op::Embed { tokens: Slot(0), table: Weight(0), transform, scale: 1.5, out: Slot(5) },
            prepare(None, 6),
            Op::MatMul { input: Slot(6), parts: vec![part(0, 7), part(1, 8)] },
            prepare(Some(Slot(3)), 9),
            Op::MatMul { input: Slot(9), parts: vec![part(0, 4)] },
        ];
        Plan {
            slots,
            weights,
            ops,
            layers: vec![0, 5],
            caches: Vec::new(),
            tokens: Slot(0),
            positions: Slot(1),
            sequences: Slot(2),
            logit_rows: Slot(3),
            logits: Slot(4),
        }
    }
}

fn batch(rows: usize, vocabulary: usize) -> Batch {
    let mut batch = Batch::default();
    for row in 0..rows {
        batch.push((row * 7 % vocabulary) as u32, row as u32, 0, row % 3 == 0);
    }
    batch
}

fn check(product: &Product, mask: Mask, what: &str) {
    let Some(device) = device(mask) else { return };
    let plan = Arc::new(product.plan());
    let kv = KvFormat::F16;
    let capacity = Capacity { rows: 33, logit_rows: 33, sequences: 1, context: 64, kv };
    let mut reference = Reference::new(plan.clone(), capacity);
    let ops = 0..plan.ops.len();
    let mut gpu = Gpu::new(device, plan.clone(), capacity, ops, Options::default()).unwrap();
    for rows in [1, 7, 33] {
        let batch = batch(rows, product.rows[0]);
        let differences = verify(&mut reference, &mut gpu, &batch, &mut |_| ()).unwrap();
        for difference in differences {
            let [first, second] = product.kinds.map(TensorType::name);
            assert!(
                difference.is_fine(),
                "{first} and {second}, {} columns, {rows} rows, {what}: {difference:?}",
                product.cols
            );
        }
    }
}

/// Every type at widths that are no power of two, alone and beside another type.
#[test]
fn products_of_every_type_match_the_reference() {
    let other = by_name("Q8_0").unwrap();
    for &kind in TYPES {
        for cols in [576, 896, 1280] {
            if kind.row_bytes(cols).is_none() {
                continue;
            }
            let is_float = kind.kernel() == Kernel::Float;
            let kinds = [kind, if is_float { kind } else { other }];
            let product =
                Product { kinds, cols, rows: [100, 37], group: 64, basis: Basis::Original };
            check(&product, Mask::NONE, "everything");
        }
    }
}

/// Rows that share codes, a number of rows that their blocks do not divide, and neighbours.
#[test]
fn products_of_learned_points_match_the_reference() {
    for (kind, rows) in [
        ("VPTQ_V6_K4096", [96, 120]),
        ("VPTQ_V8_K4096_R256", [100, 37]),
        ("VPTQ_V6_K128_S", [96, 120]),
        ("VPTQ_V8_K2048_S", [100, 37]),
    ] {
        let kind = by_name(kind).unwrap();
        let product =
            Product { kinds: [kind, kind], cols: 576, rows, group: 64, basis: Basis::Original };
        check(&product, Mask::NONE, "everything");
        let kinds = [kind, by_name("Q8_0").unwrap()];
        let product =
            Product { kinds, cols: 576, rows: [320, 64], group: 64, basis: Basis::Original };
        let mask = Mask { binding_bytes_max: 32 << 10, ..Mask::NONE };
        check(&product, mask, "bindings of 32 KiB");
    }
}

/// Rows of two parts, in their basis: parts of equal and of other blocks, alone and beside another
/// type, on every path, in pieces, and longer than workgroup memory.
#[test]
fn products_of_parted_rows_match_the_reference() {
    let kind = by_name("RESQ_P2_N256").unwrap();
    let product = |other, cols, rows| {
        let (basis, group) = Resq::form(cols).unwrap();
        Product { kinds: [kind, other], cols, rows, group, basis }
    };
    for (cols, other) in [(128, kind), (576, kind), (640, by_name("Q8_0").unwrap()), (1536, kind)] {
        check(&product(other, cols, [100, 37]), Mask::NONE, "everything");
    }
    for (what, mask) in MASKS {
        check(&product(by_name("HIGGS_P4_N256").unwrap(), 576, [130, 37]), mask, what);
    }
    let mask = Mask { binding_bytes_max: 32 << 10, ..Mask::NONE };
    check(&product(kind, 576, [300, 100]), mask, "bindings of 32 KiB");
    check(&product(kind, 14336, [40, 12]), Mask::NONE, "long rows");
    // A loud part of any length: what other types may be given.
    let (pairs, basis) = (by_name("HIGGS_P2_N256").unwrap(), Basis::Parted { high: 6 });
    let product = Product { kinds: [pairs; 2], cols: 96, rows: [20, 12], group: 32, basis };
    check(&product, Mask::NONE, "a short loud part");
}

#[test]
fn slower_paths_match_the_reference() {
    for name in ["HIGGS_P2_N256", "Q4_K", "Q6_K", "F16"] {
        let kind = by_name(name).unwrap();
        let is_float = kind.kernel() == Kernel::Float;
        let other = if is_float { kind } else { by_name("HIGGS_P4_N256").unwrap() };
        for (what, mask) in MASKS {
            let product = Product {
                kinds: [kind, other],
                cols: 768,
                rows: [130, 37],
                group: 16,
                basis: Basis::Original,
            };
            check(&product, mask, what);
        }
    }
}

#[test]
fn transforms_match_the_reference() {
    let kind = by_name("HIGGS_P2_N256").unwrap();
    let bases = [
        (576, Basis::Hadamard { block: 64 }),
        (512, Basis::Hadamard { block: 512 }),
        (576, Basis::Kronecker { order: 36, block: 16 }),
        // Longer than workgroup memory: in two segments, and in one of 28 * 512.
        (32768, Basis::Hadamard { block: 16384 }),
        (14336, Basis::Kronecker { order: 28, block: 512 }),
    ];
    for (cols, basis) in bases {
        let product = Product { kinds: [kind, kind], cols, rows: [40, 12], group: 64, basis };
        check(&product, Mask::NONE, &format!("{basis:?}"));
    }
}

/// A matrix that is larger than a binding may be is split by rows.
#[test]
fn small_bindings_split_matrices() {
    let kind = by_name("HIGGS_P2_N256").unwrap();
    let product = Product {
        kinds: [kind, kind],
        cols: 576,
        rows: [300, 100],
        group: 64,
        basis: Basis::Original,
    };
    let mask = Mask { binding_bytes_max: 32 << 10, ..Mask::NONE };
    check(&product, mask, "bindings of 32 KiB");
}

/// The vectors of the pages decode on the GPU as on the CPU.
#[test]
fn vectors_of_the_pages_decode() {
    let Some(device) = device(Mask::NONE) else { return };
    for vector in formats::vectors() {
        let (kind, rows, cols) = (vector.tensor.kind, vector.tensor.rows, vector.tensor.cols);
        // Floats stand in until the vector takes their place.
        let floats = by_name("F32").unwrap();
        let product = Product {
            kinds: [floats, floats],
            cols,
            rows: [rows, rows],
            group: vector.tensor.group.max(16),
            basis: Basis::Original,
        };
        let mut plan = product.plan();
        plan.weights = vec![vector.tensor.clone(), vector.tensor];
        plan.ops.truncate(1);
        let Op::Embed { scale, .. } = &mut plan.ops[0] else { unreachable!() };
        *scale = 1.0;
        let plan = Arc::new(plan);
        let kv = KvFormat::F16;
        let capacity = Capacity { rows, logit_rows: rows, sequences: 1, context: rows, kv };
        let gpu = Gpu::new(device.clone(), plan, capacity, 0..1, Options::default());
        let chunk = kind.shader().unwrap_or(INT8_SHADER).chunk.max(1);
        if kind.kernel() != Kernel::Float && !cols.is_multiple_of(chunk) {
            let error = gpu.err().expect("a row is too short").to_string();
            assert!(error.contains("expected rows of a multiple of 32 on a GPU"), "{error}");
            continue;
        }
        let mut gpu = gpu.unwrap();
        let mut batch = Batch::default();
        (0..rows as u32).for_each(|row| batch.push(row, row, 0, true));
        gpu.load(&batch).unwrap();
        gpu.run_ops(0..1).unwrap();
        let Values::F32(found) = gpu.read(Slot(5)).unwrap() else { panic!("floats") };
        let largest = vector.values.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        for (i, (found, expected)) in found.iter().zip(&vector.values).enumerate() {
            // A scale times an integer plus a minimum may be rounded once or twice.
            let allowed = 2e-6 * largest;
            let is_it = found == expected || (found - expected).abs() <= allowed;
            assert!(is_it, "{}: value {i} is {found}, expected {expected}", kind.name());
        }
    }
}

#[test]
fn plans_match_the_reference_op_by_op() {
    let Some(device) = device(Mask::NONE) else { return };
    for shape in cpu::shapes().into_iter().filter(|shape| shape.head_len % 8 == 0) {
        for kv in [KvFormat::F16, KvFormat::F32] {
            cpu::check_plan(shape, kv, &mut |plan, capacity| {
                let ops = 0..plan.ops.len();
                let gpu = Gpu::new(device.clone(), plan, capacity, ops, Options::default());
                Box::new(gpu.unwrap())
            });
        }
    }
}

#[test]
fn coded_caches_match_the_reference_op_by_op() {
    let Some(device) = device(Mask::NONE) else { return };
    for shape in kv::shapes() {
        for kv in kv::CODED {
            cpu::check_plan(shape, kv, &mut |plan, capacity| {
                let ops = 0..plan.ops.len();
                let gpu = Gpu::new(device.clone(), plan, capacity, ops, Options::default());
                Box::new(gpu.unwrap())
            });
        }
    }
}

/// A GPU has to have room for the codes, and for no more.
#[test]
fn coded_caches_need_less_memory() {
    let shape = kv::shapes()[0];
    let needed = |kv| {
        let plan = kv::turned(cpu::plan(shape), kv);
        let capacity = Capacity { rows: 1, logit_rows: 1, sequences: 1, context: 1 << 20, kv };
        needed_bytes(&plan, capacity, 0..plan.ops.len()) as f64 / f64::from(1 << 20)
    };
    let per_token = |kv| needed(kv) - needed(KvFormat::F16) + 2.0 * 3.0 * 128.0;
    for (kv, head_bytes) in kv::CODED.into_iter().zip([68.0, 36.0, 44.0]) {
        // A matrix or two are little beside so many tokens.
        let (expected, found) = (2.0 * 3.0 * head_bytes, per_token(kv));
        assert!((found - expected).abs() < 0.5, "{kv:?}: expected {expected}, found {found}");
    }
}

/// Contexts in which a partial result covers 64 cells, 256, and fewer as many heads share keys.
#[test]
fn long_contexts_match_the_reference() {
    let Some(device) = device(Mask::NONE) else { return };
    let shapes = cpu::shapes();
    let many = shapes[0].with_heads(32, 1);
    for (shape, context) in [(shapes[0], 3000), (shapes[0], 20_000), (many, 20_000)] {
        let plan = Arc::new(cpu::plan(shape));
        let kv = KvFormat::F32;
        let capacity = Capacity { rows: 8, logit_rows: 8, sequences: 1, context, kv };
        let mut reference = Reference::new(plan.clone(), capacity);
        let ops = 0..plan.ops.len();
        let mut gpu = Gpu::new(device.clone(), plan, capacity, ops, Options::default()).unwrap();
        let mut batch = Batch::default();
        for row in 0..3 {
            batch.push(row * 5, row * (context as u32 - 1) / 2, 0, true);
        }
        for difference in verify(&mut reference, &mut gpu, &batch, &mut |_| ()).unwrap() {
            assert!(difference.is_fine(), "{shape:?}, {context} cells: {difference:?}");
        }
    }
}

#[test]
fn odd_heads_are_refused() {
    let Some(device) = device(Mask::NONE) else { return };
    let shape = cpu::shapes().into_iter().find(|shape| shape.head_len == 12).unwrap();
    let plan = Arc::new(cpu::plan(shape));
    let kv = KvFormat::F16;
    let capacity = Capacity { rows: 1, logit_rows: 1, sequences: 1, context: 8, kv };
    let ops = 0..plan.ops.len();
    let error = Gpu::new(device, plan, capacity, ops, Options::default()).err().unwrap();
    assert_eq!(error.to_string(), "expected heads of a multiple of 8 values, found 12");
}

/// The likeliest tokens, by the device, are those of the logits; equal ones by the smaller id.
#[test]
fn the_likeliest_tokens_are_found() {
    let Some(device) = device(Mask::NONE) else { return };
    let product = Product {
        kinds: [by_name("F32").unwrap(); 2],
        cols: 32,
        rows: [5000, 4],
        group: 16,
        basis: Basis::Original,
    };
    let plan = Arc::new(product.plan());
    let kv = KvFormat::F16;
    let capacity = Capacity { rows: 1, logit_rows: 1, sequences: 1, context: 8, kv };
    let mut gpu = Gpu::new(device, plan, capacity, 0..5, Options::default()).unwrap();
    gpu.run(&batch(1, 1)).unwrap();
    let mut logits = gpu.logits().unwrap().to_vec();
    logits[17] = f32::NAN;
    let peak = logits.iter().copied().fold(0.0, f32::max);
    [3, 1500, 4999].into_iter().for_each(|id: usize| logits[id] = peak + 1.0);
    gpu.write(Slot(4), &Values::F32(logits.clone())).unwrap();
    let mut expected: Vec<(u32, f32)> = logits
        .iter()
        .enumerate()
        .map(|(id, &x)| (id as u32, x))
        .filter(|x| !x.1.is_nan())
        .collect();
    expected.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    assert_eq!(gpu.top(64).unwrap(), expected[..64]);
    assert_eq!(gpu.top(1).unwrap(), expected[..1]);
}

/// The device feeds its own choices back; the text is the reference's, up to the last cell, and
/// whoever listens may stop it and go on.
#[test]
fn a_chain_of_tokens_is_the_reference_s() {
    if device(Mask::NONE).is_none() {
        return;
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/llama.gguf");
    let source = Source::open(path).unwrap();
    let chain = |device, stop: usize| {
        let context = Some(24);
        let options = run::Options { device, context, kv: KvFormat::F32, ..Default::default() };
        let mut session = Session::open(&source, &options).unwrap();
        session.read(0, &[1, 5, 9]).unwrap();
        let mut tokens = Vec::new();
        for stop in [stop, usize::MAX] {
            let steps = session.context() - session.len(0) + 1;
            session
                .greedy(0, steps, &mut |token| {
                    tokens.push(token);
                    let is_over = tokens.len() >= stop;
                    if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
                .unwrap();
            if session.len(0) < session.context() {
                let last = *tokens.last().unwrap();
                session.read(0, &[last]).unwrap();
            }
        }
        assert_eq!(session.len(0), session.context());
        tokens
    };
    for stop in [1, 2, 7] {
        let expected = chain(run::Device::Reference, stop);
        assert_eq!(chain(run::Device::Gpu(0), stop), expected, "stopped after {stop}");
    }
}

#[test]
fn a_lost_device_is_an_error() {
    let Some(device) = device(Mask::NONE) else { return };
    let kind = by_name("F32").unwrap();
    let product =
        Product { kinds: [kind; 2], cols: 32, rows: [8, 4], group: 16, basis: Basis::Original };
    let plan = Arc::new(product.plan());
    let kv = KvFormat::F16;
    let capacity = Capacity { rows: 1, logit_rows: 1, sequences: 1, context: 8, kv };
    let mut gpu = Gpu::new(device.clone(), plan, capacity, 0..5, Options::default()).unwrap();
    gpu.run(&batch(1, 1)).unwrap();
    device.lose();
    let run = gpu.run(&batch(1, 1)).and_then(|()| gpu.logits().map(|_| ()));
    let error = run.expect_err("the device is gone");
    assert!(error.to_string().contains("device"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("--device cpu")), "{error}");
}

#[test]
fn too_little_memory_is_an_error() {
    let Some(device) = device(Mask::NONE) else { return };
    let kind = by_name("F32").unwrap();
    let product =
        Product { kinds: [kind; 2], cols: 32, rows: [8, 4], group: 16, basis: Basis::Original };
    let mut plan = product.plan();
    // A slot that no device has memory for.
    plan.slots[7].width = 1 << 34;
    let kv = KvFormat::F16;
    let capacity = Capacity { rows: 1 << 10, logit_rows: 1, sequences: 1, context: 8, kv };
    let made = Gpu::new(device, Arc::new(plan), capacity, 0..1, Options::default());
    let error = made.err().expect("more memory than there is");
    assert!(error.to_string().contains("GB are needed"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("--gpu-layers")), "{error}");
}
