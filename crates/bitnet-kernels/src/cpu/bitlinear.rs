//! The scaled product of a BitLinear: exact integers first, then their scales, whichever kind those are.

use std::ops::Range;

use super::isa::Isa;
use super::packed::{PANEL_ROWS, PackedTernary};
use crate::activation::QuantizedRows;
use crate::ternary::WeightScale;

/// A ternary matrix in panels, with its scale.
pub struct CpuTernary {
    pub(super) packed: PackedTernary,
    pub(super) scale: WeightScale,
}

/// Some rows of a ternary matrix, from the first of a panel on, times some tokens.
pub(super) struct Part<'a> {
    pub w: &'a CpuTernary,
    pub rows: Range<usize>,
    pub x: &'a QuantizedRows,
    pub tokens: Range<usize>,
}

impl Part<'_> {
    fn panels(&self) -> Range<usize> {
        self.rows.start / PANEL_ROWS..self.rows.end.div_ceil(PANEL_ROWS)
    }

    /// Values that a token has in the results: whole panels.
    pub fn width(&self) -> usize {
        self.panels().len() * PANEL_ROWS
    }

    /// The scaled products, `[tokens, width]`; those past `rows` are unspecified.
    pub fn compute(&self, isa: Isa, sums: &mut Vec<i32>, y: &mut Vec<f32>) {
        sums.resize(self.tokens.len() * self.width(), 0);
        y.resize(sums.len(), 0.0);
        let all = 0..self.w.packed.blocks_per_panel();
        match &self.w.scale {
            WeightScale::Tensor(w) => {
                self.integers(isa, all, sums);
                self.each_token(sums, y, |sums, s, y| isa.scale_product(sums, *w, s, y));
            }
            WeightScale::Rows(w) => {
                self.integers(isa, all, sums);
                let w = &w[self.rows.clone()];
                self.each_token(sums, y, |sums, s, y| isa.scale_product_rows(sums, w, s, y));
            }
            WeightScale::Groups { size, scales } => {
                y.fill(0.0);
                let groups = self.w.packed.cols().div_ceil(*size);
                let blocks = size / self.w.packed.packing().block_cols();
                for group in 0..groups {
                    self.integers(isa, group * blocks..all.end.min((group + 1) * blocks), sums);
                    let of = |row| scales[row * groups + group];
                    let w: Vec<f32> = self.rows.clone().map(of).collect();
                    self.each_token(sums, y, |sums, s, y| {
                        let mut share = vec![0.0; sums.len()];
                        isa.scale_product_rows(sums, &w, s, &mut share);
                        isa.add(&share, y);
                    });
                }
            }
        }
    }

    /// The integer products over the columns of `blocks`.
    fn integers(&self, isa: Isa, blocks: Range<usize>, sums: &mut [i32]) {
        let tokens = self.tokens.clone();
        isa.ternary_product(&self.w.packed, self.panels(), blocks, self.x, tokens, sums);
    }

    /// `emit(integers, scale of the activations, floats)` for each token.
    fn each_token(
        &self,
        sums: &[i32],
        y: &mut [f32],
        mut emit: impl FnMut(&[i32], f32, &mut [f32]),
    ) {
        let rows = sums.chunks(self.width()).zip(y.chunks_mut(self.width()));
        for (token, (sums, y)) in self.tokens.clone().zip(rows) {
            emit(&sums[..self.rows.len()], self.x.scale[token], &mut y[..self.rows.len()]);
        }
    }
}
