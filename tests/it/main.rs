//! The integration tests: one binary, one module per subject.

mod bad_models;
mod cli;
mod cpu;
mod devices;
mod download;
mod formats;
mod gguf;
mod grids;
mod higgs;
mod hostile;
mod layers;
mod models;
mod planes;
mod pool;
mod scratch;
mod simd;
mod source;
mod split;
mod text;
mod tidy;
mod transform;
mod types;
