//! `gridmill split` and `gridmill merge`: names and keys of gguf-split, and the same bytes back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use gridmill::file::{Gguf, Value};

use crate::cli::{fails, succeeds, text};
use crate::models::{model_path, open};
use crate::scratch::Scratch;

/// A model in our own types, so that planes are split, too.
fn coded(folder: &Scratch) -> PathBuf {
    let (source, coded) = (model_path("llama.gguf"), folder.join("coded.gguf"));
    succeeds(&["convert", text(&source), text(&coded)]);
    coded
}

fn shard(folder: &Path, number: usize, count: usize) -> PathBuf {
    folder.join(format!("part-{number:05}-of-{count:05}.gguf"))
}

/// A split into `count` shards, each of which leads back to the file that was split.
#[track_caller]
fn check(source: &Path, limit: &[&str], count: usize, most: u64) {
    let folder = Scratch::new();
    let prefix = folder.join("part");
    let listed = succeeds(&[&["split", text(source), text(&prefix)], limit].concat());
    let paths: Vec<PathBuf> = (1..=count).map(|number| shard(&folder, number, count)).collect();
    let names: Vec<String> =
        paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_string()).collect();
    assert_eq!(folder.list(), names, "{limit:?}");
    let whole = fs::read(source).unwrap();
    let tensors = Gguf::parse(&whole).unwrap().tensors.len();
    for (number, path) in paths.iter().enumerate() {
        let bytes = fs::read(path).unwrap();
        assert!(listed.contains(&format!("{} ({} bytes)", path.display(), bytes.len())));
        assert!(bytes.len() as u64 <= most, "{}: {} bytes", path.display(), bytes.len());
        let metadata = Gguf::parse(&bytes).unwrap().metadata;
        // The types that gguf-split gives them.
        assert_eq!(metadata.get("split.no"), Some(&Value::U16(number as u16)));
        assert_eq!(metadata.get("split.count"), Some(&Value::U16(count as u16)));
        assert_eq!(metadata.get("split.tensors.count"), Some(&Value::I32(tensors as i32)));
        assert_eq!(metadata.len() == 3, number > 0, "the first shard has all other keys");

        let target = folder.join("whole.gguf");
        succeeds(&["merge", text(path), text(&target)]);
        assert!(fs::read(&target).unwrap() == whole, "{limit:?}: shard {number}");
    }
    let (before, after) = (open(source), open(&paths[0]));
    for (before, after) in before.tensors().zip(after.tensors()) {
        assert_eq!((&before.name, before.kind.name()), (&after.name, after.kind.name()));
        assert!(*before.codes == *after.codes && *before.norms == *after.norms);
    }
}

#[test]
fn a_split_is_merged_to_the_same_bytes() {
    let folder = Scratch::new();
    let coded = coded(&folder);
    let tensors = open(&coded).raw_tensors().count();
    check(&coded, &["--tensors", "1"], tensors, u64::MAX);
    check(&coded, &["--tensors", "20"], tensors.div_ceil(20), u64::MAX);
    check(&coded, &["--tensors", "1000"], 1, u64::MAX);
    let stock = model_path("llama.gguf");
    check(&stock, &["--size", "60000"], 4, 60_000);
    // The keys of a shard make it larger than the file: all fits this one, but for a byte.
    let alone = folder.join("alone");
    succeeds(&["split", text(&stock), text(&alone), "--tensors", "1000"]);
    let bytes = fs::metadata(folder.join("alone-00001-of-00001.gguf")).unwrap().len();
    check(&stock, &["--size", &bytes.to_string()], 1, bytes);
    check(&stock, &["--size", &(bytes - 1).to_string()], 2, bytes - 1);
    check(&stock, &["--size", "0.06MB"], 4, 60_000);
    // A tensor or the metadata may be larger than asked for.
    check(&stock, &["--size", "1"], open(&stock).raw_tensors().count(), u64::MAX);
}

/// A model that lies in shards is split again, without the keys of the first time.
#[test]
fn shards_are_split_again() {
    let folder = Scratch::new();
    let coded = coded(&folder);
    succeeds(&["split", text(&coded), text(&folder.join("part")), "--tensors", "30"]);
    let again = folder.join("again");
    succeeds(&["split", text(&shard(&folder, 1, 2)), text(&again), "--tensors", "15"]);
    let target = folder.join("whole.gguf");
    succeeds(&["merge", text(&folder.join("again-00003-of-00003.gguf")), text(&target)]);
    assert!(fs::read(&target).unwrap() == fs::read(&coded).unwrap());
}

#[test]
fn a_conversion_is_split_as_a_file_is() {
    let folder = Scratch::new();
    let coded = coded(&folder);
    succeeds(&["split", text(&coded), text(&folder.join("part")), "--size", "40000"]);
    let (source, target) = (model_path("llama.gguf"), folder.join("out.gguf"));
    let listed = succeeds(&["convert", text(&source), text(&target), "--split-size", "40000"]);
    assert!(listed.contains("out-00001-of-00002.gguf ("), "{listed}");
    let mut names = vec!["coded.gguf".to_string()];
    for prefix in ["out", "part"] {
        names.extend((1..=2).map(|number| format!("{prefix}-{number:05}-of-00002.gguf")));
    }
    assert_eq!(folder.list(), names, "the whole file is gone");
    for number in 1..=2 {
        let name = format!("out-{number:05}-of-00002.gguf");
        let same =
            fs::read(folder.join(&name)).unwrap() == fs::read(shard(&folder, number, 2)).unwrap();
        assert!(same, "{name}");
    }
}

#[test]
fn bad_splits_are_refused() {
    let folder = Scratch::new();
    let bytes = fs::read(model_path("llama.gguf")).unwrap();
    let model = folder.file("model.gguf", &bytes);
    let (model, prefix) = (text(&model), folder.join("part"));
    let prefix = text(&prefix);
    for size in ["0", "0.5", "-1", "many"] {
        fails(&["split", model, prefix, &format!("--size={size}")], 2, "expected a size");
    }
    fails(&["split", model, prefix, "--tensors", "0"], 2, "--tensors");
    fails(&["split", model, prefix], 2, "--size");
    fails(&["split", model, prefix, "--size", "1MB", "--tensors", "1"], 2, "cannot be used with");
    let notes = folder.file("notes.txt", b"not a model");
    fails(&["split", text(&notes), prefix, "--tensors", "1"], 1, "not a GGUF file");
    let slash = format!("{}/", text(&folder));
    let message = "expected the beginning of a file name";
    fails(&["split", model, &slash, "--tensors", "1"], 1, message);
    let nowhere = folder.join("nowhere/part");
    fails(&["split", model, text(&nowhere), "--tensors", "1"], 1, "does not exist");

    // The second shard cannot be written, so the first one goes.
    let taken = folder.join("part-00002-of-00002.gguf");
    fs::create_dir(&taken).unwrap();
    fails(&["split", model, prefix, "--tensors", "15"], 1, "is a folder");
    fs::remove_dir(&taken).unwrap();
    assert_eq!(folder.list(), ["model.gguf", "notes.txt"]);

    succeeds(&["split", model, prefix, "--tensors", "15"]);
    let first = shard(&folder, 1, 2);
    let again = ["split", text(&first), prefix, "--tensors", "15"];
    fails(&again, 1, "is the same file as the source");
    let convert = ["convert", text(&first), prefix, "--to", "F32", "--split-size", "200000"];
    fails(&convert, 1, "is the same file as the source");
    let target = folder.join("whole.gguf");
    succeeds(&["merge", text(&first), text(&target)]);
    assert!(fs::read(&target).unwrap() == bytes, "the shards are what they were");
}

#[test]
fn bad_merges_are_refused() {
    let folder = Scratch::new();
    let whole = model_path("llama.gguf");
    succeeds(&["split", text(&whole), text(&folder.join("part")), "--tensors", "8"]);
    let (first, last) = (shard(&folder, 1, 3), shard(&folder, 3, 3));
    let target = folder.join("out.gguf");
    let target = text(&target);
    fails(&["merge", text(&whole), target], 1, "expected a shard of a split model");
    fails(&["merge", text(&first), text(&last)], 1, "is the same file as the source");
    let notes = folder.file("notes.txt", b"not a model");
    fails(&["merge", text(&notes), target], 1, "not a GGUF file");
    let renamed = folder.file("renamed.gguf", &fs::read(&first).unwrap());
    fails(&["merge", text(&renamed), target], 1, "its name does not end in");
    fs::remove_file(&renamed).unwrap();
    let second = shard(&folder, 2, 3);
    fs::remove_file(&second).unwrap();
    fails(&["merge", text(&first), target], 1, "shard 2 of 3 is missing");
    fs::copy(&first, &second).unwrap();
    fails(&["merge", text(&first), target], 1, "`split.no` is 0, expected 1");
    assert!(!Path::new(target).exists());
}

/// What one process writes is what several write side by side, one of which was killed and began
/// again.
#[test]
fn machines_side_by_side_write_what_one_writes() {
    let folder = Scratch::new();
    // What is measured is kept beside the model.
    let source = folder.file("model.gguf", &fs::read(model_path("llama.gguf")).unwrap());
    let (whole, target) = (folder.join("whole.gguf"), folder.join("out.gguf"));
    let ways: [&[&str]; 3] = [
        &["--to", "higgs4"],
        &["--to", "VPTQ_V4_K16_R16"],
        &["--calibrate", "none", "--bits", "4"],
    ];
    for (way, count) in ways.into_iter().zip([3, 2, 4]) {
        let convert = |target: &Path, more: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_gridmill"));
            command.args(["convert", text(&source), text(target)]).args(way).args(more);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        assert!(convert(&whole, &[]).wait().unwrap().success());
        let share = |number: usize| convert(&target, &["--shard", &format!("{number}/{count}")]);
        let mut killed = share(2);
        killed.kill().unwrap();
        killed.wait().unwrap();
        let all: Vec<_> = (1..=count).map(share).collect();
        all.into_iter().for_each(|mut process| assert!(process.wait().unwrap().success()));
        let first = folder.join(format!("out-00001-of-{count:05}.gguf"));
        let sizes = (1..=count).map(|number| {
            let name = format!("out-{number:05}-of-{count:05}.gguf");
            Gguf::parse(&fs::read(folder.join(name)).unwrap()).unwrap().tensors.len()
        });
        assert!(sizes.min() > Some(0), "every shard has tensors");
        let joined = folder.join("joined.gguf");
        succeeds(&["merge", text(&first), text(&joined)]);
        assert!(fs::read(&joined).unwrap() == fs::read(&whole).unwrap(), "{way:?}");
    }
}

#[test]
fn shares_that_cannot_be() {
    let folder = Scratch::new();
    let (source, target) = (model_path("llama.gguf"), folder.join("out.gguf"));
    let convert = |more: &[&str], code, message: &str| {
        fails(&[&["convert", text(&source), text(&target)], more].concat(), code, message);
    };
    for shard in ["0/3", "4/3", "1", "1/x", "/"] {
        let message = format!("expected a shard as 2/3, found `{shard}`");
        convert(&["--shard", shard], 2, &message);
    }
    convert(&["--shard", "1/999"], 1, "--shard: expected at most ");
    convert(&["--shard", "1/3", "--fine-tune"], 2, "cannot be used with");
    convert(&["--shard", "1/3", "--split-size", "1MB"], 2, "cannot be used with");
    assert!(folder.list().is_empty());
}

#[test]
fn shards_of_two_conversions_do_not_merge() {
    let folder = Scratch::new();
    let (source, target) = (model_path("llama.gguf"), folder.join("out.gguf"));
    for (shard, seed) in [("1/2", "1"), ("2/2", "2")] {
        let args = ["convert", text(&source), text(&target), "--shard", shard, "--seed", seed];
        succeeds(&args);
    }
    let [first, second] =
        ["out-00001-of-00002.gguf", "out-00002-of-00002.gguf"].map(|name| folder.join(name));
    let message = format!("{}: `split.conversion` is ", second.display());
    fails(&["merge", text(&first), text(&folder.join("joined.gguf"))], 1, &message);
    fails(&["inspect", text(&first)], 1, "all shards must come from one source with the same");
    assert!(!folder.join("joined.gguf").exists());
}
