//! The integration tests: one binary, one module per subject.

mod download;
mod formats;
mod gguf;
mod hostile;
mod planes;
mod scratch;
mod transform;
mod types;
