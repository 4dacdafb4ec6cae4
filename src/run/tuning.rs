//! What was measured on a GPU, and what its driver compiled, kept in the cache folder for the next
//! time.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::backend::gpu;
use crate::backend::gpu::device::Adapter;
use crate::bail;
use crate::error::{At, Result};
use crate::limits::{COMPILED_BYTES_MAX, TUNING_BYTES_MAX};

/// The measurements of one adapter under one driver.
pub(super) struct Tuning {
    /// Nothing without a cache folder.
    pub(super) path: Option<PathBuf>,
    /// What is known, as [`gpu::Options`] takes it.
    pub(super) known: String,
    /// A GPU that the CPU plays is not worth the wait.
    pub(super) is_worth_it: bool,
}

impl Tuning {
    /// What is known about an adapter, and a note if what was kept makes no sense.
    pub(super) fn open(folder: Option<&Path>, adapter: &Adapter) -> (Tuning, Vec<String>) {
        let path = folder.map(|folder| path(folder, &adapter.identity()));
        let is_worth_it = adapter.is_hardware();
        let mut notes = Vec::new();
        let known = path.as_deref().map_or(Ok(String::new()), read).unwrap_or_else(|error| {
            notes.push(format!("note: {error}; kernels are measured again"));
            String::new()
        });
        (Tuning { path, known, is_worth_it }, notes)
    }

    /// What the driver compiled before; nothing if it did not, or the file is not what was written.
    pub(super) fn compiled(&self) -> Vec<u8> {
        let Some(path) = &self.path else { return Vec::new() };
        let Ok(file) = File::open(path.with_extension(COMPILED)) else { return Vec::new() };
        let mut bytes = Vec::new();
        match file.take(COMPILED_BYTES_MAX).read_to_end(&mut bytes) {
            Ok(_) => checked(bytes),
            Err(_) => Vec::new(),
        }
    }

    /// Keeps what the driver compiled, if it is not there already. A failure costs the next start
    /// some time, and no more.
    pub(super) fn keep_compiled(&self, bytes: &[u8], known: &[u8]) {
        let Some(path) = &self.path else { return };
        if bytes.len() > known.len() {
            let sum = Sha256::digest(bytes);
            let _ = write(&path.with_extension(COMPILED), &[&sum[..], bytes].concat());
        }
    }

    /// Keeps what was measured.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn keep(&self, text: &str) -> Result<()> {
        self.path.as_deref().map_or(Ok(()), |path| write(path, text.as_bytes()).at(path.display()))
    }
}

/// What the file of compiled shaders ends in.
const COMPILED: &str = "pipelines";

/// Bytes behind the checksum that they begin with; none if it does not fit.
fn checked(mut bytes: Vec<u8>) -> Vec<u8> {
    const SUM: usize = 32;
    let is_whole = bytes.len() > SUM && Sha256::digest(&bytes[SUM..])[..] == bytes[..SUM];
    if is_whole { bytes.split_off(SUM) } else { Vec::new() }
}

/// Where the measurements of an adapter are kept.
pub(super) fn path(folder: &Path, identity: &str) -> PathBuf {
    folder.join("tuning").join(format!("{identity}.json"))
}

/// Measurements from a file; nothing if there is none.
fn read(path: &Path) -> Result<String> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        file => file.at(path.display())?,
    };
    let mut text = String::new();
    file.take(TUNING_BYTES_MAX).read_to_string(&mut text).at(path.display())?;
    match serde_json::from_str::<gpu::Tuning>(&text) {
        Ok(_) => Ok(text),
        Err(error) => bail!("{}: expected measurements of kernels: {error}", path.display()),
    }
}

/// Under a name of its own first, so that nobody reads half a file.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    let new = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&new, bytes)?;
    fs::rename(&new, path).inspect_err(|_| {
        // What is left of a failed attempt is worth nothing.
        let _ = fs::remove_file(&new);
    })
}
