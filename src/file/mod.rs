//! Files: GGUF read and write, safetensors, memory maps, shards, the planes of our own types, the
//! cache folder, downloads.
//!
//! [`Source`] opens a model, [`Writer`] makes one, [`planes`] is the registry that ties our planes
//! to the weights they hold (`formats/planes.md`).

pub mod cache;
mod cursor;
pub mod download;
mod gguf;
#[cfg(feature = "hub")]
mod hub;
mod map;
mod metadata;
pub mod planes;
mod repack;
pub mod repository;
pub mod safetensors;
mod shards;
mod source;
mod split;
mod writer;

pub use gguf::{ALIGNMENT, Gguf, TensorInfo};
pub use map::Map;
pub use metadata::{Array, Metadata, Value};
pub use repack::repack;
pub use source::{RawTensor, Source};
pub use split::{ShardLimit, Share, merge, prefix, split};
pub use writer::{NewTensor, Writer};
