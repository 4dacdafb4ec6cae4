//! `HIGGS_P*_N*`: a code names one of n fixed points of p values, under one scale per group.
//! Page: `formats/higgs.md`; the method: arXiv 2411.17525.

use std::sync::LazyLock;

use half::f16;

use super::higgs_fit::{Search, fit};
use super::{
    Block, Bytes, Int8Row, Kernel, Layout, PRIVATE_IDS, Rows, SUB, Shader, Tensor, TensorType,
};

/// Codes of a block, except where a code is a whole byte or more.
const RUN: usize = 32;
/// Codes of a block where a code is twelve bits; 32 of them would not divide the usual widths.
const WIDE_RUN: usize = 16;
/// Bytes of a block where a code is twelve bits.
const WIDE_BYTES: usize = 24;
const _: () = assert!(WIDE_BYTES * 8 == WIDE_RUN * 12, "a block is its codes");
/// Values of a block of the types whose code is a byte.
const BYTE_LEN: usize = 32;

/// Values decoded at a time: whole blocks of any type.
const PIECE: usize = 1024;

/// Scales that are tried first, as multiples of the one that fits the deviation of a group.
const STARTS: [f64; 9] = [0.76, 0.82, 0.88, 0.94, 1.0, 1.06, 1.12, 1.18, 1.24];

/// A grid type; all of them are in [`HIGGS`].
pub struct Higgs {
    name: &'static str,
    id: u32,
    /// Values per code.
    p: usize,
    /// Bits per code: the grid has `1 << bits` points.
    bits: usize,
    /// `(n, p)`; a point of -128 is unused: never written, and read as -127.
    points: &'static [i8],
    /// Integer steps per standard deviation of what is coded; 0 where the largest value decides.
    unit: f32,
    search: LazyLock<Search>,
}

macro_rules! grids {
    ($(
        $number:literal $name:ident: $p:literal * $bits:literal bits, $unit:literal, $file:literal;
    )*) => {
        $(pub(super) static $name: Higgs = {
            static POINTS: [i8; $p << $bits] = signed(include_bytes!(concat!("grids/", $file)));
            Higgs {
                name: concat!("HIGGS_", stringify!($name)),
                id: PRIVATE_IDS + $number,
                p: $p,
                bits: $bits,
                points: &POINTS,
                unit: $unit,
                search: LazyLock::new(|| Search::new($p, &POINTS)),
            }
        };)*

        /// Every HIGGS type, in the order of their numbers.
        pub static HIGGS: &[&Higgs] = &[$(&$name),*];
    };
}

// Numbers are never given twice. The units belong to the grids and come from the same generator.
grids! {
    0 P1_N16: 1 * 4 bits, 38.110_37, "p1_n16.i8";
    1 P2_N16: 2 * 4 bits, 58.370_99, "p2_n16.i8";
    2 P2_N64: 2 * 6 bits, 46.059_315, "p2_n64.i8";
    3 P2_N256: 2 * 8 bits, 39.064_816, "p2_n256.i8";
    4 P4_N256: 4 * 8 bits, 47.819_525, "p4_n256.i8";
    5 P1_N256: 1 * 8 bits, 0.0, "p1_n256.i8";
    6 P1_N32: 1 * 5 bits, 37.779_855, "p1_n32.i8";
    7 P1_N64: 1 * 6 bits, 28.492_82, "p1_n64.i8";
    8 P2_N128: 2 * 7 bits, 40.425_068, "p2_n128.i8";
    9 P2_N32: 2 * 5 bits, 53.301_76, "p2_n32.i8";
    10 P4_N4096: 4 * 12 bits, 34.285_31, "p4_n4096.i8";
}

/// The grid of a type, if it has one.
pub fn grid(kind: &dyn TensorType) -> Option<&'static Higgs> {
    HIGGS.iter().copied().find(|grid| grid.id == kind.id())
}

const fn signed<const N: usize>(bytes: &[u8; N]) -> [i8; N] {
    let mut points = [0; N];
    let mut i = 0;
    while i < N {
        points[i] = bytes[i].cast_signed();
        i += 1;
    }
    points
}

impl Higgs {
    /// Values per code.
    pub fn values_per_code(&self) -> usize {
        self.p
    }

    /// Bits per code: the grid has two to this power points.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// Integer steps of the grid per standard deviation of what it codes best; 0 for the type
    /// whose code is the integer itself.
    pub fn unit(&self) -> f32 {
        self.unit
    }

    /// The scales that are tried for a group of this standard deviation and largest value.
    pub(super) fn starts(&self, deviation: f64, largest: f64) -> impl Iterator<Item = f64> {
        // With 255 even steps, not to cut the largest value is best; elsewhere a small group pays
        // for a search: at 64 values and p = 2, n = 256 the error falls by 12%.
        let even = self.unit == 0.0;
        let base = if even { largest / 127.0 } else { deviation / f64::from(self.unit) };
        let factors = if even { &STARTS[4..5] } else { &STARTS };
        factors.iter().map(move |factor| base * factor)
    }

    /// The scale that fits the deviation of a group, or its largest value where steps are even; 0
    /// for zeros.
    pub fn scale(&self, values: &[f32]) -> f64 {
        let square: f64 = values.iter().map(|&w| f64::from(w) * f64::from(w)).sum();
        let deviation = (square / values.len().max(1) as f64).sqrt();
        let largest = values.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
        self.starts(deviation, f64::from(largest))
            .nth(usize::from(self.unit != 0.0) * 4)
            .unwrap_or(0.0)
    }

    /// Finds the nearest point of the grid.
    pub fn search(&self) -> &Search {
        &self.search
    }

    /// Writes codes of whole blocks as the bytes of the code plane.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn pack(&self, codes: &[u16], bytes: &mut [u8]) {
        match self.bits {
            8 => {
                assert_eq!(codes.len(), bytes.len(), "a byte for every code");
                codes.iter().zip(bytes).for_each(|(&code, byte)| *byte = code as u8);
            }
            12 => pack_wide(codes, bytes),
            _ => self.pack_parts(codes, bytes),
        }
    }

    /// As `pack`, for codes of less than a byte.
    fn pack_parts(&self, codes: &[u16], bytes: &mut [u8]) {
        let block = self.block().bytes;
        assert_eq!(codes.len() * block, bytes.len() * RUN, "whole blocks");
        for (codes, bytes) in codes.as_chunks::<RUN>().0.iter().zip(bytes.chunks_mut(block)) {
            let (low, high) = bytes.split_at_mut(RUN / 2);
            for (i, byte) in low.iter_mut().enumerate() {
                *byte = (codes[i] & 0xf | codes[i + RUN / 2] << 4) as u8;
            }
            high.fill(0);
            let mut rest = high;
            for &(shift, width) in self.parts() {
                let (part, after) = rest.split_at_mut(RUN * width / 8);
                for (i, code) in codes.iter().enumerate() {
                    let bits = code >> shift & ((1 << width) - 1);
                    part[i % part.len()] |= (bits << (width * (i / part.len()))) as u8;
                }
                rest = after;
            }
        }
    }

    /// Reads codes of whole blocks, each below the number of points, from the code plane.
    ///
    /// # Panics
    /// If a length does not fit.
    pub fn unpack_codes(&self, bytes: &[u8], codes: &mut [u16]) {
        if self.bits == 12 {
            return unpack_wide(bytes, codes);
        }
        let mut narrow = vec![0; codes.len()];
        self.unpack_bytes(bytes, &mut narrow);
        codes.iter_mut().zip(narrow).for_each(|(to, code)| *to = u16::from(code));
    }

    /// As `unpack_codes`, for codes of at most a byte.
    fn unpack_bytes(&self, bytes: &[u8], codes: &mut [u8]) {
        if self.bits == 8 {
            return codes.copy_from_slice(bytes);
        }
        let block = self.block().bytes;
        assert_eq!(codes.len() * block, bytes.len() * RUN, "whole blocks");
        for (codes, bytes) in codes.as_chunks_mut::<RUN>().0.iter_mut().zip(bytes.chunks(block)) {
            let (low, high) = bytes.split_at(RUN / 2);
            for (i, &byte) in low.iter().enumerate() {
                // The low halves of the bytes are the first 16 codes, the high halves the last 16.
                codes[i] = byte & 0xf;
                codes[i + RUN / 2] = byte >> 4;
            }
            // The other bits lie side by side in the bytes that are left, some of the codes at a
            // time, as in Q6_K.
            let mut rest = high;
            for &(shift, width) in self.parts() {
                let (part, after) = rest.split_at(RUN * width / 8);
                for (i, codes) in codes.chunks_mut(part.len()).enumerate() {
                    for (code, byte) in codes.iter_mut().zip(part) {
                        *code |= (byte >> (width * i) & ((1 << width) - 1)) << shift;
                    }
                }
                rest = after;
            }
        }
    }

    /// What follows the low four bits of the codes of a block: the first bit of a part, and how
    /// many bits of each code are in it. A width divides a byte, so three bits are two parts.
    fn parts(&self) -> &'static [(usize, usize)] {
        match self.bits {
            5 => &[(4, 1)],
            6 => &[(4, 2)],
            7 => &[(4, 2), (6, 1)],
            _ => &[],
        }
    }

    /// The grid as a lookup for any byte: the points of `table`, or the type's own if it is empty.
    fn lookup<const P: usize>(&self, table: &[i8]) -> [[i8; P]; 256] {
        let mut lookup = [[0; P]; 256];
        let values = lookup.as_flattened_mut().iter_mut().zip(self.points_of(table));
        values.for_each(|(to, &q)| *to = q.max(-127));
        lookup
    }

    /// The points of `table`, or the type's own if it is empty.
    fn points_of<'a>(&self, table: &'a [i8]) -> &'a [i8] {
        let table = if table.is_empty() { self.points } else { table };
        assert_eq!(table.len(), self.points.len(), "a table of {}", self.name);
        table
    }

    /// As `all_integers`, for points of `P` values.
    fn integers<const P: usize>(&self, row: &Rows, out: &mut [i8]) {
        let lookup = self.lookup::<P>(row.table);
        let Block { len, bytes } = self.block();
        let mut codes = [0; RUN];
        let codes = &mut codes[..len / P];
        for (bytes, out) in row.codes.chunks_exact(bytes).zip(out.chunks_exact_mut(len)) {
            self.unpack_bytes(bytes, codes);
            for (point, &code) in out.as_chunks_mut::<P>().0.iter_mut().zip(&*codes) {
                *point = lookup[code as usize];
            }
        }
    }

    /// As `all_integers`, for codes of twelve bits. The table is too large to be copied.
    fn wide_integers(&self, row: &Rows, out: &mut [i8]) {
        let points = self.points_of(row.table).as_chunks::<4>().0;
        let mut codes = [0; WIDE_RUN];
        let blocks = row.codes.as_chunks::<WIDE_BYTES>().0.iter();
        for (bytes, out) in blocks.zip(out.chunks_exact_mut(4 * WIDE_RUN)) {
            unpack_wide(bytes, &mut codes);
            for (point, &code) in out.as_chunks_mut::<4>().0.iter_mut().zip(&codes) {
                *point = points[code as usize].map(|q| q.max(-127));
            }
        }
    }

    /// Whether a code is the integer itself, so that there is no table.
    fn is_even(&self) -> bool {
        (self.p, self.bits) == (1, 8)
    }

    /// The integers of rows, which follow each other without a gap.
    fn all_integers(&self, rows: &Rows, out: &mut [i8]) {
        match self.p {
            1 if self.is_even() => {
                let codes = out.iter_mut().zip(rows.codes);
                codes.for_each(|(to, &code)| *to = code.cast_signed());
            }
            1 => self.integers::<1>(rows, out),
            2 => self.integers::<2>(rows, out),
            _ if self.bits == 12 => self.wide_integers(rows, out),
            _ => self.integers::<4>(rows, out),
        }
    }

    /// The scale of each group.
    fn scales<'a>(&self, row: &'a Rows) -> impl Iterator<Item = f32> + 'a {
        row.norms.as_chunks::<2>().0.iter().map(|&norm| f16::from_le_bytes(norm).to_f32())
    }

    /// Asserts that the planes are those of `count` rows in this type.
    fn assert_fit(&self, rows: &Rows) {
        let Rows { count, cols, group, .. } = *rows;
        assert!(group > 0 && cols.is_multiple_of(group), "a group of {group} in a row of {cols}");
        assert!(group.is_multiple_of(SUB), "a group of {group} is no multiple of {SUB}");
        let bytes = self.row_bytes(cols).expect("whole blocks");
        assert_eq!(rows.codes.len(), count * bytes, "codes of {count} rows of {cols}");
        assert_eq!(rows.norms.len(), count * (cols / group * 2), "norms of {count} rows of {cols}");
    }
}

/// As [`Higgs::pack`], for codes of twelve bits.
fn pack_wide(codes: &[u16], bytes: &mut [u8]) {
    assert_eq!(codes.len() * WIDE_BYTES, bytes.len() * WIDE_RUN, "whole blocks");
    let blocks = bytes.as_chunks_mut::<WIDE_BYTES>().0;
    for (codes, bytes) in codes.as_chunks::<WIDE_RUN>().0.iter().zip(blocks) {
        let (low, high) = bytes.split_at_mut(WIDE_RUN / 2);
        for (i, byte) in low.iter_mut().enumerate() {
            *byte = (codes[i] & 0xf | codes[i + WIDE_RUN / 2] << 4) as u8;
        }
        high.iter_mut().zip(codes).for_each(|(byte, code)| *byte = (code >> 4) as u8);
    }
}

/// As [`Higgs::unpack_codes`], for codes of twelve bits.
fn unpack_wide(bytes: &[u8], codes: &mut [u16]) {
    assert_eq!(codes.len() * WIDE_BYTES, bytes.len() * WIDE_RUN, "whole blocks");
    let blocks = bytes.as_chunks::<WIDE_BYTES>().0;
    for (codes, bytes) in codes.as_chunks_mut::<WIDE_RUN>().0.iter_mut().zip(blocks) {
        // The low four bits as in other blocks, then a byte for the rest of each code.
        let (low, high) = bytes.split_at(WIDE_RUN / 2);
        for (i, &byte) in low.iter().enumerate() {
            codes[i] = u16::from(byte & 0xf) | u16::from(high[i]) << 4;
            codes[i + WIDE_RUN / 2] = u16::from(byte >> 4) | u16::from(high[i + WIDE_RUN / 2]) << 4;
        }
    }
}

impl TensorType for Higgs {
    fn name(&self) -> &'static str {
        self.name
    }

    fn id(&self) -> u32 {
        self.id
    }

    fn block(&self) -> Block {
        match self.bits {
            8 => Block { len: BYTE_LEN, bytes: BYTE_LEN / self.p },
            12 => Block { len: WIDE_RUN * self.p, bytes: WIDE_BYTES },
            _ => Block { len: RUN * self.p, bytes: RUN * self.bits / 8 },
        }
    }

    fn kernel(&self) -> Kernel {
        Kernel::Int8 { group: 0, mins: false }
    }

    fn layout(&self) -> Layout {
        match (self.p, self.bits) {
            (1, 8) => Layout::Integers,
            (2, 8) => Layout::Pairs,
            _ => Layout::Opaque,
        }
    }

    fn shader(&self) -> Option<Shader> {
        let (text, constants, chunk, table_words): (_, &[_], _, _) = match (self.p, self.bits) {
            (1, 4) => (include_str!("../../shaders/types/higgs_p1_n16.wgsl"), &[], 32, 256),
            (1, 5) => (include_str!("../../shaders/types/higgs_p1.wgsl"), &[("BITS", 5)], 32, 32),
            (1, 6) => (include_str!("../../shaders/types/higgs_p1.wgsl"), &[("BITS", 6)], 32, 64),
            (1, 8) => (include_str!("../../shaders/types/higgs_p1_n256.wgsl"), &[], 32, 0),
            (2, 4) => (include_str!("../../shaders/types/higgs_p2_n16.wgsl"), &[], 64, 16),
            (2, 5) => (include_str!("../../shaders/types/higgs_p2.wgsl"), &[("BITS", 5)], 64, 32),
            (2, 6) => (include_str!("../../shaders/types/higgs_p2_n64.wgsl"), &[], 64, 64),
            (2, 7) => (include_str!("../../shaders/types/higgs_p2.wgsl"), &[("BITS", 7)], 64, 128),
            (2, 8) => (include_str!("../../shaders/types/higgs_p2_n256.wgsl"), &[], 32, 256),
            (4, 8) => (include_str!("../../shaders/types/higgs_p4_n256.wgsl"), &[], 32, 256),
            (4, 12) => (include_str!("../../shaders/types/higgs_p4_n4096.wgsl"), &[], 64, 0),
            (p, bits) => unreachable!("no grid has {bits} bits for {p} values"),
        };
        Some(Shader { text, constants, chunk, table_words })
    }

    fn table(&self) -> Option<&'static [i8]> {
        (!self.is_even()).then_some(self.points)
    }

    fn can_encode(&self) -> bool {
        true
    }

    fn in_bytes(&self, tensor: &Tensor) -> Option<Tensor> {
        if self.layout() != Layout::Opaque {
            return None;
        }
        let table: &[i8] = bytemuck::cast_slice(&tensor.table);
        let table = if table.is_empty() { self.points } else { table };
        if self.p != 2 {
            // What a code stands for, as the type whose code is the integer itself.
            let mut integers = vec![0; tensor.len()];
            self.all_integers(&tensor.rows(0..tensor.rows), &mut integers);
            let codes: Vec<u8> = integers.into_iter().map(i8::cast_unsigned).collect();
            let codes = Bytes::from(codes);
            return Some(Tensor { kind: &P1_N256, codes, table: Bytes::empty(), ..tensor.clone() });
        }
        let mut codes = vec![0; tensor.len() / 2];
        self.unpack_bytes(&tensor.codes, &mut codes);
        let mut points: Vec<u8> = bytemuck::cast_slice(table).to_vec();
        points.resize(2 << 8, 0);
        let (codes, table) = (Bytes::from(codes), Bytes::from(points));
        Some(Tensor { kind: &P2_N256, codes, table, ..tensor.clone() })
    }

    fn decode(&self, rows: &Rows, out: &mut [f32]) {
        self.assert_fit(rows);
        assert_eq!(out.len(), rows.count * rows.cols, "{} rows of {}", rows.count, rows.cols);
        // A few blocks at a time, so that nothing is allocated for a row of the embedding.
        let Block { len, bytes } = self.block();
        let mut integers = [0; PIECE];
        let pieces = rows.codes.chunks(PIECE / len * bytes).zip(out.chunks_mut(PIECE));
        for (codes, out) in pieces {
            let integers = &mut integers[..out.len()];
            self.all_integers(&Rows { codes, ..*rows }, integers);
            out.iter_mut().zip(integers).for_each(|(to, q)| *to = f32::from(*q));
        }
        for (group, scale) in out.chunks_exact_mut(rows.group).zip(self.scales(rows)) {
            group.iter_mut().for_each(|value| *value *= scale);
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
        let count = values.len().checked_div(cols).unwrap_or(0);
        self.assert_fit(&Rows { count, cols, group, codes, norms, ..Rows::stock(0, 0, &[]) });
        assert_eq!(values.len(), count * cols, "whole rows");
        let mut numbers = vec![0_u16; cols / self.p];
        let planes = codes.chunks_exact_mut((codes.len() / count.max(1)).max(1));
        let planes = planes.zip(norms.chunks_exact_mut((cols / group * 2).max(1)));
        for (row, (codes, norms)) in values.chunks_exact(cols.max(1)).zip(planes) {
            let groups = row.chunks_exact(group).zip(numbers.chunks_exact_mut(group / self.p));
            for ((values, numbers), norm) in groups.zip(norms.as_chunks_mut::<2>().0) {
                *norm = fit(self, values, numbers).to_le_bytes();
            }
            self.pack(&numbers, codes);
        }
    }

    fn unpack(&self, row: &Rows, out: &mut Int8Row) {
        self.assert_fit(row);
        assert_eq!((row.count, out.values.len()), (1, row.cols), "one row");
        assert_eq!(out.scales.len(), row.cols / SUB, "a scale for every {SUB} values");
        self.all_integers(row, out.values);
        let scales = out.scales.chunks_exact_mut(row.group / SUB);
        scales.zip(self.scales(row)).for_each(|(to, scale)| to.fill(scale));
    }
}
