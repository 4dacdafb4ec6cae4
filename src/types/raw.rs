//! Every tensor type of the GGUF ecosystem by number: name and block, to list, size and copy
//! tensors that this program does not compute with. Numbers as in `ggml.h` of llama.cpp.

use super::TensorType;

/// How a tensor's bytes are laid out, as far as sizes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawType {
    /// The number in a tensor record.
    pub id: u32,
    /// As other programs print it.
    pub name: &'static str,
    /// Values of a block, all from one row.
    pub block_len: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
}

/// Signed bytes: the carrier of our planes.
pub const I8: RawType = RawType { id: 24, name: "I8", block_len: 1, block_bytes: 1 };

/// Half-precision floats: the norms of our planes.
pub const F16: RawType = RawType { id: 1, name: "F16", block_len: 1, block_bytes: 2 };

/// bfloat16 floats: what some imported planes have.
pub const BF16: RawType = RawType { id: 30, name: "BF16", block_len: 1, block_bytes: 2 };

/// The numbers that llama.cpp reads today, with their blocks.
pub static RAW_TYPES: &[RawType] = &[
    raw(0, "F32", 1, 4),
    F16,
    raw(2, "Q4_0", 32, 18),
    raw(3, "Q4_1", 32, 20),
    raw(6, "Q5_0", 32, 22),
    raw(7, "Q5_1", 32, 24),
    raw(8, "Q8_0", 32, 34),
    raw(9, "Q8_1", 32, 36),
    raw(10, "Q2_K", 256, 84),
    raw(11, "Q3_K", 256, 110),
    raw(12, "Q4_K", 256, 144),
    raw(13, "Q5_K", 256, 176),
    raw(14, "Q6_K", 256, 210),
    raw(15, "Q8_K", 256, 292),
    raw(16, "IQ2_XXS", 256, 66),
    raw(17, "IQ2_XS", 256, 74),
    raw(18, "IQ3_XXS", 256, 98),
    raw(19, "IQ1_S", 256, 50),
    raw(20, "IQ4_NL", 32, 18),
    raw(21, "IQ3_S", 256, 110),
    raw(22, "IQ2_S", 256, 82),
    raw(23, "IQ4_XS", 256, 136),
    I8,
    raw(25, "I16", 1, 2),
    raw(26, "I32", 1, 4),
    raw(27, "I64", 1, 8),
    raw(28, "F64", 1, 8),
    raw(29, "IQ1_M", 256, 56),
    BF16,
    raw(34, "TQ1_0", 256, 54),
    raw(35, "TQ2_0", 256, 66),
    raw(39, "MXFP4", 32, 17),
    raw(40, "NVFP4", 64, 36),
    raw(41, "Q1_0", 128, 18),
    raw(42, "Q2_0", 64, 18),
];

/// Numbers that once had a meaning: 4 and 5 since 2023, the others since 2024.
const REMOVED: &[(u32, &str)] = &[
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

/// What `general.file_type` says of a file whose matrices are mostly of a type, by the type's
/// number: `enum llama_ftype` of llama.cpp, the plain variant where there are several.
const FILE_TYPES: &[(u32, u32)] = &[
    (0, 0),
    (1, 1),
    (2, 2),
    (3, 3),
    (6, 8),
    (7, 9),
    (8, 7),
    (10, 10),
    (11, 11),
    (12, 14),
    (13, 16),
    (14, 18),
    (20, 25),
    (23, 30),
    (30, 32),
];

/// The number for `general.file_type`, if the type has one.
pub fn file_type(id: u32) -> Option<u32> {
    FILE_TYPES.iter().find(|(known, _)| *known == id).map(|&(_, number)| number)
}

impl RawType {
    /// The layout of a type's code plane.
    pub fn of(kind: &dyn TensorType) -> RawType {
        let block = kind.block();
        RawType {
            id: kind.id(),
            name: kind.name(),
            block_len: block.len as u64,
            block_bytes: block.bytes as u64,
        }
    }

    /// Bytes of `rows` rows of `cols` values, or `None` if the block does not divide a row or the
    /// count does not fit 64 bits.
    pub fn bytes(&self, cols: u64, rows: u64) -> Option<u64> {
        if !cols.is_multiple_of(self.block_len) {
            return None;
        }
        (cols / self.block_len).checked_mul(self.block_bytes)?.checked_mul(rows)
    }
}

/// The stock type with this number, or the one of `types`.
pub fn find(id: u32, types: &[&'static dyn TensorType]) -> Option<RawType> {
    let stock = RAW_TYPES.iter().copied().find(|raw| raw.id == id);
    stock.or_else(|| types.iter().find(|kind| kind.id() == id).map(|kind| RawType::of(*kind)))
}

/// What a number that [`find`] does not know may be, as advice to the reader of the file.
pub fn explain_unknown(id: u32) -> String {
    if let Some((_, name)) = REMOVED.iter().find(|(removed, _)| *removed == id) {
        return format!(
            "number {id} was {name} and has been removed from GGUF; some forks give it another \
             meaning. Convert the model again from its original"
        );
    }
    let newest = RAW_TYPES.iter().map(|raw| raw.id).max().unwrap_or(0);
    match id {
        super::PRIVATE_IDS.. => {
            "the file was written by a newer version of this program, or by a program with private \
             types of its own"
                .to_string()
        }
        97..400 => format!("number {id} belongs to a fork of llama.cpp, which can read the file"),
        _ => format!(
            "the highest number known here is {newest}: the file is newer than this program, or \
             comes from a fork of llama.cpp"
        ),
    }
}

const fn raw(id: u32, name: &'static str, block_len: u64, block_bytes: u64) -> RawType {
    RawType { id, name, block_len, block_bytes }
}
