//! Tensor types: one file each, and the list that everything else loops over.
//!
//! A weight is one or more planes of bytes. A stock GGUF type has only `codes`, its blocks; types
//! of our own add `norms`, a `table` and more. [`TensorType::decode`] is the definition of a type,
//! plain and exact; [`TensorType::unpack`] gives the same numbers as small integers and scales,
//! which is what the integer kernels multiply.

mod bf16;
mod block;
pub mod dot;
mod f16;
mod f32;
mod higgs;
mod higgs_fit;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
mod k_fit;
mod mxfp4;
mod nvfp4;
mod planes;
mod points;
mod q1_0;
mod q2_0;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
pub mod raw;
mod resq;
mod tensor;
mod tq1_0;
mod tq2_0;
mod vptq;

pub use higgs::{HIGGS, Higgs, grid};
pub use higgs_fit::Search;
pub use planes::{High, Plane, Planes, ScaleIntegers};
pub use points::{even_signs, minus_signs};
pub use raw::RawType;
pub use resq::{Parts, Resq, resq};
pub use tensor::{Basis, Bytes, ColumnPlanes, Rows, Tensor, norm_bytes, part_name, whole_name};
pub use vptq::{Entries, OUTLIER, Outliers, Shape, Vptq, learned, of_shape};

/// Values whose scale an [`Int8Row`] keeps apart: the smallest scale group of any type (`Q6_K`).
pub const SUB: usize = 16;

/// What a plane holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Packed codes.
    Codes,
    /// Half-precision scales of rows.
    Norms,
    /// The points that codes name.
    Table,
    /// `(cols)` int8, +1 or -1, twice that for loud inputs of a parted basis; shared by the tensors
    /// of this width that have the same.
    Signs,
    /// What columns are multiplied with.
    ColumnNorms,
    /// What is added to columns after that.
    ColumnMeans,
    /// The table of each column.
    ColumnGroups,
    /// Codes of columns that are coded apart.
    OutlierCodes,
    /// The points of those codes.
    OutlierTable,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 9] = [
        Role::Codes,
        Role::Norms,
        Role::Table,
        Role::Signs,
        Role::ColumnNorms,
        Role::ColumnMeans,
        Role::ColumnGroups,
        Role::OutlierCodes,
        Role::OutlierTable,
    ];

    /// As in the registry of a file.
    pub fn name(self) -> &'static str {
        match self {
            Role::Codes => "codes",
            Role::Norms => "norms",
            Role::Table => "table",
            Role::Signs => "signs",
            Role::ColumnNorms => "column_norms",
            Role::ColumnMeans => "column_means",
            Role::ColumnGroups => "column_groups",
            Role::OutlierCodes => "outlier_codes",
            Role::OutlierTable => "outlier_table",
        }
    }

    /// The role with this name.
    pub fn by_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// How many values, and how many bytes of the code plane, one block of a type holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Values, all from one row.
    pub len: usize,
    /// Bytes of the code plane.
    pub bytes: usize,
}

/// What a kernel multiplies when a weight has this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Floats with floats.
    Float,
    /// Small integers with int8 activations, scaled per group.
    Int8 {
        /// Values that share a scale, at least [`SUB`]; 0 for [`Tensor::group`].
        group: usize,
        /// Whether a group also has a minimum that is added to each of its values.
        mins: bool,
    },
}

/// How a fused kernel may read the code plane, past [`TensorType::unpack`] and
/// [`TensorType::decode`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    /// Only the type itself knows.
    Opaque,
    /// Little-endian single precision.
    F32,
    /// Little-endian half precision.
    F16,
    /// Little-endian bfloat16.
    Bf16,
    /// Blocks with their codes in planes of a few bits.
    Planes(Planes),
    /// The integers; the scale of a group is its norm.
    Integers,
    /// One byte per pair of neighbours, an index into a table of 256 pairs; the scale of a group is
    /// its norm.
    Pairs,
    /// A row's quiet values as pairs, then its loud ones as integers; each part has one norm.
    Parted,
    /// Codes of points of integers, of at most eight rows in one column; the scale of a group is
    /// its norm.
    Points(Shape),
}

/// How GPU kernels read a type: a file that is put into each of them.
#[derive(Clone, Copy, Debug)]
pub struct Shader {
    /// The file, in `shaders/types`.
    pub text: &'static str,
    /// Values for constants of the file; those of `COLS`, `GROUP` and `COPIES` are the kernel's.
    pub constants: &'static [(&'static str, u32)],
    /// Values that a thread loads at a time; divides a row whenever the block does. 0 for floats,
    /// which are read one by one or in fours.
    pub chunk: usize,
    /// Words of workgroup memory that one copy of the table takes; 0 without a table.
    pub table_words: usize,
}

/// Reads what [`TensorType::unpack`] gives, for types that have no shader of their own.
pub static INT8_SHADER: Shader = Shader {
    text: include_str!("../../shaders/types/int8.wgsl"),
    constants: &[],
    chunk: 32,
    table_words: 0,
};

/// One row as small integers: `value[i] = scales[i / SUB] * values[i] + mins[i / SUB]`.
///
/// Where the product and the sum are rounded apart, that is what `decode` gives, to the bit.
pub struct Int8Row<'a> {
    /// `(cols)`, each within -127..=127; but a `Q8_0` block that no encoder wrote may have -128.
    pub values: &'a mut [i8],
    /// `(cols / SUB)`.
    pub scales: &'a mut [f32],
    /// `(cols / SUB)`; untouched by types whose [`Kernel`] has no minimums.
    pub mins: &'a mut [f32],
}

/// A way of storing weights.
pub trait TensorType: Sync {
    /// As in GGUF, on the command line and in `formats/`.
    fn name(&self) -> &'static str;

    /// The number in a GGUF tensor record; our own are in the private range (`PRIVATE_IDS`).
    fn id(&self) -> u32;

    /// The code plane's block.
    fn block(&self) -> Block;

    /// Rows that share codes; a code plane has the bytes of a row once for so many.
    fn row_block(&self) -> usize {
        1
    }

    /// How a plane of a weight is stored, the contiguous dimension of its shape first; none if the
    /// type has no such plane, or its block does not divide a row. Signs belong to a basis, not to
    /// a type. Unless a type says otherwise, stock types have none, and others those of a grid.
    fn plane(&self, role: Role, rows: u64, cols: u64, group: u64) -> Option<(RawType, Vec<u64>)> {
        match role {
            _ if self.id() < PRIVATE_IDS => None,
            Role::Codes => {
                let Block { len, bytes } = self.block();
                let blocks = cols.is_multiple_of(len as u64).then(|| cols / len as u64)?;
                Some((raw::I8, vec![blocks.checked_mul(bytes as u64)?, rows]))
            }
            Role::Norms => Some((raw::F16, vec![cols / group, rows])),
            Role::Table => Some((raw::I8, points_shape(self.table()?.len(), self.block()))),
            _ => None,
        }
    }

    /// Whether a code plane may have the type's own number: where a row is whole blocks of its own.
    fn has_number(&self) -> bool {
        self.row_block() == 1
    }

    /// What is wrong in the planes of a weight, past their shapes and the codes that every table
    /// has a point for.
    ///
    /// # Errors
    /// A sentence that says what was found and what was expected.
    fn check(&self, tensor: &Tensor) -> Result<(), String> {
        let _ = tensor;
        Ok(())
    }

    /// What the kernels multiply.
    fn kernel(&self) -> Kernel;

    /// The grid's points `(n, p)` as int8, row after row, for a grid type; the file stores them.
    fn table(&self) -> Option<&'static [i8]> {
        None
    }

    /// How a fused kernel may read the code plane.
    fn layout(&self) -> Layout {
        Layout::Opaque
    }

    /// How shaders read the code plane; none where the type is unpacked to small integers first.
    fn shader(&self) -> Option<Shader> {
        None
    }

    /// The table as the shader reads it.
    fn shader_table(&self, table: &[u8]) -> Vec<u8> {
        table.to_vec()
    }

    /// Whether a conversion can write it.
    fn can_encode(&self) -> bool {
        false
    }

    /// What llama.cpp writes in place of this type where its block does not divide a row.
    fn fallback(&self) -> Option<&'static dyn TensorType> {
        None
    }

    /// The values of whole rows, in the basis they were coded in: the definition of the type.
    fn decode(&self, rows: &Rows, out: &mut [f32]);

    /// Codes whole rows (`values`: rows * cols, already in their basis, all finite).
    ///
    /// `codes` takes `rows * row_bytes(cols)` bytes; `norms` half-precision little-endian numbers,
    /// `rows * cols / group` of them for a grid type and none for a stock type.
    ///
    /// # Panics
    /// If the type cannot encode, or a length does not fit.
    fn encode(
        &self,
        values: &[f32],
        cols: usize,
        group: usize,
        codes: &mut [u8],
        norms: &mut [u8],
    ) {
        let _ = (values, cols, group, codes, norms);
        panic!("{} is read, not written", self.name());
    }

    /// One row as small integers; only for types whose [`Kernel`] is `Int8`.
    ///
    /// # Panics
    /// If the kernel of the type is not `Int8`, or a length does not fit.
    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        let _ = (row, out);
        panic!("{} has no integer form", self.name());
    }

    /// Those scales and minimums of one row that are small integers; only for types whose layout
    /// is [`Layout::Planes`] with such integers.
    ///
    /// # Panics
    /// If the layout is another one, or a length does not fit.
    fn scale_integers(&self, row: &Rows, out: &mut ScaleIntegers) {
        let _ = (row, out);
        panic!("{} has no integer scales", self.name());
    }

    /// The same weight with a byte per code, in a type whose kernels are quicker by more than the
    /// memory costs; none where the kernels read this type as it is.
    fn in_bytes(&self, tensor: &Tensor) -> Option<Tensor> {
        let _ = tensor;
        None
    }

    /// Bytes of the code plane of one row, or `None` if the block does not divide it.
    fn row_bytes(&self, cols: usize) -> Option<usize> {
        let block = self.block();
        cols.is_multiple_of(block.len).then(|| cols / block.len * block.bytes)
    }
}

/// `[p, n]` where a code is p weights: the one p for which n points fill the table.
fn points_shape(len: usize, block: Block) -> Vec<u64> {
    let bits = |p: usize| 8 * block.bytes * p / block.len;
    let is_whole = |p: usize| (8 * block.bytes * p).is_multiple_of(block.len);
    let fills = |&p: &usize| bits(p) < 32 && p << bits(p) == len && is_whole(p);
    match (1..=16).find(fills) {
        Some(p) => vec![p as u64, (len / p) as u64],
        None => vec![len as u64],
    }
}

/// The first number of our private range: llama.cpp reads it as a positive 32-bit integer, and no
/// program is near it.
pub const PRIVATE_IDS: u32 = 0x4851_0000;

/// Every tensor type.
pub static TYPES: &[&dyn TensorType] = &[
    &f32::F32,
    &f16::F16,
    &bf16::Bf16,
    &q4_0::Q4_0,
    &q4_1::Q4_1,
    &q5_0::Q5_0,
    &q5_1::Q5_1,
    &q8_0::Q8_0,
    &q2_k::Q2K,
    &q3_k::Q3K,
    &q4_k::Q4K,
    &q5_k::Q5K,
    &q6_k::Q6K,
    &iq4_nl::Iq4Nl,
    &iq4_xs::Iq4Xs,
    &iq1_s::Iq1S,
    &iq1_m::Iq1M,
    &iq2_xxs::Iq2Xxs,
    &iq2_xs::Iq2Xs,
    &iq2_s::Iq2S,
    &iq3_xxs::Iq3Xxs,
    &iq3_s::Iq3S,
    &tq1_0::Tq1_0,
    &tq2_0::Tq2_0,
    &mxfp4::Mxfp4,
    &nvfp4::Nvfp4,
    &q1_0::Q1_0,
    &q2_0::Q2_0,
    &higgs::P1_N16,
    &higgs::P2_N16,
    &higgs::P2_N64,
    &higgs::P2_N256,
    &higgs::P4_N256,
    &higgs::P1_N256,
    &higgs::P1_N32,
    &higgs::P1_N64,
    &higgs::P2_N128,
    &higgs::P2_N32,
    &higgs::P4_N4096,
];

/// The type with this GGUF number.
pub fn by_id(id: u32) -> Option<&'static dyn TensorType> {
    TYPES.iter().copied().find(|kind| kind.id() == id)
}

/// The type with this name, in any case: one of [`TYPES`], of parted rows, or of learned points of
/// any shape.
pub fn by_name(name: &str) -> Option<&'static dyn TensorType> {
    let listed = TYPES.iter().copied().find(|kind| kind.name().eq_ignore_ascii_case(name));
    let parted = || resq::by_name(name).map(|kind| kind as &dyn TensorType);
    listed.or_else(parted).or_else(|| vptq::by_name(name).map(|kind| kind as &dyn TensorType))
}
