//! llama.cpp's file of log-probabilities (`--kl-divergence-base`), so that both programs can be
//! compared on one base.
//!
//! `_logits_`, u32 context, i32 vocabulary, i32 windows, the tokens (i32), then per scored position
//! two f32, scale and smallest log-probability, and the vocabulary as u16, padded to an even count:
//! `log p = scale * code + smallest`, nothing further than 16 below the likeliest.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use byteorder::{LittleEndian, ReadBytesExt, WriteBytesExt};

use super::score::Windows;
use crate::bail;
use crate::error::{At, Error, Result};
use crate::limits;

const MAGIC: &[u8; 8] = b"_logits_";

/// Writes a base.
pub struct Writer {
    path: PathBuf,
    partial: PathBuf,
    out: BufWriter<File>,
    record: Vec<u8>,
}

impl Writer {
    /// Starts a file for these windows; it gets its name when it is finished.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn create(path: &Path, windows: &Windows, vocabulary: usize) -> Result<Writer> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".{}.tmp", std::process::id()));
        let partial = PathBuf::from(partial);
        let out = BufWriter::new(File::create(&partial).at(partial.display())?);
        let mut writer = Writer { path: path.to_owned(), partial, out, record: Vec::new() };
        writer.header(windows, vocabulary).at(path.display())?;
        Ok(writer)
    }

    fn header(&mut self, windows: &Windows, vocabulary: usize) -> std::io::Result<()> {
        self.out.write_all(MAGIC)?;
        self.out.write_u32::<LittleEndian>(windows.context as u32)?;
        self.out.write_u32::<LittleEndian>(vocabulary as u32)?;
        self.out.write_u32::<LittleEndian>(windows.len() as u32)?;
        windows.tokens.iter().try_for_each(|&token| self.out.write_u32::<LittleEndian>(token))
    }

    /// Adds one scored position.
    ///
    /// # Errors
    /// If the disk is full.
    pub fn write(&mut self, logits: &[f32], normaliser: f64) -> Result<()> {
        let peak = logits.iter().fold(f32::NEG_INFINITY, |peak, &logit| peak.max(logit));
        let floor = logits.iter().fold(f32::INFINITY, |floor, &logit| floor.min(logit));
        let floor = floor.max(peak - 16.0);
        let scale = (peak - floor) / 65535.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        self.record.clear();
        self.record.extend(scale.to_le_bytes());
        self.record.extend(((f64::from(floor) - normaliser) as f32).to_le_bytes());
        for &logit in logits {
            let code = (inverse * (logit - floor)).max(0.0).round_ties_even() as u16;
            self.record.extend(code.to_le_bytes());
        }
        if !logits.len().is_multiple_of(2) {
            self.record.extend([0, 0]);
        }
        self.out.write_all(&self.record).at(self.partial.display())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// If the disk is full or the name cannot be taken.
    pub fn finish(&mut self) -> Result<()> {
        self.out.flush().at(self.partial.display())?;
        self.out.get_ref().sync_all().at(self.partial.display())?;
        std::fs::rename(&self.partial, &self.path).at(self.path.display())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After `finish` there is nothing under this name.
        let _ = std::fs::remove_file(&self.partial);
    }
}

/// Reads a base.
pub struct Reader {
    path: PathBuf,
    input: BufReader<File>,
    /// The windows that were scored.
    tokens: Vec<u32>,
    context: usize,
    record: Vec<u8>,
    values: Vec<f32>,
}

impl Reader {
    /// Opens a base and checks that it was made with this vocabulary.
    ///
    /// # Errors
    /// If it is no such file, is cut short, or was made with another vocabulary.
    pub fn open(path: &Path, vocabulary: usize) -> Result<Reader> {
        let file = File::open(path).at(path.display())?;
        let bytes = file.metadata().at(path.display())?.len();
        Reader::header(BufReader::new(file), bytes, path, vocabulary).at(path.display())
    }

    fn header(
        mut input: BufReader<File>,
        bytes: u64,
        path: &Path,
        vocabulary: usize,
    ) -> Result<Reader> {
        let mut magic = [0; 8];
        let cut = |_| Error::new(format!("logits file ends in its header, after {bytes} bytes"));
        input.read_exact(&mut magic).map_err(cut)?;
        if &magic != MAGIC {
            bail!("not a logits file: expected `_logits_` first, found {magic:02x?}");
        }
        let context = u64::from(input.read_u32::<LittleEndian>().map_err(cut)?);
        let found = u64::from(input.read_u32::<LittleEndian>().map_err(cut)?);
        let windows = u64::from(input.read_u32::<LittleEndian>().map_err(cut)?);
        if found != vocabulary as u64 {
            bail!("logits file: expected a vocabulary of {vocabulary}, found {found}");
        }
        if !(4..=limits::CONTEXT_MAX).contains(&context) || windows == 0 {
            bail!("logits file: {windows} windows of {context} tokens cannot be");
        }
        let record = 8 + 2 * found.next_multiple_of(2);
        let scored = context - 1 - context / 2;
        let sizes = windows.checked_mul(4 * context + scored * record);
        let expected = sizes.and_then(|sizes| sizes.checked_add(20));
        if expected.is_none_or(|expected| expected > bytes) {
            let expected = expected.map_or("far more".to_string(), |bytes| bytes.to_string());
            bail!("logits file: expected {expected} bytes for {windows} windows, found {bytes}");
        }
        let mut tokens = vec![0; (windows * context) as usize];
        input.read_u32_into::<LittleEndian>(&mut tokens).map_err(cut)?;
        Ok(Reader {
            path: path.to_owned(),
            input,
            tokens,
            context: context as usize,
            record: vec![0; record as usize],
            values: vec![0.0; vocabulary],
        })
    }

    /// Tokens per window.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Windows.
    pub fn windows(&self) -> usize {
        self.tokens.len() / self.context
    }

    /// Checks that the base was made from this text.
    ///
    /// # Errors
    /// If a token differs, or the base is shorter.
    pub fn check(&self, windows: &Windows) -> Result<()> {
        let pairs = self.tokens.iter().zip(&windows.tokens);
        if let Some(at) = pairs.clone().position(|(base, text)| base != text) {
            let (base, text) = (self.tokens[at], windows.tokens[at]);
            bail!(
                "logits file was made from another text: token {at} is {base} there, {text} here"
            );
        }
        if self.windows() < windows.len() {
            let (found, expected) = (self.windows(), windows.len());
            bail!("logits file: expected {expected} windows, found {found}");
        }
        Ok(())
    }

    /// The log-probabilities of the next scored position.
    ///
    /// # Errors
    /// If the file was cut since it was opened.
    pub fn read(&mut self) -> Result<&[f32]> {
        self.input.read_exact(&mut self.record).at(self.path.display())?;
        let (head, codes) = self.record.split_at(8);
        let float = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("four bytes"));
        let (scale, floor) = (float(&head[..4]), float(&head[4..]));
        for (value, code) in self.values.iter_mut().zip(codes.chunks_exact(2)) {
            *value = scale * f32::from(u16::from_le_bytes([code[0], code[1]])) + floor;
        }
        Ok(&self.values)
    }
}
