//! Models from Hugging Face folders, as the GGUF file that they stand for.
//!
//! A description in `models/` says which of its tensors has which name there, and which number of
//! `config.json` is which key. Weights stay in the mapped files; what has to be put in another
//! order is made when it is read, so that a model does not have to fit in memory.

mod config;
mod floats;
mod folder;
mod higgs;
mod metadata;
mod quantised;
mod rope;
mod sampling;
mod sentencepiece;
pub(super) mod tensors;
mod tokenizer;
mod tokens;
pub mod vptq;

use std::path::Path;

use folder::Folder;
use quantised::Quantised;

use crate::error::{At, Error, Result};
use crate::file::{Source, Value};
use crate::model::Arch;
use crate::model::hparams::{HALVES, PAIRING};

/// Opens a GGUF file, any shard of one, or a Hugging Face folder.
///
/// # Errors
/// If it cannot be read, breaks a rule of its format, or is not a model we know.
pub fn open(path: &Path) -> Result<Source> {
    if !path.is_dir() {
        return Source::open(path);
    }
    let mut folder = Folder::open(path)?;
    let arch = architecture(&folder).at(path.join("config.json").display())?;
    let words = metadata::words(arch);
    config::normalise(&mut folder.config, words).at(path.join("config.json").display())?;
    folder.keep_text(words).at(path.display())?;
    let quantised = Quantised::read(&folder).at("config.json").at(path.display())?;
    let mut metadata = metadata::of(&folder, arch).at(path.join("config.json").display())?;
    if arch.pairs_neighbours() && quantised.as_ref().is_some_and(Quantised::keeps_order) {
        let key = format!("{}.{PAIRING}", arch.name);
        metadata.set(&key, Value::String(HALVES.to_string()));
    }
    let weights = tensors::all(&folder, arch, quantised, &metadata).at(path.display())?;
    tokenizer::add(&folder, weights[0].rows, &mut metadata).at(path.display())?;
    let files = folder.files.iter().map(|file| (file.path().to_path_buf(), file.map().clone()));
    Ok(Source::imported(path.to_path_buf(), files, metadata, weights))
}

/// The description that claims the folder's class.
fn architecture(folder: &Folder) -> Result<&'static Arch> {
    let classes = folder.config.get("architectures").and_then(|classes| classes.as_array());
    match classes.and_then(|classes| classes.first()).and_then(|class| class.as_str()) {
        Some(class) => Arch::by_class(class),
        None => Err(Error::new("`architectures` is missing, expected a list of one name")),
    }
}
