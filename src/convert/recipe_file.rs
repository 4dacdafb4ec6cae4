//! A recipe: which tensor gets which type, as a table that a person can edit.
//!
//! A line is a tensor's name, a type, and whatever else the reader may want to know; `#` begins a
//! comment.

use std::collections::HashMap;

use super::Item;
use crate::bail;
use crate::error::{At, Result};
use crate::file::Source;
use crate::quant::presets;
use crate::types::TensorType;

/// Types by tensor, in an order.
#[derive(Clone, Default)]
pub struct Recipe {
    lines: Vec<(String, &'static dyn TensorType, Option<f64>)>,
    by_name: HashMap<String, usize>,
}

impl Recipe {
    /// Gives a tensor a type, which costs so much.
    pub fn add(&mut self, name: &str, kind: &'static dyn TensorType, loss: f64) {
        self.push(name, kind, Some(loss));
    }

    fn push(&mut self, name: &str, kind: &'static dyn TensorType, loss: Option<f64>) {
        self.by_name.insert(name.to_string(), self.lines.len());
        self.lines.push((name.to_string(), kind, loss));
    }

    /// The matrices among items; what they cost is known to the recipe they come from, if any.
    pub fn of(items: &[Item], from: Option<&Recipe>) -> Recipe {
        let mut recipe = Recipe::default();
        for item in items {
            if item.role.is_layer_matrix() || item.role.is_vocabulary_matrix() {
                let loss = from.and_then(|from| from.loss(&item.name));
                recipe.push(&item.name, item.kind, loss);
            }
        }
        recipe
    }

    /// The type of a tensor.
    pub fn kind(&self, name: &str) -> Option<&'static dyn TensorType> {
        self.by_name.get(name).map(|&line| self.lines[line].1)
    }

    /// What the type of a tensor costs, nats per token, if that was measured.
    pub fn loss(&self, name: &str) -> Option<f64> {
        self.lines[*self.by_name.get(name)?].2
    }

    /// As a file.
    pub fn to_text(&self) -> String {
        let width = self.lines.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
        let mut text = String::from(
            "# A recipe of gridmill: a tensor, its type, and the KL divergence it should cost.\n\
             # Edit the types, then: gridmill convert SOURCE TARGET --recipe THIS_FILE\n",
        );
        for (name, kind, loss) in &self.lines {
            let loss = loss.map_or(String::new(), |loss| format!("  {loss:.8}"));
            text += &format!("{name:<width$}  {:<16}{loss}\n", kind.name());
        }
        text
    }

    /// Reads a file for a model.
    ///
    /// # Errors
    /// If a line has no type, names an unknown tensor or type, or a tensor a second time.
    pub fn parse(text: &str, source: &Source) -> Result<Recipe> {
        let mut recipe = Recipe::default();
        for (number, line) in text.lines().enumerate() {
            let place = format!("line {}", number + 1);
            let mut words = line.split('#').next().unwrap_or("").split_whitespace();
            let Some(name) = words.next() else { continue };
            let Some(kind) = words.next() else {
                bail!("{place}: expected a tensor and a type, found `{name}` alone");
            };
            if !source.tensors().any(|tensor| tensor.name == name) {
                bail!("{place}: the model has no tensor `{name}`");
            }
            if recipe.by_name.contains_key(name) {
                bail!("{place}: tensor `{name}` has a type already");
            }
            let kind = presets::by_name(kind).at(place)?;
            recipe.push(name, kind, None);
        }
        Ok(recipe)
    }
}
