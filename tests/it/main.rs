//! The integration tests: one binary, one module per subject.

mod download;
mod gguf;
mod hostile;
mod planes;
mod scratch;
