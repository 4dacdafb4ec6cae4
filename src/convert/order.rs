//! Rows of queries and keys in the order that GGUF files of an architecture have.
//!
//! An imported model whose rows share codes keeps its own order, which its metadata say
//! (`formats/vptq.md`), and which other programs do not read. Where all of these rows are coded
//! again, they are put in order.

use super::Item;
use super::import::tensors::Order;
use crate::error::{At, Result};
use crate::file::Source;
use crate::model::hparams::PAIRING;
use crate::model::{Model, Role};
use crate::run::walk::{of_floats, original};
use crate::types::Tensor;

/// What a conversion changes about the order of rows.
pub(super) struct Restored {
    /// The key that said otherwise.
    pub(super) key: String,
    head_len: usize,
}

impl Restored {
    /// None if the order is the usual one, or rows that stay as they are hold it.
    pub(super) fn of(source: &Source, items: &[Item]) -> Result<Option<Restored>> {
        let model = Model::new(source).at(source.path().display())?;
        let is_usual = model.hparams.pairing == model.arch.pairing();
        let stay = items.iter().any(|item| item.role.is_rotated() && item.keep);
        if is_usual || stay || !model.arch.pairs_neighbours() {
            return Ok(None);
        }
        let key = format!("{}.{PAIRING}", model.arch.name);
        Ok(Some(Restored { key, head_len: model.hparams.head_len }))
    }

    /// How the rows of a tensor are put in order.
    pub(super) fn order(&self, role: Role) -> Order {
        match role.is_rotated() {
            true => Order::Pairs { head_len: self.head_len },
            false => Order::Same,
        }
    }
}

/// A tensor as plain floats in this order.
///
/// # Errors
/// If a weight is not finite.
pub(super) fn in_order(tensor: Tensor, order: Order) -> Result<Tensor> {
    if matches!(order, Order::Same) {
        return Ok(tensor);
    }
    let mut values = vec![0.0; tensor.len()];
    original(&tensor, 0..tensor.rows, &mut values)?;
    Ok(order.apply(of_floats(&tensor, values)))
}
