//! Any bytes as a safetensors file: every tensor that is listed lies in the file, apart from the
//! others, and has the bytes that its shape needs.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use gridmill::file::safetensors::Safetensors;
use libfuzzer_sys::fuzz_target;

static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
    std::env::temp_dir().join(format!("gridmill-fuzz-{}.safetensors", std::process::id()))
});

fuzz_target!(|bytes: &[u8]| {
    std::fs::write(&*PATH, bytes).expect("the folder for temporary files is writable");
    let Ok(file) = Safetensors::open(&PATH) else { return };
    let mut places = Vec::new();
    for name in file.names() {
        let (entry, data) = file.get(name).expect("a name of the file");
        if entry.dtype == "F32" {
            assert_eq!(entry.shape.iter().product::<u64>() * 4, data.len() as u64, "{name}");
        }
        let data = data.as_ptr_range();
        places.push((data.start as usize, data.end as usize));
    }
    places.retain(|(start, end)| start < end);
    places.sort_unstable();
    assert!(places.windows(2).all(|pair| pair[0].1 <= pair[1].0), "tensors share bytes");
    let total: usize = places.iter().map(|(start, end)| end - start).sum();
    assert!(total <= bytes.len(), "{total} bytes of tensors in {}", bytes.len());
});
