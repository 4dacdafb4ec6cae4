//! Memory-mapped files: the only unsafe code of this module.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::Result;
use crate::bail;
use crate::error::At;
use crate::types::Bytes;

/// A whole file, mapped for reading. Clones share the mapping.
#[derive(Clone)]
pub struct Map {
    map: Arc<Mmap>,
}

impl Map {
    /// Maps a file.
    ///
    /// # Errors
    /// If it cannot be opened, is no regular file, or is empty.
    pub fn open(path: &Path) -> Result<Map> {
        let place = path.display();
        let file = File::open(path).at(place)?;
        let kind = file.metadata().at(path.display())?;
        if kind.is_dir() {
            bail!("{}: is a folder, expected a file", path.display());
        }
        if !kind.is_file() {
            bail!("{}: is not a regular file", path.display());
        }
        if kind.len() == 0 {
            bail!("{}: the file is empty", path.display());
        }
        // SAFETY: the bytes are only ever read. Another process that writes to the file changes
        // what is read, which every reader of ours bears, and one that shortens it stops this
        // process with a signal: both are outside what a program can prevent without copying, and
        // the same for every program that maps models. Our own writer never touches a source: it
        // writes a new file and refuses a target that is a source.
        let map = unsafe { Mmap::map(&file) }.at(path.display())?;
        Ok(Map { map: Arc::new(map) })
    }

    /// The whole file.
    pub fn as_slice(&self) -> &[u8] {
        &self.map
    }

    /// Bytes of the file.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Never: an empty file is refused.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// A piece that keeps the mapping alive.
    ///
    /// # Panics
    /// If the range is outside the file.
    pub fn bytes(&self, range: Range<usize>) -> Bytes {
        Bytes::new(self.map.clone(), range)
    }

    /// Asks the system to read the file ahead. A hint: failure changes nothing.
    pub fn prefetch(&self) {
        #[cfg(unix)]
        let _ = self.map.advise(memmap2::Advice::WillNeed);
    }

    /// Tells the system that a range will not be read again soon, so that converting a model
    /// larger than memory does not fill it. A hint: failure changes nothing.
    ///
    /// # Panics
    /// If the range is outside the file.
    pub fn release(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?}");
        #[cfg(unix)]
        {
            use memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the mapping is shared with the file and never written through, so a
            // dropped page is read from the file again with the same contents.
            let _ = unsafe { self.map.unchecked_advise_range(DontNeed, range.start, range.len()) };
        }
    }
}
