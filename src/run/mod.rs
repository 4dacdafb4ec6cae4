//! Sessions, generation and scoring: everything between a loaded model and its user.

pub mod activations;
pub mod compare;
pub mod device;
pub mod generate;
pub mod kv_basis;
pub mod logits_file;
mod memory;
pub mod own_text;
pub mod probe;
pub mod reverse;
pub mod rotary;
pub mod score;
pub mod session;
pub mod tokenizer;
#[cfg(feature = "gpu")]
mod tuning;
pub mod verify;
pub mod walk;

pub use activations::Activations;
pub use device::Device;
pub use session::{Options, Session};
