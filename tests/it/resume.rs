//! Conversions that were interrupted.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use gridmill::convert::{Event, Options, Statistics, calibrate, convert, form};
use gridmill::file::Source;
use gridmill::model::Model;
use gridmill::quant::presets;
use gridmill::run::reverse::TokenWeights;
use gridmill::run::{self, Device};

use crate::cli::{gridmill, stderr, text};
use crate::models::{model_path, open};
use crate::scratch::Scratch;

/// A model and what was heard of it.
struct Listened {
    folder: Scratch,
    source: Source,
    statistics: Statistics,
}

impl Listened {
    fn new() -> Listened {
        let folder = Scratch::new();
        let path = folder.join("model.gguf");
        fs::copy(model_path("llama.gguf"), &path).unwrap();
        let source = open(&path);
        let model = Model::new(&source).unwrap();
        let windows = [(3..93).collect::<Vec<u32>>()];
        let options = run::Options { device: Device::Cpu, threads: 1, ..Default::default() };
        let heard = folder.join("s.gguf");
        calibrate(&model, &options, (&windows, &TokenWeights::new()), "print", &heard, &mut || ())
            .unwrap();
        let (statistics, _) = Statistics::open(&heard, &source).unwrap();
        drop(model);
        Listened { folder, source, statistics }
    }

    fn part(&self) -> PathBuf {
        self.folder.join("out.gguf.part")
    }

    /// Converts until `hear` panics, or to the end: then the file's bytes.
    fn convert(&self, seed: u64, hear: &mut dyn FnMut(Event)) -> Option<Vec<u8>> {
        let target = self.folder.join("out.gguf");
        let (options, part) = (options(seed), self.part());
        let converted = catch_unwind(AssertUnwindSafe(|| {
            let listened = Some((&self.statistics, &*part));
            convert(&self.source, &target, &options, listened, hear).unwrap()
        }));
        converted.ok()?;
        let bytes = fs::read(&target).unwrap();
        fs::remove_file(&target).unwrap();
        assert!(!self.part().exists(), "what was kept goes when the target is whole");
        Some(bytes)
    }

    /// Stops a conversion after some tensors; the bytes kept.
    fn interrupt(&self, tensors: usize) -> Vec<u8> {
        let mut left = tensors;
        let stopped = self.convert(1, &mut |event| {
            left -= usize::from(matches!(event, Event::Done(_)));
            assert!(left > 0, "this is the interruption");
        });
        assert_eq!(stopped, None);
        assert!(!self.folder.join("out.gguf").exists());
        fs::read(self.part()).unwrap()
    }

    /// Converts to the end; the file, what was kept at the last tensor, and whether anything kept
    /// was of another conversion.
    fn finish(&self, seed: u64) -> (Vec<u8>, Vec<u8>, bool) {
        let (mut kept, mut is_forgotten) = (Vec::new(), false);
        let file = self.convert(seed, &mut |event| match event {
            Event::Learned(..) => {}
            Event::Done(_) => kept = fs::read(self.part()).unwrap(),
            Event::Forgotten(path) => {
                assert_eq!(path, self.part());
                is_forgotten = true;
            }
        });
        (file.expect("nothing interrupts it"), kept, is_forgotten)
    }
}

fn options(seed: u64) -> Options {
    Options {
        kind: presets::by_name("VPTQ_V3_K8_S").unwrap(),
        keep: false,
        vocabulary_kind: None,
        recipe: None,
        overrides: Vec::new(),
        seed,
        whole_rows: true,
        basis: None,
        group: None,
        form: form(false),
        share: None,
    }
}

#[test]
fn an_interrupted_conversion_goes_on() {
    let heard = Listened::new();
    let (whole, all, _) = heard.finish(1);
    let some = heard.interrupt(9);
    assert!(all.starts_with(&some) && some.len() < all.len());
    let (file, kept, is_forgotten) = heard.finish(1);
    assert!(file == whole && !is_forgotten);
    // What was there was not made again.
    assert!(kept == all);
    // A record that is cut off, or damaged, is made again with all that follows.
    for damage in [
        |kept: &mut Vec<u8>| kept.truncate(kept.len() - 7),
        |kept: &mut Vec<u8>| {
            let middle = kept.len() / 2;
            kept[middle] ^= 1;
        },
    ] {
        let mut some = heard.interrupt(9);
        damage(&mut some);
        fs::write(heard.part(), some).unwrap();
        let (file, kept, is_forgotten) = heard.finish(1);
        assert!(file == whole && kept == all && !is_forgotten);
    }
}

#[test]
fn other_settings_start_over() {
    let heard = Listened::new();
    let (whole, ..) = heard.finish(2);
    heard.interrupt(9);
    let (file, _, is_forgotten) = heard.finish(2);
    assert!(file == whole && is_forgotten);
    // The program says so.
    let (folder, part) = (&heard.folder, heard.part());
    fs::write(&part, "something else\n").unwrap();
    let (model, out) = (folder.join("model.gguf"), folder.join("out.gguf"));
    let statistics = folder.join("s.gguf");
    let output = gridmill(&["convert", text(&model), text(&out), "--calibrate", text(&statistics)]);
    assert!(output.status.success() && !part.exists());
    let note = format!("{}: of a conversion with other settings; starting over", part.display());
    assert!(stderr(&output).contains(&note), "{}", stderr(&output));
}

#[test]
fn one_conversion_at_a_time() {
    let heard = Listened::new();
    let file = fs::File::create(heard.part()).unwrap();
    file.try_lock().unwrap();
    let target = heard.folder.join("out.gguf");
    let part = heard.part();
    let listened = Some((&heard.statistics, &*part));
    let refused = convert(&heard.source, &target, &options(1), listened, &mut |_| ());
    let message = refused.err().expect("it is locked").to_string();
    assert!(message.ends_with("another conversion to the same target is at work"), "{message}");
    assert!(Path::new(&heard.part()).exists() && !target.exists());
}

#[test]
fn what_killed_processes_left_is_swept() {
    let folder = Scratch::new();
    let model = folder.join("model.gguf");
    fs::copy(model_path("llama.gguf"), &model).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    let left = |name: &str, modified: SystemTime| {
        let file = fs::File::create(folder.join(name)).unwrap();
        file.set_modified(modified).unwrap();
        file
    };
    left(".out.gguf.17.0.tmp", long_ago);
    left(".out.gguf.17.1.tmp", SystemTime::now());
    left(".other.gguf.17.0.tmp", long_ago);
    left(".out.gguf.notes.tmp", long_ago);
    let held = left(".out.gguf.18.0.tmp", long_ago);
    held.try_lock().unwrap();
    let out = folder.join("out.gguf");
    assert!(gridmill(&["convert", text(&model), text(&out)]).status.success());
    let mut hidden = folder.list();
    hidden.retain(|name| name.starts_with('.'));
    hidden.sort();
    let kept = [".other.gguf.17.0.tmp", ".out.gguf.17.1.tmp", ".out.gguf.18.0.tmp"];
    assert_eq!(hidden, [&kept[..], &[".out.gguf.notes.tmp"]].concat());
}
