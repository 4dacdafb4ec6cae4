//! Any bytes as a GGUF file: parse the head, then open it as a model with planes.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use gridmill::file::{Gguf, Source};
use gridmill::types::{Block, Kernel, PRIVATE_IDS, Rows, TYPES, TensorType};
use libfuzzer_sys::fuzz_target;

/// The grid type of the seeds, which are made by the tests of the program.
struct Probe;

impl TensorType for Probe {
    fn name(&self) -> &'static str {
        "Grid_P2_N16"
    }

    fn id(&self) -> u32 {
        PRIVATE_IDS + 0xff0
    }

    fn block(&self) -> Block {
        Block { len: 4, bytes: 1 }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: 0, mins: false }
    }

    fn table(&self) -> Option<&'static [i8]> {
        Some(&[0; 32])
    }

    fn decode(&self, _: &Rows, out: &mut [f32]) {
        out.fill(0.0);
    }
}

static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
    std::env::temp_dir().join(format!("gridmill-fuzz-{}.gguf", std::process::id()))
});

fuzz_target!(|bytes: &[u8]| {
    let types: Vec<&'static dyn TensorType> =
        TYPES.iter().copied().chain([&Probe as &dyn TensorType]).collect();
    let Ok(gguf) = Gguf::parse_with(bytes, &types) else { return };
    for tensor in &gguf.tensors {
        let end = gguf.data_start + tensor.offset + tensor.bytes;
        assert!(end <= bytes.len() as u64, "{tensor:?}");
    }
    for (key, _) in gguf.metadata.iter() {
        let _ = gguf.metadata.get_u64(key);
        let _ = gguf.metadata.get_f32s(key);
        let _ = gguf.metadata.get_i32s(key);
    }
    std::fs::write(&*PATH, bytes).expect("the folder for temporary files is writable");
    let Ok(source) = Source::open_with(&*PATH, &types) else { return };
    for raw in source.raw_tensors() {
        assert_eq!(source.raw_bytes(&raw).len() as u64, raw.info.bytes);
    }
    for weight in source.tensors() {
        assert!(!weight.is_empty());
        let rows = weight.rows(0..weight.rows);
        assert_eq!(rows.codes.len(), weight.rows * weight.row_bytes());
    }
});
