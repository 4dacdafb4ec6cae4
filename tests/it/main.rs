//! The integration tests: one binary, one module per subject.

mod bad_models;
mod calibrate;
mod checkpoint;
mod cli;
mod compare;
mod cpu;
mod devices;
mod download;
mod experts;
mod export;
mod fine_tune;
mod folder;
mod folder_values;
mod folders;
mod formats;
mod fused;
mod gguf;
#[cfg(feature = "gpu")]
mod gpu;
mod grids;
mod heard_experts;
mod higgs;
mod hostile;
#[cfg(feature = "hub")]
mod hub;
mod import;
mod inspect;
mod kv;
mod layers;
mod learned;
mod models;
mod pieces;
mod planes;
mod pool;
mod products;
mod repack;
mod resq;
mod resume;
mod scratch;
mod second_order;
#[cfg(feature = "gpu")]
mod shaders;
mod shards;
mod simd;
mod source;
mod split;
mod stock;
mod text;
mod tidy;
mod tokens;
mod transform;
mod types;
mod vptq;
