//! `RESQ_P2_N256`: the loudest eighth of the inputs in 8 bits, the others as points of a 4-bit
//! grid.
//! Page: `formats/resq.md`; the idea: arXiv 2412.14363.
//!
//! A row is in the basis `parted`: its quiet values come first, then the loud ones. Each part is a
//! row of a type of its own, under one norm.

use super::higgs::{P1_N256, P2_N256};
use super::{
    Basis, Block, Higgs, Int8Row, Kernel, Layout, PRIVATE_IDS, RawType, Role, Rows, SUB, Shader,
    Tensor, TensorType, raw,
};

/// Loud inputs come in multiples of this, so that no group of an activation is of both parts.
const UNIT: usize = 64;
/// One input of so many is loud.
const SHARE: usize = 8;
/// Bytes of a norm.
const NORM: usize = 2;

/// The type.
pub struct Resq;

/// The two parts of rows of a width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Values of the quiet part.
    pub low: usize,
    /// Values of the loud part.
    pub high: usize,
}

impl Resq {
    /// How rows of `cols` values are parted; none if they are too short or of odd length.
    pub fn parts(cols: usize) -> Option<Parts> {
        let units = cols / UNIT;
        if units < 2 || !cols.is_multiple_of(UNIT) {
            return None;
        }
        // The nearest multiple, the larger of two.
        let high = UNIT * ((units + SHARE / 2) / SHARE).max(1);
        Some(Parts { low: cols - high, high })
    }

    /// The basis and the group that go with rows of `cols` values; none if they cannot be parted.
    pub fn form(cols: usize) -> Option<(Basis, usize)> {
        let parts = Self::parts(cols)?;
        Some((Basis::Parted { high: parts.high as u32 }, cols / 2))
    }

    /// The grid of the quiet part.
    pub fn low_grid() -> &'static Higgs {
        &P2_N256
    }

    /// The grid of the loud part, whose code is the integer itself.
    pub fn high_grid() -> &'static Higgs {
        &P1_N256
    }

    /// Bytes of the quiet part's codes.
    pub fn low_bytes(parts: Parts) -> usize {
        parts.low / 2
    }

    /// Each row's two parts, as rows of their own types.
    fn split<'a>(&self, rows: &Rows<'a>) -> impl Iterator<Item = (Rows<'a>, Rows<'a>)> {
        let Rows { cols, count, group, codes, norms, .. } = *rows;
        let parts = Self::parts(cols).expect("a row that can be parted");
        let bytes = self.row_bytes(cols).expect("a row that can be parted");
        assert_eq!(group, cols / 2, "two norms a row");
        assert_eq!(codes.len(), count * bytes, "codes of {count} rows of {cols}");
        assert_eq!(norms.len(), count * 2 * NORM, "norms of {count} rows");
        let rows = *rows;
        codes.chunks_exact(bytes).zip(norms.chunks_exact(2 * NORM)).map(move |(codes, norms)| {
            let (low_codes, high_codes) = codes.split_at(Self::low_bytes(parts));
            let (low_norm, high_norm) = norms.split_at(NORM);
            let part = |len: usize, codes, norms, table| Rows {
                first: 0,
                count: 1,
                cols: len,
                group: len,
                codes,
                norms,
                table,
                ..rows
            };
            let low = part(parts.low, low_codes, low_norm, rows.table);
            (low, part(parts.high, high_codes, high_norm, &[]))
        })
    }
}

/// The type, if it is this one.
pub fn resq(kind: &dyn TensorType) -> Option<&'static Resq> {
    (kind.id() == RESQ.id()).then_some(&RESQ)
}

/// The type of this name, in any case.
pub(super) fn by_name(name: &str) -> Option<&'static Resq> {
    RESQ.name().eq_ignore_ascii_case(name).then_some(&RESQ)
}

static RESQ: Resq = Resq;

impl TensorType for Resq {
    fn name(&self) -> &'static str {
        "RESQ_P2_N256"
    }

    fn id(&self) -> u32 {
        PRIVATE_IDS + 0x1000
    }

    /// What a row's length must be a multiple of. How many bytes a block has depends on the row.
    fn block(&self) -> Block {
        Block { len: UNIT, bytes: UNIT }
    }

    fn row_bytes(&self, cols: usize) -> Option<usize> {
        let parts = Self::parts(cols)?;
        Some(Self::low_bytes(parts) + parts.high)
    }

    fn has_number(&self) -> bool {
        false
    }

    fn plane(&self, role: Role, rows: u64, cols: u64, _: u64) -> Option<(RawType, Vec<u64>)> {
        match role {
            Role::Codes => {
                let bytes = self.row_bytes(usize::try_from(cols).ok()?)?;
                Some((raw::I8, vec![bytes as u64, rows]))
            }
            Role::Norms => Some((raw::F16, vec![2, rows])),
            Role::Table => P2_N256.plane(Role::Table, rows, cols, 0),
            _ => None,
        }
    }

    fn check(&self, tensor: &Tensor) -> Result<(), String> {
        let (basis, group) = Self::form(tensor.cols).ok_or("a row that cannot be parted")?;
        if tensor.group != group {
            return Err(format!("a group of {}, expected half a row, {group}", tensor.group));
        }
        if tensor.basis != basis {
            return Err(format!("a basis of {:?}, expected {basis:?}", tensor.basis));
        }
        Ok(())
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: UNIT, mins: false }
    }

    fn layout(&self) -> Layout {
        Layout::Parted
    }

    fn shader(&self) -> Option<Shader> {
        let text = include_str!("../../shaders/types/resq_p2_n256.wgsl");
        Some(Shader { text, constants: &[], chunk: 32, table_words: 256 })
    }

    fn table(&self) -> Option<&'static [i8]> {
        P2_N256.table()
    }

    fn can_encode(&self) -> bool {
        true
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        assert_eq!(out.len(), rows.count * rows.cols, "{} rows of {}", rows.count, rows.cols);
        for ((low, high), out) in self.split(rows).zip(out.chunks_exact_mut(rows.cols)) {
            let (low_out, high_out) = out.split_at_mut(low.cols);
            P2_N256.decode(&low, low_out);
            P1_N256.decode(&high, high_out);
        }
    }

    fn encode(
        &self,
        values: &[f32],
        cols: usize,
        group: usize,
        codes: &mut [u8],
        norms: &mut [u8],
    ) {
        let parts = Self::parts(cols).expect("a row that can be parted");
        let bytes = self.row_bytes(cols).expect("a row that can be parted");
        assert_eq!(group, cols / 2, "two norms a row");
        assert_eq!(codes.len() * cols, values.len() * bytes, "codes of whole rows");
        let planes = codes.chunks_exact_mut(bytes).zip(norms.chunks_exact_mut(2 * NORM));
        for (row, (codes, norms)) in values.chunks_exact(cols).zip(planes) {
            let (low, high) = row.split_at(parts.low);
            let (low_codes, high_codes) = codes.split_at_mut(Self::low_bytes(parts));
            let (low_norm, high_norm) = norms.split_at_mut(NORM);
            P2_N256.encode(low, parts.low, parts.low, low_codes, low_norm);
            P1_N256.encode(high, parts.high, parts.high, high_codes, high_norm);
        }
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        assert_eq!((row.count, out.values.len()), (1, row.cols), "one row");
        let (low, high) = self.split(row).next().expect("one row");
        let (low_values, high_values) = out.values.split_at_mut(low.cols);
        let (low_scales, high_scales) = out.scales.split_at_mut(low.cols / SUB);
        let part = |kind: &Higgs, row: &Rows, values, scales| {
            kind.unpack(row, &mut Int8Row { values, scales, mins: &mut [] });
        };
        part(&P2_N256, &low, low_values, low_scales);
        part(&P1_N256, &high, high_values, high_scales);
    }
}
