//! Tuning: the gradient against differences of the loss, and what it is good for.

use std::path::Path;

use gridmill::file::Source;
use gridmill::model::Model;
use gridmill::run::reverse::{Factors, Student, Taught};
use gridmill::run::{Device, Options};

use crate::cli::{succeeds, text};
use crate::models::{model_path, open};
use crate::scratch::Scratch;

const ROWS: usize = 40;

fn options() -> Options {
    Options { device: Device::Cpu, threads: 2, ..Options::default() }
}

fn window(model: &Model) -> Vec<u32> {
    let vocabulary = model.hparams.vocabulary as u32;
    (0..ROWS as u32).map(|i| (i * i * 131 + 7 * i) % vocabulary).collect()
}

/// Two bits, but where a row is too short.
fn coded(folder: &Scratch, from: &Path) -> Source {
    let path = folder.join("coded.gguf");
    let mut args = vec!["convert", text(from), text(&path), "--to", "higgs2"];
    if text(from).ends_with("mistral.gguf") {
        args.extend(["--tensor-type", "attn_output.weight=F16"]);
    }
    succeeds(&args);
    open(&path)
}

/// Moves every factor a little along its gradient's sign, in groups by the weight's role, and
/// compares what the loss does with what the gradient says.
#[test]
fn the_gradient_is_that_of_the_loss() {
    let names = ["llama", "llama-bias", "llama-rope3", "mistral", "qwen2", "qwen3", "gemma3"];
    for name in names.into_iter().chain(["gemma3-softcap"]) {
        let folder = Scratch::new();
        let path = model_path(&format!("{name}.gguf"));
        let (source, coded) = (open(&path), coded(&folder, &path));
        let (teacher, student) = (Model::new(&source).unwrap(), Model::new(&coded).unwrap());
        let window = window(&teacher);
        let windows = [window.clone()];
        let taught = Taught::new(&teacher, &options(), &windows, &mut || ()).unwrap();
        let mut pass = Student::new(&student, &taught, &options(), ROWS).unwrap();
        let factors = pass.factors().clone();
        let slope = pass.slope(&taught, (0, &window), &factors).unwrap();
        assert!(slope.loss > 0.0, "{name}: two bits cost something");
        for weight in factors.keys() {
            let along = |step: f32| -> Factors {
                let mut moved = factors.clone();
                let all = moved.get_mut(weight).unwrap().iter_mut();
                all.zip(&slope.gradient[weight]).for_each(|(f, d)| *f += step * d.signum());
                moved
            };
            const STEP: f32 = 0.01;
            let mut loss = |step| pass.slope(&taught, (0, &window), &along(step)).unwrap().loss;
            let measured = (loss(STEP) - loss(-STEP)) / (2.0 * f64::from(STEP));
            let expected: f64 = slope.gradient[weight].iter().map(|d| f64::from(d.abs())).sum();
            let off = (measured - expected).abs();
            assert!(
                off < 0.02 * expected + 1e-5,
                "{name}: {weight}: expected a slope of {expected}, measured {measured}"
            );
        }
    }
}
