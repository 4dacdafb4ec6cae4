//! Any text as the files of a Hugging Face folder: what opens has a tokenizer that tokenizes, and a
//! plan, or says why not.
//!
//! Input: `config.json`, `tokenizer.json`, `tokenizer_config.json`, the header of
//! `model.safetensors`, its index and `tokenizer.model`, a byte 255 after each but the last; the
//! last two are left out where they are empty. The weights are zeros, as many as the header wants.

#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use gridmill::convert::import;
use gridmill::model::Model;
use gridmill::run::tokenizer::tokenizer;
use libfuzzer_sys::fuzz_target;

/// Weights that a header may want, in bytes.
const DATA_MAX: usize = 1 << 21;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("gridmill-fuzz-folder-{}", std::process::id()));
    fs::create_dir_all(&path).expect("the folder for temporary files is writable");
    path
});

fn put(name: &str, bytes: &[u8]) {
    fs::write(FOLDER.join(name), bytes).expect("the folder is writable");
}

/// Puts a file there, or none.
fn put_if_any(name: &str, bytes: Option<&[u8]>) {
    match bytes.filter(|bytes| !bytes.is_empty()) {
        Some(bytes) => put(name, bytes),
        None => drop(fs::remove_file(FOLDER.join(name))),
    }
}

/// A file with this header and enough zeros behind it.
fn safetensors(header: &[u8]) -> Vec<u8> {
    let parsed: serde_json::Value = serde_json::from_slice(header).unwrap_or_default();
    let entries = parsed.as_object().into_iter().flat_map(|entries| entries.values());
    let ends = entries.filter_map(|entry| entry["data_offsets"][1].as_u64());
    let data = ends.max().unwrap_or(0).min(DATA_MAX as u64) as usize;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.resize(file.len() + data, 0);
    file
}

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(6, |&byte| byte == 255);
    put("config.json", parts.next().unwrap_or_default());
    put_if_any("tokenizer.json", parts.next());
    put_if_any("tokenizer_config.json", parts.next());
    put("model.safetensors", &safetensors(parts.next().unwrap_or_default()));
    put_if_any("model.safetensors.index.json", parts.next());
    put_if_any("tokenizer.model", parts.next());
    let Ok(source) = import::open(&FOLDER) else { return };
    if let Ok(tokenizer) = tokenizer(&source) {
        let ids = tokenizer.encode("It's 12 o'clock, <|end|>\n\n \u{1f600}", true);
        for id in ids.expect("a short text") {
            tokenizer.piece(id, true);
        }
    }
    if let Ok(model) = Model::new(&source) {
        assert!(!model.plan().ops.is_empty());
    }
});
