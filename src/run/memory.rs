//! What this machine has room for.

use crate::backend::Capacity;
use crate::error::{Error, Result};

/// Fails if a cache is larger than the memory of the machine: it would seem to be there until it
/// is written.
///
/// # Errors
/// If it is.
pub(super) fn check(bytes: u64, capacity: Capacity) -> Result<()> {
    // No address is larger, whatever the machine says of itself.
    let has = total_bytes().unwrap_or(1 << 47);
    if bytes <= has {
        return Ok(());
    }
    let (needs, has, context) = (size(bytes), size(has), capacity.context);
    let name = capacity.kv.name();
    let message = format!(
        "context: a {name} cache of {context} tokens needs {needs}, expected at most {has}"
    );
    Err(Error::new(message).with_hint("--ctx reserves less, --kv-type q8 or q4 takes less of it"))
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
