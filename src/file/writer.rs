//! Writes a GGUF file piece by piece, under a temporary name until it is whole.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use byteorder::{LittleEndian, WriteBytesExt};

use super::gguf::{self, ALIGNMENT, ALIGNMENT_KEY};
use super::metadata::{Array, Metadata, Value};
use crate::Result;
use crate::bail;
use crate::error::{At, Error};
use crate::limits;
use crate::types::raw::RawType;

/// The version that is written.
const VERSION: u32 = 3;

/// Bytes that are gathered before the system is asked to write.
const BUFFER_BYTES: usize = 1 << 20;

/// A tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTensor {
    name: String,
    shape: Vec<u64>,
    kind: RawType,
    bytes: u64,
}

impl NewTensor {
    /// A tensor by its name, its shape (contiguous dimension first) and its layout.
    ///
    /// # Errors
    /// If the name or the shape would not be readable.
    pub fn new(name: &str, shape: &[u64], kind: RawType) -> Result<NewTensor> {
        let place = format_args!("tensor `{name}`");
        let max = limits::TENSOR_NAME_BYTES_MAX;
        if name.is_empty() || name.len() > max {
            bail!("{place}: the name has {} bytes, expected 1 to {max}", name.len());
        }
        if shape.len() > limits::DIMENSIONS_MAX as usize {
            bail!(
                "{place}: {} dimensions, expected at most {}",
                shape.len(),
                limits::DIMENSIONS_MAX
            );
        }
        let bytes = gguf::tensor_bytes(shape, kind).at(place)?;
        Ok(NewTensor { name: name.to_string(), shape: shape.to_vec(), kind, bytes })
    }

    /// At most 63 bytes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Values per dimension, the contiguous one first.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// The layout.
    pub fn kind(&self) -> RawType {
        self.kind
    }

    /// Bytes of data, padding left out.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of its record in the head: two lengths, the sizes, the type and the offset.
    pub(super) fn record_bytes(&self) -> u64 {
        let (name, dimensions) = (self.name.len() as u64, self.shape.len() as u64);
        8 + name + 4 + 8 * dimensions + 4 + 8
    }
}

/// A temporary file that is older and that nobody holds is of a process that was killed.
const ABANDONED: Duration = Duration::from_secs(2);

/// A file that is being written. Dropped before [`Writer::finish`], it leaves nothing behind.
pub struct Writer {
    file: BufWriter<Temporary>,
    /// Tensors not yet whole, the first perhaps begun.
    pending: VecDeque<NewTensor>,
    /// Bytes of the first pending tensor already written.
    begun: u64,
    target: PathBuf,
    file_bytes: u64,
}

impl Writer {
    /// Starts a file of version 3 with the default alignment; a key that sets another one is left
    /// out. The target appears when [`Writer::finish`] succeeds, and not before.
    ///
    /// # Errors
    /// If the target is one of `sources`, is no file, or cannot be written; if the system does not
    /// allow or hold a file of this size; or if the metadata would not be readable.
    pub fn create(
        target: &Path,
        sources: &[PathBuf],
        metadata: &Metadata,
        tensors: Vec<NewTensor>,
    ) -> Result<Writer> {
        let (head, file_bytes) = measured(metadata, &tensors).at(target.display())?;
        check_target(target, sources)?;
        check_size_limit(target, file_bytes)?;
        let temporary = Temporary::create(target, file_bytes)?;
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, temporary);
        file.write_all(&head).map_err(|error| write_error(target, file_bytes, &error))?;
        let target = target.to_path_buf();
        Ok(Writer { file, pending: tensors.into(), begun: 0, target, file_bytes })
    }

    /// Bytes of a file with this content.
    ///
    /// # Errors
    /// If there is no such file, or it would not be readable.
    pub fn measure(metadata: &Metadata, tensors: &[NewTensor]) -> Result<u64> {
        measured(metadata, tensors).map(|(_, bytes)| bytes)
    }

    /// Bytes of the file once it is whole.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// The tensor whose bytes come next, and how many of them are written.
    pub fn next(&self) -> Option<(&NewTensor, u64)> {
        let at = self.pending.iter().position(|tensor| tensor.bytes > 0)?;
        Some((&self.pending[at], self.begun))
    }

    /// Writes the next bytes of the tensors, in order; a piece may be a part of a tensor, or go
    /// on into the next one.
    ///
    /// # Errors
    /// If the disk is full or fails, or if there are more bytes than the tensors have.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let failed = |error| write_error(&self.target, self.file_bytes, &error);
        while !bytes.is_empty() {
            let Some(tensor) = self.pending.front() else {
                let extra = bytes.len();
                bail!("{}: {extra} bytes more than its tensors have", self.target.display());
            };
            let missing = tensor.bytes - self.begun;
            let count = usize::try_from(missing).unwrap_or(usize::MAX).min(bytes.len());
            self.file.write_all(&bytes[..count]).map_err(failed)?;
            bytes = &bytes[count..];
            self.begun += count as u64;
            if self.begun == tensor.bytes {
                let padding = tensor.bytes.next_multiple_of(ALIGNMENT) - tensor.bytes;
                self.file
                    .write_all(&[0; ALIGNMENT as usize][..padding as usize])
                    .map_err(failed)?;
                self.pending.pop_front();
                self.begun = 0;
            }
        }
        Ok(())
    }

    /// Puts the whole file in its place: all bytes on the disk, then the name.
    ///
    /// # Errors
    /// If a tensor is missing bytes, or the disk fails.
    pub fn finish(mut self) -> Result<()> {
        if let Some((NewTensor { name, bytes, .. }, begun)) = self.next() {
            let target = self.target.display();
            bail!("{target}: tensor `{name}` has {begun} bytes written, expected {bytes}");
        }
        let failed = |error| write_error(&self.target, self.file_bytes, &error);
        self.file.flush().map_err(failed)?;
        self.file.get_ref().file.sync_all().map_err(failed)?;
        self.file.get_mut().rename(&self.target)
    }
}

/// The head of a file, and the bytes of the whole.
fn measured(metadata: &Metadata, tensors: &[NewTensor]) -> Result<(Vec<u8>, u64)> {
    let padded = |tensor: &NewTensor| tensor.bytes.next_multiple_of(ALIGNMENT);
    let data = tensors.iter().try_fold(0u64, |sum, tensor| sum.checked_add(padded(tensor)));
    // Half the range, so that adding the head cannot overflow.
    let Some(data) = data.filter(|&data| data < 1 << 63) else {
        bail!("the tensors do not fit 2^63 bytes");
    };
    let mut head = head(metadata, tensors)?;
    head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
    let file_bytes = data + head.len() as u64;
    Ok((head, file_bytes))
}

/// A file under a temporary name, which goes away unless it is renamed.
pub(super) struct Temporary {
    file: File,
    path: PathBuf,
    renamed: bool,
}

impl Temporary {
    /// Creates the file beside its target, and reserves its space if that is known.
    pub(super) fn create(target: &Path, file_bytes: u64) -> Result<Temporary> {
        // Threads of one process may write the same target.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let name = format!(".{name}.{}.{count}.tmp", std::process::id());
        let path = folder(target).join(name);
        let opened = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = opened.map_err(|error| {
            let place = target.display();
            match error.kind() {
                ErrorKind::NotFound => {
                    let folder = folder(target).display().to_string();
                    Error::new(format!("{place}: the folder `{folder}` does not exist"))
                }
                _ => Error::new(format!("{place}: cannot be written: {error}")),
            }
        })?;
        // Says that somebody is at work on it; where a system has no locks, nothing is swept.
        let _ = file.try_lock();
        sweep(target);
        let temporary = Temporary { file, path, renamed: false };
        reserve(&temporary.file, file_bytes)
            .map_err(|error| write_error(target, file_bytes, &error))?;
        Ok(temporary)
    }

    /// Gives the file its name, and makes the folder remember it.
    pub(super) fn rename(&mut self, target: &Path) -> Result<()> {
        fs::rename(&self.path, target).at(target.display())?;
        self.renamed = true;
        // Not every system can open a folder; the rename itself has succeeded.
        if let Ok(folder) = File::open(folder(target)) {
            let _ = folder.sync_all();
        }
        Ok(())
    }

    /// The file itself.
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes what killed processes left of files for the same target.
fn sweep(target: &Path) {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let (prefix, suffix) = (format!(".{name}."), ".tmp");
    let is_of_target = |found: &str| {
        let numbers = found.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(suffix));
        numbers.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
    };
    let Ok(entries) = fs::read_dir(folder(target)) else { return };
    for entry in
        entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_of_target))
    {
        let path = entry.path();
        // A file is made before it is locked.
        let age =
            entry.metadata().and_then(|it| it.modified()).ok().and_then(|it| it.elapsed().ok());
        let is_old = age.is_some_and(|age| age > ABANDONED);
        if is_old && File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(path);
        }
    }
}

/// What a failed write says.
pub(super) fn write_error(target: &Path, file_bytes: u64, error: &std::io::Error) -> Error {
    let place = target.display();
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Error::new(format!("{place}: no space left on the device, {file_bytes} bytes needed"))
        }
        ErrorKind::FileTooLarge => {
            Error::new(format!("{place}: the system does not allow a file of {file_bytes} bytes"))
        }
        _ => Error::new(format!("{place}: writing failed: {error}")),
    }
}

fn folder(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn check_target(target: &Path, sources: &[PathBuf]) -> Result<()> {
    let place = target.display();
    if target.file_name().is_none() {
        bail!("{place}: is not the name of a file");
    }
    let Ok(found) = fs::metadata(target) else { return Ok(()) };
    if found.is_dir() {
        bail!("{place}: is a folder, expected the name of a file");
    }
    if !found.is_file() {
        bail!("{place}: exists and is not a regular file");
    }
    if let Some(source) = sources.iter().find(|source| is_same_file(source, target)) {
        bail!("{place}: is the same file as the source {}", source.display());
    }
    Ok(())
}

/// Whether both names lead to one file, through links of either kind.
fn is_same_file(a: &Path, b: &Path) -> bool {
    let canonical = |path: &Path| fs::canonicalize(path).ok();
    if canonical(a).is_some() && canonical(a) == canonical(b) {
        return true;
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |path: &Path| fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
        identity(a).is_some() && identity(a) == identity(b)
    }
    #[cfg(not(unix))]
    false
}

/// A process that writes beyond its limit is killed by a signal, so the limit is read first.
fn check_size_limit(target: &Path, file_bytes: u64) -> Result<()> {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, getrlimit};
        let limit = getrlimit(Resource::Fsize).current;
        if let Some(limit) = limit.filter(|&limit| limit < file_bytes) {
            let place = target.display();
            let message =
                format!("{place}: {file_bytes} bytes needed, but files are limited to {limit}");
            return Err(Error::new(message).with_hint("see `ulimit -f`"));
        }
    }
    Ok(())
}

/// Takes the space at once where the file system can, so that a long conversion does not end in a
/// full disk.
fn reserve(file: &File, file_bytes: u64) -> std::io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if file_bytes > 0 {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        // Many file systems cannot; then the writes themselves will tell.
        if let Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) =
            fallocate(file, FallocateFlags::empty(), 0, file_bytes)
        {
            return Err(error.into());
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (file, file_bytes);
    Ok(())
}

/// Bytes of a head without records, not padded.
///
/// # Errors
/// If the metadata would not be readable.
pub(super) fn head_bytes(metadata: &Metadata) -> Result<u64> {
    head(metadata, &[]).map(|head| head.len() as u64)
}

/// Everything before the tensor data, not padded.
fn head(metadata: &Metadata, tensors: &[NewTensor]) -> Result<Vec<u8>> {
    let entries = || metadata.iter().filter(|(key, _)| *key != ALIGNMENT_KEY);
    check_counts(entries().count() as u64, tensors)?;
    let mut head = Vec::new();
    head.extend_from_slice(gguf::MAGIC);
    head.write_u32::<LittleEndian>(VERSION)?;
    head.write_u64::<LittleEndian>(tensors.len() as u64)?;
    head.write_u64::<LittleEndian>(entries().count() as u64)?;
    for (key, value) in entries() {
        if key.is_empty() {
            bail!("a metadata key is empty");
        }
        write_string(&mut head, key)?;
        write_value(&mut head, value).at(format_args!("metadata key `{key}`"))?;
    }
    let mut offset = 0;
    for NewTensor { name, shape, kind, bytes } in tensors {
        write_string(&mut head, name)?;
        head.write_u32::<LittleEndian>(shape.len() as u32)?;
        for &size in shape {
            head.write_u64::<LittleEndian>(size)?;
        }
        head.write_u32::<LittleEndian>(kind.id)?;
        head.write_u64::<LittleEndian>(offset)?;
        offset += bytes.next_multiple_of(ALIGNMENT);
    }
    Ok(head)
}

fn check_counts(entries: u64, tensors: &[NewTensor]) -> Result<()> {
    if entries > limits::METADATA_LEN_MAX {
        bail!("{entries} metadata entries, expected at most {}", limits::METADATA_LEN_MAX);
    }
    if tensors.len() as u64 > limits::TENSORS_MAX {
        bail!("{} tensors, expected at most {}", tensors.len(), limits::TENSORS_MAX);
    }
    let mut seen = HashSet::new();
    if let Some(twice) = tensors.iter().find(|tensor| !seen.insert(&tensor.name)) {
        bail!("tensor `{}` is written twice", twice.name);
    }
    Ok(())
}

fn write_string(out: &mut Vec<u8>, text: &str) -> Result<()> {
    if text.len() as u64 > limits::STRING_BYTES_MAX {
        bail!("a string has {} bytes, expected at most {}", text.len(), limits::STRING_BYTES_MAX);
    }
    out.write_u64::<LittleEndian>(text.len() as u64)?;
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn write_value(out: &mut Vec<u8>, value: &Value) -> Result<()> {
    out.write_u32::<LittleEndian>(value_type(value))?;
    write_payload(out, value)
}

/// The number of a value's type; of an element's, for an element.
fn value_type(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn write_payload(out: &mut Vec<u8>, value: &Value) -> Result<()> {
    match value {
        Value::U8(value) => out.push(*value),
        Value::I8(value) => out.push(*value as u8),
        Value::U16(value) => out.write_u16::<LittleEndian>(*value)?,
        Value::I16(value) => out.write_i16::<LittleEndian>(*value)?,
        Value::U32(value) => out.write_u32::<LittleEndian>(*value)?,
        Value::I32(value) => out.write_i32::<LittleEndian>(*value)?,
        Value::F32(value) => out.write_f32::<LittleEndian>(*value)?,
        Value::Bool(value) => out.push(u8::from(*value)),
        Value::String(value) => write_string(out, value)?,
        Value::Array(array) => write_array(out, array)?,
        Value::U64(value) => out.write_u64::<LittleEndian>(*value)?,
        Value::I64(value) => out.write_i64::<LittleEndian>(*value)?,
        Value::F64(value) => out.write_f64::<LittleEndian>(*value)?,
    }
    Ok(())
}

fn write_array(out: &mut Vec<u8>, array: &Array) -> Result<()> {
    let len = array.len() as u64;
    if len > limits::ARRAY_LEN_MAX {
        bail!("an array of {len} elements, expected at most {}", limits::ARRAY_LEN_MAX);
    }
    out.write_u32::<LittleEndian>(element_type(array))?;
    out.write_u64::<LittleEndian>(len)?;
    for index in 0..array.len() {
        let element = array.get(index).expect("the index is below the length");
        write_payload(out, &element)?;
    }
    Ok(())
}

fn element_type(array: &Array) -> u32 {
    match array {
        Array::U8(_) => 0,
        Array::I8(_) => 1,
        Array::U16(_) => 2,
        Array::I16(_) => 3,
        Array::U32(_) => 4,
        Array::I32(_) => 5,
        Array::F32(_) => 6,
        Array::Bool(_) => 7,
        Array::String(_) => 8,
        Array::U64(_) => 10,
        Array::I64(_) => 11,
        Array::F64(_) => 12,
    }
}
