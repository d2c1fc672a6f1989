//! Ternary weights in the order in which the CPU kernels read them.
//!
//! Sixteen rows form a panel, and a block is a panel's share of sixteen columns: 64 bytes, one cache line.
//! Byte `4·r + q` of block `b` holds, for row `r` of the panel, the codes of columns `16·b + 4·j + q` in bits `2·j`.
//! So four neighbouring bytes, masked to one bit field, meet four neighbouring activations, which is the operand of
//! `vpdpbusd`, `vpmaddubsw` and `sdot` alike: no sums across lanes, no permuted activations, and a vector of any
//! width holds whole rows. Panels follow each other, so a thread's share of a matrix is one sequential stream.

use crate::ternary::{CODES_PER_WORD, TernaryMatrix, ZERO_WORD, words_per_row};

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;

/// Columns of a block.
pub const BLOCK_COLS: usize = CODES_PER_WORD;

/// The widest matrix that can be packed. Kernels add up 128 · 127 for every four columns in 32 bits, which holds for
/// 528 000; the widest layer of any published model has 45 568.
pub const MAX_COLS: usize = 500_000;

/// Sixteen columns of a panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Block(pub(crate) [u8; 64]);

impl Block {
    fn from_words(words: [u32; PANEL_ROWS]) -> Self {
        let mut bytes = [0; 64];
        for (quad, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *quad = word.to_le_bytes();
        }
        Self(bytes)
    }

    /// One row's sixteen codes, arranged as in [`crate::ternary`].
    pub fn word(&self, row: usize) -> u32 {
        u32::from_le_bytes(self.0.as_chunks::<4>().0[row])
    }
}

/// The codes of a [`TernaryMatrix`] in panels; its scales stay with whoever packed it.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedTernary {
    rows: usize,
    cols: usize,
    blocks_per_panel: usize,
    blocks: Vec<Block>,
}

impl PackedTernary {
    /// Packs a matrix. The last panel is filled up with rows of zero weights.
    ///
    /// # Panics
    /// If it is wider than [`MAX_COLS`]; a loader refuses such a model before.
    pub fn pack(matrix: &TernaryMatrix) -> Self {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        assert!(cols <= MAX_COLS, "{cols} columns could overflow 32 bits");
        let blocks_per_panel = words_per_row(cols);
        let panels = rows.div_ceil(PANEL_ROWS);
        let mut blocks = Vec::with_capacity(panels * blocks_per_panel);
        let padding = vec![ZERO_WORD; blocks_per_panel];
        for panel in 0..panels {
            let words: [&[u32]; PANEL_ROWS] = std::array::from_fn(|r| {
                let row = panel * PANEL_ROWS + r;
                if row < rows { matrix.row(row) } else { &padding[..] }
            });
            let block = |b: usize| Block::from_words(std::array::from_fn(|r| words[r][b]));
            blocks.extend((0..blocks_per_panel).map(block));
        }
        Self { rows, cols, blocks_per_panel, blocks }
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

    /// Blocks of [`BLOCK_COLS`] columns, the last one padded.
    pub fn blocks_per_panel(&self) -> usize {
        self.blocks_per_panel
    }

    /// The blocks of one panel.
    pub fn panel(&self, panel: usize) -> &[Block] {
        &self.blocks[panel * self.blocks_per_panel..][..self.blocks_per_panel]
    }

    /// Memory that the weights take.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.blocks[..])
    }

    /// The words of one row, as [`TernaryMatrix::row`] gives them.
    pub fn row_words(&self, row: usize) -> impl Iterator<Item = u32> {
        self.panel(row / PANEL_ROWS).iter().map(move |block| block.word(row % PANEL_ROWS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ternary::WeightScale;

    fn check(rows: usize, cols: usize) {
        let values: Vec<i8> = (0..rows * cols).map(|i| (i * i % 7 % 3) as i8 - 1).collect();
        let matrix = TernaryMatrix::from_values(rows, cols, &values, WeightScale::Tensor(1.0));
        let packed = PackedTernary::pack(&matrix);
        for row in 0..packed.panels() * PANEL_ROWS {
            let words: Vec<u32> = packed.row_words(row).collect();
            if row < rows {
                assert_eq!(words, matrix.row(row), "row {row} of {rows}x{cols}");
            } else {
                assert!(words.iter().all(|&word| word == ZERO_WORD), "row {row} is padding");
            }
        }
    }

    #[test]
    fn rows_survive_packing_at_every_size() {
        for rows in [0, 1, 5, 15, 16, 17, 48, 100] {
            for cols in [1, 15, 16, 17, 20, 100, 320] {
                check(rows, cols);
            }
        }
    }

    #[test]
    fn a_byte_holds_four_columns_of_one_row() {
        let mut values = vec![0; 32 * 48];
        values[21 * 48 + 16 + 4 * 2 + 3] = 1; // row 5 of panel 1, block 1, j = 2, q = 3
        let matrix = TernaryMatrix::from_values(32, 48, &values, WeightScale::Tensor(1.0));
        let block = PackedTernary::pack(&matrix).panel(1)[1];
        let changed: Vec<_> = (0..64).filter(|&i| block.0[i] != 0x55).collect();
        assert_eq!((changed, block.0[4 * 5 + 3]), (vec![4 * 5 + 3], 0b01_10_01_01));
    }
}
