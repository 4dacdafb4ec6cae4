//! The tokenizer and the chat template of a file, from its metadata.

use crate::error::{Error, Result};
use crate::file::{Metadata, Source};
use crate::text::{ChatTemplate, Tokenizer, Vocab};

/// The tokenizer of a model.
///
/// # Errors
/// If the file has none, or one we cannot build.
pub fn tokenizer(source: &Source) -> Result<Tokenizer> {
    let vocab = vocab(source.metadata()).and_then(Tokenizer::new);
    vocab.map_err(|error| error.at(source.path().display()))
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
