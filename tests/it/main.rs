//! The integration tests: one binary, one module per subject.

mod bad_models;
mod cli;
mod download;
mod formats;
mod gguf;
mod hostile;
mod layers;
mod models;
mod planes;
mod scratch;
mod source;
mod tidy;
mod transform;
mod types;
