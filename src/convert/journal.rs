//! What a long conversion has done, kept beside its target until that is whole, so that an
//! interrupted one goes on there.
//!
//! A heading with a fingerprint of everything that decides the result, then records: a line of a
//! label, numbers, lengths and a check sum, and as many bytes as the lengths say.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Item, Statistics};
use crate::bail;
use crate::error::{At, Result};
use crate::file::{Source, cache};
use crate::limits;

/// The first line, before the fingerprint.
const HEADING: &str = "gridmill conversion 1";
/// Before the name of a weight whose moments were damped further.
const DAMPED: &str = "damped ";

/// What is kept under a label.
pub(super) struct Kept {
    /// In the order they were given in.
    pub(super) numbers: Vec<f64>,
    /// The same.
    pub(super) planes: Vec<Vec<u8>>,
}

/// Where the bytes of a record are.
struct Place {
    numbers: Vec<f64>,
    start: u64,
    lengths: Vec<usize>,
}

/// A file of records; without one, nothing is kept.
pub(super) struct Journal {
    file: Option<(File, PathBuf)>,
    records: HashMap<String, Place>,
    /// Whether it was of another conversion, and was emptied.
    pub(super) is_anew: bool,
}

impl Journal {
    /// Keeps nothing.
    pub(super) fn none() -> Journal {
        Journal { file: None, records: HashMap::new(), is_anew: false }
    }

    /// Opens what is kept, if it is of this conversion, or starts anew. What follows a damaged or
    /// incomplete record is dropped.
    ///
    /// # Errors
    /// If another process has it open, or it cannot be read or written.
    pub(super) fn open(path: &Path, fingerprint: &str) -> Result<Journal> {
        let place = path.display();
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false).open(path);
        let mut file = opened.at(place.to_string())?;
        if file.try_lock().is_err() {
            bail!("{place}: another conversion to the same target is at work");
        }
        let heading = format!("{HEADING} {fingerprint}\n");
        let bytes = file.metadata().at(place.to_string())?.len();
        let scanned = scan(&file, bytes, &heading).at(place.to_string())?;
        let is_anew = scanned.is_none() && bytes > 0;
        let (records, end) = match scanned {
            Some(scanned) => scanned,
            None => {
                file.set_len(0).at(place.to_string())?;
                file.seek(SeekFrom::Start(0)).at(place.to_string())?;
                file.write_all(heading.as_bytes()).at(place.to_string())?;
                (HashMap::new(), heading.len() as u64)
            }
        };
        file.set_len(end).at(place.to_string())?;
        Ok(Journal { file: Some((file, path.to_path_buf())), records, is_anew })
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Weights whose moments were damped further, and how much, in the order they were kept in.
    pub(super) fn damped(&self) -> Vec<(String, f64)> {
        let weights = self.records.iter().filter_map(|(label, place)| {
            Some((place.start, label.strip_prefix(DAMPED)?, *place.numbers.first()?))
        });
        let mut weights: Vec<_> = weights.collect();
        weights.sort_unstable_by_key(|&(start, ..)| start);
        weights.into_iter().map(|(_, weight, damping)| (weight.to_string(), damping)).collect()
    }

    /// Adds such weights.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn add_damped(&mut self, weights: &[(String, f64)]) -> Result<()> {
        let mut add = |(weight, damping): &(String, f64)| {
            self.add(&format!("{DAMPED}{weight}"), &[*damping], &[])
        };
        weights.iter().try_for_each(&mut add)
    }

    /// What is kept under a label.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn get(&mut self, label: &str) -> Result<Option<Kept>> {
        let Some((file, path)) = &mut self.file else { return Ok(None) };
        let Some(Place { numbers, start, lengths }) = self.records.get(label) else {
            return Ok(None);
        };
        file.seek(SeekFrom::Start(*start)).at(path.display())?;
        let mut planes = Vec::new();
        for &length in lengths {
            let mut plane = vec![0; length];
            file.read_exact(&mut plane).at(path.display())?;
            planes.push(plane);
        }
        Ok(Some(Kept { numbers: numbers.clone(), planes }))
    }

    /// Adds a record.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn add(&mut self, label: &str, numbers: &[f64], planes: &[&[u8]]) -> Result<()> {
        let Some((file, path)) = &mut self.file else { return Ok(()) };
        let list = |words: Vec<String>| words.join(",");
        let lengths = list(planes.iter().map(|plane| plane.len().to_string()).collect());
        let shown = list(numbers.iter().map(f64::to_string).collect());
        let mut line = format!("{label}\t{shown}\t{lengths}\t");
        let mut hash = Sha256::new_with_prefix(&line);
        planes.iter().for_each(|plane| hash.update(plane));
        line += &sum(hash);
        line.push('\n');
        let mut write = || -> std::io::Result<u64> {
            let end = file.seek(SeekFrom::End(0))?;
            file.write_all(line.as_bytes())?;
            planes.iter().try_for_each(|plane| file.write_all(plane))?;
            Ok(end + line.len() as u64)
        };
        let start = write().at(path.display())?;
        let (numbers, lengths) = (numbers.to_vec(), planes.iter().map(|it| it.len()).collect());
        self.records.insert(label.to_string(), Place { numbers, start, lengths });
        Ok(())
    }

    /// Forgets everything: the target is whole.
    pub(super) fn remove(self) {
        if let Some((file, path)) = self.file {
            // Not every system removes a file that is open.
            drop(file);
            let _ = std::fs::remove_file(path);
        }
    }
}

fn sum(hash: Sha256) -> String {
    cache::hexadecimal(&hash.finalize()[..8])
}

/// The whole records of a file, and where they end; nothing if the heading is another one.
fn scan(
    file: &File,
    bytes: u64,
    heading: &str,
) -> std::io::Result<Option<(HashMap<String, Place>, u64)>> {
    let mut reader = BufReader::new(file);
    let mut line = String::new();
    let limit = limits::JOURNAL_LINE_BYTES_MAX;
    if reader.by_ref().take(limit).read_line(&mut line).is_err() || line != heading {
        return Ok(None);
    }
    let (mut records, mut end) = (HashMap::new(), line.len() as u64);
    loop {
        line.clear();
        // Bytes that are no text end what can be used, like a record that does not add up.
        if reader.by_ref().take(limit).read_line(&mut line).is_err() {
            break;
        }
        let start = end + line.len() as u64;
        let Some((label, mut place, expected)) = parse(&line) else { break };
        place.start = start;
        let Some(next) = place.lengths.iter().try_fold(start, |at, &length| {
            at.checked_add(length as u64).filter(|&end| end <= bytes)
        }) else {
            break;
        };
        let signed = &line[..line.len() - expected.len() - 1];
        let mut hash = Sha256::new_with_prefix(signed);
        update(&mut hash, reader.by_ref().take(next - start))?;
        if sum(hash) != expected {
            break;
        }
        records.insert(label, place);
        end = next;
    }
    Ok(Some((records, end)))
}

fn update(hash: &mut Sha256, mut bytes: impl Read) -> std::io::Result<()> {
    let mut piece = vec![0; 1 << 16];
    loop {
        match bytes.read(&mut piece)? {
            0 => return Ok(()),
            count => hash.update(&piece[..count]),
        }
    }
}

/// A line of a record: label, numbers and lengths, and the check sum.
fn parse(line: &str) -> Option<(String, Place, String)> {
    let mut cells = line.strip_suffix('\n')?.split('\t');
    let (label, numbers, lengths) = (cells.next()?, cells.next()?, cells.next()?);
    let sum = cells.next()?.to_string();
    fn list<T: std::str::FromStr>(cell: &str) -> Option<Vec<T>> {
        cell.split(',').filter(|word| !word.is_empty()).map(|word| word.parse().ok()).collect()
    }
    let place = Place { numbers: list(numbers)?, start: 0, lengths: list(lengths)? };
    Some((label.to_string(), place, sum))
}

/// Of everything that decides what a conversion writes, and of the files it reads from.
///
/// # Errors
/// If the source is gone.
pub(super) fn fingerprint(
    source: &Source,
    items: &[Item],
    statistics: &Statistics,
) -> Result<String> {
    let mut hash = Sha256::new_with_prefix(conversion(items, Some(statistics)));
    for path in source.shard_paths() {
        let metadata = path.metadata().at(path.display())?;
        // Where a system does not say when, the length alone has to do.
        hash.update(format!("{} {:?}\n", metadata.len(), metadata.modified().ok()));
    }
    Ok(sum(hash))
}

/// Of everything but the source that decides what a conversion writes, on any machine.
pub(super) fn conversion(items: &[Item], statistics: Option<&Statistics>) -> String {
    let mut hash = Sha256::new_with_prefix(env!("CARGO_PKG_VERSION"));
    hash.update(statistics.map_or("", |statistics| &statistics.fingerprint));
    for item in items {
        let Item { name, kind, basis, group, sign_seed, keep, capture, .. } = item;
        let kind = kind.name();
        hash.update(format!("{name} {kind} {basis:?} {group} {sign_seed} {keep} {capture}\n"));
    }
    sum(hash)
}
