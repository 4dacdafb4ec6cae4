//! Sessions, generation and scoring: everything between a loaded model and its user.

pub mod generate;
pub mod logits_file;
pub mod score;
pub mod session;
pub mod tokenizer;
pub mod verify;

pub use session::{Device, Options, Session};
