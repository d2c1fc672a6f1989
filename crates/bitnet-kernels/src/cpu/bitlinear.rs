//! The scaled product of a BitLinear: exact integers first, then their scales, whichever kind those are.

use std::ops::Range;

use super::isa::Isa;
use super::packed::{PANEL_ROWS, PackedTernary};
use crate::activation::QuantizedRows;
use crate::memory::heap_bytes;
use crate::ternary::WeightScale;

/// A ternary matrix in panels, with its scale.
pub struct CpuTernary {
    pub(super) packed: PackedTernary,
    pub(super) scale: WeightScale,
}

/// Tokens of a part, at most: the integers of 256 rows are 16 KB then, which stay in the first-level cache until they are
/// scaled and written to where they belong.
const BLOCK: usize = 16;

/// Some rows of a ternary matrix, from the first of a panel on, times some tokens.
pub(super) struct Part<'a> {
    pub w: &'a CpuTernary,
    pub rows: Range<usize>,
    pub x: &'a QuantizedRows,
    pub tokens: Range<usize>,
}

/// The products of a part, before their scales.
#[derive(Default)]
pub(super) struct Products {
    /// `[tokens, whole panels]`.
    integers: Vec<i32>,
    /// The same with all scales applied, if these are for groups of columns; a product of one token and group; its scales.
    floats: Vec<f32>,
    share: Vec<f32>,
    scales: Vec<f32>,
}

impl Products {
    /// Bytes in use, with those kept for later.
    pub fn heap_bytes(&self) -> usize {
        let floats = [&self.floats, &self.share, &self.scales].map(heap_bytes);
        heap_bytes(&self.integers) + floats.iter().sum::<usize>()
    }
}

/// Bytes of a step's int8 rows that a thread's second-level cache holds beside a stripe of weights. Activations that come from
/// beyond it cost a twentieth of the speed. Tests have few tokens, and want several runs of them too.
const RESIDENT: usize = if cfg!(test) { 1 << 10 } else { 512 << 10 };

/// Tokens in blocks that are computed at a time, as even as possible.
pub(super) fn blocks(tokens: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    even(tokens, BLOCK)
}

/// Tokens in runs of as many as stay in a thread's cache with `cols` columns each; a run is multiplied with all weights before
/// the next one is touched.
pub(super) fn runs(tokens: usize, cols: usize) -> impl Iterator<Item = Range<usize>> {
    even(0..tokens, (RESIDENT / cols.max(1) / BLOCK).max(1) * BLOCK)
}

/// A range in pieces of at most `most`, as even as possible.
fn even(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = range.len().div_ceil(most);
    let end = move |piece| range.start + piece * range.len() / count;
    (0..count).map(move |piece| end(piece)..end(piece + 1))
}

impl Part<'_> {
    fn panels(&self) -> Range<usize> {
        self.rows.start / PANEL_ROWS..self.rows.end.div_ceil(PANEL_ROWS)
    }

    /// Values that a token has in the products: whole panels.
    fn width(&self) -> usize {
        self.panels().len() * PANEL_ROWS
    }

    /// Multiplies.
    pub fn compute(&self, isa: Isa, to: &mut Products) {
        to.integers.resize(self.tokens.len() * self.width(), 0);
        let all = 0..self.w.packed.blocks_per_panel();
        let WeightScale::Groups { size, scales } = &self.w.scale else {
            return self.integers(isa, all, &mut to.integers);
        };
        let (groups, len) = (self.w.packed.cols().div_ceil(*size), self.rows.len());
        let blocks = size / self.w.packed.packing().block_cols();
        to.floats.clear();
        to.floats.resize(self.tokens.len() * len, 0.0);
        to.share.resize(len, 0.0);
        for group in 0..groups {
            self.integers(isa, group * blocks..all.end.min((group + 1) * blocks), &mut to.integers);
            to.scales.clear();
            to.scales.extend(self.rows.clone().map(|row| scales[row * groups + group]));
            let rows = to.integers.chunks(self.width()).zip(to.floats.chunks_mut(len));
            for (token, (integers, y)) in self.tokens.clone().zip(rows) {
                let scale = self.x.scale[token];
                isa.scale_product_rows(&integers[..len], &to.scales, scale, &mut to.share);
                isa.add(&to.share, y);
            }
        }
    }

    /// The scaled products of a token, `[rows]`, from what [`Self::compute`] left.
    pub fn write(&self, isa: Isa, from: &Products, token: usize, y: &mut [f32]) {
        let (index, len, scale) = (token - self.tokens.start, self.rows.len(), self.x.scale[token]);
        let integers = &from.integers[index * self.width()..][..len];
        match &self.w.scale {
            WeightScale::Tensor(w) => isa.scale_product(integers, *w, scale, y),
            WeightScale::Rows(w) => {
                isa.scale_product_rows(integers, &w[self.rows.clone()], scale, y);
            }
            WeightScale::Groups { .. } => y.copy_from_slice(&from.floats[index * len..][..len]),
        }
    }

    /// The integer products over the columns of `blocks`.
    fn integers(&self, isa: Isa, blocks: Range<usize>, sums: &mut [i32]) {
        let tokens = self.tokens.clone();
        isa.ternary_product(&self.w.packed, self.panels(), blocks, self.x, tokens, sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_all_tokens_and_are_even() {
        for tokens in 0..200 {
            let all: Vec<_> = blocks(3..3 + tokens).collect();
            assert_eq!(
                all.iter().cloned().flatten().collect::<Vec<_>>(),
                (3..3 + tokens).collect::<Vec<_>>()
            );
            let lens = all.iter().map(Range::len);
            let (least, most) = (lens.clone().min().unwrap_or(0), lens.max().unwrap_or(0));
            assert!(most <= BLOCK && most - least <= 1, "{tokens}: {all:?}");
        }
    }

    #[test]
    fn runs_of_tokens_fit_the_cache() {
        let lens = |tokens, cols| runs(tokens, cols).map(|run| run.len()).collect::<Vec<_>>();
        assert_eq!(lens(96, RESIDENT / 40), [32, 32, 32], "whole blocks");
        assert_eq!(lens(33, RESIDENT / 40), [16, 17]);
        assert_eq!(lens(20, 2 * RESIDENT), [10, 10], "a block at least");
    }
}
