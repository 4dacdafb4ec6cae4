//! A folder that goes away, files built byte by byte, and two tensor types to build them with.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use gridmill::types::{Block, Kernel, PRIVATE_IDS, Rows, TensorType};

/// A folder of its own for one test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("gridmill-test-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("the folder is new");
        Scratch(path)
    }

    /// Writes a file and returns its path.
    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, bytes).expect("the folder is writable");
        path
    }

    /// Names of what is in it, sorted.
    pub(crate) fn list(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("the folder is readable");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        names
    }
}

impl Deref for Scratch {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Bytes of a GGUF file, right or wrong, in the order of the calls.
#[derive(Clone, Default)]
pub(crate) struct Raw(pub(crate) Vec<u8>);

impl Raw {
    /// A header of version 3.
    pub(crate) fn head(tensors: u64, entries: u64) -> Raw {
        Raw(b"GGUF".to_vec()).u32(3).u64(tensors).u64(entries)
    }

    pub(crate) fn u8(self, value: u8) -> Raw {
        self.bytes(&[value])
    }

    pub(crate) fn u32(self, value: u32) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Raw {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Raw {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn text(self, text: &str) -> Raw {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    /// A metadata entry of type u32.
    pub(crate) fn entry(self, key: &str, value: u32) -> Raw {
        self.text(key).u32(4).u32(value)
    }

    /// A tensor record.
    pub(crate) fn tensor(self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Raw {
        let raw = self.text(name).u32(shape.len() as u32);
        shape.iter().fold(raw, |raw, &size| raw.u64(size)).u32(kind).u64(offset)
    }

    /// Padding to the alignment, then data.
    pub(crate) fn data(mut self, bytes: usize) -> Raw {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 7);
        self
    }
}

/// A stock type.
pub(crate) struct Stock;

impl TensorType for Stock {
    fn name(&self) -> &'static str {
        "F32"
    }

    fn id(&self) -> u32 {
        0
    }

    fn block(&self) -> Block {
        Block { len: 1, bytes: 4 }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Float
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        for (value, bytes) in out.iter_mut().zip(rows.codes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*bytes);
        }
    }
}

/// A grid type: pairs of values are two of sixteen points, a code is one point of two numbers.
pub(crate) struct Grid;

pub(crate) static GRID_TABLE: [i8; 32] = {
    let mut table = [0; 32];
    let mut at = 0;
    while at < 32 {
        table[at] = at as i8 - 16;
        at += 1;
    }
    table
};

impl TensorType for Grid {
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
        Some(&GRID_TABLE)
    }

    fn decode(&self, _: &Rows, _: &mut [f32]) {
        unreachable!("these tests do not decode")
    }
}

/// The types of these tests.
pub(crate) static KINDS: &[&dyn TensorType] = &[&Stock, &Grid];
