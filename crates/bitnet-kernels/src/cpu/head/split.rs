//! Inputs of the int8 head.

use super::product::Half;
use crate::cpu::pool::{Chunks, chunks};
use crate::memory::heap_bytes;
use crate::scalar::int8::{self, Split};

/// Rows of sixteen-bit activations as two halves of int8 each; see [`crate::scalar::int8`].
#[derive(Clone, Debug, Default)]
pub struct SplitRows {
    cols: usize,
    stride: usize,
    /// `[tokens, 2, stride]`, padded with zeros.
    halves: Vec<i8>,
    splits: Vec<Split>,
}

impl SplitRows {
    /// Makes room for `rows` of `cols` values, keeping memory from earlier use. Values are unspecified but for the padding,
    /// which is zero.
    pub fn resize(&mut self, rows: usize, cols: usize) {
        if self.cols != cols {
            self.halves.clear(); // so that what becomes padding is zero
        }
        (self.cols, self.stride) = (cols, cols.next_multiple_of(16));
        self.halves.resize(rows * 2 * self.stride, 0);
        self.splits.resize(rows, Split::default());
    }

    /// Rows of `cols` values, split.
    pub fn from_floats(x: &[f32], cols: usize) -> Self {
        let mut rows = Self::default();
        rows.resize(x.len() / cols, cols);
        for (x, (high, low, split)) in x.chunks(cols).zip(rows.rows_mut()) {
            *split = int8::split(x, high, low);
        }
        rows
    }

    /// Number of tokens.
    pub fn rows(&self) -> usize {
        self.splits.len()
    }

    /// Bytes in use, with those kept for later.
    pub(crate) fn heap_bytes(&self) -> usize {
        heap_bytes(&self.halves) + heap_bytes(&self.splits)
    }

    /// Values per token, without padding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Scale and sums of a token.
    pub fn split(&self, row: usize) -> Split {
        self.splits[row]
    }

    /// The high and the low half of a token with their padding.
    pub(crate) fn halves(&self, row: usize) -> [Half<'_>; 2] {
        let both = &self.halves[2 * row * self.stride..][..2 * self.stride];
        let groups = |half: usize| {
            both[half * self.stride..][..self.stride].as_chunks::<4>().0.as_chunks::<4>().0
        };
        [groups(0), groups(1)]
    }

    /// Puts some of the rows into `into`.
    pub(crate) fn select(&self, rows: &[usize], into: &mut Self) {
        into.resize(rows.len(), self.cols);
        for (&row, (high, low, split)) in rows.iter().zip(into.rows_mut()) {
            let (from_high, from_low) =
                self.halves[2 * row * self.stride..][..2 * self.stride].split_at(self.stride);
            high.copy_from_slice(from_high);
            low.copy_from_slice(from_low);
            *split = self.splits[row];
        }
    }

    /// The rows for filling by several threads: high and low half of each, then scales and sums.
    pub(crate) fn as_mut_parts(&mut self) -> (Chunks<'_, i8>, &mut [Split]) {
        (chunks(&mut self.halves, 2 * self.stride), &mut self.splits)
    }

    /// The rows one by one, for filling: both halves with padding, and scale and sums.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = (&mut [i8], &mut [i8], &mut Split)> {
        let stride = self.stride.max(1);
        self.halves.chunks_mut(2 * stride).zip(&mut self.splits).map(move |(both, split)| {
            let (high, low) = both.split_at_mut(stride);
            (high, low, split)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_stays_zero_when_the_shape_changes() {
        let mut rows = SplitRows::default();
        rows.resize(2, 32);
        rows.rows_mut().for_each(|(high, low, _)| (high.fill(7), low.fill(7)).0);
        rows.resize(2, 17);
        rows.rows_mut().for_each(|(high, low, _)| (high[..17].fill(7), low[..17].fill(7)).0);
        for half in rows.halves(1) {
            assert_eq!(half.as_flattened().as_flattened()[17..], [0; 15]);
        }
    }
}
