//! `gridmill repack`: the two forms of a file are each other's, byte for byte.

use std::fs;

use crate::cli::{fails, succeeds, text};
use crate::models::model_path;
use crate::scratch::Scratch;

/// Both forms that `convert` writes turn into each other, and each into itself.
#[track_caller]
fn check(model: &str, kind: &str, differ: bool) {
    let folder = Scratch::new();
    let source = model_path(model);
    let convert = |name: &str, more: &[&str]| {
        let path = folder.join(name);
        succeeds(&[&["convert", text(&source), text(&path), "--to", kind], more].concat());
        path
    };
    let planes = convert("planes.gguf", &[]);
    let native = convert("native.gguf", &["--native-types"]);
    let forms = [("--planes", &planes), ("--native-types", &native)];
    for from in [&planes, &native] {
        for (flag, expected) in forms {
            let target = folder.join("out.gguf");
            succeeds(&["repack", text(from), text(&target), flag]);
            let same = fs::read(&target).unwrap() == fs::read(expected).unwrap();
            assert!(same, "{model} as {kind}: {} {flag}", from.display());
        }
    }
    assert_eq!(fs::read(&planes).unwrap() != fs::read(&native).unwrap(), differ, "{kind}");
}

#[test]
fn there_and_back() {
    check("llama.gguf", "higgs4", true);
    check("qwen3.gguf", "higgs2", true);
    check("gemma3.gguf", "HIGGS_P1_N32", true);
    // Codes that rows share have one form; the vocabulary's grid has both.
    check("llama.gguf", "VPTQ_V3_K16", true);
    check("qwen2.gguf", "VPTQ_V4_K16_R16", true);
}

#[test]
fn shards_become_one_file() {
    let folder = Scratch::new();
    let (source, whole) = (model_path("llama.gguf"), folder.join("whole.gguf"));
    succeeds(&["convert", text(&source), text(&whole)]);
    succeeds(&["split", text(&whole), text(&folder.join("part")), "--tensors", "15"]);
    let (shard, target) = (folder.join("part-00001-of-00003.gguf"), folder.join("out.gguf"));
    succeeds(&["repack", text(&shard), text(&target), "--planes"]);
    assert!(fs::read(&target).unwrap() == fs::read(&whole).unwrap());
}

#[test]
fn bad_input_is_refused() {
    let folder = Scratch::new();
    let coded = folder.join("coded.gguf");
    let stock = model_path("llama.gguf");
    succeeds(&["convert", text(&stock), text(&coded)]);
    let before = fs::read(&coded).unwrap();
    let target = folder.join("out.gguf");
    let (coded, target) = (text(&coded), text(&target));
    fails(&["repack", coded, coded, "--planes"], 1, "is the same file as the source");
    fails(&["repack", text(&stock), target, "--planes"], 1, "no weight has a type that could be");
    let notes = folder.file("notes.txt", b"not a model");
    fails(&["repack", text(&notes), target, "--planes"], 1, "not a GGUF file");
    fails(&["repack", coded, target], 2, "--native-types");
    fails(&["repack", coded, target, "--planes", "--native-types"], 2, "cannot be used with");
    assert!(fs::read(coded).unwrap() == before, "the source is what it was");
    assert_eq!(folder.list(), ["coded.gguf", "notes.txt"]);
}
