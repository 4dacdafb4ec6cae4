//! SentencePiece in folders: `tokenizer.model` and `tokenizer.json` against the libraries that the
//! files are for (`tests/data/pieces/make.py`), and files that must be refused.

use std::fs;
use std::path::{Path, PathBuf};

use gridmill::convert::import;
use gridmill::file::Source;
use gridmill::run::tokenizer::tokenizer;
use gridmill::text::vocab::TokenKind;
use serde_json::{Value as Json, json};

use crate::folder::{Folder, write_json};
use crate::import::{converted, options};
use crate::scratch::Scratch;

/// Rows of the embedding: some more than there are tokens.
const ROWS: usize = 512;
const TOKENS: usize = 420;

fn data(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pieces");
    fs::read(folder.join(name)).expect("committed")
}

/// A model of the repository with more rows, and without a tokenizer.
fn folder(folder: &Scratch, rows: usize, config: Json) -> PathBuf {
    let mut made = Folder::of("llama", "LlamaForCausalLM", json!({"vocab_size": rows}));
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let tensor = made.tensor(name);
        let times = rows.div_ceil(tensor.shape[0]);
        tensor.bytes = tensor.bytes.repeat(times);
        tensor.bytes.truncate(rows * tensor.shape[1] * 2);
        tensor.shape[0] = rows;
    }
    made.tokenizer_config = config;
    let path = made.write(folder);
    fs::remove_file(path.join("tokenizer.json")).expect("it was written");
    path
}

fn check_texts(source: &Source, file: &str, place: &str) {
    let golden: Json = serde_json::from_slice(&data("golden.json")).expect("JSON");
    let golden = &golden[file];
    let tokenizer = tokenizer(source).expect("a tokenizer");
    for pair in golden.as_array().expect("pairs") {
        let text = pair[0].as_str().expect("a text");
        let expected: Vec<u32> = serde_json::from_value(pair[1].clone()).expect("ids");
        let found = tokenizer.encode(text, false).expect("a short text");
        assert_eq!(found, expected, "{place}: {text:?}");
        let bytes: Vec<u8> =
            found.iter().flat_map(|&id| tokenizer.piece(id, true)).copied().collect();
        let text = text.replace('\u{2581}', " ");
        let spelt = String::from_utf8(bytes).expect("whole characters");
        assert!(spelt == text || spelt.strip_prefix(' ') == Some(&*text), "{place}: {spelt:?}");
    }
    assert_eq!(golden.as_array().map(Vec::len), Some(10));
}

#[test]
fn texts_are_cut_as_the_libraries_do() {
    let config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}});
    for name in ["prefix", "plain"] {
        for files in [&["model"][..], &["json"], &["model", "json"]] {
            let (scratch, out) = (Scratch::new(), Scratch::new());
            let path = folder(&scratch, ROWS, config.clone());
            for end in files {
                let content = data(&format!("{name}.{end}"));
                scratch.file(&format!("tokenizer.{end}"), &content);
            }
            let place = format!("{name} {files:?}");
            let source = import::open(&path).unwrap_or_else(|error| panic!("{place}: {error}"));
            let source = converted(&source, &out.join("out.gguf"), &options(Some("F16")));
            check_texts(&source, &format!("{name}.{}", files[0]), &place);
            let metadata = source.metadata();
            let key = |key: &str| format!("tokenizer.ggml.{key}");
            assert_eq!(metadata.get_str(&key("model")).unwrap(), Some("llama"), "{place}");
            let prefix = metadata.get_bool(&key("add_space_prefix")).unwrap();
            assert_eq!(prefix, Some(name == "prefix"), "{place}");
            let ids = ["unknown", "bos", "eos"].map(|name| format!("{name}_token_id"));
            let ids = ids.map(|name| metadata.get_u32(&key(&name)).unwrap());
            // A configuration of `transformers` names no unknown token here.
            let unknown = files.contains(&"model").then_some(0);
            assert_eq!(ids, [unknown, Some(1), Some(2)], "{place}");
            let scores = metadata.get_f32s(&key("scores")).unwrap().expect("scores");
            assert_eq!(scores.len(), ROWS, "{place}");
            let tokenizer = tokenizer(&source).expect("a tokenizer");
            let count = |kind| (0..ROWS as u32).filter(|&id| tokenizer.kind(id) == kind).count();
            assert_eq!(count(TokenKind::Byte), 256, "{place}");
            assert_eq!(count(TokenKind::Unused), ROWS - TOKENS, "{place}");
            assert_eq!((tokenizer.kind(0), tokenizer.kind(1)), KINDS, "{place}");
        }
    }
}

const KINDS: (TokenKind, TokenKind) = (TokenKind::Unknown, TokenKind::Control);

/// A space, a turn's end and an image: two in the tables of a row, one without.
#[test]
fn other_files_add_tokens() {
    let scratch = Scratch::new();
    let config = json!({
        "add_bos_token": false,
        "add_prefix_space": false,
        "added_tokens_decoder": {
            "421": {"content": "<|user|>", "special": false},
            "422": {"content": "</turn>", "special": false},
            "512": {"content": "<image>", "special": true},
        },
    });
    let path = folder(&scratch, ROWS, config);
    scratch.file("tokenizer.model", &data("prefix.model"));
    write_json(&scratch, "added_tokens.json", &json!({"<more>": 423, "<far>": 600}));
    let source = import::open(&path).expect("a folder of ours");
    let tokenizer = tokenizer(&source).expect("a tokenizer");
    let found = [421, 422, 423].map(|id| (tokenizer.text(id), tokenizer.kind(id)));
    let own = TokenKind::UserDefined;
    assert_eq!(found, [("<|user|>", TokenKind::Control), ("</turn>", own), ("<more>", own)]);
    assert!(!tokenizer.add_bos() && tokenizer.len() == ROWS);
    assert_eq!(tokenizer.encode("</turn><more>", false).unwrap(), [422, 423]);
    assert_eq!(source.metadata().get_bool("tokenizer.ggml.add_space_prefix").unwrap(), Some(false));
}

/// A field of a message: `field << 3 | kind`.
fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
    let len = u8::try_from(content.len()).expect("a short one");
    assert!(len < 0x80, "one byte of a length");
    [&[number << 3 | 2, len], content].concat()
}

fn number(number: u8, value: u8) -> Vec<u8> {
    vec![number << 3, value]
}

fn float(number: u8, value: f32) -> Vec<u8> {
    [&[number << 3 | 5][..], &value.to_le_bytes()].concat()
}

fn refused(rows: usize, model: &[u8]) -> String {
    let scratch = Scratch::new();
    let path = folder(&scratch, rows, json!({}));
    scratch.file("tokenizer.model", model);
    let error = import::open(&path).err().expect("a folder to refuse").to_string();
    let start = format!("{}: tokenizer.model: ", path.display());
    error.strip_prefix(&start).unwrap_or_else(|| panic!("no path in: {error}")).to_string()
}

#[test]
fn wrong_models() {
    let piece = bytes(1, &[bytes(1, b"a"), float(2, -1.0)].concat());
    let bpe = bytes(2, &number(3, 2));
    let plain = bytes(3, &number(4, 0));
    let good = [&piece[..], &bpe, &plain].concat();
    let with = |more: &[u8]| [&good[..], more].concat();
    let cases: [(Vec<u8>, &str); 14] = [
        (Vec::new(), "no pieces"),
        ([&bpe[..], &plain].concat(), "no pieces"),
        (vec![0x0a], "byte 0 of 1: expected a whole field, found 0x0a and too little"),
        (vec![0x0a, 5, 1], "byte 0 of 3: expected a whole field, found 0x0a and too little"),
        (vec![0x0b], "byte 0 of 1: expected a whole field, found 0x0b and too little"),
        (
            [&[0x0a][..], &[0xff; 9], &[1]].concat(),
            "byte 0 of 11: expected a whole field, found 0x0a and too little",
        ),
        (vec![0x80; 11], "byte 0 of 11: expected a whole field, found 0x80 and too little"),
        (
            with(&bytes(1, &bytes(1, b"\xff"))),
            "piece 1: invalid utf-8 sequence of 1 bytes from index 0",
        ),
        (with(&bytes(1, &number(3, 7))), "piece 1: type: expected 1 to 6, found 7"),
        (
            with(&bytes(1, &float(2, f32::NAN))),
            "piece 1: score: expected a finite number, found NaN",
        ),
        (with(&bytes(2, &number(3, 1))), "model_type: expected 2, byte-pair encoding, found 1"),
        (
            with(&bytes(3, &[bytes(2, b"rules"), number(4, 0)].concat())),
            "normalizer_spec: 5 bytes of rules that rewrite texts are not supported",
        ),
        (
            with(&bytes(3, &number(4, 1))),
            "normalizer_spec: remove_extra_whitespaces is not supported",
        ),
        (with(&piece.repeat(4)), "5 pieces, but the embedding has 4 rows"),
    ];
    for (model, expected) in cases {
        assert_eq!(refused(4, &model), expected);
    }
    assert_eq!(refused(128, &data("plain.model")), "420 pieces, but the embedding has 128 rows");
}

/// No beginning of a model is one, and no changed byte ends in a panic.
#[test]
fn damaged_models() {
    let scratch = Scratch::new();
    let path = folder(&scratch, ROWS, json!({}));
    let whole = data("prefix.model");
    for len in (0..whole.len()).step_by(53) {
        scratch.file("tokenizer.model", &whole[..len]);
        assert!(import::open(&path).is_err(), "{len} bytes of {}", whole.len());
    }
    for at in (0..whole.len()).step_by(29) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x85;
        scratch.file("tokenizer.model", &damaged);
        let _ = import::open(&path).map(|source| tokenizer(&source).map(|_| ()));
    }
}

#[test]
fn wrong_json() {
    let check = |edit: fn(&mut Json), expected: &str| {
        let scratch = Scratch::new();
        let path = folder(&scratch, ROWS, json!({}));
        let mut file: Json = serde_json::from_slice(&data("prefix.json")).expect("JSON");
        edit(&mut file);
        write_json(&scratch, "tokenizer.json", &file);
        let error = import::open(&path).err().expect("a folder to refuse").to_string();
        assert_eq!(error, format!("{}: tokenizer.json: {expected}", path.display()));
    };
    check(
        |file| file["model"]["type"] = json!("Unigram"),
        "model of type `Unigram` is not supported, expected BPE",
    );
    check(
        |file| file["model"]["vocab"]["far"] = json!(512),
        "token `far` has id 512, but the embedding has 512 rows",
    );
    check(
        |file| file["decoder"] = json!(null),
        "the tokenizer does not bring texts back as they were",
    );
    check(
        |file| {
            let pattern = json!({"String": "e"});
            let split = json!({"type": "Split", "pattern": pattern, "invert": false});
            file["pre_tokenizer"] = split;
            file["pre_tokenizer"]["behavior"] = json!("Isolated");
        },
        "merging by scores does not cut texts as this tokenizer does",
    );
    let scratch = Scratch::new();
    let path = folder(&scratch, ROWS, json!({}));
    let error = import::open(&path).err().expect("a folder to refuse").to_string();
    let expected = "the folder has no tokenizer.json and no tokenizer.model";
    assert_eq!(error, format!("{}: {expected}", path.display()));
}
