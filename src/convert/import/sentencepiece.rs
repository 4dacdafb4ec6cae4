//! `tokenizer.model`: a SentencePiece model, which is a message of Protocol Buffers.
//!
//! A message is fields, each a number and a kind and then its value; a message inside a message is
//! a run of bytes. Read here is what GGUF has a place for, and what changes how texts are cut is
//! refused. Source of the numbers: `sentencepiece_model.proto` of google/sentencepiece.

use crate::bail;
use crate::error::{At, Error, Result};
use crate::limits;

/// A vocabulary, and what is done to texts.
#[derive(Debug)]
pub(super) struct SentencePiece {
    /// In the order of their ids.
    pub(super) pieces: Vec<Piece>,
    /// Whether a space is put in front of a text.
    pub(super) adds_space: bool,
    /// Ids of the tokens with a part to play, where there are such.
    pub(super) special: Special,
}

/// One token.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) text: String,
    /// A greater one is merged earlier.
    pub(super) score: f32,
    /// As `tokenizer.ggml.token_type` has them, since GGUF took these numbers.
    pub(super) kind: i32,
}

/// `-1` in the file for none.
#[derive(Debug)]
pub(super) struct Special {
    pub(super) unk: Option<u32>,
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) pad: Option<u32>,
}

/// Numbers of `TrainerSpec.ModelType`.
const UNIGRAM: u64 = 1;
const BPE: u64 = 2;

/// Numbers of `SentencePiece.Type`.
const KINDS: std::ops::RangeInclusive<u64> = 1..=6;
const NORMAL: i32 = 1;

/// Reads a model.
///
/// # Errors
/// If it is no such message, has no pieces or too many, or cuts texts otherwise than by merges.
pub(super) fn read(bytes: &[u8]) -> Result<SentencePiece> {
    let mut pieces = Vec::new();
    let (mut trainer, mut normalizer) = (Trainer::default(), Normalizer::default());
    each_field(bytes, &mut |number, value| {
        match (number, value) {
            (1, Field::Bytes(bytes)) => {
                if pieces.len() == limits::VOCAB_LEN_MAX {
                    bail!("more than {} pieces", limits::VOCAB_LEN_MAX);
                }
                pieces.push(piece(bytes).at(format_args!("piece {}", pieces.len()))?);
            }
            (2, Field::Bytes(bytes)) => trainer = Trainer::read(bytes).at("trainer_spec")?,
            (3, Field::Bytes(bytes)) => {
                normalizer = Normalizer::read(bytes).at("normalizer_spec")?;
            }
            _ => {}
        }
        Ok(())
    })?;
    if pieces.is_empty() {
        return Err(Error::new("no pieces").with_hint("this may be no SentencePiece model"));
    }
    if trainer.kind != BPE {
        bail!("model_type: expected {BPE}, byte-pair encoding, found {}", trainer.kind);
    }
    if normalizer.rules > 0 {
        bail!("normalizer_spec: {} bytes of rules that rewrite texts are not supported", {
            normalizer.rules
        });
    }
    if normalizer.removes_spaces {
        bail!("normalizer_spec: remove_extra_whitespaces is not supported");
    }
    Ok(SentencePiece { pieces, adds_space: normalizer.adds_space, special: trainer.special })
}

fn piece(bytes: &[u8]) -> Result<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: NORMAL };
    each_field(bytes, &mut |number, value| {
        match (number, value) {
            (1, Field::Bytes(text)) => {
                let text = std::str::from_utf8(text);
                piece.text = text.map_err(|error| Error::new(error.to_string()))?.to_string();
            }
            (2, Field::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Field::Varint(kind)) if KINDS.contains(&kind) => piece.kind = kind as i32,
            (3, Field::Varint(kind)) => bail!("type: expected 1 to 6, found {kind}"),
            _ => {}
        }
        Ok(())
    })?;
    if !piece.score.is_finite() {
        bail!("score: expected a finite number, found {}", piece.score);
    }
    Ok(piece)
}

struct Trainer {
    kind: u64,
    special: Special,
}

impl Default for Trainer {
    /// What a message without these fields means.
    fn default() -> Trainer {
        let special = Special { unk: Some(0), bos: Some(1), eos: Some(2), pad: None };
        Trainer { kind: UNIGRAM, special }
    }
}

impl Trainer {
    fn read(bytes: &[u8]) -> Result<Trainer> {
        let mut trainer = Trainer::default();
        each_field(bytes, &mut |number, value| {
            let Field::Varint(value) = value else { return Ok(()) };
            // Less than zero is written as a number of 64 bits.
            let id = u32::try_from(value).ok();
            match number {
                3 => trainer.kind = value,
                40 => trainer.special.unk = id,
                41 => trainer.special.bos = id,
                42 => trainer.special.eos = id,
                43 => trainer.special.pad = id,
                _ => {}
            }
            Ok(())
        })?;
        Ok(trainer)
    }
}

struct Normalizer {
    /// Bytes of the compiled rules.
    rules: usize,
    adds_space: bool,
    removes_spaces: bool,
}

impl Default for Normalizer {
    fn default() -> Normalizer {
        Normalizer { rules: 0, adds_space: true, removes_spaces: true }
    }
}

impl Normalizer {
    fn read(bytes: &[u8]) -> Result<Normalizer> {
        let mut normalizer = Normalizer::default();
        each_field(bytes, &mut |number, value| {
            match (number, value) {
                (2, Field::Bytes(rules)) => normalizer.rules = rules.len(),
                (3, Field::Varint(flag)) => normalizer.adds_space = flag != 0,
                (4, Field::Varint(flag)) => normalizer.removes_spaces = flag != 0,
                _ => {}
            }
            Ok(())
        })?;
        Ok(normalizer)
    }
}

/// The value of a field.
enum Field<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// Hands over every field of a message, in order.
fn each_field<'a>(
    message: &'a [u8],
    take: &mut dyn FnMut(u64, Field<'a>) -> Result<()>,
) -> Result<()> {
    let mut rest = message;
    while !rest.is_empty() {
        let at = message.len() - rest.len();
        let Some((number, value)) = field(&mut rest) else {
            let (len, found) = (message.len(), message.get(at).copied().unwrap_or_default());
            bail!("byte {at} of {len}: expected a whole field, found {found:#04x} and too little");
        };
        take(number, value)?;
    }
    Ok(())
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let key = varint(rest)?;
    let value = match key & 7 {
        0 => Field::Varint(varint(rest)?),
        1 => {
            rest.split_off(..8)?;
            Field::Fixed64
        }
        2 => {
            let len = usize::try_from(varint(rest)?).ok()?;
            Field::Bytes(rest.split_off(..len)?)
        }
        5 => {
            let (bits, after) = rest.split_first_chunk()?;
            *rest = after;
            Field::Fixed32(u32::from_le_bytes(*bits))
        }
        _ => return None,
    };
    Some((key >> 3, value))
}

/// Seven bits a byte, the lowest first; all bytes but the last have their highest bit set.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for place in 0..10 {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f).checked_shl(7 * place)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
