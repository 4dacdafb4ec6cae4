//! Models that choose experts: the ops against the oracle, and the way through `convert`.

use std::sync::Arc;

use gridmill::backend::cpu::Cpu;
use gridmill::backend::reference::Reference;
use gridmill::backend::{Backend, Capacity, KvFormat, Values};
use gridmill::file::{RawTensor, Source, Value};
use gridmill::model::Model;
use gridmill::plan::{
    Activation, Batch, ExpertPart, Extent, Format, Input, Op, Part, Plan, Slot, SlotInfo,
    Transform, Weight,
};
use gridmill::run::verify::verify;
use gridmill::run::{Device, Options, Session};
use gridmill::simd::Level;
use gridmill::transform;
use gridmill::types::{Basis, Kernel, by_name};
use serde_json::json;

use crate::cli::{fails, succeeds, text};
use crate::cpu::tensor;
use crate::folder::Folder;
use crate::models::{Parts, devices, distance, golden, model_path, open, whole};
use crate::scratch::Scratch;

const NAME: &str = "qwen3moe";

/// Two of five experts, of rows that are no whole number of runs, nor of blocks of six.
const EXPERTS: usize = 5;
const USED: usize = 2;
const WIDTH: usize = 192;
const FFN: usize = 160;
const VOCABULARY: usize = 30;

const CAPACITY: Capacity =
    Capacity { rows: 40, logit_rows: 40, sequences: 1, context: 40, kv: KvFormat::F32 };

/// A plan that grows.
struct Build(Plan);

impl Build {
    /// A plan with nothing but its inputs and its result.
    fn new() -> Build {
        let mut build = Build(Plan {
            slots: Vec::new(),
            weights: Vec::new(),
            ops: Vec::new(),
            layers: vec![1, 8],
            caches: Vec::new(),
            tokens: Slot(0),
            positions: Slot(1),
            sequences: Slot(2),
            logit_rows: Slot(3),
            logits: Slot(4),
        });
        for name in ["tokens", "positions", "sequences"] {
            build.slot(name, Extent::Tokens, 1, Format::U32);
        }
        build.slot("logit_rows", Extent::LogitRows, 1, Format::U32);
        build.slot("logits", Extent::LogitRows, VOCABULARY, Format::F32);
        build
    }

    fn slot(&mut self, name: &'static str, extent: Extent, width: usize, format: Format) -> Slot {
        self.0.slots.push(SlotInfo { name, extent, width, format });
        Slot(self.0.slots.len() - 1)
    }

    fn weight(&mut self, kind: &str, rows: usize, cols: usize, basis: Basis) -> Weight {
        let mut weight = tensor(by_name(kind).expect("a type"), rows, cols, 32);
        weight.basis = basis;
        if basis != Basis::Original {
            let signs = transform::signs(3, cols).into_iter().map(i8::cast_unsigned);
            weight.signs = signs.collect::<Vec<u8>>().into();
        }
        self.0.weights.push(weight);
        Weight(self.0.weights.len() - 1)
    }

    fn prepare(&mut self, input: Input, signs: Weight, out: Slot) {
        let basis = self.0.weights[signs.0].basis;
        let transform = (basis != Basis::Original).then_some(Transform { basis, signs });
        self.0.ops.push(Op::Prepare { input, rows: None, norm: None, transform, out });
    }

    fn product(&mut self, input: Slot, weight: Weight, out: Slot) {
        let part = Part { weight, bias: None, add: false, out };
        self.0.ops.push(Op::MatMul { input, parts: vec![part] });
    }

    fn of_experts(&mut self, input: Slot, chosen: Slot, parts: &[(Weight, Slot)]) {
        let part = |&(weight, out)| ExpertPart { weight, out };
        let parts = parts.iter().map(part).collect();
        self.0.ops.push(Op::ExpertMatMul { input, chosen, parts });
    }
}

/// A plan that is one block of experts between an embedding and a head.
fn plan(kind: &str, basis: Basis) -> Plan {
    let format = match by_name(kind).expect("a type").kernel() {
        Kernel::Float => Format::F32,
        Kernel::Int8 { .. } => Format::Int8 { group: 32, coarse: 0 },
    };
    let (rows, each) = (Extent::Tokens, Extent::Chosen(USED));
    let mut build = Build::new();
    let x = build.slot("x", rows, WIDTH, Format::F32);
    let scores = build.slot("scores", rows, EXPERTS, Format::F32);
    let chosen = build.slot("chosen", rows, USED, Format::U32);
    let shares = build.slot("shares", rows, USED, Format::F32);
    let prepared = build.slot("prepared", rows, WIDTH, format);
    let [gate, up] = ["gate", "up"].map(|name| build.slot(name, each, FFN, Format::F32));
    let inner = build.slot("inner", each, FFN, format);
    let y = build.slot("y", each, WIDTH, Format::F32);
    let head_input = build.slot("head_input", Extent::LogitRows, WIDTH, Format::F32);
    let head = build.weight("F32", VOCABULARY, WIDTH, Basis::Original);
    let router = build.weight("F32", EXPERTS, WIDTH, Basis::Original);
    let w_gate = build.weight(kind, EXPERTS * FFN, WIDTH, basis);
    let w_up = build.weight(kind, EXPERTS * FFN, WIDTH, basis);
    let w_down = build.weight(kind, EXPERTS * WIDTH, FFN, basis);

    let tokens = build.0.tokens;
    build.0.ops.push(Op::Embed { tokens, table: head, transform: None, scale: 1.0, out: x });
    build.product(x, router, scores);
    build.0.ops.push(Op::Route { scores, chosen, shares });
    build.prepare(Input::Rows(x), w_gate, prepared);
    build.of_experts(prepared, chosen, &[(w_gate, gate), (w_up, up)]);
    build.prepare(Input::Gated { gate, up, activation: Activation::Silu }, w_down, inner);
    build.of_experts(inner, chosen, &[(w_down, y)]);
    build.0.ops.push(Op::Mix { x, y, shares });
    let (input, rows) = (Input::Rows(x), Some(build.0.logit_rows));
    build.0.ops.push(Op::Prepare { input, rows, norm: None, transform: None, out: head_input });
    let logits = build.0.logits;
    build.product(head_input, head, logits);
    build.0
}

fn batch(rows: usize) -> Batch {
    let mut batch = Batch::default();
    for row in 0..rows as u32 {
        batch.push((row * 7 + 3) % VOCABULARY as u32, row, 0, row % 2 == 0);
    }
    batch
}

/// Floats, integers, turned grids, and blocks of six rows that share codes.
const KINDS: [(&str, Basis); 5] = [
    ("F32", Basis::Original),
    ("F16", Basis::Original),
    ("Q8_0", Basis::Original),
    ("HIGGS_P2_N256", Basis::Hadamard { block: 32 }),
    ("VPTQ_V6_K4096", Basis::Original),
];

#[test]
fn ops_match_the_reference() {
    for (kind, basis) in KINDS {
        let plan = Arc::new(plan(kind, basis));
        for level in Level::available() {
            let mut oracle = Reference::new(plan.clone(), CAPACITY);
            let mut cpu = Cpu::new(plan.clone(), CAPACITY, 2, level).expect("a plan to run");
            for rows in [1, 3, 40] {
                let found = verify(&mut oracle, &mut cpu, &batch(rows), &mut |_| ());
                for difference in found.expect("room for the batch") {
                    assert!(difference.is_fine(), "{kind} {level}, {rows} rows: {difference:?}");
                }
            }
        }
    }
}

/// The same on a GPU, also where the matrices of all experts are more than a binding holds.
#[cfg(feature = "gpu")]
#[test]
fn shaders_match_the_reference() {
    use gridmill::backend::gpu::device::Mask;
    use gridmill::backend::gpu::{Gpu, Options};

    let small = Mask { binding_bytes_max: 32 << 10, subgroups: false, ..Mask::NONE };
    let plain = Mask { packed_dot: false, ..Mask::NONE };
    for (what, mask) in [("all", Mask::NONE), ("small bindings", small), ("no packs", plain)] {
        let Some(device) = crate::gpu::device(mask) else { return };
        for (kind, basis) in KINDS {
            let plan = Arc::new(plan(kind, basis));
            let mut oracle = Reference::new(plan.clone(), CAPACITY);
            let ops = 0..plan.ops.len();
            let gpu = Gpu::new(device.clone(), plan.clone(), CAPACITY, ops, Options::default());
            let mut gpu = gpu.expect("a plan to run");
            for rows in [1, 3, 40] {
                let found = verify(&mut oracle, &mut gpu, &batch(rows), &mut |_| ());
                for difference in found.expect("room for the batch") {
                    assert!(difference.is_fine(), "{kind} {what}, {rows} rows: {difference:?}");
                }
            }
        }
    }
}

/// Pieces of experts are shared out as the batch falls, and no bit depends on how.
#[test]
fn results_do_not_depend_on_threads() {
    let plan = Arc::new(plan("HIGGS_P2_N256", Basis::Hadamard { block: 32 }));
    let logits = [1, 2, 3, 5].map(|threads| {
        let cpu = Cpu::new(plan.clone(), CAPACITY, threads, Level::best());
        let mut cpu = cpu.expect("a plan to run");
        cpu.run(&batch(40)).expect("room");
        cpu.logits().expect("a result").to_vec()
    });
    assert!(logits.iter().all(|other| *other == logits[0]), "the same bits");
}

/// The first adapter, if there is one.
#[cfg(feature = "gpu")]
fn gpu(plan: &Arc<Plan>) -> Option<Box<dyn Backend>> {
    use gridmill::backend::gpu::{Gpu, device::Mask};

    let device = crate::gpu::device(Mask::NONE)?;
    let ops = 0..plan.ops.len();
    let gpu = Gpu::new(device, plan.clone(), CAPACITY, ops, Default::default());
    Some(Box::new(gpu.expect("a plan to run")))
}

/// The largest first, of equal ones the first; the shares are a softmax over the chosen.
#[test]
fn the_largest_scores_are_chosen() {
    let plan = Arc::new(plan("F32", Basis::Original));
    let find = |name| {
        let slot = plan.slots.iter().position(|slot| slot.name == name);
        Slot(slot.expect("a slot of the plan"))
    };
    let backends: Vec<Box<dyn Backend>> = vec![
        Box::new(Reference::new(plan.clone(), CAPACITY)),
        Box::new(Cpu::new(plan.clone(), CAPACITY, 1, Level::best()).expect("a plan to run")),
    ];
    #[cfg(feature = "gpu")]
    let backends = backends.into_iter().chain(gpu(&plan));
    for mut backend in backends {
        for (scores, chosen, shares) in [
            ([0.0, 2.0, 1.0, -1.0, 0.5], [1, 2], [0.731_058_6, 0.268_941_4]),
            ([3.0, 1.0, 3.0, 3.0, 1.0], [0, 2], [0.5, 0.5]),
            ([-9.0, -9.0, -200.0, -9.0, -8.0], [4, 0], [0.731_058_6, 0.268_941_4]),
            ([-500.0, 90.0, 0.0, 0.0, 500.0], [4, 1], [1.0, 0.0]),
        ] {
            backend.load(&batch(1)).expect("a row");
            backend.write(find("scores"), &Values::F32(scores.to_vec())).expect("a slot");
            backend.run_ops(2..3).expect("the choice");
            let found = backend.read(find("chosen")).expect("a slot");
            assert_eq!(found, Values::U32(chosen.to_vec()), "{scores:?}");
            let found = backend.read(find("shares")).expect("a slot").to_f32();
            let error = found.iter().zip(shares).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error < 1e-6, "{scores:?}: {found:?}, expected {shares:?}");
        }
    }
}

/// Both backends on a converted file, and the answers beside those of the same weights as floats.
#[test]
fn converted_models_run() {
    let folder = Scratch::new();
    let (model, golden) = (model_path(&format!("{NAME}.gguf")), golden(NAME));
    let [coded, plain] = ["coded.gguf", "plain.gguf"].map(|name| folder.join(name));
    for more in [
        &["--to", "higgs4"][..],
        &["--to", "higgs4", "--native-types"],
        &["--to", "higgs8", "--transform", "none"],
        &["--to", "VPTQ_V6_K64"],
        &["--to", "VPTQ_V6_K16_S"],
        &["--to", "VPTQ_V5_K16_R16"],
        &["--to", "VPTQ_V12_K16"],
        &["--to", "q8_0"],
    ] {
        succeeds(&[&["convert", text(&model), text(&coded)], more].concat());
        let source = open(&coded);
        check_types(&source);
        let plan = Arc::new(Model::new(&source).expect("a model of ours").plan());
        let mut oracle = Reference::new(plan.clone(), CAPACITY);
        let mut batch = Batch::default();
        let tokens = (0..40).map(|row| row * 37 % 128);
        tokens.zip(0..).for_each(|(token, row)| batch.push(token, row, 0, true));
        for level in Level::available() {
            let mut cpu = Cpu::new(plan.clone(), CAPACITY, 2, level).expect("a plan to run");
            for found in verify(&mut oracle, &mut cpu, &batch, &mut |_| ()).expect("room") {
                assert!(found.is_fine(), "{more:?} {level}: {found:?}");
            }
        }
        succeeds(&["export", text(&coded), text(&plain), "--to", "F32"]);
        let expected = whole(&open(&plain), &devices()[0], &golden);
        for options in devices().into_iter().take(2) {
            // A rounded activation may choose another expert here and there. Were experts mixed
            // up, the answers would have nothing in common.
            let found = whole(&source, &options, &golden);
            let distance = distance(&found[0], &expected[0]);
            assert!(distance < 0.2, "{more:?} {:?}: distance {distance:.3}", options.device);
        }
    }
    assert_eq!(folder.list(), ["coded.gguf", "plain.gguf"]);
}

/// What chooses stays as it is, and experts are coded as other matrices are.
fn check_types(source: &Source) {
    let tensor = |name: &str| source.tensor(name).expect("a type to read").expect("a weight");
    assert_eq!(tensor("blk.0.ffn_gate_inp.weight").kind.name(), "F32");
    let experts = tensor("blk.1.ffn_down_exps.weight");
    assert_eq!((experts.rows, experts.cols), (6 * 64, 32));
    assert_eq!(experts.kind.name(), tensor("blk.1.attn_q.weight").kind.name());
    assert!(!["F32", "F16"].contains(&experts.kind.name()), "{}", experts.kind.name());
}

/// The registry has rows and columns; the model knows that they are experts.
#[test]
fn exported_experts_have_three_dimensions() {
    let folder = Scratch::new();
    let model = model_path(&format!("{NAME}.gguf"));
    let (coded, stock) = (folder.join("coded.gguf"), folder.join("stock.gguf"));
    succeeds(&["convert", text(&model), text(&coded), "--to", "higgs4"]);
    succeeds(&["export", text(&coded), text(&stock), "--to", "F16"]);
    let (before, after) = (open(&model), open(&stock));
    let shapes = |source: &Source| -> Vec<(String, Vec<u64>, &'static str)> {
        let shape =
            |raw: RawTensor| (raw.info.name.clone(), raw.info.shape.clone(), raw.info.kind.name);
        source.raw_tensors().map(shape).collect()
    };
    assert_eq!(shapes(&after), shapes(&before));
    assert!(shapes(&after).iter().any(|(_, shape, _)| *shape == [64, 32, 6]));
    let mut session = Session::open(&after, &devices()[0]).expect("a stock file");
    session.feed(0, &[1, 2, 3]).expect("room");
}

#[test]
fn what_experts_cannot_be_is_said() {
    let folder = Scratch::new();
    let model = model_path(&format!("{NAME}.gguf"));
    let out = folder.join("out.gguf");
    let convert = |more: &[&str], message: &str| {
        fails(&[&["convert", text(&model), text(&out)], more].concat(), 1, message);
    };
    let loud = "tensor `blk.0.ffn_down_exps.weight`: expected a type that treats all inputs \
                alike, as it holds several experts, found RESQ_P2_N256, which keeps loud ones in \
                more bits";
    convert(&["--tensor-type", "ffn_down_exps=resq4"], loud);
    assert_eq!(folder.list(), Vec::<String>::new());
}

/// A folder says whether the shares of the chosen experts have the sum 1; here they must.
#[test]
fn folders_of_other_shares_are_refused() {
    for more in [json!({"norm_topk_prob": false}), json!({})] {
        let folder = Scratch::new();
        let path = Folder::of(NAME, "Qwen3MoeForCausalLM", more).write(&folder);
        let error = gridmill::convert::import::open(&path).err().expect("a refusal").to_string();
        let expected = "config.json: `norm_topk_prob`: false is not supported, expected true";
        assert!(error.ends_with(expected), "{error}");
    }
}

#[test]
fn bad_models_are_refused() {
    let number = |parts: &mut Parts, key: &str, value: u64| {
        parts.set(&format!("{NAME}.{key}"), Value::U64(value));
    };
    type Edit<'a> = &'a dyn Fn(&mut Parts);
    let gate = "blk.1.ffn_gate_exps.weight";
    let cases: [(Edit, &str); 9] = [
        (
            &|parts| number(parts, "expert_used_count", 0),
            "qwen3moe.expert_used_count: expected 1 to 6, found 0",
        ),
        (
            &|parts| number(parts, "expert_used_count", 7),
            "qwen3moe.expert_used_count: expected 1 to 6, found 7",
        ),
        (
            &|parts| number(parts, "expert_count", 1 << 40),
            "qwen3moe.expert_count: expected 1 to 4096, found 1099511627776",
        ),
        (
            &|parts| drop(parts.metadata.remove("qwen3moe.expert_count")),
            "qwen3moe.expert_count is missing",
        ),
        (
            &|parts| number(parts, "expert_count", 12),
            "tensor `blk.0.ffn_gate_inp.weight`: expected shape [12, 64], found [6, 64] (outputs \
             first)",
        ),
        (
            &|parts| number(parts, "expert_feed_forward_length", 64),
            "tensor `blk.0.ffn_gate_exps.weight`: expected shape [6, 64, 64], found [6, 32, 64] \
             (outputs first)",
        ),
        (&|parts| parts.remove(gate), "tensor `blk.1.ffn_gate_exps.weight` is missing"),
        (
            &|parts| parts.tensor(gate).shape = vec![64, 16, 12],
            "tensor `blk.1.ffn_gate_exps.weight`: expected shape [6, 32, 64], found [12, 16, 64] \
             (outputs first)",
        ),
        (
            &|parts| parts.tensor(gate).shape = vec![64, 192],
            "tensor `blk.1.ffn_gate_exps.weight`: expected shape [6, 32, 64], found [192, 64] \
             (outputs first)",
        ),
    ];
    for (edit, expected) in cases {
        let mut parts = Parts::of(NAME);
        edit(&mut parts);
        let folder = Scratch::new();
        let path = parts.write(&folder);
        let options = Options { device: Device::Reference, ..Options::default() };
        let error = Session::open(&open(&path), &options).err().expect("a model to refuse");
        assert_eq!(error.to_string(), format!("{}: {expected}", path.display()));
    }
}
