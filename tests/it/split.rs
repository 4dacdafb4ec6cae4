//! A plan shared by two backends gives what one gives.

use std::ops::Range;
use std::sync::Arc;

use gridmill::backend::cpu::Cpu;
use gridmill::backend::reference::Reference;
use gridmill::backend::split::Split;
use gridmill::backend::{Backend, Capacity, KvFormat};
use gridmill::model::Model;
use gridmill::plan::{Batch, Plan};
use gridmill::run::verify::verify;
use gridmill::simd::Level;

use crate::cli::{succeeds, text};
use crate::models::{model_path, open};
use crate::scratch::Scratch;

const CAPACITY: Capacity =
    Capacity { rows: 16, logit_rows: 16, sequences: 2, context: 40, kv: KvFormat::F16 };

/// How a backend for some ops is made.
type Make = fn(&Arc<Plan>, Range<usize>) -> Box<dyn Backend>;

const MAKES: [Make; 2] = [
    |plan, ops| Box::new(Cpu::with_ops(plan.clone(), CAPACITY, 2, Level::best(), ops).unwrap()),
    |plan, ops| Box::new(Reference::with_ops(plan.clone(), CAPACITY, ops)),
];

fn plan(name: &str) -> Arc<Plan> {
    Arc::new(Model::new(&open(&model_path(name))).expect("a model of ours").plan())
}

fn split(plan: &Arc<Plan>, make: Make, cut: usize) -> Box<dyn Backend> {
    let first = make(plan, 0..cut);
    Box::new(Split::new(first, make(plan, cut..plan.ops.len()), cut))
}

/// A prompt of two sequences, some of its rows with logits; then single tokens.
fn batches(plan: &Plan) -> Vec<Batch> {
    let vocabulary = plan.slots[plan.logits.0].width as u32;
    let mut batches = Vec::new();
    for (rows, first) in [(14, 0), (1, 7), (2, 8), (9, 9)] {
        let mut batch = Batch::default();
        for row in 0..rows {
            let token = (row * 31 + first * 7 + 5) % vocabulary;
            batch.push(token, first + row / 2, row % 2, row + 2 >= rows || row == 3);
        }
        batches.push(batch);
    }
    batches
}

/// The bits of all logits.
fn bits(backend: &mut dyn Backend) -> Vec<u32> {
    let plan = backend.plan().clone();
    let mut bits = Vec::new();
    for batch in batches(&plan) {
        backend.run(&batch).unwrap();
        bits.extend(backend.logits().unwrap().iter().map(|logit| logit.to_bits()));
        assert!(!backend.top(1).unwrap().is_empty());
    }
    bits
}

#[test]
fn halves_give_what_one_backend_gives() {
    for name in ["gemma3.gguf", "llama.gguf", "qwen2.gguf"] {
        let plan = plan(name);
        for make in MAKES {
            let whole = bits(&mut *make(&plan, 0..plan.ops.len()));
            for &cut in &plan.layers {
                let found = bits(&mut *split(&plan, make, cut));
                assert!(found == whole, "{name}, cut at op {cut}: other logits");
            }
        }
    }
}

/// The CPU holds some grids in another type; to others its plan is the one it was given.
#[test]
fn halves_share_grids_held_in_bytes() {
    let folder = Scratch::new();
    let (source, path) = (model_path("llama.gguf"), folder.join("grid.gguf"));
    succeeds(&["convert", text(&source), text(&path), "--to", "HIGGS_P1_N64"]);
    let plan = Arc::new(Model::new(&open(&path)).expect("a model of ours").plan());
    let [cpu, reference] = MAKES;
    let whole = bits(&mut *cpu(&plan, 0..plan.ops.len()));
    for &cut in &plan.layers {
        assert!(bits(&mut *split(&plan, cpu, cut)) == whole, "cut at op {cut}: other logits");
        let second = reference(&plan, cut..plan.ops.len());
        let mut mixed = Split::new(cpu(&plan, 0..cut), second, cut);
        assert_eq!(bits(&mut mixed).len(), whole.len());
    }
}

#[test]
fn halves_run_op_by_op() {
    let plan = plan("gemma3.gguf");
    let ops = plan.ops.len();
    for &cut in &plan.layers {
        for make in MAKES {
            let (mut oracle, mut halves) = (make(&plan, 0..ops), split(&plan, make, cut));
            for batch in batches(&plan) {
                let all = verify(&mut *oracle, &mut *halves, &batch, &mut |_| ()).unwrap();
                assert!(all.len() >= ops, "every op writes something");
                let worst = all.iter().find(|difference| difference.error != 0.0);
                assert!(worst.is_none(), "cut at op {cut}: {worst:?}");
            }
        }
    }
}

#[test]
fn tokens_come_from_the_second_half() {
    use std::ops::ControlFlow;
    let plan = plan("llama.gguf");
    let take = |backend: &mut dyn Backend| {
        let mut tokens = Vec::new();
        backend.run(&batches(&plan)[0]).unwrap();
        let mut push = |token| {
            tokens.push(token);
            ControlFlow::Continue(())
        };
        backend.greedy(7, 1, 6, &mut push).unwrap();
        tokens
    };
    let whole = take(&mut *MAKES[0](&plan, 0..plan.ops.len()));
    assert_eq!(whole.len(), 6);
    assert_eq!(take(&mut *split(&plan, MAKES[0], plan.layers[1])), whole);
}
