//! Ternary weights in the order in which the CPU kernels read them.
//!
//! Sixteen rows form a panel, and a block is a panel's share of some columns: 64 bytes, one cache line. With two bits a
//! weight that is sixteen columns: byte `4·r + q` of block `b` holds, for row `r` of the panel, the codes of columns
//! `16·b + 4·j + q` in bits `2·j`, `j` from 0 to 3. With five trits a byte it is twenty columns: the byte is the sum of
//! the codes of columns `20·b + 4·j + q` times 1, 3, 9, 27 and 84, `j` from 0 to 4, so 248 at most. (84 and not 81, so
//! that the upper six bits alone tell the highest digit, which saves two instructions of fifteen where tables are large.)
//! In both, one digit of four neighbouring bytes meets four neighbouring activations, which is the operand of
//! `vpdpbusd`, `vpmaddubsw` and `sdot` alike: no sums across lanes, no permuted activations, and a vector of any
//! width holds whole rows. Panels follow each other, so a thread's share of a matrix is one sequential stream.

use std::fmt;
use std::str::FromStr;

use crate::memory::{Arena, Line, Lines};
use crate::ternary::{CODES_PER_WORD, TernaryMatrix, WeightScale, ZERO_WORD, words_per_row};

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;

/// Columns of a block of two bits a weight.
pub const BLOCK_COLS: usize = Packing::TwoBits.block_cols();

/// The widest matrix that can be packed. Kernels add up 128 · 127 for every four columns in 32 bits, which holds for
/// 528 000, or 168 · 127 for four of every twenty, which holds for 503 000; the widest layer of any published model has
/// 45 568.
pub const MAX_COLS: usize = 500_000;

/// What the digits of five trits in a byte are worth.
pub(crate) const TRIT_WORTH: [u8; 5] = [1, 3, 9, 27, 84];

/// Bytes of codes, one to a byte, in a word: `1` in each.
const ONES: u32 = 0x0101_0101;

/// How many weights share a byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Packing {
    /// Four, in two bits each: quickest to unpack.
    #[default]
    TwoBits,
    /// Five, as the digits of a number, nearly in base 3: 1.6 bits each, a fifth less to read from memory.
    FiveTrits,
}

impl Packing {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::TwoBits, Self::FiveTrits];

    /// Weights in a byte, and so groups of four columns in a block.
    pub const fn weights_per_byte(self) -> usize {
        match self {
            Self::TwoBits => 4,
            Self::FiveTrits => 5,
        }
    }

    /// Columns of a block.
    pub const fn block_cols(self) -> usize {
        4 * self.weights_per_byte()
    }

    /// Memory that a matrix takes, the padding of rows and columns included.
    pub const fn matrix_bytes(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(PANEL_ROWS) * cols.div_ceil(self.block_cols()) * size_of::<Block>()
    }

    /// The name that [`FromStr`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::TwoBits => "2bit",
            Self::FiveTrits => "1.6bit",
        }
    }

    /// Whether a matrix with such scales can be packed so: no block may lie in two groups of columns.
    pub fn suits(self, scale: &WeightScale) -> bool {
        match scale {
            WeightScale::Tensor(_) | WeightScale::Rows(_) => true,
            WeightScale::Groups { size, .. } => size.is_multiple_of(self.block_cols()),
        }
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no [`Packing`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no packing of weights; there are 2bit and 1.6bit")]
pub struct UnknownPacking(String);

impl FromStr for Packing {
    type Err = UnknownPacking;

    fn from_str(name: &str) -> Result<Self, UnknownPacking> {
        let named = |packing: &Self| packing.name() == name;
        Self::ALL.into_iter().find(named).ok_or_else(|| UnknownPacking(name.to_owned()))
    }
}

/// A panel's share of [`Packing::block_cols`] columns.
pub type Block = Line;

pub(crate) fn block_of(quads: [u32; PANEL_ROWS]) -> Block {
    let mut bytes = [0; 64];
    for (bytes, quad) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(quads) {
        *bytes = quad.to_le_bytes();
    }
    Line(bytes)
}

/// One row's four bytes of a block.
fn quad(block: &Block, row: usize) -> u32 {
    u32::from_le_bytes(block.0.as_chunks::<4>().0[row])
}

/// The codes of a [`TernaryMatrix`] in panels; its scales stay with whoever packed it.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedTernary {
    packing: Packing,
    rows: usize,
    cols: usize,
    blocks_per_panel: usize,
    blocks: Lines,
}

impl PackedTernary {
    /// Packs a matrix in two bits a weight; see [`PackedTernary::pack_as`].
    pub fn pack(matrix: &TernaryMatrix) -> Self {
        Self::pack_as(Packing::TwoBits, matrix)
    }

    /// Packs a matrix into memory of its own; see [`PackedTernary::pack_in`].
    pub fn pack_as(packing: Packing, matrix: &TernaryMatrix) -> Self {
        let lines = packing.matrix_bytes(matrix.rows(), matrix.cols()) / size_of::<Block>();
        Self::pack_into(Lines::zeroed(lines), packing, matrix)
    }

    /// Packs a matrix into memory of an arena. The last panel is filled up with rows of zero weights.
    ///
    /// # Panics
    /// If it is wider than [`MAX_COLS`]; a loader refuses such a model before.
    pub fn pack_in(arena: &Arena, packing: Packing, matrix: &TernaryMatrix) -> Self {
        let lines = packing.matrix_bytes(matrix.rows(), matrix.cols()) / size_of::<Block>();
        Self::pack_into(arena.lines(lines), packing, matrix)
    }

    fn pack_into(mut blocks: Lines, packing: Packing, matrix: &TernaryMatrix) -> Self {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        assert!(cols <= MAX_COLS, "{cols} columns could overflow 32 bits");
        let blocks_per_panel = cols.div_ceil(packing.block_cols());
        let padding = vec![ZERO_WORD; words_per_row(cols)];
        let mut trits = vec![[0; PANEL_ROWS]; blocks_per_panel];
        for (panel, blocks) in blocks.chunks_exact_mut(blocks_per_panel.max(1)).enumerate() {
            let words: [&[u32]; PANEL_ROWS] = std::array::from_fn(|r| {
                let row = panel * PANEL_ROWS + r;
                if row < rows { matrix.row(row) } else { &padding[..] }
            });
            match packing {
                Packing::TwoBits => {
                    for (b, block) in blocks.iter_mut().enumerate() {
                        *block = block_of(std::array::from_fn(|r| words[r][b]));
                    }
                }
                Packing::FiveTrits => {
                    for (r, words) in words.iter().enumerate() {
                        trits_of_row(words, r, &mut trits);
                    }
                    for (block, quads) in blocks.iter_mut().zip(&trits) {
                        *block = block_of(*quads);
                    }
                }
            }
        }
        Self { packing, rows, cols, blocks_per_panel, blocks }
    }

    /// A matrix of codes 0, two bits each, to be filled by [`Self::blocks_mut`]. There may be codes 3 among these if
    /// activations are small enough for it; see [`crate::scalar::screen::MAX_ACTIVATION`].
    pub(super) fn of_codes(rows: usize, cols: usize) -> Self {
        assert!(cols <= MAX_COLS, "{cols} columns could overflow 32 bits");
        let packing = Packing::TwoBits;
        let blocks = Lines::zeroed(packing.matrix_bytes(rows, cols) / size_of::<Block>());
        let blocks_per_panel = cols.div_ceil(packing.block_cols());
        Self { packing, rows, cols, blocks_per_panel, blocks }
    }

    /// All blocks, panel by panel.
    pub(super) fn blocks_mut(&mut self) -> &mut [Block] {
        &mut self.blocks
    }

    /// A matrix `[rows, cols]` that was packed before, of the bytes of its panels; none if these are not as many as it has.
    pub(super) fn of_panels(
        packing: Packing,
        rows: usize,
        cols: usize,
        blocks: Lines,
    ) -> Option<Self> {
        let blocks_per_panel = cols.div_ceil(packing.block_cols());
        let expected = rows.div_ceil(PANEL_ROWS).checked_mul(blocks_per_panel)?;
        (blocks.len() == expected && cols <= MAX_COLS).then_some(())?;
        Some(Self { packing, rows, cols, blocks_per_panel, blocks })
    }

    /// The bytes of all panels.
    pub(super) fn panel_bytes(&self) -> &[u8] {
        self.blocks.bytes()
    }

    /// A matrix of the same byte everywhere, for timing.
    pub(super) fn filled(arena: &Arena, byte: u8, panels: usize, blocks_per_panel: usize) -> Self {
        let mut blocks = arena.lines(panels * blocks_per_panel);
        blocks.fill(Line([byte; 64]));
        let packing = Packing::TwoBits;
        let (rows, cols) = (panels * PANEL_ROWS, blocks_per_panel * packing.block_cols());
        Self { packing, rows, cols, blocks_per_panel, blocks }
    }

    /// Takes the same bytes for another packing; only timing wants that.
    pub(super) fn read_as(&mut self, packing: Packing) {
        (self.packing, self.cols) = (packing, self.blocks_per_panel * packing.block_cols());
    }

    /// How many weights share a byte.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Panels of [`PANEL_ROWS`] rows, the last one padded.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL_ROWS)
    }

    /// Blocks of [`Packing::block_cols`] columns, the last one padded.
    pub fn blocks_per_panel(&self) -> usize {
        self.blocks_per_panel
    }

    /// The blocks of one panel.
    pub fn panel(&self, panel: usize) -> &[Block] {
        &self.blocks[panel * self.blocks_per_panel..][..self.blocks_per_panel]
    }

    /// The weights as they lie in memory.
    pub(crate) fn memory(&self) -> &[u8] {
        self.blocks.bytes()
    }

    /// Memory that the weights take.
    pub fn bytes(&self) -> usize {
        self.blocks.bytes().len()
    }

    /// The words of one row, as [`TernaryMatrix::row`] gives them.
    pub fn row_words(&self, row: usize) -> impl Iterator<Item = u32> {
        let (panel, row) = (self.panel(row / PANEL_ROWS), row % PANEL_ROWS);
        (0..words_per_row(self.cols)).map(move |word| match self.packing {
            Packing::TwoBits => quad(&panel[word], row),
            Packing::FiveTrits => {
                // The last word may reach past the last block.
                let codes =
                    |i: usize| panel.get(i / 5).map_or(ONES, |b| digit(quad(b, row), i % 5));
                let quads = CODES_PER_WORD / 4;
                (0..quads).fold(0, |all, i| all | codes(quads * word + i) << (2 * i))
            }
        })
    }
}

/// Fills row `r` of the blocks of a panel: five trits a byte from two bits a code.
fn trits_of_row(words: &[u32], r: usize, blocks: &mut [[u32; PANEL_ROWS]]) {
    // Five words are four blocks, twenty groups of four columns.
    for (words, blocks) in words.chunks(5).zip(blocks.chunks_mut(4)) {
        let mut five = [ZERO_WORD; 5];
        five[..words.len()].copy_from_slice(words);
        let codes = |quad: usize| five[quad / 4] >> (2 * (quad % 4)) & (3 * ONES);
        for (b, block) in blocks.iter_mut().enumerate() {
            // No byte carries into its neighbour: each stays below 249.
            let digit = |j: usize| codes(5 * b + j) * u32::from(TRIT_WORTH[j]);
            block[r] = (0..5).map(digit).sum();
        }
    }
}

/// Digit `j` of four bytes of five trits.
fn digit(quad: u32, j: usize) -> u32 {
    u32::from_le_bytes(quad.to_le_bytes().map(|byte| match j {
        4 => byte / TRIT_WORTH[4],
        _ => byte % TRIT_WORTH[4] / TRIT_WORTH[j] % 3,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rows: usize, cols: usize, packing: Packing) {
        let values: Vec<i8> = (0..rows * cols).map(|i| (i * i % 7 % 3) as i8 - 1).collect();
        let matrix = TernaryMatrix::from_values(rows, cols, &values, WeightScale::Tensor(1.0));
        let packed = PackedTernary::pack_as(packing, &matrix);
        assert_eq!(packed.bytes(), packing.matrix_bytes(rows, cols));
        for row in 0..packed.panels() * PANEL_ROWS {
            let words: Vec<u32> = packed.row_words(row).collect();
            if row < rows {
                assert_eq!(words, matrix.row(row), "row {row} of {rows}x{cols}, {packing}");
            } else {
                assert!(words.iter().all(|&word| word == ZERO_WORD), "row {row} is padding");
            }
        }
    }

    #[test]
    fn rows_survive_packing_at_every_size() {
        for rows in [0, 1, 5, 15, 16, 17, 48, 100] {
            for cols in [1, 15, 16, 17, 19, 20, 21, 32, 79, 80, 81, 100, 320] {
                Packing::ALL.into_iter().for_each(|packing| check(rows, cols, packing));
            }
        }
    }

    #[test]
    fn every_byte_of_five_trits_is_decoded() {
        // Column 20·b + 4·j of block b holds digit j of the number b.
        let digit = |k: usize| {
            if k.is_multiple_of(4) { k / 20 / 3_usize.pow(k as u32 % 20 / 4) % 3 } else { 1 }
        };
        let values: Vec<i8> = (0..243 * 20).map(|k| digit(k) as i8 - 1).collect();
        let matrix = TernaryMatrix::from_values(1, values.len(), &values, WeightScale::Tensor(1.0));
        let packed = PackedTernary::pack_as(Packing::FiveTrits, &matrix);
        assert_eq!(packed.row_words(0).collect::<Vec<_>>(), matrix.row(0));
    }

    fn block_with_one_positive_weight(row: usize, col: usize, packing: Packing) -> (usize, Block) {
        let mut values = vec![0; 32 * 48];
        values[row * 48 + col] = 1;
        let matrix = TernaryMatrix::from_values(32, 48, &values, WeightScale::Tensor(1.0));
        let b = col / packing.block_cols();
        (4 * (row % PANEL_ROWS) + col % 4, PackedTernary::pack_as(packing, &matrix).panel(1)[b])
    }

    #[test]
    fn a_byte_holds_four_columns_of_one_row() {
        let (place, block) = block_with_one_positive_weight(21, 16 + 4 * 2 + 3, Packing::TwoBits);
        let changed: Vec<_> = (0..64).filter(|&i| block.0[i] != 0x55).collect();
        assert_eq!((changed, block.0[place]), (vec![4 * 5 + 3], 0b01_10_01_01));
    }

    #[test]
    fn a_byte_holds_five_columns_of_one_row() {
        let (place, block) = block_with_one_positive_weight(21, 20 + 4 * 3 + 1, Packing::FiveTrits);
        let changed: Vec<_> = (0..64).filter(|&i| block.0[i] != 124).collect(); // 1 + 3 + 9 + 27 + 84
        assert_eq!((changed, block.0[place]), (vec![4 * 5 + 1], 1 + 3 + 9 + 2 * 27 + 84));
    }

    #[test]
    fn a_packing_is_found_by_its_name() {
        for packing in Packing::ALL {
            assert_eq!(packing.name().parse(), Ok(packing));
        }
        let error = "3bit".parse::<Packing>().unwrap_err().to_string();
        assert_eq!(error, "`3bit` is no packing of weights; there are 2bit and 1.6bit");
    }

    #[test]
    fn groups_of_columns_must_hold_whole_blocks() {
        let groups = |size| WeightScale::Groups { size, scales: Vec::new() };
        assert!(Packing::TwoBits.suits(&groups(64)) && !Packing::FiveTrits.suits(&groups(64)));
        assert!(Packing::FiveTrits.suits(&groups(160)));
    }
}
