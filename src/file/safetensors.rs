//! Safetensors: a header of JSON that says where in the file each tensor lies.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::map::Map;
use crate::Result;
use crate::bail;
use crate::error::{At, Error};
use crate::limits;
use crate::types::Bytes;

/// Bytes of the length of the header, which the file begins with.
const LEN_BYTES: usize = 8;

/// The one entry of the header that is no tensor.
const METADATA: &str = "__metadata__";

/// A file of tensors, mapped. Every tensor has been found inside it.
pub struct Safetensors {
    path: PathBuf,
    map: Map,
    tensors: HashMap<String, Entry>,
}

/// One tensor of a file.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `F32`, `BF16`, `I16`, ...
    pub dtype: String,
    /// Values per dimension, the contiguous one last.
    pub shape: Vec<u64>,
    /// Its bytes in the file.
    range: Range<usize>,
}

impl Entry {
    /// A tensor that lies in no file.
    pub fn new(dtype: &str, shape: Vec<u64>) -> Entry {
        Entry { dtype: dtype.to_string(), shape, range: 0..0 }
    }
}

#[derive(Deserialize)]
struct Header {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Safetensors {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// If it cannot be read, its header is too long or no JSON, or a tensor lies outside the file,
    /// in another one, or has not the bytes that its shape needs.
    pub fn open(path: &Path) -> Result<Safetensors> {
        let map = Map::open(path)?;
        let tensors = parse(map.as_slice()).at(path.display())?;
        Ok(Safetensors { path: path.to_path_buf(), map, tensors })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn map(&self) -> &Map {
        &self.map
    }

    /// Names of the tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Gives a tensor another name, as if the header had it.
    pub fn rename(&mut self, name: &str, new: &str) {
        if let Some(entry) = self.tensors.remove(name) {
            self.tensors.insert(new.to_string(), entry);
        }
    }

    /// A tensor and its bytes.
    pub fn get(&self, name: &str) -> Option<(&Entry, Bytes)> {
        let entry = self.tensors.get(name)?;
        Some((entry, self.map.bytes(entry.range.clone())))
    }
}

fn parse(bytes: &[u8]) -> Result<HashMap<String, Entry>> {
    let Some((len, rest)) = bytes.split_first_chunk::<LEN_BYTES>() else {
        bail!("the file has {} bytes, expected at least {LEN_BYTES}", bytes.len());
    };
    let (len, max) = (u64::from_le_bytes(*len), limits::SAFETENSORS_HEADER_BYTES_MAX);
    if len > max {
        let message = format!("the header has {len} bytes, expected at most {max}");
        return Err(Error::new(message).with_hint("this may be no safetensors file"));
    }
    // At most the limit, which fits.
    let Some((header, data)) = rest.split_at_checked(len as usize) else {
        return Err(incomplete(format!(
            "the header ends at byte {}, but the file has {}",
            LEN_BYTES as u64 + len,
            bytes.len()
        )));
    };
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|error| Error::new(format!("header: {error}")))?;
    if header.len() as u64 > limits::TENSORS_MAX {
        bail!("{} tensors, expected at most {}", header.len(), limits::TENSORS_MAX);
    }
    let data_start = LEN_BYTES + len as usize;
    let tensors = header.into_iter().filter(|(name, _)| name != METADATA);
    let tensors = tensors.map(|(name, value)| {
        let entry = entry(value, data_start, data.len() as u64);
        let entry = entry.at(format_args!("tensor `{name}`"))?;
        Ok((name, entry))
    });
    let tensors: HashMap<String, Entry> = tensors.collect::<Result<_>>()?;
    check_apart(&tensors, data_start)?;
    Ok(tensors)
}

/// Refuses tensors that share bytes: the format has none.
fn check_apart(tensors: &HashMap<String, Entry>, data_start: usize) -> Result<()> {
    let mut places: Vec<_> = tensors.iter().filter(|(_, entry)| !entry.range.is_empty()).collect();
    places.sort_by_key(|(name, entry)| (entry.range.start, *name));
    for pair in places.windows(2) {
        let [(first, a), (second, b)] = [pair[0], pair[1]];
        if b.range.start < a.range.end {
            let (start, end) = (b.range.start - data_start, a.range.end - data_start);
            bail!(
                "tensor `{second}` begins at byte {start} of the data, but `{first}` ends at {end}"
            );
        }
    }
    Ok(())
}

fn entry(value: serde_json::Value, data_start: usize, data_bytes: u64) -> Result<Entry> {
    let header: Header =
        serde_json::from_value(value).map_err(|error| Error::new(error.to_string()))?;
    let Header { dtype, shape, data_offsets: [start, end] } = header;
    if start > end || end > data_bytes {
        return Err(incomplete(format!(
            "lies at bytes {start} to {end} of the data, but the file has {data_bytes}"
        )));
    }
    if shape.len() > limits::DIMENSIONS_MAX as usize {
        bail!("{} dimensions, expected at most {}", shape.len(), limits::DIMENSIONS_MAX);
    }
    let within =
        |len: u64, &size: &u64| len.checked_mul(size).filter(|&len| len <= limits::TENSOR_LEN_MAX);
    let Some(len) = shape.iter().try_fold(1, within) else {
        bail!("shape {shape:?} has more than {} values", limits::TENSOR_LEN_MAX);
    };
    let found = end - start;
    // A type that is not known here is listed, and refused when it is asked for.
    if let Some(bytes) = dtype_bytes(&dtype).filter(|bytes| bytes * len != found) {
        let expected = bytes * len;
        bail!("{dtype} of shape {shape:?} has {found} bytes, expected {expected}");
    }
    // Inside the file, whose length is a usize.
    Ok(Entry { dtype, shape, range: data_start + start as usize..data_start + end as usize })
}

/// Bytes of one value.
fn dtype_bytes(dtype: &str) -> Option<u64> {
    match dtype {
        "F64" | "I64" | "U64" => Some(8),
        "F32" | "I32" | "U32" => Some(4),
        "F16" | "BF16" | "I16" | "U16" => Some(2),
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" => Some(1),
        _ => None,
    }
}

fn incomplete(message: String) -> Error {
    Error::new(message).with_hint("the download may be incomplete")
}
