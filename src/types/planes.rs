//! Blocks whose codes lie in planes of a few bits each, as those of most stock types do.

/// Where the parts of a block lie.
///
/// A code is `low | high << low.bits`. It stands for itself less `offset`, or for one of `levels`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Planes {
    /// Values of a block.
    pub len: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// The low bits of the codes.
    pub low: Plane,
    /// The bits above them.
    pub high: High,
    /// Taken from each code.
    pub offset: i8,
    /// What each code is an index into.
    pub levels: Option<&'static [i8; 16]>,
    /// The byte at which the half-precision scale of the block is.
    pub factor: usize,
    /// The same of its minimum.
    pub min_factor: Option<usize>,
    /// How many values share an integer of [`super::TensorType::scale_integers`] that the scale is
    /// multiplied with: 16, 32, or 0 for none. The minimum is multiplied with another, and taken
    /// away.
    pub integers: usize,
}

/// Codes of `bits` each, `run` bytes at a time: the lowest bits of the bytes are the first `run`
/// codes, those above them the next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plane {
    /// The byte of the block at which it begins.
    pub at: usize,
    /// Bits of a code. If they are eight, they have a sign.
    pub bits: usize,
    /// Bytes of a run.
    pub run: usize,
}

/// The high bits of codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum High {
    /// There are none.
    None,
    /// A plane of them, in runs of 32 bytes.
    Plane(Plane),
    /// A bit for each value, in their order.
    Bits {
        /// The byte of the block at which they begin.
        at: usize,
    },
}

/// Room for the integer scales of one row.
pub struct ScaleIntegers<'a> {
    /// `(cols / integers)`.
    pub scales: &'a mut [i8],
    /// `(cols / integers)`; empty where blocks have no minimum.
    pub mins: &'a mut [i8],
}
