//! The integration tests: one binary, one module per subject.

mod gguf;
mod hostile;
mod planes;
mod scratch;
mod transform;
