//! int8 activations with a scale and a sum per row, as BitLinear defines them.

use crate::cpu::packed::Packing;
use crate::memory::heap_bytes;

/// Rows of activations, each quantized on its own: `q = round_half_even(x · scale)`, `scale = 127 / max(|x|, 1e-5)`.
///
/// `|q| ≤ 127` always: `|x · scale|` cannot round past 127, and kernels rely on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QuantizedRows {
    rows: usize,
    cols: usize,
    stride: usize,
    values: Vec<i8>,
    /// 127 / absmax of each row.
    pub scale: Vec<f32>,
    /// Sum of each row's values.
    pub sum: Vec<i32>,
}

impl QuantizedRows {
    /// Makes room for `rows` of `cols` values, keeping memory from earlier use. Values are unspecified but for the padding, which is zero.
    pub fn resize(&mut self, rows: usize, cols: usize) {
        let stride = Packing::ALL.map(|packing| cols.next_multiple_of(packing.block_cols()));
        let stride = stride.into_iter().max().expect("there are packings");
        if (self.cols, self.stride) != (cols, stride) {
            self.values.clear(); // so that what becomes padding is zero
        }
        (self.rows, self.cols, self.stride) = (rows, cols, stride);
        self.values.resize(rows * stride, 0);
        self.scale.resize(rows, 0.0);
        self.sum.resize(rows, 0);
    }

    /// Rows already quantized, for tests and tools.
    ///
    /// # Panics
    /// If the lengths disagree or a value is -128.
    pub fn from_values(rows: usize, cols: usize, values: &[i8], scale: Vec<f32>) -> Self {
        assert_eq!((values.len(), scale.len()), (rows * cols, rows));
        assert!(!values.contains(&i8::MIN), "-128 is no quantized activation");
        let mut all = Self::default();
        all.resize(rows, cols);
        all.scale = scale;
        for row in 0..rows {
            let source = &values[row * cols..][..cols];
            all.values[row * all.stride..][..cols].copy_from_slice(source);
            all.sum[row] = source.iter().map(|&q| i32::from(q)).sum();
        }
        all
    }

    /// Bytes in use, with those kept for later.
    pub(crate) fn heap_bytes(&self) -> usize {
        heap_bytes(&self.values) + heap_bytes(&self.scale) + heap_bytes(&self.sum)
    }

    /// Number of rows (tokens).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values per row, without padding.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between rows in values: `cols` rounded up to whole blocks of either packing.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// All values, rows `stride` apart, padded with zeros.
    pub fn values(&self) -> &[i8] {
        &self.values
    }

    /// One row with its padding.
    pub fn row(&self, row: usize) -> &[i8] {
        &self.values[row * self.stride..][..self.stride]
    }

    /// The rows for filling by several threads: values, `stride` of them for each row; scales; sums.
    pub fn as_mut_parts(&mut self) -> (&mut [i8], usize, &mut [f32], &mut [i32]) {
        (&mut self.values, self.stride, &mut self.scale, &mut self.sum)
    }

    /// The rows one by one, for filling: values with padding, scale, sum.
    pub fn rows_mut(&mut self) -> impl Iterator<Item = (&mut [i8], &mut f32, &mut i32)> {
        let rows = self.values.chunks_mut(self.stride.max(1));
        rows.zip(&mut self.scale)
            .zip(&mut self.sum)
            .map(|((values, scale), sum)| (values, scale, sum))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_stays_zero_when_the_shape_changes() {
        let mut rows = QuantizedRows::from_values(2, 16, &[7; 32], vec![1.0; 2]);
        rows.resize(2, 5);
        assert!(rows.row(1)[5..].iter().all(|&q| q == 0));
    }
}
