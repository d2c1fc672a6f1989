//! The integer product of packed ternary weights and quantized activations, cut into the tiles that kernels compute.

use std::ops::Range;

use super::packed::{Block, PANEL_ROWS, PackedTernary, Packing};
use crate::activation::QuantizedRows;

/// Panels that are multiplied with all tokens before the next ones are touched: 256 rows, 160 KB at 2560 columns.
///
/// They stay in the L2 cache meanwhile, so weights leave memory once per product and not once per twelve tokens.
const RESIDENT_PANELS: usize = 16;

/// The most tokens and panels that any kernel may take in a tile.
const MAX_TOKENS: usize = 16;
const MAX_PANELS: usize = 2;

/// A kernel that multiplies a few panels with a few tokens.
pub(crate) trait TileKernel: Copy {
    /// Most panels in a tile.
    const PANELS: usize;
    /// Most tokens in a tile.
    const TOKENS: usize;

    /// Writes all products of the tile.
    fn run(self, tile: &Tile<'_>, out: Out<'_>);

    /// Multiplies and adds as fast as the instructions go, on nothing, and returns how often.
    fn spin(self, rounds: usize) -> usize;
}

/// The operands of one call of a kernel.
pub(crate) struct Tile<'a> {
    /// How to read the panels.
    pub packing: Packing,
    /// Consecutive panels, at least one, all cut to the same blocks.
    pub panels: &'a [&'a [Block]],
    /// Activations of the same columns.
    pub x: Tokens<'a>,
    /// Sum of each token's activations: what codes 0, 1, 2 in place of weights -1, 0, +1 add to a product.
    pub sums: &'a [i32],
}

/// Activations of some tokens, in groups of four columns.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    quads: &'a [[i8; 4]],
    stride: usize,
    columns: usize,
}

impl<'a> Tokens<'a> {
    fn new(x: &'a QuantizedRows, tokens: Range<usize>, columns: Range<usize>) -> Self {
        let first = tokens.start * x.stride() + columns.start;
        let last = (tokens.end - 1) * x.stride() + columns.end;
        let quads = x.values()[first..last].as_chunks().0;
        Self { quads, stride: x.stride() / 4, columns: columns.len() / 4 }
    }

    /// All groups of four of one token.
    #[inline(always)]
    pub fn quads(&self, token: usize) -> &'a [[i8; 4]] {
        &self.quads[token * self.stride..][..self.columns]
    }

    /// One token in groups of `QUADS` times four, as blocks have them.
    #[inline(always)]
    pub fn blocks<const QUADS: usize>(&self, token: usize) -> &'a [[[i8; 4]; QUADS]] {
        self.quads(token).as_chunks().0
    }
}

/// Where a tile's products go: one row per token, one column per row of the weights.
pub(crate) struct Out<'a> {
    values: &'a mut [i32],
    stride: usize,
}

impl Out<'_> {
    /// `LEN` neighbouring products of one token, from the tile's row `row` on.
    #[inline(always)]
    pub fn lanes<const LEN: usize>(&mut self, token: usize, row: usize) -> &mut [i32; LEN] {
        self.values[token * self.stride + row..][..LEN].first_chunk_mut().expect("sliced to LEN")
    }
}

/// One product to compute; see `Isa::ternary_product`.
pub(crate) struct Product<'a> {
    pub w: &'a PackedTernary,
    pub panels: Range<usize>,
    pub blocks: Range<usize>,
    pub x: &'a QuantizedRows,
    pub tokens: Range<usize>,
}

impl<'a> Product<'a> {
    /// All rows, all columns, all tokens.
    pub fn whole(w: &'a PackedTernary, x: &'a QuantizedRows) -> Self {
        Self { w, panels: 0..w.panels(), blocks: 0..w.blocks_per_panel(), x, tokens: 0..x.rows() }
    }

    /// Values in the result.
    pub fn len(&self) -> usize {
        self.tokens.len() * self.panels.len() * PANEL_ROWS
    }

    /// Computes it with a kernel.
    pub fn run<K: TileKernel>(&self, kernel: K, out: &mut [i32]) {
        assert_eq!(self.x.cols(), self.w.cols(), "weights and activations have the same columns");
        assert_eq!(out.len(), self.len(), "the output has a place for each product");
        if out.is_empty() {
            return;
        }
        // As even as possible: 13 tokens are 7 and 6, not 12 and 1.
        let per_tile = self.tokens.len().div_ceil(self.tokens.len().div_ceil(K::TOKENS));
        for panels in split(self.panels.clone(), RESIDENT_PANELS) {
            for tokens in split(self.tokens.clone(), per_tile) {
                self.run_tiles(kernel, panels.clone(), tokens, out);
            }
        }
    }

    fn run_tiles<K: TileKernel>(
        &self,
        kernel: K,
        panels: Range<usize>,
        tokens: Range<usize>,
        out: &mut [i32],
    ) {
        const { assert!(K::TOKENS <= MAX_TOKENS && K::PANELS <= MAX_PANELS) };
        let stride = self.panels.len() * PANEL_ROWS;
        let mut room = [0; MAX_TOKENS];
        let sums = self.sums(tokens.clone(), &mut room);
        let x = Tokens::new(self.x, tokens.clone(), self.columns());
        let out = &mut out[(tokens.start - self.tokens.start) * stride..];
        for group in split(panels, K::PANELS) {
            let first_row = (group.start - self.panels.start) * PANEL_ROWS;
            let mut slices = [&[][..]; MAX_PANELS];
            for (slice, panel) in slices.iter_mut().zip(group.clone()) {
                *slice = &self.w.panel(panel)[self.blocks.clone()];
            }
            let tile = Tile { packing: self.w.packing(), panels: &slices[..group.len()], x, sums };
            kernel.run(&tile, Out { values: &mut out[first_row..], stride });
        }
    }

    /// The columns of this product, those that pad the last block included.
    fn columns(&self) -> Range<usize> {
        let per_block = self.w.packing().block_cols();
        self.blocks.start * per_block..self.blocks.end * per_block
    }

    /// The sum of each token's activations over the columns of this product.
    fn sums<'s>(&'s self, tokens: Range<usize>, room: &'s mut [i32; MAX_TOKENS]) -> &'s [i32] {
        if self.blocks == (0..self.w.blocks_per_panel()) {
            return &self.x.sum[tokens];
        }
        let columns = self.columns();
        let sums = &mut room[..tokens.len()];
        for (sum, token) in sums.iter_mut().zip(tokens) {
            *sum = self.x.row(token)[columns.clone()].iter().map(|&q| i32::from(q)).sum();
        }
        sums
    }
}

fn split(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(step).map(move |start| start..range.end.min(start + step))
}

#[cfg(test)]
mod tests;
