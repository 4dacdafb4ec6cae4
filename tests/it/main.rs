//! The integration tests: one binary, one module per subject.

mod formats;
mod gguf;
mod hostile;
mod planes;
mod scratch;
mod transform;
mod types;
