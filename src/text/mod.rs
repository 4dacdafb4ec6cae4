//! From text to tokens and back: tokenizers, chat templates, sampling, streaming.
//!
//! Nothing here knows a file format: [`Vocab`] is filled by the caller from the metadata. Every
//! rule that GGUF files leave open (which token ends a text, how a pre-tokenizer cuts) is
//! llama.cpp's, since models are published for it.

pub mod chat;
pub mod sample;
pub mod stream;
pub mod tokenizer;
pub mod vocab;

mod bpe;
mod bytes;
mod hash;
mod index;
mod merge;
mod pre;
mod special;
mod spm;

pub use chat::{ChatTemplate, Message};
pub use sample::{Sampler, SamplerConfig};
pub use stream::TextStream;
pub use tokenizer::Tokenizer;
pub use vocab::Vocab;
