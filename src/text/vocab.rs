//! What a tokenizer is made from: the `tokenizer.*` metadata of a GGUF file as plain data.

use crate::bail;
use crate::error::{Error, Result};
use crate::limits::{TOKEN_BYTES_MAX, VOCAB_LEN_MAX};

/// The `tokenizer.*` metadata of a model. Each field names the key it comes from, below
/// `tokenizer.ggml.` where nothing else is said.
///
/// A default one is empty; [`Tokenizer::new`](super::Tokenizer::new) refuses it.
#[derive(Clone, Debug, Default)]
pub struct Vocab {
    /// `model`: `gpt2` for byte-level BPE, `llama` for SentencePiece. `None` without the key.
    pub model: Option<String>,
    /// `pre`: the pre-tokenizer of a BPE vocabulary.
    pub pre: Option<String>,
    /// `general.name`: llama.cpp decides by it which special tokens swallow spaces.
    pub name: Option<String>,
    /// `tokens`: the text of each token, in the encoding of the model.
    pub tokens: Vec<String>,
    /// `token_type`: one of [`TokenKind`]'s numbers per token, or empty for all normal.
    pub types: Vec<i32>,
    /// `scores`: a merge's merit per token, greater is earlier; or empty for all zero.
    pub scores: Vec<f32>,
    /// `merges`: `left right` per merge, the first one first.
    pub merges: Vec<String>,
    /// `bos_token_id`: begins a text.
    pub bos: Option<u32>,
    /// `eos_token_id`: ends a text.
    pub eos: Option<u32>,
    /// `eot_token_id`: ends a turn.
    pub eot: Option<u32>,
    /// `eom_token_id`: ends a message that is not the whole turn.
    pub eom: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `fim_pre_token_id`: fill in the middle, before the prefix.
    pub fim_pre: Option<u32>,
    /// `fim_suf_token_id`: fill in the middle, before the suffix.
    pub fim_suf: Option<u32>,
    /// `fim_mid_token_id`: fill in the middle, before the answer.
    pub fim_mid: Option<u32>,
    /// `fim_pad_token_id`: fill in the middle, ends the answer.
    pub fim_pad: Option<u32>,
    /// `fim_rep_token_id`: before a repository's name.
    pub fim_rep: Option<u32>,
    /// `fim_sep_token_id`: between files.
    pub fim_sep: Option<u32>,
    /// `add_bos_token`: overrides what the model's kind has as default.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`: whether SentencePiece puts a space in front.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`: Jinja source. No tokenizer needs it.
    pub chat_template: Option<String>,
}

/// What a token is for; the numbers are those of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// 0 and every unknown number: has no text.
    Undefined,
    /// 1: ordinary text.
    Normal,
    /// 2: stands for what has no token.
    Unknown,
    /// 3: steers the model; matched in a text only on request and not printed.
    Control,
    /// 4: text that is always matched whole, before all else.
    UserDefined,
    /// 5: a hole in the vocabulary; has no text.
    Unused,
    /// 6: a byte, written `<0x41>`.
    Byte,
}

impl TokenKind {
    fn from_number(number: i32) -> TokenKind {
        match number {
            1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => TokenKind::Undefined,
        }
    }
}

impl Vocab {
    /// Checks that lengths agree, ids exist and sizes are within the limits.
    ///
    /// # Errors
    ///
    /// Names the key with what was expected and found. Without a tokenizer's name or with the
    /// name `none`, the error begins with `no tokenizer`.
    pub fn validate(&self) -> Result<()> {
        let Some(model) = &self.model else {
            return Err(Error::new("no tokenizer: the metadata has no `tokenizer.ggml.model`")
                .with_hint("a file made from a whole model with its tokenizer has one"));
        };
        if model == "none" || model == "no_vocab" {
            bail!("no tokenizer: `tokenizer.ggml.model` is `{model}`");
        }
        let len = self.tokens.len();
        if len == 0 {
            bail!("`tokenizer.ggml.tokens` is missing or empty");
        }
        check_max("tokens", len)?;
        check_max("merges", self.merges.len())?;
        for (key, found) in [("token_type", self.types.len()), ("scores", self.scores.len())] {
            if found != 0 && found != len {
                bail!(
                    "`tokenizer.ggml.{key}` has {found} elements, expected one for each of the \
                     {len} tokens"
                );
            }
        }
        for (id, token) in self.tokens.iter().enumerate() {
            if token.len() > TOKEN_BYTES_MAX {
                bail!("token {id} has {} bytes, at most {TOKEN_BYTES_MAX} expected", token.len());
            }
        }
        for (key, id) in self.ids() {
            if let Some(id) = id
                && id as usize >= len
            {
                bail!("`tokenizer.ggml.{key}` is {id}, but there are {len} tokens");
            }
        }
        Ok(())
    }

    /// The kind of each of `len` tokens.
    pub(super) fn kinds(&self, len: usize) -> Vec<TokenKind> {
        if self.types.is_empty() {
            return vec![TokenKind::Normal; len];
        }
        self.types.iter().map(|&number| TokenKind::from_number(number)).collect()
    }

    fn ids(&self) -> [(&'static str, Option<u32>); 12] {
        [
            ("bos_token_id", self.bos),
            ("eos_token_id", self.eos),
            ("eot_token_id", self.eot),
            ("eom_token_id", self.eom),
            ("unknown_token_id", self.unk),
            ("padding_token_id", self.pad),
            ("fim_pre_token_id", self.fim_pre),
            ("fim_suf_token_id", self.fim_suf),
            ("fim_mid_token_id", self.fim_mid),
            ("fim_pad_token_id", self.fim_pad),
            ("fim_rep_token_id", self.fim_rep),
            ("fim_sep_token_id", self.fim_sep),
        ]
    }
}

fn check_max(key: &str, len: usize) -> Result<()> {
    if len > VOCAB_LEN_MAX {
        bail!("`tokenizer.ggml.{key}` has {len} elements, at most {VOCAB_LEN_MAX} expected");
    }
    Ok(())
}
