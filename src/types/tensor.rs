//! A weight in memory: its planes, and the basis its codes were made in.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::{Arc, OnceLock};

use super::{Kernel, Role, TensorType};

/// Bytes that keep their owner alive: a piece of a memory map, or of a buffer; or bytes that are
/// made when they are first read.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

#[derive(Clone)]
enum Owner {
    Held(Arc<dyn AsRef<[u8]> + Send + Sync>),
    Made(Made),
}

struct Made {
    make: Arc<dyn Fn() -> Vec<u8> + Send + Sync>,
    bytes: OnceLock<Vec<u8>>,
}

impl Clone for Made {
    /// The clone makes its bytes again, so that what was made goes away with whoever read it.
    fn clone(&self) -> Made {
        Made { make: self.make.clone(), bytes: OnceLock::new() }
    }
}

impl Bytes {
    /// A piece of what `owner` holds.
    ///
    /// # Panics
    /// If the owner is shorter.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= (*owner).as_ref().len(), "{range:?}");
        Bytes { owner: Owner::Held(owner), range }
    }

    /// `len` bytes that `make` gives when they are first read. A clone keeps nothing of what was
    /// made: a whole model of such bytes takes no memory.
    pub fn made(len: usize, make: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Bytes {
        let made = Made { make: Arc::new(make), bytes: OnceLock::new() };
        Bytes { owner: Owner::Made(made), range: 0..len }
    }

    /// No bytes.
    pub fn empty() -> Bytes {
        Bytes::from(Vec::new())
    }

    /// Makes them now, if they are not there yet: before tasks share them, since `make` may have
    /// tasks of its own, and one that waits for them may be given another that needs the bytes.
    pub fn prepare(&self) {
        let _: &[u8] = self;
    }

    /// A piece of them; made with the whole, where that is made.
    pub fn piece(&self, range: Range<usize>) -> Bytes {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {}", self.len());
        match &self.owner {
            Owner::Held(owner) => {
                let start = self.range.start;
                let range = start + range.start..start + range.end;
                Bytes { owner: Owner::Held(owner.clone()), range }
            }
            Owner::Made(_) => {
                let whole = self.clone();
                // A clone, so that the whole goes away again.
                Bytes::made(range.len(), move || whole.clone()[range.clone()].to_vec())
            }
        }
    }

    /// How many there are; nothing is made to know it.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

impl Default for Bytes {
    fn default() -> Bytes {
        Bytes::empty()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        let range = 0..bytes.len();
        Bytes { owner: Owner::Held(Arc::new(bytes)), range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes = match &self.owner {
            Owner::Held(owner) => (**owner).as_ref(),
            Owner::Made(made) => made.bytes.get_or_init(|| {
                let bytes = (made.make)();
                assert_eq!(bytes.len(), self.range.len(), "as many bytes as were promised");
                bytes
            }),
        };
        &bytes[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

/// The input transform of a weight: what an activation goes through before it meets the codes.
///
/// Normalised, so that it is its own inverse up to the signs: a row in the original basis is
/// `signs * (T row)`, and `dot(row, x) = dot(T row', T (signs * x))`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Basis {
    /// The codes are of the row itself.
    #[default]
    Original,
    /// Signs, then a Hadamard transform of order `block` on each run of `block` values.
    Hadamard {
        /// A power of two that divides the row.
        block: u32,
    },
    /// Signs, then the Kronecker product of a Hadamard matrix of order `order` (Paley) with a
    /// Sylvester matrix of order `block`: value `k * block + j` has Paley index `k`.
    Kronecker {
        /// The Paley order.
        order: u32,
        /// The power of two; `order * block` is the row.
        block: u32,
    },
    /// Signs; then the inputs of sign +1 or -1 in their order, and behind them those of +2 or -2,
    /// which are loud; then a Hadamard transform on each run of so many values of a part as is the
    /// largest power of two that divides it.
    Parted {
        /// Values of the loud part.
        high: u32,
    },
}

/// Planes of the columns of an imported weight, empty where its type has none.
#[derive(Clone, Default)]
pub struct ColumnPlanes {
    /// `(cols)` numbers of the table's format: what a column is multiplied with.
    pub norms: Bytes,
    /// `(cols)` numbers of the table's format: what is added to a column after that.
    pub means: Bytes,
    /// `(cols)` bytes: the table that a column uses, or 255 for one that is coded apart.
    pub groups: Bytes,
    /// `(row blocks, outliers)` 16-bit codes of the columns that are coded apart, in their order.
    pub outlier_codes: Bytes,
    /// `(n, v)` points of those codes.
    pub outlier_table: Bytes,
}

impl ColumnPlanes {
    /// One plane.
    ///
    /// # Panics
    /// If the plane is not one of columns.
    pub fn plane(&self, role: Role) -> &Bytes {
        match role {
            Role::ColumnNorms => &self.norms,
            Role::ColumnMeans => &self.means,
            Role::ColumnGroups => &self.groups,
            Role::OutlierCodes => &self.outlier_codes,
            Role::OutlierTable => &self.outlier_table,
            Role::Codes | Role::Norms | Role::Table | Role::Signs => {
                panic!("`{}` is a plane of the weight", role.name())
            }
        }
    }
}

/// One weight: a matrix (or a vector, one row) with all its planes.
#[derive(Clone)]
pub struct Tensor {
    /// The logical name, as llama.cpp names it.
    pub name: String,
    /// How its values are stored.
    pub kind: &'static dyn TensorType,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The place of its first row in the weight that it is a part of; 0 for a whole one. Where rows
    /// share codes, the first block may have rows of the part before.
    pub first: usize,
    /// What its inputs go through first.
    pub basis: Basis,
    /// Weights per norm of a grid type; 0 for stock types.
    pub group: usize,
    /// `(rows / row_block, row_bytes)`: the blocks of a stock type, the codes of others.
    pub codes: Bytes,
    /// `(rows, cols / group)` half-precision scales, where there are groups.
    pub norms: Bytes,
    /// `(n, p)` points; int8 unless the type says otherwise.
    pub table: Bytes,
    /// `(cols)` int8, +1 or -1, twice that for the loud inputs of a parted basis; empty if the
    /// basis is the original one.
    pub signs: Bytes,
    /// Of imported types.
    pub columns: ColumnPlanes,
}

impl Tensor {
    /// Bytes of one row's codes, or of a block of rows that share codes.
    ///
    /// # Panics
    /// If the block does not divide the row: the reader has checked it.
    pub fn row_bytes(&self) -> usize {
        self.kind.row_bytes(self.cols).expect("the reader checked the row length")
    }

    /// One plane.
    pub fn plane(&self, role: Role) -> &Bytes {
        match role {
            Role::Codes => &self.codes,
            Role::Norms => &self.norms,
            Role::Table => &self.table,
            Role::Signs => &self.signs,
            role => self.columns.plane(role),
        }
    }

    /// A run of rows.
    pub fn rows(&self, rows: Range<usize>) -> Rows<'_> {
        let norms = norm_bytes(self.cols, self.group);
        Rows {
            first: self.first + rows.start,
            count: rows.len(),
            cols: self.cols,
            group: self.group,
            codes: &self.codes[self.code_range(&rows)],
            norms: &self.norms[rows.start * norms..rows.end * norms],
            table: bytemuck::cast_slice(&self.table),
            columns: Some(&self.columns),
        }
    }

    /// Where the codes of a run of rows lie: whole blocks.
    fn code_range(&self, rows: &Range<usize>) -> Range<usize> {
        let (bytes, block) = (self.row_bytes(), self.kind.row_block());
        let before = self.first / block;
        let first = (self.first + rows.start) / block - before;
        let end = (self.first + rows.end).div_ceil(block) - before;
        first * bytes..end * bytes
    }

    /// Rows of the first block of codes that are not its own.
    pub fn skip(&self) -> usize {
        self.first % self.kind.row_block()
    }

    /// Some rows as a weight of their own, the n-th of this one.
    pub fn part(&self, number: usize, rows: Range<usize>) -> Tensor {
        let norms = norm_bytes(self.cols, self.group);
        Tensor {
            name: part_name(&self.name, number),
            rows: rows.len(),
            first: self.first + rows.start,
            codes: self.codes.piece(self.code_range(&rows)),
            norms: self.norms.piece(rows.start * norms..rows.end * norms),
            ..self.clone()
        }
    }

    /// Bytes in the file, but for the tables and signs that tensors share.
    pub fn bytes(&self) -> usize {
        let own = |role: &Role| match role {
            Role::Table => self.kind.kernel() == Kernel::Float,
            Role::Signs => false,
            _ => true,
        };
        Role::ALL.into_iter().filter(own).map(|role| self.plane(role).len()).sum()
    }

    /// Values.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What stands between the name of a weight and the number of a part of it.
const PART: char = '#';

/// What the n-th part of a weight is called.
pub fn part_name(whole: &str, number: usize) -> String {
    format!("{whole}{PART}{number}")
}

/// The weight that a part is of; a whole one is its own.
pub fn whole_name(name: &str) -> &str {
    name.split(PART).next().unwrap_or(name)
}

/// Bytes of one row's norms: half precision, one per group, none where there is no group.
pub fn norm_bytes(cols: usize, group: usize) -> usize {
    (2 * cols).checked_div(group).unwrap_or(0)
}

/// Some rows of a weight, borrowed.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The place of the first one in its weight; only types whose rows share codes ask.
    pub first: usize,
    /// Rows.
    pub count: usize,
    /// Values per row.
    pub cols: usize,
    /// Weights per norm of a grid type; 0 for stock types.
    pub group: usize,
    /// As in [`Tensor`], those of whole blocks of rows.
    pub codes: &'a [u8],
    /// As in [`Tensor`].
    pub norms: &'a [u8],
    /// As in [`Tensor`].
    pub table: &'a [i8],
    /// As in [`Tensor`].
    pub columns: Option<&'a ColumnPlanes>,
}

impl<'a> Rows<'a> {
    /// Rows of a stock type, from their blocks.
    pub fn stock(count: usize, cols: usize, codes: &'a [u8]) -> Rows<'a> {
        Rows { first: 0, count, cols, group: 0, codes, norms: &[], table: &[], columns: None }
    }
}
