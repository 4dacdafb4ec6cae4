//! The integration tests: one binary, one module per subject.

mod bad_models;
mod download;
mod cpu;
mod formats;
mod gguf;
mod hostile;
mod models;
mod planes;
mod scratch;
mod transform;
mod types;
