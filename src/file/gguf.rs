//! The head of a GGUF file, parsed and checked by the rules of llama.cpp's loader.
//!
//! Layout (little-endian): `GGUF`, u32 version, u64 tensors, u64 entries; the entries (key, u32
//! type, value); the tensor records (name, u32 dimensions, u64 each, u32 type, u64 offset); padding
//! to the alignment; the data of the tensors in order, each padded to the alignment.
//!
//! Nothing is allocated for a count before the bytes that it stands for are known to be there.

use std::collections::HashSet;

use byteorder::{ByteOrder, LittleEndian};

use super::cursor::{Cursor, INCOMPLETE};
use super::metadata::{Array, Metadata, Value};
use crate::Result;
use crate::bail;
use crate::error::{At, Error};
use crate::limits;
use crate::types::raw::{self, RawType};
use crate::types::{TYPES, TensorType};

/// Alignment of tensor data where `general.alignment` is absent.
pub const ALIGNMENT: u64 = 32;

/// The key that sets another alignment; we read it and never write it, because splitting tools
/// lose it.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// The first four bytes of every file.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// A parsed head.
#[derive(Clone, Debug, Default)]
pub struct Gguf {
    /// 2 or 3; they differ in nothing that concerns a little-endian file.
    pub version: u32,
    /// Keys and values.
    pub metadata: Metadata,
    /// Records in file order; their data lies in the same order without gaps.
    pub tensors: Vec<TensorInfo>,
    /// Bytes, a power of two.
    pub alignment: u64,
    /// Where the tensor data starts, in bytes from the start of the file.
    pub data_start: u64,
}

/// One tensor record. Its bytes are known to lie within the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// At most 63 bytes, once per file.
    pub name: String,
    /// Values per dimension, the contiguous one first; at most 4, none for a single value.
    pub shape: Vec<u64>,
    /// The layout.
    pub kind: RawType,
    /// Bytes from the start of the tensor data.
    pub offset: u64,
    /// Bytes of data, padding left out.
    pub bytes: u64,
}

impl TensorInfo {
    /// Values in a row: the first dimension.
    pub fn cols(&self) -> u64 {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Rows: the product of the outer dimensions.
    pub fn rows(&self) -> u64 {
        self.shape.iter().skip(1).product()
    }
}

impl Gguf {
    /// Parses the head of a file, given all its bytes.
    ///
    /// # Errors
    /// On any departure from the format, with the entry or tensor at fault.
    pub fn parse(bytes: &[u8]) -> Result<Gguf> {
        Gguf::parse_with(bytes, TYPES)
    }

    /// [`Gguf::parse`] where private type numbers are those of `types`.
    ///
    /// # Errors
    /// As [`Gguf::parse`].
    pub fn parse_with(bytes: &[u8], types: &[&'static dyn TensorType]) -> Result<Gguf> {
        let mut cursor = Cursor::new(bytes);
        let (version, tensors, entries) = header(&mut cursor)?;
        let metadata = metadata(&mut cursor, entries)?;
        let alignment = alignment(&metadata)?;
        let tensors = tensor_infos(&mut cursor, tensors, types)?;
        let data_start = cursor.position().next_multiple_of(alignment);
        check_data(&tensors, alignment, data_start, bytes.len() as u64)?;
        Ok(Gguf { version, metadata, tensors, alignment, data_start })
    }
}

/// Version, tensors, metadata entries.
fn header(cursor: &mut Cursor) -> Result<(u32, u64, u64)> {
    let magic = cursor.take(4).at("header")?;
    if magic != MAGIC {
        let error = Error::new(format!(
            "not a GGUF file: it starts with \"{}\", expected \"GGUF\"",
            magic.escape_ascii()
        ));
        return Err(match magic {
            b"vers" => error.with_hint("this looks like a Git LFS pointer: fetch the file itself"),
            b"<!DO" | b"<htm" => error.with_hint("this looks like a web page"),
            b"FUGG" => error.with_hint("this looks like a big-endian file: convert it first"),
            _ => error,
        });
    }
    let version = cursor.u32().at("header")?;
    match version {
        2 | 3 => {}
        1 => bail!("GGUF version 1 is not supported, expected 2 or 3"),
        _ if version & 0xffff == 0 && version != 0 => {
            bail!("the file is big-endian (version {version:#x}), expected little-endian")
        }
        _ => bail!("GGUF version {version} is not supported, expected 2 or 3"),
    }
    let tensors = cursor.u64().at("header")?;
    if tensors > limits::TENSORS_MAX {
        bail!("the file declares {tensors} tensors, expected at most {}", limits::TENSORS_MAX);
    }
    let entries = cursor.u64().at("header")?;
    let max = limits::METADATA_LEN_MAX;
    if entries > max {
        bail!("the file declares {entries} metadata entries, expected at most {max}");
    }
    Ok((version, tensors, entries))
}

fn metadata(cursor: &mut Cursor, entries: u64) -> Result<Metadata> {
    let mut metadata = Metadata::new();
    for entry in 0..entries {
        let key =
            cursor.string(limits::STRING_BYTES_MAX).at(format_args!("metadata entry {entry}"))?;
        if key.is_empty() {
            bail!("metadata entry {entry} has an empty key");
        }
        if metadata.get(key).is_some() {
            bail!("metadata key `{key}` occurs twice");
        }
        let value = value(cursor).at(format_args!("metadata key `{key}`"))?;
        metadata.set(key, value);
    }
    Ok(metadata)
}

fn value(cursor: &mut Cursor) -> Result<Value> {
    Ok(match cursor.u32()? {
        0 => Value::U8(cursor.u8()?),
        1 => Value::I8(cursor.u8()? as i8),
        2 => Value::U16(cursor.u16()?),
        3 => Value::I16(cursor.u16()? as i16),
        4 => Value::U32(cursor.u32()?),
        5 => Value::I32(cursor.u32()? as i32),
        6 => Value::F32(f32::from_bits(cursor.u32()?)),
        7 => Value::Bool(boolean(cursor.u8()?)?),
        8 => Value::String(cursor.string(limits::STRING_BYTES_MAX)?.to_string()),
        9 => Value::Array(array(cursor)?),
        10 => Value::U64(cursor.u64()?),
        11 => Value::I64(cursor.u64()? as i64),
        12 => Value::F64(f64::from_bits(cursor.u64()?)),
        number => bail!("unknown value type {number}, expected 0 to 12"),
    })
}

fn array(cursor: &mut Cursor) -> Result<Array> {
    let kind = cursor.u32()?;
    let len = cursor.u64()?;
    if kind == 9 {
        bail!("an array of arrays, which GGUF does not allow");
    }
    if len > limits::ARRAY_LEN_MAX {
        bail!("an array of {len} elements, expected at most {}", limits::ARRAY_LEN_MAX);
    }
    // Below, `take` finds the bytes of all elements before any of them is copied, and the limit
    // keeps the product in range.
    Ok(match kind {
        0 => Array::U8(cursor.take(len)?.to_vec()),
        1 => Array::I8(cursor.take(len)?.iter().map(|&byte| byte as i8).collect()),
        2 => Array::U16(numbers(cursor.take(2 * len)?, LittleEndian::read_u16)),
        3 => Array::I16(numbers(cursor.take(2 * len)?, LittleEndian::read_i16)),
        4 => Array::U32(numbers(cursor.take(4 * len)?, LittleEndian::read_u32)),
        5 => Array::I32(numbers(cursor.take(4 * len)?, LittleEndian::read_i32)),
        6 => Array::F32(numbers(cursor.take(4 * len)?, LittleEndian::read_f32)),
        7 => {
            Array::Bool(cursor.take(len)?.iter().map(|&byte| boolean(byte)).collect::<Result<_>>()?)
        }
        8 => Array::String(strings(cursor, len)?),
        10 => Array::U64(numbers(cursor.take(8 * len)?, LittleEndian::read_u64)),
        11 => Array::I64(numbers(cursor.take(8 * len)?, LittleEndian::read_i64)),
        12 => Array::F64(numbers(cursor.take(8 * len)?, LittleEndian::read_f64)),
        number => bail!("unknown element type {number}, expected 0 to 12"),
    })
}

fn numbers<T>(bytes: &[u8], read: fn(&[u8]) -> T) -> Vec<T> {
    bytes.chunks_exact(size_of::<T>()).map(read).collect()
}

fn strings(cursor: &mut Cursor, len: u64) -> Result<Vec<String>> {
    // Each string has at least its length: eight bytes.
    if len > cursor.remaining() / 8 {
        let remaining = cursor.remaining();
        let message = format!("an array of {len} strings, but the file has {remaining} bytes left");
        return Err(Error::new(message).with_hint(INCOMPLETE));
    }
    let element = |index| -> Result<String> {
        let text = cursor.string(limits::STRING_BYTES_MAX).at(format_args!("element {index}"))?;
        Ok(text.to_string())
    };
    (0..len).map(element).collect()
}

fn boolean(byte: u8) -> Result<bool> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => bail!("a bool is stored as {byte}, expected 0 or 1"),
    }
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    match metadata.get(ALIGNMENT_KEY) {
        None => Ok(ALIGNMENT),
        Some(Value::U32(alignment)) if alignment.is_power_of_two() => Ok(u64::from(*alignment)),
        Some(Value::U32(alignment)) => {
            bail!("`{ALIGNMENT_KEY}` is {alignment}, expected a power of two")
        }
        Some(other) => bail!("`{ALIGNMENT_KEY}` is {}, expected u32", other.type_name()),
    }
}

fn tensor_infos(
    cursor: &mut Cursor,
    count: u64,
    types: &[&'static dyn TensorType],
) -> Result<Vec<TensorInfo>> {
    let mut tensors = Vec::new();
    let mut seen = HashSet::new();
    for index in 0..count {
        // The bound of strings first, so that a name that is merely too long is shown.
        let name = cursor.string(limits::STRING_BYTES_MAX).at(format_args!("tensor {index}"))?;
        let max = limits::TENSOR_NAME_BYTES_MAX;
        if name.len() > max {
            let shown: String = name.chars().take(max).collect();
            let len = name.len();
            bail!("tensor {index}: the name `{shown}...` has {len} bytes, expected at most {max}");
        }
        if !seen.insert(name) {
            bail!("tensor `{name}` occurs twice");
        }
        let has_next = index + 1 < count;
        let info = tensor_info(cursor, name, types, has_next);
        tensors.push(info.at(format_args!("tensor `{name}`"))?);
    }
    Ok(tensors)
}

fn tensor_info(
    cursor: &mut Cursor,
    name: &str,
    types: &[&'static dyn TensorType],
    has_next: bool,
) -> Result<TensorInfo> {
    let dimensions = cursor.u32()?;
    if dimensions > limits::DIMENSIONS_MAX {
        bail!("{dimensions} dimensions, expected at most {}", limits::DIMENSIONS_MAX);
    }
    let shape = (0..dimensions).map(|_| cursor.u64()).collect::<Result<Vec<u64>>>()?;
    let number = cursor.u32()?;
    let offset = cursor.u64()?;
    let Some(kind) = raw::find(number, types) else {
        // What it takes in the file its type could tell, or where the next one begins.
        let next = if has_next { next_offset(cursor) } else { None };
        let room = next.and_then(|next| next.checked_sub(offset));
        let room = room.map(|bytes| format!(", in {bytes} bytes")).unwrap_or_default();
        let message = format!("unknown type number {number}, of shape {shape:?}{room}");
        return Err(Error::new(message).with_hint(raw::explain_unknown(number)));
    };
    let bytes = tensor_bytes(&shape, kind)?;
    Ok(TensorInfo { name: name.to_string(), shape, kind, offset, bytes })
}

/// Where the next tensor begins, if there is a record of it.
fn next_offset(cursor: &mut Cursor) -> Option<u64> {
    cursor.string(limits::STRING_BYTES_MAX).ok()?;
    let dimensions = cursor.u32().ok().filter(|&count| count <= limits::DIMENSIONS_MAX)?;
    (0..dimensions).try_for_each(|_| cursor.u64().ok().map(drop))?;
    cursor.u32().ok()?;
    cursor.u64().ok()
}

/// Bytes of a tensor's data, after every check on its shape.
///
/// # Errors
/// If there are too many values, or the type's block does not divide a row.
pub(super) fn tensor_bytes(shape: &[u64], kind: RawType) -> Result<u64> {
    let max = limits::TENSOR_LEN_MAX;
    // The bound holds for every partial product too, so that a zero cannot hide an overflow.
    let within = |len: u64, &size: &u64| len.checked_mul(size.max(1)).filter(|&len| len <= max);
    if shape.iter().try_fold(1, within).is_none() {
        let len = shape.iter().try_fold(1u128, |len, &size| len.checked_mul(size.into()));
        let len = len.map_or("more than 2^128".to_string(), |len| len.to_string());
        bail!("shape {shape:?} has {len} values, expected at most {max}");
    }
    let cols = shape.first().copied().unwrap_or(1);
    let rows: u64 = shape.iter().skip(1).product();
    let RawType { name, block_len, .. } = kind;
    match kind.bytes(cols, rows) {
        Some(bytes) => Ok(bytes),
        None => bail!("rows of {cols} values, expected a multiple of {block_len} for type {name}"),
    }
}

/// The data must be one run: every tensor at the padded end of the one before, all in the file.
fn check_data(tensors: &[TensorInfo], alignment: u64, start: u64, file_bytes: u64) -> Result<()> {
    let mut expected = 0u64;
    let mut before: Option<&TensorInfo> = None;
    for info in tensors {
        let TensorInfo { name, offset, bytes, .. } = info;
        if *offset != expected {
            let message =
                format!("tensor `{name}` starts at byte {offset} of the data, expected {expected}");
            let error = Error::new(message);
            let Some(TensorInfo { name, kind, .. }) = before else { return Err(error) };
            return Err(error.with_hint(format!(
                "tensor `{name}` before it may have been written by a fork with another layout \
                 for its type number (here that is {})",
                kind.name
            )));
        }
        before = Some(info);
        let end = start.checked_add(expected).and_then(|at| at.checked_add(*bytes));
        let end =
            end.ok_or_else(|| Error::new(format!("tensor `{name}` ends beyond 2^64 bytes")))?;
        if end > file_bytes {
            let message =
                format!("tensor `{name}` ends at byte {end}, but the file has {file_bytes}");
            return Err(Error::new(message).with_hint(INCOMPLETE));
        }
        // At most the file's bytes and one alignment, so that neither sum overflows.
        expected = (expected + bytes).next_multiple_of(alignment);
    }
    Ok(())
}
