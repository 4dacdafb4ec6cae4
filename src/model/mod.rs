//! A model's description, numbers and tensors, and the plan made of them.

pub mod arch;
mod forward;
pub mod hparams;
pub mod tensors;

pub use arch::{Arch, Role};
pub use hparams::Hparams;
pub use tensors::Tensors;

use crate::error::Result;
use crate::file::Source;
use crate::plan::Plan;

/// A model, checked and ready to be planned.
pub struct Model {
    /// Its architecture.
    pub arch: &'static Arch,
    /// Its numbers.
    pub hparams: Hparams,
    /// Its tensors.
    pub tensors: Tensors,
}

impl Model {
    /// Claims every tensor of a file and checks every number.
    ///
    /// # Errors
    /// If the architecture is unknown, a number is missing or impossible, or a tensor is missing,
    /// has the wrong shape, or is not part of the architecture.
    pub fn new(source: &Source) -> Result<Model> {
        let arch = Arch::by_name(source.architecture()?)?;
        let hparams = Hparams::new(arch, source)?;
        let tensors = Tensors::new(arch, &hparams, source)?;
        Ok(Model { arch, hparams, tensors })
    }

    /// The forward pass.
    pub fn plan(&self) -> Plan {
        forward::forward(self)
    }
}
