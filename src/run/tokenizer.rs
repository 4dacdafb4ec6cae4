//! The tokenizer and the chat template of a file, from its metadata.

use crate::error::{Error, Result};
use crate::file::{Metadata, Source};
pub use crate::text::tokenizer::PIECES;
use crate::text::{ChatTemplate, Tokenizer, Vocab, tokenizer};

/// Texts that pre-tokenizers cut differently: words, contractions, runs of digits, spaces and line
/// ends, punctuation, several scripts.
const TELLING: [&str; 8] = [
    "Hello world, it's 12 o'clock and I'LL pay 1234567 for    four  spaces",
    "a\n\n  b\n \n\n\n c\t\td   ",
    "x=3.14159*(y-100000)/7; // !!! ??? ... --> #$%&@",
    "camelCase HTTPServer don't DON'T we'Ve 9s 10th 2024-05-17",
    "\u{e9}l\u{e8}ve \u{c4}RGER stra\u{df}e na\u{ef}ve 3\u{b2} \u{bd} x\u{2081}2",
    "\u{65e5}\u{672c}\u{8a9e}\u{306e}\u{6587}\u{7ae0}123\u{3001}\u{d55c}\u{ad6d}\u{c5b4} \u{4e2d}",
    "\u{41f}\u{440}\u{438}\u{432}\u{435}\u{442} \u{43c}\u{438}\u{440} \u{661}\u{662} \u{915}",
    "\u{1f600}\u{1f680} \u{201c}quoted\u{201d} \u{2014} \u{2026}\u{20ac}5 a\u{a0}b\u{2009}c",
];

/// The tokenizer of a model.
///
/// # Errors
/// If the file has none, or one we cannot build.
pub fn tokenizer(source: &Source) -> Result<Tokenizer> {
    let vocab = vocab(source.metadata()).and_then(Tokenizer::new);
    vocab.map_err(|error| error.at(source.path().display()))
}

/// The name of the pre-tokenizer with which the tokenizer in `metadata` gives the ids that another
/// one gives; `spell` is the other one's way back to text.
///
/// # Errors
/// If there is none.
pub fn find_pre_tokenizer(
    metadata: &Metadata,
    encode: &dyn Fn(&str) -> Vec<u32>,
    spell: &dyn Fn(&[u32]) -> String,
) -> Result<String> {
    let texts = whole_texts(encode, spell)?;
    let vocab = vocab(metadata)?;
    for name in tokenizer::distinct_pre_tokenizers() {
        let vocab = Vocab { pre: Some(name.to_string()), ..vocab.clone() };
        if agrees(vocab, &texts)? {
            return Ok(name.to_string());
        }
    }
    Err(Error::new("no pre-tokenizer known here cuts texts as this tokenizer does"))
}

/// Whether the tokenizer in `metadata` puts a space in front, so that it gives the ids that another
/// one gives.
///
/// # Errors
/// If it gives others either way.
pub fn find_space_prefix(
    metadata: &Metadata,
    encode: &dyn Fn(&str) -> Vec<u32>,
    spell: &dyn Fn(&[u32]) -> String,
) -> Result<bool> {
    let texts = whole_texts(encode, spell)?;
    let vocab = vocab(metadata)?;
    for prefix in [true, false] {
        if agrees(Vocab { add_space_prefix: Some(prefix), ..vocab.clone() }, &texts)? {
            return Ok(prefix);
        }
    }
    Err(Error::new("merging by scores does not cut texts as this tokenizer does"))
}

/// The telling texts and their ids, without those that a small vocabulary cannot spell: what is
/// lost tells nothing.
fn whole_texts(
    encode: &dyn Fn(&str) -> Vec<u32>,
    spell: &dyn Fn(&[u32]) -> String,
) -> Result<Vec<(&'static str, Vec<u32>)>> {
    let texts = TELLING.into_iter().map(|text| (text, encode(text)));
    let texts: Vec<_> = texts.filter(|(text, ids)| spell(ids) == *text).collect();
    if texts.is_empty() {
        return Err(Error::new("the tokenizer does not bring texts back as they were"));
    }
    Ok(texts)
}

fn agrees(vocab: Vocab, texts: &[(&str, Vec<u32>)]) -> Result<bool> {
    let ours = Tokenizer::new(vocab)?;
    let same =
        |(text, ids): &(&str, Vec<u32>)| ours.encode(text, false).is_ok_and(|found| found == *ids);
    Ok(texts.iter().all(same))
}

/// The chat template of a model.
///
/// # Errors
/// If the file has none, or it does not parse.
pub fn chat_template(source: &Source, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
    let text = |id: Option<u32>| {
        let piece = id.map(|id| tokenizer.piece(id, true).to_vec()).unwrap_or_default();
        String::from_utf8_lossy(&piece).into_owned()
    };
    let place = source.path().display();
    match source.metadata().get_str("tokenizer.chat_template")? {
        Some(template) => {
            ChatTemplate::new(template, &text(tokenizer.bos()), &text(tokenizer.eos()))
                .map_err(|error| error.at(place))
        }
        None => Err(Error::new(format!("{place}: the model has no chat template"))
            .with_hint("`gridmill run` continues a text without one")),
    }
}

fn vocab(metadata: &Metadata) -> Result<Vocab> {
    let key = |key: &str| format!("tokenizer.ggml.{key}");
    let text = |name: &str| metadata.get_str(&key(name)).map(|text| text.map(str::to_string));
    let strings = |name: &str| {
        metadata
            .get_strings(&key(name))
            .map(|list| list.map(<[String]>::to_vec).unwrap_or_default())
    };
    let id = |name: &str| metadata.get_u32(&key(&format!("{name}_token_id")));
    let flag = |name: &str| metadata.get_bool(&key(name));
    Ok(Vocab {
        model: text("model")?,
        pre: text("pre")?,
        name: metadata.get_str("general.name")?.map(str::to_string),
        tokens: strings("tokens")?,
        types: metadata.get_i32s(&key("token_type"))?.unwrap_or_default(),
        scores: metadata.get_f32s(&key("scores"))?.unwrap_or_default(),
        merges: strings("merges")?,
        bos: id("bos")?,
        eos: id("eos")?,
        eot: id("eot")?,
        eom: id("eom")?,
        unk: id("unknown")?,
        pad: id("padding")?,
        fim_pre: id("fim_pre")?,
        fim_suf: id("fim_suf")?,
        fim_mid: id("fim_mid")?,
        fim_pad: id("fim_pad")?,
        fim_rep: id("fim_rep")?,
        fim_sep: id("fim_sep")?,
        add_bos: flag("add_bos_token")?,
        add_eos: flag("add_eos_token")?,
        add_space_prefix: flag("add_space_prefix")?,
        chat_template: metadata.get_str("tokenizer.chat_template")?.map(str::to_string),
    })
}
