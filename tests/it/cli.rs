//! The program from outside: what it prints, its exit codes, and what it does with bad input.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use gridmill::file::{Metadata, NewTensor, Source, Value, Writer};
use gridmill::types::raw;

use crate::models::{model_path, open};
use crate::scratch::Scratch;

pub(crate) fn gridmill(args: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_gridmill")).args(args).output();
    output.expect("the program starts")
}

pub(crate) fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("stdout is UTF-8")
}

pub(crate) fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("stderr is UTF-8")
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

#[track_caller]
pub(crate) fn succeeds(args: &[&str]) -> String {
    let output = gridmill(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    stdout(&output).to_string()
}

/// The program fails with this code, and stderr holds this text and no trace of a panic.
#[track_caller]
pub(crate) fn fails(args: &[&str], code: i32, message: &str) {
    let output = gridmill(args);
    let found = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {found}");
    assert!(found.contains(message), "{args:?}: expected {message:?} in {found:?}");
    assert!(!found.contains("panicked"), "{args:?}: {found}");
}

pub(crate) fn json(args: &[&str]) -> serde_json::Value {
    let text = succeeds(args);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// A copy of a golden model with other metadata.
fn edited(folder: &Scratch, name: &str, edit: impl FnOnce(&mut Metadata)) -> PathBuf {
    let source = open(&model_path("llama.gguf"));
    let mut metadata = source.metadata().clone();
    edit(&mut metadata);
    let raws: Vec<_> = source.raw_tensors().collect();
    let new = |raw: &gridmill::file::RawTensor| {
        NewTensor::new(&raw.info.name, &raw.info.shape, raw.info.kind).expect("as it was")
    };
    let path = folder.join(name);
    let tensors = raws.iter().map(new).collect();
    let mut writer = Writer::create(&path, &[], &metadata, tensors).expect("a new file");
    for raw in &raws {
        writer.write(&source.raw_bytes(raw)).expect("room on the disk");
    }
    writer.finish().expect("all is written");
    path
}

/// A vocabulary with which a conversion takes a while.
fn large(folder: &Scratch) -> PathBuf {
    one_layer(folder, 24_000)
}

/// One layer of a model whose rows fit every type.
pub(crate) fn one_layer(folder: &Scratch, vocabulary: u64) -> PathBuf {
    let embed = 512u64;
    let mut metadata = Metadata::new();
    let mut set = |key: &str, value| metadata.set(key, value);
    set("general.architecture", Value::String("llama".to_string()));
    for (key, value) in [
        ("embedding_length", embed),
        ("block_count", 1),
        ("feed_forward_length", embed),
        ("context_length", 64),
        ("attention.head_count", 8),
    ] {
        set(&format!("llama.{key}"), Value::U32(value as u32));
    }
    set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    let matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let mut shapes = vec![("token_embd.weight".to_string(), vec![embed, vocabulary])];
    shapes.push(("output_norm.weight".to_string(), vec![embed]));
    shapes.push(("blk.0.attn_norm.weight".to_string(), vec![embed]));
    shapes.push(("blk.0.ffn_norm.weight".to_string(), vec![embed]));
    let matrix = |name: &&str| (format!("blk.0.{name}.weight"), vec![embed, embed]);
    shapes.extend(matrices.iter().map(matrix));
    let kind = raw::find(0, &[]).expect("plain floats");
    let new = |(name, shape): &(String, Vec<u64>)| NewTensor::new(name, shape, kind).expect("fits");
    let path = folder.join("large.gguf");
    let tensors: Vec<NewTensor> = shapes.iter().map(new).collect();
    let bytes: u64 = tensors.iter().map(NewTensor::bytes).sum();
    let mut writer = Writer::create(&path, &[], &metadata, tensors).expect("a new file");
    let values: Vec<u8> =
        (0..bytes / 4).flat_map(|i| ((i % 251) as f32 - 125.0).to_le_bytes()).collect();
    writer.write(&values).expect("room on the disk");
    writer.finish().expect("all is written");
    path
}

#[test]
fn usage() {
    assert!(succeeds(&["--help"]).contains("convert"));
    assert!(succeeds(&["--version"]).starts_with("gridmill "));
    fails(&[], 2, "Usage");
    fails(&["fly"], 2, "unrecognized subcommand 'fly'");
    fails(&["convert", "a.gguf", "b.gguf", "--to", "Q9_9"], 2, "`Q9_9`");
    fails(&["run", "a.gguf", "-p", "x", "--simd", "mmx"], 2, "no instruction set `mmx`");
    fails(&["run", "a.gguf", "-p", "x", "--device", "abacus"], 2, "no device `abacus`");
    fails(&["run", "a.gguf", "-p", "x", "--gpu-layers", "x"], 2, "a number of layers or auto");
    fails(&["run", "a.gguf", "-p", "x", "--gpu-memory", "-1"], 2, "--gpu-memory");
    fails(&["run", "a.gguf", "-p", "x", "--top-p", "2"], 2, "expected a number from 0 to 1");
    fails(&["run", "a.gguf", "-p", "x", "--ctx", "0"], 2, "--ctx");
}

#[test]
fn a_conversion_runs_and_is_described() {
    let folder = Scratch::new();
    let (source, target) = (model_path("llama.gguf"), folder.join("out.gguf"));
    let table = succeeds(&["convert", text(&source), text(&target), "--to", "higgs4"]);
    assert!(table.contains("HIGGS_P2_N256"), "{table}");
    assert_eq!(folder.list(), ["out.gguf"], "nothing is left beside the target");

    let tensors = &json(&["inspect", text(&target), "--json"])["tensors"];
    let find = |name: &str| {
        let found =
            tensors.as_array().expect("a list").iter().find(|tensor| tensor["name"] == name);
        found.unwrap_or_else(|| panic!("no {name}")).clone()
    };
    assert_eq!(find("blk.0.attn_q.weight")["type"], "HIGGS_P2_N256");
    assert_eq!(find("blk.0.attn_norm.weight")["type"], "F32");
    assert!(find("blk.0.ffn_up.weight")["bits_per_weight"].as_f64().is_some_and(|bits| bits < 5.1));

    let args = ["-p", "Hello", "-n", "4", "--temp", "0", "--ignore-eos"];
    let run = |model: &Path| succeeds(&[&["run", text(model)], &args[..]].concat());
    assert_eq!(run(&target), run(&target), "greedy text is the same every time");
    let bench = json(&["bench", text(&target), "-p", "8", "-n", "2", "-r", "1", "--json"]);
    assert!(bench["prompt_tps"].as_f64().is_some_and(|rate| rate > 0.0), "{bench}");
    assert!(bench["generate_tps"].as_f64().is_some_and(|rate| rate > 0.0), "{bench}");
    assert!(succeeds(&["verify", text(&target)]).contains("every op agrees"));
}

#[test]
fn shapes_run_and_are_saved() {
    let folder = Scratch::new();
    let few = ["-p", "8", "-n", "2", "-r", "1"];
    for kind in ["higgs4", "higgs2", "vptq2.25", "q8_0", "f16"] {
        let file = folder.join(kind);
        let made = ["--shape", "tiny", "--to", kind, "--save", text(&file), "-d", "5", "--json"];
        let made = json(&[&["bench"], &made[..], &few].concat());
        assert!(made["generate_tps"].as_f64().is_some_and(|rate| rate > 0.0), "{made}");
        assert_eq!(made["depth"], 5);
        let opened = json(&[&["bench", text(&file), "--json"], &few[..]].concat());
        assert!(opened["load_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{opened}");
        assert_eq!(made["token_bytes"], opened["token_bytes"], "{kind}");
        let bytes = |bench: &serde_json::Value| bench["model_bytes"].as_u64().expect("a number");
        assert_eq!(bytes(&opened), fs::metadata(&file).unwrap().len());
        // The file has a head, the embedding is read a row at a time.
        assert!(bytes(&made) < bytes(&opened) && made["token_bytes"].as_u64() < Some(bytes(&made)));
        // The same bytes every time: seeded, and on any number of threads.
        let again = folder.join("again");
        succeeds(&["bench", "--shape", "tiny", "--to", kind, "--save", text(&again), "-r", "0"]);
        assert!(fs::read(&file).unwrap() == fs::read(&again).unwrap(), "{kind}");
    }
    let table = succeeds(&[&["bench", "--shape", "tiny", "--group", "32"], &few[..]].concat());
    assert!(table.contains(" bytes, "), "{table}");

    fails(&["bench"], 2, "required arguments");
    fails(&["bench", "--shape", "9b"], 2, "no shape `9b`");
    fails(&["bench", "--shape", "tiny", "--to", "q3_k"], 2, "a type that can be written");
    fails(&["bench", "--shape", "tiny", "--group", "24"], 1, "expected a group");
    fails(&["bench", "a.gguf", "--shape", "tiny"], 2, "cannot be used with");
    fails(&["bench", "a.gguf", "--to", "higgs4"], 2, "cannot be used with");
    fails(&["bench", "a.gguf", "--save", "b.gguf"], 2, "cannot be used with");
}

#[test]
fn bytes_do_not_depend_on_threads_or_form() {
    let folder = Scratch::new();
    let source = model_path("qwen3.gguf");
    let convert = |name: &str, threads: &str, form: &[&str]| {
        let path = folder.join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_gridmill"));
        command.env("RAYON_NUM_THREADS", threads).args(["convert", text(&source), text(&path)]);
        let output = command.args(form).output().expect("the program starts");
        assert!(output.status.success(), "{}", stderr(&output));
        path
    };
    let one = convert("one.gguf", "1", &[]);
    let two = convert("two.gguf", "2", &[]);
    assert!(fs::read(&one).unwrap() == fs::read(&two).unwrap(), "1 and 2 threads");

    // Native types carry the same planes under other numbers.
    let native = convert("native.gguf", "2", &["--native-types"]);
    let (planes, native) = (open(&one), open(&native));
    for (a, b) in planes.tensors().zip(native.tensors()) {
        assert_eq!((&a.name, a.kind.name()), (&b.name, b.kind.name()));
        assert!(*a.codes == *b.codes && *a.norms == *b.norms && *a.signs == *b.signs, "{}", a.name);
    }
}

#[test]
fn perplexity_compares_with_what_it_saved() {
    let folder = Scratch::new();
    let model = model_path("llama.gguf");
    let model = text(&model);
    let words = folder.file("words.txt", "the cat sat on the mat and ".repeat(20).as_bytes());
    let base = folder.join("base.logits");
    let common = ["perplexity", model, text(&words), "--ctx", "32", "--json", "--kv-type", "f32"];
    let saved = json(&[&common[..], &["--save-logits", text(&base)]].concat());
    let again = json(&[&common[..], &["--against", text(&base)]].concat());
    assert_eq!(saved["perplexity"], again["perplexity"]);
    // The file rounds to 1 / 65535 of the range of log-probabilities.
    assert!(again["kl_mean"].as_f64().is_some_and(|kl| kl.abs() < 1e-6), "{again}");
    assert_eq!(again["same_top1"], 1.0);

    let other = folder.file("other.txt", "a dog ran off with a bone ".repeat(20).as_bytes());
    let against = ["perplexity", model, text(&other), "--ctx", "32", "--against", text(&base)];
    fails(&against, 1, "made from another text");
    let whole = fs::read(&base).unwrap();
    let cut = folder.file("cut.logits", &whole[..whole.len() - 7]);
    let against = ["perplexity", model, text(&words), "--ctx", "32", "--against", text(&cut)];
    fails(&against, 1, "logits file: expected");
    let short = folder.file("short.txt", b"hi");
    fails(&["perplexity", model, text(&short)], 1, "text: expected at least 512 tokens, found");
}

#[test]
fn tokenizing_needs_a_tokenizer_and_text() {
    let folder = Scratch::new();
    let none = edited(&folder, "none.gguf", |metadata| {
        metadata.remove_prefix("tokenizer.");
    });
    fails(&["tokenize", text(&none), "--text", "hi"], 1, "no tokenizer");
    fails(&["run", text(&none), "-p", "hi"], 1, "no tokenizer");
    let odd = edited(&folder, "odd.gguf", |metadata| {
        metadata.set("tokenizer.ggml.pre", Value::String("zigzag".to_string()));
    });
    fails(&["tokenize", text(&odd), "--text", "hi"], 1, "zigzag");
    let bytes = folder.file("latin1.txt", b"caf\xe9");
    let model = model_path("llama.gguf");
    fails(&["tokenize", text(&model), "--file", text(&bytes)], 1, "byte 3 that is not");
    let ids = json(&["tokenize", text(&model), "--text", "hi", "--json"]);
    assert!(ids["ids"].as_array().is_some_and(|ids| !ids.is_empty()), "{ids}");
}

#[cfg(unix)]
#[test]
fn a_prompt_must_be_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let mut command = Command::new(env!("CARGO_BIN_EXE_gridmill"));
    command.arg("run").arg(model_path("llama.gguf")).arg("-p");
    let output = command.arg(std::ffi::OsStr::from_bytes(b"caf\xe9")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("the prompt is not UTF-8"), "{}", stderr(&output));
}

#[test]
fn chat_reads_lines_and_survives_bad_templates() {
    let folder = Scratch::new();
    let template = |name: &str, source: &str| {
        let source = source.to_string();
        edited(&folder, name, |metadata| {
            metadata.set("tokenizer.chat_template", Value::String(source));
        })
    };
    let say = |model: &Path, lines: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gridmill"));
        command.args(["chat", text(model), "-n", "3", "--temp", "0"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let good = template("good.gguf", "{% for m in messages %}{{ m.content }}{% endfor %}");
    let output = say(&good, "hello\n/stats\n/fly\n/reset\n/help\n/exit\n");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for expected in ["per second", "tokens of context in use", "no command `/fly`", "/save FILE"] {
        assert!(stderr(&output).contains(expected), "{expected:?} in {}", stderr(&output));
    }
    let raising = template("raising.gguf", "{{ raise_exception('no system role here') }}");
    let output = say(&raising, "hello\n");
    assert!(stderr(&output).contains("no system role here"), "{}", stderr(&output));
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    let broken = template("broken.gguf", "{% for %}");
    assert_eq!(say(&broken, "hello\n").status.code(), Some(1));
    let none = model_path("llama.gguf");
    fails(&["chat", text(&none)], 1, "no chat template");
}

#[test]
fn convert_protects_source_and_target() {
    let folder = Scratch::new();
    let bytes = fs::read(model_path("llama.gguf")).unwrap();
    let source = folder.file("model.gguf", &bytes);
    let same = "is the same file as the source";
    fails(&["convert", text(&source), text(&source)], 1, same);
    let link = folder.join("link.gguf");
    fs::hard_link(&source, &link).unwrap();
    fails(&["convert", text(&source), text(&link)], 1, same);
    let missing = folder.join("nowhere").join("out.gguf");
    fails(&["convert", text(&source), text(&missing)], 1, "nowhere");
    fails(
        &["convert", text(&source), text(&folder)],
        1,
        "is a folder, expected the name of a file",
    );
    fails(&["convert", "absent.gguf", text(&link)], 1, "absent.gguf");
    let pattern =
        ["convert", text(&source), "out.gguf", "--tensor-type", "blk.99=F16", "--dry-run"];
    fails(&pattern, 1, "matches no tensor");
    assert!(fs::read(&source).unwrap() == bytes, "the source is what it was");
    assert_eq!(folder.list(), ["link.gguf", "model.gguf"]);
}

#[test]
fn weights_must_be_finite() {
    let folder = Scratch::new();
    let path = model_path("llama.gguf");
    let mut bytes = fs::read(&path).unwrap();
    let source = Source::open(&path).unwrap();
    let raw = source.raw_tensor("blk.0.ffn_up.weight").unwrap();
    let infinity = half::f16::INFINITY.to_le_bytes();
    bytes[raw.offset as usize + 4..][..2].copy_from_slice(&infinity);
    let broken = folder.file("broken.gguf", &bytes);
    let target = folder.join("out.gguf");
    let args = ["convert", text(&broken), text(&target)];
    let message = "tensor `blk.0.ffn_up.weight`: expected finite weights, found inf in row 0, \
                   column 2";
    fails(&args, 1, message);
    assert_eq!(folder.list(), ["broken.gguf"]);
}

#[cfg(unix)]
#[test]
fn a_killed_conversion_leaves_no_target() {
    let folder = Scratch::new();
    let source = large(&folder);
    let target = folder.join("out.gguf");
    let before = fs::read(&source).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_gridmill"));
    command.args(["convert", text(&source), text(&target)]).stdout(Stdio::null());
    let mut child = command.spawn().expect("the program starts");
    let started = Instant::now();
    let begun = |name: &String| name.contains("tmp");
    while !folder.list().iter().any(begun) {
        assert!(started.elapsed() < Duration::from_secs(60), "it begins to write");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("it is still running");
    let status = child.wait().expect("it ends");
    assert!(!status.success(), "it was killed in the middle");
    assert!(!target.exists(), "nothing has the final name");
    assert!(fs::read(&source).unwrap() == before, "the source is what it was");
}

#[cfg(unix)]
#[test]
fn a_limit_on_file_size_is_an_error() {
    let folder = Scratch::new();
    let source = large(&folder);
    let target = folder.join("out.gguf");
    let program = env!("CARGO_BIN_EXE_gridmill");
    let script =
        format!("ulimit -f 1000; exec '{program}' convert '{}' '{}'", text(&source), text(&target));
    let output = Command::new("sh").args(["-c", &script]).output().expect("a shell");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("out.gguf"), "{}", stderr(&output));
    assert_eq!(folder.list(), ["large.gguf"]);
}
