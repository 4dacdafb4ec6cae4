//! How the inputs of matrices are rounded before they are multiplied.

use crate::bail;
use crate::error::Result;
use crate::plan::{Extent, Format, Op, Plan};
use crate::types::Basis;

/// What weights of small integers are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Eight bits, a scale for a few values.
    Int8,
    /// As the paper of ResQ has them: 4 bits, and 8 for the loud inputs, each part of a token's
    /// values with one scale. The output matrix keeps what it has.
    Paper,
}

impl Activations {
    /// Every kind, as on the command line: `--activations int8`.
    pub const ALL: [(&'static str, Activations); 2] =
        [("int8", Activations::Int8), ("paper", Activations::Paper)];

    /// Gives the slots of a plan the format.
    ///
    /// # Errors
    /// If the plan has no integers whose inputs could be rounded so.
    pub fn fit(self, plan: &mut Plan) -> Result<()> {
        if self == Activations::Int8 {
            return Ok(());
        }
        let mut changed = 0;
        for op in &plan.ops {
            let Op::Prepare { transform, out, .. } = op else { continue };
            let slot = &mut plan.slots[out.0];
            let Format::Int8 { coarse, .. } = &mut slot.format else { continue };
            if slot.extent == Extent::LogitRows {
                continue;
            }
            let high = match transform.map(|transform| transform.basis) {
                Some(Basis::Parted { high }) => high as usize,
                _ => 0,
            };
            *coarse = slot.width - high;
            changed += 1;
        }
        if changed == 0 {
            bail!("activations: expected weights of small integers, found none");
        }
        Ok(())
    }
}
