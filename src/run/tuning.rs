//! What was measured on a GPU, kept in the cache folder for the next time.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::backend::gpu;
use crate::backend::gpu::device::Adapter;
use crate::bail;
use crate::error::{At, Result};
use crate::limits::TUNING_BYTES_MAX;

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

    /// Keeps what was measured.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn keep(&self, text: &str) -> Result<()> {
        self.path.as_deref().map_or(Ok(()), |path| write(path, text).at(path.display()))
    }
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
fn write(path: &Path, text: &str) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    let new = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&new, text)?;
    fs::rename(&new, path).inspect_err(|_| {
        // What is left of a failed attempt is worth nothing.
        let _ = fs::remove_file(&new);
    })
}
