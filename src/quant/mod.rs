//! The algorithms of quantisation, pure: data in, data out.

pub mod flute;
pub mod grid;
pub mod presets;
