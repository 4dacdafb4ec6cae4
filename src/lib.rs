//! Gridmill converts language models to GGUF with better weights per byte, and runs them.
//!
//! `ARCHITECTURE.md` says what each module is for and which modules it may use.

pub mod backend;
pub mod cli;
pub mod convert;
pub mod error;
pub mod file;
pub mod limits;
pub mod model;
pub mod plan;
pub mod quant;
pub mod run;
pub mod simd;
pub mod text;
pub mod transform;
pub mod types;

pub use error::{Error, Result};
