//! From the bytes of tokens to text that can be shown at once.

use crate::bail;
use crate::error::Result;

/// Collects the bytes of tokens and gives out text, always whole characters, up to a stop string.
///
/// What it gives out depends on the bytes alone, not on how they are divided into tokens.
#[derive(Clone, Debug)]
pub struct TextStream {
    stops: Vec<String>,
    /// The beginning of a character.
    bytes: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: Option<usize>,
}

impl TextStream {
    /// A stream that ends before the first of `stops`; of two that end at the same place, before
    /// the longer.
    ///
    /// # Errors
    ///
    /// When a stop string is empty.
    pub fn new(stops: Vec<String>) -> Result<TextStream> {
        if stops.iter().any(String::is_empty) {
            bail!("a stop string is empty, expected at least one character");
        }
        Ok(TextStream { stops, bytes: Vec::new(), held: String::new(), stopped: None })
    }

    /// Adds the bytes of a token; returns the text that can be shown now, often none.
    pub fn push(&mut self, piece: &[u8]) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        self.bytes.extend_from_slice(piece);
        self.decode();
        if let Some((start, stop)) = self.first_stop() {
            self.stopped = Some(stop);
            self.bytes.clear();
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep = self.held.len() - self.begun_stop();
        let rest = self.held.split_off(keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Ends the stream; returns the text that was held back. A character that never became
    /// whole is U+FFFD.
    pub fn finish(&mut self) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        let mut text = std::mem::take(&mut self.held);
        if !self.bytes.is_empty() {
            self.bytes.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
        text
    }

    /// The stop string that was reached. After it nothing is given out.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.map(|stop| self.stops[stop].as_str())
    }

    /// Moves whole characters, and U+FFFD for what can no longer become one, to `held`.
    fn decode(&mut self) {
        let mut rest = self.bytes.as_slice();
        loop {
            let error = match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.held.push_str(text);
                    self.bytes.clear();
                    return;
                }
                Err(error) => error,
            };
            let (text, tail) = rest.split_at(error.valid_up_to());
            self.held.push_str(&String::from_utf8_lossy(text));
            let Some(invalid) = error.error_len() else {
                self.bytes = tail.to_vec();
                return;
            };
            self.held.push(char::REPLACEMENT_CHARACTER);
            rest = &tail[invalid..];
        }
    }

    /// Where the stop string begins that ends first, and its number.
    fn first_stop(&self) -> Option<(usize, usize)> {
        let found = |(number, stop): (usize, &String)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, number))
        };
        let (_, start, number) = self.stops.iter().enumerate().filter_map(found).min()?;
        Some((start, number))
    }

    /// Bytes at the end of `held` that may become a stop string.
    fn begun_stop(&self) -> usize {
        let begun = |stop: &String| {
            stop.char_indices()
                .map(|(len, _)| len)
                .rev()
                .find(|&len| self.held.ends_with(&stop[..len]))
                .unwrap_or(0)
        };
        self.stops.iter().map(begun).max().unwrap_or(0)
    }
}
