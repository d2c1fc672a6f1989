//! The integer products of an int8 head, cut into the tiles that kernels compute, and what becomes of them.

use std::ops::Range;

use super::packed::{Group, Int8Head};
use super::split::SplitRows;
use crate::cpu::packed::PANEL_ROWS;
use crate::cpu::pool::Stripe;
use crate::scalar::int8::combine;

/// Panels that are multiplied with all tokens before the next ones are touched: 320 KB at 2560 columns, which stay in the
/// second-level cache meanwhile.
const RESIDENT_PANELS: usize = 8;

/// The most tokens and panels that any kernel may take in a tile.
const MAX_TOKENS: usize = 8;
const MAX_PANELS: usize = 2;

/// A kernel that multiplies a few panels of int8 weights with both halves of a few tokens.
pub(crate) trait Int8Kernel: Copy {
    /// Most panels in a tile.
    const PANELS: usize;
    /// Most tokens in a tile.
    const TOKENS: usize;

    /// Writes all products of the tile: those of half `h` with panel `p` at `p · tile.x.len() + h`.
    fn int8_products(self, tile: &Int8Tile<'_>, out: &mut [Sums]);
}

/// The products of a panel's rows with one half of a token.
pub(crate) type Sums = [i32; PANEL_ROWS];

/// The operands of one call of a kernel.
pub(crate) struct Int8Tile<'a> {
    /// Consecutive panels, at least one.
    pub panels: &'a [&'a [Group]],
    /// Halves of tokens, high and low in turn, as long as the panels.
    pub x: &'a [Half<'a>],
    /// Sum of each half.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "only `vpdpbusd` needs it, for its unsigned operand")
    )]
    pub sums: &'a [i32],
}

/// One half of a token, in groups of sixteen columns.
pub(crate) type Half<'a> = &'a [[[i8; 4]; 4]];

/// Logits to compute: those of some tokens of `x`, which has the columns of `head`.
pub(crate) struct Int8Product<'a> {
    pub head: &'a Int8Head,
    pub x: &'a SplitRows,
    pub tokens: Range<usize>,
}

impl Int8Product<'_> {
    /// Computes the columns of `out`, which start at a panel, with a kernel.
    pub fn run<K: Int8Kernel>(&self, kernel: K, out: &mut Stripe<'_>) {
        assert_eq!(self.x.cols(), self.head.cols(), "head and input have the same columns");
        assert_eq!(out.rows().len(), self.tokens.len(), "the output has a row for each token");
        let columns = out.columns();
        assert!(columns.start.is_multiple_of(PANEL_ROWS), "a stripe starts at a panel");
        let panels = columns.start / PANEL_ROWS..columns.end.div_ceil(PANEL_ROWS);
        // As even as possible: 6 tokens are 3 and 3, not 5 and 1.
        let per_tile =
            self.tokens.len().div_ceil(self.tokens.len().div_ceil(K::TOKENS).max(1)).max(1);
        for panels in split(panels, RESIDENT_PANELS) {
            for tokens in split(self.tokens.clone(), per_tile) {
                self.run_tiles(kernel, panels.clone(), tokens, out);
            }
        }
    }

    fn run_tiles<K: Int8Kernel>(
        &self,
        kernel: K,
        panels: Range<usize>,
        tokens: Range<usize>,
        out: &mut Stripe<'_>,
    ) {
        const { assert!(K::TOKENS <= MAX_TOKENS && K::PANELS <= MAX_PANELS) };
        let (mut x, mut sums) = ([&[][..]; 2 * MAX_TOKENS], [0; 2 * MAX_TOKENS]);
        for (i, token) in tokens.clone().enumerate() {
            [x[2 * i], x[2 * i + 1]] = self.x.halves(token);
            [sums[2 * i], sums[2 * i + 1]] = self.x.split(token).sums;
        }
        let halves = 2 * tokens.len();
        let (x, sums) = (&x[..halves], &sums[..halves]);
        let mut products = [[0; PANEL_ROWS]; 2 * MAX_TOKENS * MAX_PANELS];
        for group in split(panels, K::PANELS) {
            let mut slices = [&[][..]; MAX_PANELS];
            for (slice, panel) in slices.iter_mut().zip(group.clone()) {
                *slice = self.head.panel(panel);
            }
            let tile = Int8Tile { panels: &slices[..group.len()], x, sums };
            let products = &mut products[..halves * group.len()];
            kernel.int8_products(&tile, products);
            for (panel, products) in group.zip(products.chunks(halves)) {
                self.emit(panel, tokens.clone(), products, out);
            }
        }
    }

    /// Writes the logits of a panel's rows.
    #[inline(always)]
    fn emit(&self, panel: usize, tokens: Range<usize>, products: &[Sums], out: &mut Stripe<'_>) {
        let columns = out.columns();
        let first = panel * PANEL_ROWS;
        let rows = PANEL_ROWS.min(columns.end - first);
        let scales = self.head.scales(panel);
        for (token, [high, low]) in tokens.zip(products.as_chunks::<2>().0) {
            let scale = self.x.split(token).scale;
            let mut logits = [0.0; PANEL_ROWS];
            for i in 0..PANEL_ROWS {
                logits[i] = combine([high[i], low[i]], scales[i], scale);
            }
            out.row(token - self.tokens.start)[first - columns.start..][..rows]
                .copy_from_slice(&logits[..rows]);
        }
    }
}

fn split(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(step).map(move |start| start..range.end.min(start + step))
}
