//! The folder for downloaded models, and checksums.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Source;
use crate::Result;
use crate::bail;
use crate::error::{At, Error};

/// Bytes read between two reports of progress.
const PIECE_BYTES: usize = 1 << 20;

/// The tensor that holds the SHA-256 of the others, in files that only this program writes.
pub const CHECKSUM: &str = "sha256";

/// The cache folder: `$XDG_CACHE_HOME/gridmill`, else `$HOME/.cache/gridmill`, else
/// `%LOCALAPPDATA%\gridmill`. Only `cli` reads the environment, so it passes the look-up in.
///
/// # Errors
/// If none of them is set.
pub fn folder(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    // The XDG specification wants relative paths ignored; elsewhere they are as useless.
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let found = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .or_else(|| absolute("LOCALAPPDATA"));
    let missing = "no cache folder: none of XDG_CACHE_HOME, HOME and LOCALAPPDATA is set";
    found.map(|path| path.join("gridmill")).ok_or_else(|| Error::new(missing))
}

/// The SHA-256 of a file in lower-case hexadecimal; `progress` gets the bytes done and in all.
///
/// # Errors
/// If the file cannot be read.
pub fn sha256(path: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<String> {
    let mut file = File::open(path).at(path.display())?;
    let total = file.metadata().at(path.display())?.len();
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut done = 0;
    loop {
        let count = file.read(&mut piece).at(path.display())?;
        if count == 0 {
            return Ok(hexadecimal(&hash.finalize()));
        }
        hash.update(&piece[..count]);
        done += count as u64;
        progress(done, total);
    }
}

/// Fails if a tensor is not what was written.
///
/// # Errors
/// If the tensor [`CHECKSUM`] is missing, or says so.
pub fn check_sum(source: &Source) -> Result<()> {
    let mut hash = Sha256::new();
    let mut expected = None;
    for raw in source.raw_tensors() {
        match raw.info.name.as_str() {
            CHECKSUM => expected = Some(source.raw_bytes(&raw)),
            _ => hash.update(&*source.raw_bytes(&raw)),
        }
        source.release(&raw.info.name);
    }
    let Some(expected) = expected else { bail!("tensor `{CHECKSUM}` is missing") };
    if *expected != hash.finalize()[..] {
        bail!("tensor `{CHECKSUM}`: the matrices are not those that were written");
    }
    Ok(())
}

/// In lower case.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
