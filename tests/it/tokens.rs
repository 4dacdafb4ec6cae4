//! How much each token of a text matters, and what calibration makes of it.

use std::collections::HashMap;

use gridmill::convert::{Statistics, calibrate};
use gridmill::model::Model;
use gridmill::quant::random::Random;
use gridmill::quant::{Moments, presets};
use gridmill::run::reverse::{TokenWeights, token_weights};
use gridmill::run::walk::{CACHED, Tap, Walk, heard};
use gridmill::run::{Device, Options, Session};

use crate::models::{model_path, open};
use crate::scratch::Scratch;

const ROWS: usize = 48;

fn options(threads: usize) -> Options {
    Options { device: Device::Cpu, threads, ..Options::default() }
}

fn windows(model: &Model, count: usize) -> Vec<Vec<u32>> {
    let vocabulary = model.hparams.vocabulary;
    let token = |at: usize| ((at * at * 131 + 7 * at) % vocabulary) as u32;
    (0..count).map(|window| (0..ROWS).map(|at| token(window * ROWS + at)).collect()).collect()
}

fn weigh(model: &Model, threads: usize, windows: &[Vec<u32>]) -> TokenWeights {
    let kind = presets::by_name(presets::NEARLY_EXACT).unwrap();
    let mut random = Random(5);
    let draw = &mut || random.unit();
    token_weights(model, &options(threads), windows, kind, draw, &mut || ()).unwrap()
}

fn mean(weights: &[f32]) -> f64 {
    weights.iter().map(|&weight| f64::from(weight)).sum::<f64>() / weights.len() as f64
}

/// Every input of a layer and of the head has a weight for each of its rows, whatever the model is.
#[test]
fn every_input_has_weights() {
    for name in ["llama", "llama-bias", "gemma3-softcap", "phi3", "qwen3moe"] {
        let source = open(&model_path(&format!("{name}.gguf")));
        let model = Model::new(&source).unwrap();
        let windows = windows(&model, 2);
        let found = weigh(&model, 2, &windows);
        let is_input = |name: &str| !CACHED.iter().any(|what| name.contains(what));
        for heard in heard(&model).unwrap().iter().filter(|heard| is_input(&heard.name)) {
            let each = heard.experts.map_or(1, |_| model.hparams.experts.unwrap().used);
            let weights =
                found.get(&heard.name).unwrap_or_else(|| panic!("{name}: {}", heard.name));
            assert_eq!(weights.len(), 2 * ROWS * each, "{name}: {}", heard.name);
            assert!((mean(weights) - 1.0).abs() < 1e-5, "{name}: {}", heard.name);
            assert!(weights.iter().all(|&weight| weight >= 0.0 && weight.is_finite()));
        }
        assert!(found == weigh(&model, 1, &windows), "{name}: 1 and 2 threads");
    }
}

/// At the head the gradient of a drawn answer is `p - 1` for it and p for all others: its square is
/// `1 - sum p^2` on average.
#[test]
fn the_head_has_the_weights_of_its_answers() {
    let source = open(&model_path("llama.gguf"));
    let model = Model::new(&source).unwrap();
    let windows = windows(&model, 1);
    let found = weigh(&model, 2, &windows);
    let mut session = Session::open(&source, &options(2)).unwrap();
    let roots = windows[0].iter().map(|&token| {
        let logits = session.feed(0, &[token]).unwrap();
        let largest = logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
        let powers: Vec<f64> = logits.iter().map(|&x| f64::from(x - largest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        (1.0 - powers.iter().map(|x| (x / sum).powi(2)).sum::<f64>()).sqrt()
    });
    let roots: Vec<f64> = roots.collect();
    let scale = roots.len() as f64 / roots.iter().sum::<f64>();
    let names = ["output.weight", "token_embd.weight"];
    let weights = names.iter().find_map(|name| found.get(*name)).unwrap();
    for (at, (&weight, root)) in weights.iter().zip(roots).enumerate() {
        let expected = scale * root;
        assert!((f64::from(weight) - expected).abs() < 0.02, "{at}: {weight} {expected}");
    }
}

/// Moments are sums of products with a weight for each token, and those of the cache without.
#[test]
fn moments_have_the_weights_of_their_tokens() {
    let folder = Scratch::new();
    let source = open(&model_path("llama.gguf"));
    let model = Model::new(&source).unwrap();
    let windows = windows(&model, 2);
    let name = "blk.1.ffn_gate.weight";
    let own: Vec<f32> = (0..2 * ROWS).map(|at| (at % 7) as f32 / 3.0).collect();
    let weights: TokenWeights = HashMap::from([(name.to_string(), own.clone())]);
    let path = folder.join("s.gguf");
    let text = (&windows[..], &weights);
    calibrate(&model, &options(2), text, "print", &path, &mut || ()).unwrap();
    let (statistics, _) = Statistics::open(&path, &source).unwrap();
    let mut rows: HashMap<String, (Vec<f32>, usize)> = HashMap::new();
    let options = options(2);
    let mut walk = Walk::new(&model, &options, &windows, u64::MAX, &folder).unwrap();
    let mut take = |tap: Tap| {
        if let Tap::Input { weights, values, width } = tap {
            let entry = rows.entry(weights[0].to_string()).or_insert((Vec::new(), width));
            entry.0.extend_from_slice(values);
        }
    };
    while walk.step(&mut take).unwrap() {}
    for (of, (values, width)) in &rows {
        let mut expected = vec![0.0; width * width];
        for (at, row) in values.chunks_exact(*width).enumerate() {
            let weight = if of == name { f64::from(own[at]) } else { 1.0 };
            for (i, a) in row.iter().enumerate() {
                for (j, b) in row.iter().enumerate() {
                    expected[i * width + j] += weight * f64::from(*a) * f64::from(*b);
                }
            }
        }
        let found: Moments = statistics.moments(statistics.use_of(of).unwrap(), 0).unwrap();
        assert_eq!(found.count, 2 * ROWS as u64);
        let size = expected.iter().fold(0.0_f64, |size, x| size.max(x.abs()));
        for (expected, found) in expected.iter().zip(found.whole()) {
            assert!((expected - found).abs() <= 1e-4 * size, "{of}: {expected} {found}");
        }
    }
}
