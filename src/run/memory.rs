//! What this machine has room for.

use crate::backend::{Capacity, KvFormat};
use crate::error::{Error, Result};

/// No address is larger, whatever a machine says of itself.
const ADDRESSES: u64 = 1 << 47;

/// Fails if a cache is larger than the memory of the machine: it would seem to be there until it
/// is written.
///
/// # Errors
/// If it is.
pub(super) fn check(bytes: u64, capacity: Capacity) -> Result<()> {
    fits(bytes, total_bytes().unwrap_or(ADDRESSES), capacity)
}

/// As [`check`], where nobody says how much memory there is.
///
/// # Errors
/// If no machine has so much.
#[cfg(feature = "gpu")]
pub(super) fn check_somewhere(bytes: u64, capacity: Capacity) -> Result<()> {
    fits(bytes, ADDRESSES, capacity)
}

fn fits(bytes: u64, has: u64, capacity: Capacity) -> Result<()> {
    if bytes <= has {
        return Ok(());
    }
    let (needs, has, context) = (size(bytes), size(has), capacity.context);
    let name = capacity.kv.name();
    let message = format!(
        "context: a {name} cache of {context} tokens needs {needs}, expected at most {has}"
    );
    let hint = match capacity.kv {
        KvFormat::F32 | KvFormat::F16 => "--ctx reserves less, --kv-type q8 or q4 takes less of it",
        _ => "--ctx reserves less",
    };
    Err(Error::new(message).with_hint(hint))
}

/// Bytes of memory, where the system says so in a file.
fn total_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// As a person reads it.
pub(super) fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes < 1e9 => format!("{:.2} MB", bytes / 1e6),
        bytes => format!("{:.2} GB", bytes / 1e9),
    }
}
