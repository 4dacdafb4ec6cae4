//! The integration tests: one binary, one module per subject.

mod grids;
mod higgs;
mod transform;
