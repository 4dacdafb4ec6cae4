//! The algorithms of quantisation, pure: data in, data out.

pub mod allocate;
pub mod alpha;
pub mod blocks;
mod factor;
pub mod flute;
pub mod grid;
pub mod moments;
pub mod parted;
pub mod points;
pub mod presets;
pub mod principal;
pub mod random;
pub mod second_order;

pub use moments::Moments;
pub use second_order::Feedback;
