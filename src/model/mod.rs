//! A model's description, numbers and tensors, and the plan made of them.

pub mod arch;
mod forward;
pub mod hparams;
pub mod tensors;
pub mod yarn;

pub use arch::{Arch, Role};
pub(crate) use forward::activation_format;
pub use hparams::Hparams;
pub use tensors::Tensors;

use std::collections::HashMap;

use crate::error::Result;
use crate::file::Source;
use crate::plan::Plan;
use crate::types::Tensor;

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

    /// The same model with some tensors, by name, in place of its own of the same shape.
    pub fn with(&self, tensors: &HashMap<String, Tensor>) -> Model {
        let (arch, hparams) = (self.arch, self.hparams.clone());
        Model { arch, hparams, tensors: self.tensors.with(tensors) }
    }

    /// The shape of one of its tensors, outputs first: of a weight of experts (experts, outputs,
    /// inputs), where [`Tensor`] has the rows of all experts.
    ///
    /// # Panics
    /// If the tensor is another model's.
    pub fn shape(&self, tensor: &Tensor) -> Vec<usize> {
        let (role, _) = self.tensors.place(&tensor.name).expect("a tensor of this model");
        let words = self.arch.tensors.iter().find(|words| words.role == role);
        let words = words.expect("a role that the description has");
        words.shape.iter().map(|&dim| self.hparams.dim(dim)).collect()
    }

    /// How many matrices one of its tensors holds: one of each expert, or one.
    pub fn matrices_in(&self, name: &str) -> usize {
        let place = self.tensors.place(name);
        let is_of_experts = place.is_some_and(|(role, _)| role.is_of_experts());
        self.hparams.experts.filter(|_| is_of_experts).map_or(1, |experts| experts.count)
    }

    /// The forward pass, for texts within the context that the model was first trained on.
    pub fn plan(&self) -> Plan {
        self.plan_for(0)
    }

    /// The forward pass, for texts that may become so many tokens long.
    pub fn plan_for(&self, context: usize) -> Plan {
        forward::forward(self, context)
    }
}
