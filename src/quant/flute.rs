//! How FLUTE packs codes for its GPU kernels (`flute/utils.py` of the package `flute-kernel`), read
//! back: the layout in which HIGGS checkpoints are published.
//!
//! The matrix of words has `rows * bits / 16` rows of `cols` 16-bit words, where the weight has
//! `rows` outputs and `cols` inputs. A tile is `tile` outputs; as many tiles as fill a word share
//! their words. So the codes of one output lie in one row of words, or in three for 3 bits, and
//! those of two neighbouring inputs lie in two neighbouring words.

/// Bits of a word.
const WORD_BITS: usize = 16;

/// Tiles of files that do not say which kernel they were packed for: all kernels of their time.
pub const OLD_TILE: usize = 32;

/// With 3 bits, a word shares 16 tiles, in this order.
const TILES_OF_3_BITS: [usize; 16] = [0, 3, 6, 9, 12, 1, 4, 7, 10, 13, 2, 5, 8, 11, 14, 15];

/// A way of packing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    bits: usize,
    tile: usize,
}

impl Packing {
    /// Codes of 2, 3 or 4 bits in tiles of 32 or 64 outputs; 3 bits have tiles of 32 only.
    pub fn new(bits: usize, tile: usize) -> Option<Packing> {
        let known = matches!((bits, tile), (2 | 4, 32 | 64) | (3, 32));
        known.then_some(Packing { bits, tile })
    }

    /// What the kernel of this number wants, which is what newer files name: of each three groups
    /// of kernels the first has tiles of 64. (From `qgemm_kernel_raw_generated_configs.pth`.)
    pub fn of_template(bits: usize, template: u64) -> Option<Packing> {
        let (group, count) = if bits == 4 { (16, 144) } else { (4, 36) };
        let tile = if (template / group).is_multiple_of(3) { 64 } else { 32 };
        Packing::new(bits, tile).filter(|_| template < count)
    }

    /// Outputs that share their words: a weight has a multiple of this many.
    pub fn outputs(&self) -> usize {
        self.tiles() * self.tile
    }

    /// Rows of words of a weight with so many outputs.
    pub fn word_rows(&self, rows: usize) -> usize {
        rows * self.bits / WORD_BITS
    }

    /// The codes of one output of a weight with `rows` outputs, one for each input.
    ///
    /// `words` is little-endian.
    ///
    /// # Panics
    /// If the lengths do not fit, or there is no such output.
    pub fn unpack(&self, words: &[u8], rows: usize, row: usize, codes: &mut [u8]) {
        let cols = codes.len();
        assert!(rows.is_multiple_of(self.outputs()) && row < rows, "output {row} of {rows}");
        assert_eq!(words.len(), 2 * self.word_rows(rows) * cols, "words of {rows} outputs");
        assert!(cols.is_multiple_of(2), "{cols} inputs come in pairs");
        let words = |at: usize| &words[2 * at * cols..2 * (at + 1) * cols];
        let (chunk, rest) = (row / self.outputs(), row % self.outputs());
        let (tile, lane) = (rest / self.tile, rest % self.tile);
        if self.bits == 3 {
            let (first, others) = (chunk * self.tile + lane, rows / WORD_BITS);
            let other = others + 2 * chunk * self.tile + lane;
            unpack_3([words(first), words(other), words(other + self.tile)], tile, codes);
        } else {
            self.unpack_even(words(chunk * self.tile + lane), tile, codes);
        }
    }

    /// Tiles that share their words.
    fn tiles(&self) -> usize {
        if self.bits == 3 { WORD_BITS } else { WORD_BITS / self.bits }
    }

    /// Two words hold a pair of codes for each tile, the second input's code below the first's.
    fn unpack_even(&self, words: &[u8], tile: usize, codes: &mut [u8]) {
        let half = self.tiles() / 2;
        let (word, slot) = (tile / half, 2 * (tile % half));
        let pairs = words.as_chunks::<4>().0.iter().zip(codes.as_chunks_mut::<2>().0);
        for (words, codes) in pairs {
            let word = u16::from_le_bytes([words[2 * word], words[2 * word + 1]]);
            let code = |slot: usize| (word >> (slot * self.bits)) as u8 & ((1 << self.bits) - 1);
            *codes = [code(slot + 1), code(slot)];
        }
    }
}

/// Three pairs of words hold 32 codes: ten in the low bits of each, and the bits of the last two in
/// what is left.
fn unpack_3(words: [&[u8]; 3], tile: usize, codes: &mut [u8]) {
    let place = TILES_OF_3_BITS.iter().position(|&other| other == tile).expect("one of sixteen");
    let planes = words.map(|words| words.as_chunks::<4>().0);
    for (at, codes) in codes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let [a, b, c] = planes.map(|plane| u32::from_le_bytes(plane[at]));
        let code = |index: usize| match index {
            30 => (a >> 30) | (b >> 30 & 1) << 2,
            31 => (b >> 31) | (c >> 30) << 1,
            _ => [a, b, c][index / 10] >> (3 * (index % 10)) & 7,
        };
        *codes = [code(2 * place + 1) as u8, code(2 * place) as u8];
    }
}

/// The grid of `transformers` (`integrations/higgs.py`) for codes of `bits` bits a value, `p`
/// values to a point: `(n, p)`, row after row.
pub fn published_grid(p: usize, bits: usize) -> Option<Vec<f32>> {
    let bytes: &[u8] = match (p, bits) {
        (1, 4) => include_bytes!("published/p1_n16.f32"),
        (2, 2) => include_bytes!("published/p2_n16.f32"),
        (2, 3) => include_bytes!("published/p2_n64.f32"),
        (2, 4) => include_bytes!("published/p2_n256.f32"),
        _ => return None,
    };
    Some(bytes.as_chunks::<4>().0.iter().map(|&value| f32::from_le_bytes(value)).collect())
}

/// A grid as integers, and how many of their steps are 1.
pub fn integer_grid(grid: &[f32]) -> (Vec<i8>, f32) {
    let largest = grid.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let unit = 127.0 / largest;
    (grid.iter().map(|value| (value * unit).round() as i8).collect(), unit)
}
