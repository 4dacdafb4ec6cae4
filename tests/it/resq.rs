//! Types that keep the loud inputs in more bits: their rows, their rounding, a model in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gridmill::backend::cpu::Cpu;
use gridmill::backend::reference::Reference;
use gridmill::backend::{Backend, Capacity, KvFormat, Values};
use gridmill::convert::export::{Keep, export};
use gridmill::convert::{Options, Statistics, calibrate, convert};
use gridmill::file::{Source, Value};
use gridmill::model::Model;
use gridmill::plan::{Batch, Extent, Format, Op, Plan};
use gridmill::quant::parted::Parted;
use gridmill::quant::{Feedback, Moments};
use gridmill::run::reverse::TokenWeights;
use gridmill::run::verify::verify;
use gridmill::run::{self, Activations, Device, Session};
use gridmill::simd::Level;
use gridmill::types::raw::RawType;
use gridmill::types::{Basis, Parts as RowParts, Resq, Rows, Tensor, TensorType, by_name, raw};
use half::f16;

use crate::cli::{fails, succeeds, text};
use crate::cpu::{Random, tensor};
use crate::import::{logits, options};
use crate::models::{Parts, distance, open};
use crate::products::check_products;
use crate::scratch::Scratch;

/// What may lie between backends: an activation at the border of two integers falls to either.
const BACKENDS: f64 = 0.022;

fn resq() -> &'static dyn TensorType {
    by_name("RESQ_P2_N256").unwrap()
}

/// A weight with random codes.
fn weight(rows: usize, cols: usize) -> Tensor {
    Tensor { basis: Resq::form(cols).unwrap().0, ..tensor(resq(), rows, cols, cols / 2) }
}

#[test]
fn rows_are_parted_as_documented() {
    let page = include_str!("../../formats/resq.md");
    let row = |head: &str| -> Vec<usize> {
        let line = page.lines().find(|line| line.starts_with(head)).unwrap();
        line.split('|').filter_map(|cell| cell.trim().parse().ok()).collect()
    };
    let (widths, high) = (row("| values |"), row("| H |"));
    assert!(widths.len() >= 10 && widths.len() == high.len());
    for (cols, high) in widths.into_iter().zip(high) {
        assert_eq!(Resq::parts(cols), Some(RowParts { low: cols - high, high }), "{cols}");
        let bytes = (cols - high) / 2 + high;
        assert_eq!(resq().row_bytes(cols), Some(bytes), "{cols}");
    }
    for cols in [0, 64, 100, 160, 575] {
        assert_eq!((Resq::parts(cols), resq().row_bytes(cols)), (None, None), "{cols}");
    }
}

/// Odd and even numbers of runs in each part, and the codes as they lie in the file.
#[test]
fn kernels_multiply_what_decode_says() {
    for (rows, cols) in [(5, 128), (37, 576), (5, 896), (5, 1536)] {
        check_products(resq(), rows, cols, cols / 2);
        assert!(resq().in_bytes(&weight(2, cols)).is_none(), "{cols}: no byte per weight");
    }
}

/// Moments of inputs that go together, the last of them loud.
fn moments(cols: usize, high: usize) -> Moments {
    let mut random = Random(3);
    let mixed = random.floats(cols * cols);
    let mut moments = Moments::new(cols);
    for _ in 0..3 * cols {
        let noise = random.floats(cols);
        let common: f32 = noise[0] + noise[1];
        let row: Vec<f32> = (0..cols)
            .map(|at| {
                let loud = if at < cols - high { 1.0 } else { 6.0 };
                loud * (noise[at] + common * mixed[at] + 0.5 * noise[(at * 7 + 3) % cols])
            })
            .collect();
        moments.add(&row);
    }
    moments
}

/// What each way of rounding costs in the outputs: both parts together least, and nearest most.
#[test]
fn the_loud_part_makes_up_for_the_quiet_one() {
    let cols = 192;
    let parts = Resq::parts(cols).unwrap();
    let feedback = Feedback::new(cols, moments(cols, parts.high).whole(), 3 * cols as u64, 0.01);
    let weights = Random(5).floats(16 * cols);
    let grids = [Resq::low_grid(), Resq::high_grid()];
    let rounded = |feedback: &Feedback| {
        let mut low = vec![0; 16 * parts.low / 2];
        let mut high = vec![0; 16 * parts.high];
        let mut norms = vec![[f16::ZERO; 2]; 16];
        Parted::new(feedback, parts.low).round(
            grids,
            2,
            &weights,
            [&mut low, &mut high],
            &mut norms,
        );
        let (mut codes, mut bytes) = (Vec::new(), Vec::new());
        for row in 0..16 {
            let (mut a, mut b) = (vec![0; parts.low / 2], vec![0; parts.high]);
            grids[0].pack(&low[row * parts.low / 2..][..parts.low / 2], &mut a);
            grids[1].pack(&high[row * parts.high..][..parts.high], &mut b);
            codes.extend([a, b].concat());
            bytes.extend(norms[row].iter().flat_map(|norm| norm.to_le_bytes()));
        }
        (codes, bytes)
    };
    let cost = |(codes, norms): &(Vec<u8>, Vec<u8>)| {
        let table = resq().table().unwrap();
        let group = cols / 2;
        let rows = Rows { count: 16, cols, group, codes, norms, table, ..Rows::stock(0, 0, &[]) };
        let mut values = vec![0.0; 16 * cols];
        resq().decode(&rows, &mut values);
        let errors: Vec<f32> = weights.iter().zip(values).map(|(w, q)| w - q).collect();
        feedback.cost(&errors)
    };
    let mut nearest = (vec![0; 16 * resq().row_bytes(cols).unwrap()], vec![0; 16 * 4]);
    resq().encode(&weights, cols, cols / 2, &mut nearest.0, &mut nearest.1);
    // A part that knows nothing of the other: moments without what is across.
    let apart = {
        let mut moments = moments(cols, parts.high).whole();
        for (at, moment) in moments.iter_mut().enumerate() {
            if (at / cols < parts.low) != (at % cols < parts.low) {
                *moment = 0.0;
            }
        }
        rounded(&Feedback::new(cols, moments, 3 * cols as u64, 0.01))
    };
    let (together, apart, nearest) = (cost(&rounded(&feedback)), cost(&apart), cost(&nearest));
    assert!(together < 0.9 * apart, "{together} together, {apart} apart");
    assert!(apart < 0.9 * nearest, "{apart} apart, {nearest} to nearest");
}

#[test]
fn the_loudest_inputs_are_those_of_the_largest_squares() {
    let mut moments = Moments::new(4);
    moments.add(&[1.0, -3.0, 2.0, 3.0]);
    assert_eq!(moments.loudest(1), [false, true, false, false], "of equal ones the first");
    let loud = moments.loudest(3);
    assert_eq!(loud, [false, true, true, true]);
    assert!((moments.share(&loud) - 22.0 / 23.0).abs() < 1e-12);
    assert_eq!(Moments::new(2).share(&[true, false]), 0.0);
}

/// A model of random weights that is wide enough, and the moments of its inputs.
fn model(folder: &Scratch) -> (PathBuf, PathBuf) {
    let mut parts = Parts::of("llama");
    for (key, value) in [
        ("llama.embedding_length", 128),
        ("llama.feed_forward_length", 192),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.rope.dimension_count", 64),
    ] {
        parts.set(key, Value::U32(value));
    }
    let mut random = Random(11);
    for part in &mut parts.tensors {
        let shape: &[u64] = match part.name.rsplit('.').nth(1).unwrap() {
            "output" | "token_embd" => &[128, 128],
            "attn_q" | "attn_output" => &[128, 128],
            "attn_k" | "attn_v" => &[128, 64],
            "ffn_gate" | "ffn_up" => &[128, 192],
            "ffn_down" => &[192, 128],
            _ => &[128],
        };
        let len = shape.iter().product::<u64>() as usize;
        let is_norm = shape.len() == 1;
        let value = |noise: f32| if is_norm { 1.0 + 0.5 * noise } else { 0.15 * noise };
        let values: Vec<f32> = random.floats(len).into_iter().map(value).collect();
        part.shape = shape.to_vec();
        part.kind = RawType::of(by_name("F32").unwrap());
        part.bytes = bytemuck::cast_slice(&values).to_vec();
    }
    let path = folder.join("model.gguf");
    fs::rename(parts.write(folder), &path).unwrap();
    let source = open(&path);
    let kept = folder.join("statistics.gguf");
    listen(&source, 8, &kept);
    (path, kept)
}

/// Statistics of some windows of 64 tokens.
fn listen(source: &Source, windows: u32, kept: &Path) {
    let window = |i: u32| (0..64).map(|j| (i * 31 + j * j * 17) % 128).collect();
    let windows: Vec<Vec<u32>> = (0..windows).map(window).collect();
    let options = run::Options { device: Device::Cpu, threads: 2, ..run::Options::default() };
    let model = Model::new(source).unwrap();
    calibrate(&model, &options, (&windows, &TokenWeights::new()), "print", kept, &mut || ())
        .unwrap();
}

fn to_resq(source: &Source, target: &Path, statistics: &Path) -> Source {
    converted_to(source, target, statistics, "resq4")
}

fn converted_to(source: &Source, target: &Path, statistics: &Path, kind: &str) -> Source {
    let (statistics, _) = Statistics::open(statistics, source).unwrap();
    let options = Options { whole_rows: true, ..options(Some(kind)) };
    let kept = target.with_extension("part");
    convert(source, target, &options, Some((&statistics, &kept)), &mut |_| ()).unwrap();
    open(target)
}

#[test]
fn models_run_and_go_back() {
    let folder = Scratch::new();
    let (path, statistics) = model(&folder);
    let source = open(&path);
    let target = folder.join("resq.gguf");
    let small = to_resq(&source, &target, &statistics);
    let mut inputs = std::collections::HashSet::new();
    for tensor in small.tensors().filter(|tensor| tensor.kind.id() == resq().id()) {
        assert_eq!(tensor.basis, Basis::Parted { high: 64 }, "{}", tensor.name);
        inputs.insert(tensor.signs.to_vec());
    }
    assert_eq!(inputs.len(), 8, "one set of loud inputs for each input of two layers");
    let (expected, found) = (logits(&source), logits(&small));
    let (off, plain) = (distance(&found, &expected), {
        let plain = converted_to(&source, &folder.join("plain.gguf"), &statistics, "higgs4");
        distance(&logits(&plain), &expected)
    });
    assert!(off < 0.9 * plain, "off by {off}, and {plain} without a loud part");

    // What every instruction set makes of it, and a stock type that other programs read.
    let tokens: Vec<u32> = (0..20).map(|i| i * 37 % 128).collect();
    let mut first: Option<Vec<f32>> = None;
    let is_here =
        |options: &run::Options| matches!(options.device, Device::Reference | Device::Cpu);
    for options in crate::models::devices().into_iter().filter(is_here) {
        let mut session = Session::open(&small, &options).unwrap();
        let found = session.feed(0, &tokens).unwrap().to_vec();
        let off = first.as_ref().map_or(0.0, |first| distance(&found, first));
        assert!(off < BACKENDS, "{:?} {}: off by {off}", options.device, options.level);
        first.get_or_insert(found);
    }
    let back = folder.join("back.gguf");
    export(&small, &back, by_name("F32").unwrap(), Keep::default(), &mut |_| ()).unwrap();
    let off = distance(&logits(&open(&back)), &found);
    assert!(off < 0.02, "exported, off by {off}: int8 activations alone may differ");

    // What share of the inputs' squares is in 8 bits, as `inspect` says it.
    let shown = succeeds(&["inspect", text(&target)]);
    let line = shown.lines().find(|line| line.contains("blk.1.ffn_down.weight")).unwrap();
    assert!(line.contains("parted:64, group 96, 64 inputs in 8 bits, "), "{line}");
    let capture = small.capture("blk.1.ffn_down.weight");
    assert!((1.0 / 3.0..1.0).contains(&capture), "64 of 192 inputs: {capture}");
    assert!(line.contains(&format!("{:.1}% of the squares", 100.0 * capture)), "{line}");
    assert_eq!(small.capture("token_embd.weight"), 0.0);

    // The same bytes again; and codes that have no native form.
    let again = folder.join("again.gguf");
    to_resq(&source, &again, &statistics);
    assert!(fs::read(&target).unwrap() == fs::read(&again).unwrap(), "the same bytes again");
    let native = folder.join("native.gguf");
    succeeds(&["repack", text(&target), text(&native), "--native-types"]);
    assert!(distance(&logits(&open(&native)), &found) == 0.0, "codes stay bytes");
}

/// A file with another plane of signs.
fn with_signs(folder: &Scratch, path: &Path, change: impl Fn(&mut [u8])) -> String {
    let mut parts = Parts::of_source(&open(path));
    let signs = parts.tensors.iter_mut().filter(|part| part.name == "gridmill.signs.128.1");
    signs.for_each(|part| change(&mut part.bytes));
    Source::open(parts.write(folder)).err().expect("a file to refuse").to_string()
}

#[test]
fn bad_input_is_refused() {
    let folder = Scratch::new();
    let (path, statistics) = model(&folder);
    let target = folder.join("out.gguf");
    let convert = |more: &[&'static str]| -> Vec<&str> {
        [&["convert", text(&path), text(&target)], more].concat()
    };
    let needs = "expected statistics of its inputs for RESQ_P2_N256, which keeps the loudest in \
                 more bits, found none";
    fails(&convert(&["--to", "resq4"]), 1, needs);
    fails(&convert(&["--transform", "parted:64"]), 2, "no transform `parted:64`");
    let narrow = crate::models::model_path("llama.gguf");
    let needs = "expected rows of a multiple of 64 and at least 128 values for RESQ_P2_N256, found";
    let args = ["convert", text(&narrow), text(&target), "--to", "resq4"];
    fails(&[&args[..], &["--calibrate", text(&statistics)]].concat(), 1, "another model");
    fails(&args, 1, needs);
    assert!(!target.exists());

    to_resq(&open(&path), &target, &statistics);
    let loud = |bytes: &mut [u8]| bytes.iter_mut().for_each(|sign| *sign = 2);
    let message = with_signs(&folder, &target, loud);
    assert!(message.contains("gridmill.signs.128.1"), "{message}");
    assert!(message.contains("128 loud inputs, expected 64"), "{message}");
    let message = with_signs(&folder, &target, |bytes| bytes[5] = 7);
    assert!(message.contains("sign 5 is 7, expected 1 or -1, or twice that"), "{message}");

    // A group or a transform that is not the type's.
    let tensor = weight(2, 128);
    let check = |tensor: Tensor| tensor.kind.check(&tensor).unwrap_err();
    assert!(check(Tensor { group: 128, ..tensor.clone() }).contains("expected half a row, 64"));
    let basis = Basis::Parted { high: 32 };
    assert!(check(Tensor { basis, ..tensor }).contains("expected Parted { high: 64 }"));
    assert_eq!(raw::find(resq().id(), gridmill::types::TYPES), None, "no number in a file");
}

/// The model on a GPU: what its prompts and its tokens make of it is what the reference makes.
#[cfg(feature = "gpu")]
#[test]
fn models_run_on_a_gpu() {
    if crate::gpu::device(gridmill::backend::gpu::device::Mask::NONE).is_none() {
        return;
    }
    let folder = Scratch::new();
    let (path, statistics) = model(&folder);
    let small = to_resq(&open(&path), &folder.join("resq.gguf"), &statistics);
    let logits = |device| {
        let options = run::Options { device, context: Some(32), ..run::Options::default() };
        let mut session = Session::open(&small, &options).unwrap();
        let prompt: Vec<u32> = (0..19).map(|i| i * 37 % 128).collect();
        let mut found = session.feed(0, &prompt).unwrap().to_vec();
        found.extend(session.feed(0, &[5]).unwrap().to_vec());
        found
    };
    let (found, expected) = (logits(Device::Gpu(0)), logits(Device::Reference));
    let off = distance(&found, &expected);
    assert!(off < BACKENDS, "off by {off}");
}

/// Activations as the paper has them: the integers of the CPU against the reference, which
/// multiplies the floats that they stand for, op by op.
#[test]
fn coarse_activations_match_the_reference_op_by_op() {
    let folder = Scratch::new();
    let (path, statistics) = model(&folder);
    let source = open(&path);
    let resq = to_resq(&source, &folder.join("resq.gguf"), &statistics);
    let plain = converted_to(&source, &folder.join("plain.gguf"), &statistics, "higgs4");
    for (file, high) in [(&resq, 64), (&plain, 0)] {
        let mut plan = Model::new(file).unwrap().plan();
        Activations::Paper.fit(&mut plan).unwrap();
        let plan = Arc::new(plan);
        let kv = KvFormat::F32;
        let capacity = Capacity { rows: 21, logit_rows: 21, sequences: 1, context: 32, kv };
        let mut batch = Batch::default();
        (0..21).for_each(|row| batch.push(row * 37 % 128, row, 0, true));
        for level in Level::available() {
            let mut reference = Reference::new(plan.clone(), capacity);
            let mut cpu = Cpu::new(plan.clone(), capacity, 2, level).unwrap();
            let found = verify(&mut reference, &mut cpu, &batch, &mut |_| ()).unwrap();
            for difference in &found {
                assert!(difference.is_fine(), "{level}: {difference:?}");
            }
            let products = found.iter().filter(|difference| difference.name == "mat_mul");
            let noise = products.map(|difference| difference.error).fold(0.0, f64::max);
            assert!(noise < 2e-6, "{level}: {noise}, expected the noise of floats");
            check_levels(&plan, &mut cpu, high);
        }
    }
}

/// Every row of every coarse slot: sixteen levels and one scale, then 8 bits and one scale.
fn check_levels(plan: &Plan, cpu: &mut Cpu, high: usize) {
    let mut rows = 0;
    for op in &plan.ops {
        let Op::Prepare { out, .. } = op else { continue };
        let slot = &plan.slots[out.0];
        let Format::Int8 { group, coarse } = slot.format else { continue };
        if slot.extent == Extent::LogitRows {
            assert_eq!(coarse, 0, "the output matrix keeps its rule");
            continue;
        }
        assert_eq!(coarse, slot.width - high, "{}", slot.name);
        let Values::Int8 { codes, scales } = cpu.read(*out).unwrap() else { panic!("integers") };
        let scales = scales.chunks_exact(slot.width / group);
        for (codes, scales) in codes.chunks_exact(slot.width).zip(scales) {
            let (low, loud) = codes.split_at(coarse);
            let ends = (*low.iter().min().unwrap(), *low.iter().max().unwrap());
            assert!(ends.1 - ends.0 <= 15 && ends.0 <= 0 && ends.1 >= 0, "levels {ends:?}");
            assert!(ends.1 - ends.0 >= 14, "the range is used: {ends:?}");
            let peak = loud.iter().map(|code| code.unsigned_abs()).max();
            assert!(peak.is_none_or(|peak| peak == 127), "loud values reach {peak:?}");
            let (low, loud) = scales.split_at(coarse / group);
            for part in [low, loud] {
                assert!(part.iter().all(|scale| *scale == part[0]), "one scale: {part:?}");
            }
            rows += 1;
        }
    }
    assert!(rows > 0);
}

#[test]
fn activations_by_name() {
    let folder = Scratch::new();
    let (path, _) = model(&folder);
    fails(&["verify", text(&path), "--activations", "int4"], 2, "no activations `int4`");
    let expected = "activations: expected weights of small integers, found none";
    fails(&["verify", text(&path), "--activations", "paper"], 1, expected);
    let coded = crate::models::model_path("llama.gguf");
    let target = folder.join("coded.gguf");
    succeeds(&["convert", text(&coded), text(&target), "--to", "higgs4"]);
    let args = ["verify", text(&target), "--device", "cpu", "--activations", "paper"];
    assert!(succeeds(&args).contains("every op agrees"));
    #[cfg(feature = "gpu")]
    if crate::gpu::device(gridmill::backend::gpu::device::Mask::NONE).is_some() {
        let args = [&args[..2], &["--device", "0", "--activations", "paper"]].concat();
        fails(&args, 1, "expected activations of 8 bits on a GPU, found some of 4");
    }
}

/// What a conversion and bases of a cache refuse, each with its message.
#[test]
fn models_and_texts_that_will_not_do_are_refused() {
    let folder = Scratch::new();
    let (path, statistics) = model(&folder);
    let (small, target) = (folder.join("resq.gguf"), folder.join("out.gguf"));
    to_resq(&open(&path), &small, &statistics);
    let convert = |model: &Path, statistics: &Path, message: &str| {
        let args = ["convert", text(model), text(&target), "--to", "resq4", "--calibrate"];
        fails(&[&args[..], &[text(statistics)]].concat(), 1, message);
        assert!(!target.exists(), "nothing is written");
    };
    convert(&small, &statistics, "`: expected one that is not RESQ_P2_N256 already");

    // Fewer tokens than there are loud inputs; more than those of one window are enough.
    let source = open(&path);
    let (short, enough) = (folder.join("short.gguf"), folder.join("enough.gguf"));
    let window: Vec<u32> = (0..48).collect();
    let options = run::Options { device: Device::Cpu, ..run::Options::default() };
    let short_windows = [window];
    let model = Model::new(&source).unwrap();
    calibrate(
        &model,
        &options,
        (&short_windows, &TokenWeights::new()),
        "print",
        &short,
        &mut || (),
    )
    .unwrap();
    let message =
        "expected a text of at least 64 tokens, as many as inputs have more bits, found 48";
    convert(&path, &short, message);
    listen(&source, 1, &enough);
    to_resq(&source, &folder.join("enough-resq.gguf"), &enough);

    // Heads have 64 directions, and bases need as many tokens.
    let bases = |statistics: &Path| {
        let (source, target) = (text(&path).to_string(), text(&target).to_string());
        ["kv-basis", &source, &target, "--calibrate", text(statistics)].map(str::to_string)
    };
    let message =
        "expected a text of at least 64 tokens, as many as a head has directions, found 48";
    fails(&bases(&short).each_ref().map(String::as_str), 1, message);
    succeeds(&bases(&enough).each_ref().map(String::as_str));

    // An architecture that nobody described.
    let mut parts = Parts::of_source(&source);
    parts.set("general.architecture", Value::String("mamba".to_string()));
    let other = parts.write(&folder);
    fs::remove_file(&target).unwrap();
    convert(&other, &enough, "unknown architecture `mamba`, expected ");
    let args = ["kv-basis", text(&other), text(&target), "--calibrate", text(&enough)];
    fails(&args, 1, "unknown architecture `mamba`, expected ");
}
