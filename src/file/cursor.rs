//! Bounded little-endian reads that remember where they are.

use byteorder::{ByteOrder, LittleEndian};

use crate::Result;
use crate::bail;
use crate::error::Error;

/// What to try when a file ends too early.
pub(super) const INCOMPLETE: &str = "the download may be incomplete";

/// A position in bytes from outside.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes, at: 0 }
    }

    /// Bytes from the start.
    pub(super) fn position(&self) -> u64 {
        self.at as u64
    }

    /// Bytes to the end.
    pub(super) fn remaining(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// If there are fewer.
    pub(super) fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        if count > self.remaining() {
            let message = format!(
                "the file ends at byte {}, but {count} bytes were expected from byte {}",
                self.bytes.len(),
                self.at
            );
            return Err(Error::new(message).with_hint(INCOMPLETE));
        }
        // Fits, since it is at most what remains of a slice.
        let end = self.at + count as usize;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16> {
        Ok(LittleEndian::read_u16(self.take(2)?))
    }

    pub(super) fn u32(&mut self) -> Result<u32> {
        Ok(LittleEndian::read_u32(self.take(4)?))
    }

    pub(super) fn u64(&mut self) -> Result<u64> {
        Ok(LittleEndian::read_u64(self.take(8)?))
    }

    /// A length of at most `max` bytes, then that many bytes of UTF-8.
    ///
    /// # Errors
    /// If the length is out of bounds or the bytes are no UTF-8.
    pub(super) fn string(&mut self, max: u64) -> Result<&'a str> {
        let start = self.at;
        let len = self.u64()?;
        if len > max {
            bail!("a string at byte {start} has {len} bytes, expected at most {max}");
        }
        let bytes = self.take(len)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(error) => {
                let at = start + 8 + error.valid_up_to();
                bail!("a string is not UTF-8 at byte {at}")
            }
        }
    }
}
