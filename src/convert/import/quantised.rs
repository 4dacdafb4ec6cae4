//! Folders whose weights are quantised, by method.

use serde_json::Value;

use super::folder::Folder;
use super::tensors::Order;
use super::{higgs, vptq};
use crate::bail;
use crate::error::{At, Result};
use crate::types::Tensor;

/// `quantization_config`.
pub(super) enum Quantised {
    Higgs(higgs::Checkpoint),
    Vptq(vptq::Checkpoint),
}

impl Quantised {
    /// What the configuration says, if it says anything.
    pub(super) fn read(folder: &Folder) -> Result<Option<Quantised>> {
        let Some(config) = folder.config.get("quantization_config").filter(|c| !c.is_null()) else {
            return Ok(None);
        };
        let method = config.get("quant_method").unwrap_or(&Value::Null);
        let quantised = match method.as_str() {
            Some("higgs") => higgs::Checkpoint::new(config).map(Quantised::Higgs),
            Some("vptq") => Ok(Quantised::Vptq(vptq::Checkpoint::new(config))),
            _ => bail!(
                "`quantization_config`: quant_method {method} is not supported, expected \
                 \"higgs\" or \"vptq\""
            ),
        };
        quantised.map(Some).at("`quantization_config`")
    }

    /// Whether the rows of queries and keys have to stay in the folder's order, because neighbours
    /// share codes.
    pub(super) fn keeps_order(&self) -> bool {
        matches!(self, Quantised::Vptq(_))
    }

    /// Whether a module is quantised.
    pub(super) fn has(&self, folder: &Folder, module: &str) -> bool {
        match self {
            Quantised::Higgs(_) => folder.get(&format!("{module}.scales")).is_some(),
            Quantised::Vptq(checkpoint) => checkpoint.layer(module).is_some(),
        }
    }

    /// The tensors that a module may have, besides its bias.
    pub(super) fn parts(&self, module: &str) -> Vec<String> {
        match self {
            Quantised::Higgs(_) => higgs::Checkpoint::parts(module).to_vec(),
            Quantised::Vptq(_) => vptq::PARTS.map(|part| format!("{module}.{part}")).to_vec(),
        }
    }

    /// The weight of a module.
    pub(super) fn tensor(
        &self,
        folder: &Folder,
        module: &str,
        name: String,
        shape: &[u64],
        order: Order,
    ) -> Result<Tensor> {
        match self {
            Quantised::Higgs(checkpoint) => checkpoint.tensor(folder, module, name, shape, order),
            Quantised::Vptq(checkpoint) => {
                let config = checkpoint.layer(module).unwrap_or(&Value::Null);
                let get = |part: &str| {
                    let (entry, bytes) = folder.get(&format!("{module}.{part}"))?;
                    Some((entry.clone(), bytes))
                };
                let place = format_args!("module `{module}`");
                let tensor = vptq::layer(config, &name, &get).at(place)?;
                if shape != [tensor.rows as u64, tensor.cols as u64] {
                    let found = [tensor.rows, tensor.cols];
                    bail!("{place}: expected shape {shape:?}, found {found:?} (outputs first)");
                }
                Ok(tensor)
            }
        }
    }
}
