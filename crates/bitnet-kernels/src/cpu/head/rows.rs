//! The int8 head row by row, for a head of which few rows are multiplied at a time.

use super::packed::{GROUP_COLS, Int8Head, interleave};
use crate::cpu::packed::PANEL_ROWS;
use crate::memory::Lines;

/// Rows of int8 with a scale each, one after the other.
#[derive(Debug)]
pub(crate) struct Int8Rows {
    rows: usize,
    cols: usize,
    /// `[rows, stride]`; between `cols` and the stride there are zeros.
    values: Lines,
    scales: Vec<f32>,
}

impl Int8Rows {
    /// Rows of zeros.
    pub fn new(rows: usize, cols: usize) -> Self {
        let lines = (rows * cols.next_multiple_of(GROUP_COLS)).div_ceil(64);
        Self { rows, cols, values: Lines::zeroed(lines), scales: vec![0.0; rows] }
    }

    /// Rows that were made before, of their bytes; none if these or the scales are not as many as there are.
    pub fn of_lines(rows: usize, cols: usize, values: Lines, scales: Vec<f32>) -> Option<Self> {
        let bytes = rows.checked_mul(cols.checked_next_multiple_of(GROUP_COLS)?)?;
        let numbers = scales.iter().all(|scale| scale.is_finite());
        (values.len() == bytes.div_ceil(64) && scales.len() == rows && numbers).then_some(Self {
            rows,
            cols,
            values,
            scales,
        })
    }

    /// The bytes of all rows, and the scales, as [`of_lines`](Self::of_lines) takes them.
    pub fn stored(&self) -> (&[u8], &[f32]) {
        (self.values.bytes(), &self.scales)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between rows.
    pub fn stride(&self) -> usize {
        self.cols.next_multiple_of(GROUP_COLS)
    }

    /// All rows, as bytes, and scales, for filling.
    pub fn parts(&mut self) -> (&mut [u8], &mut [f32]) {
        let len = self.rows * self.stride();
        (&mut self.values.bytes_mut()[..len], &mut self.scales)
    }

    fn row(&self, row: usize) -> &[u8] {
        let stride = self.stride();
        &self.values.bytes()[row * stride..][..stride]
    }

    /// Puts the rows of each element of `ids` into a panel of `head`. `next` are rows that will be wanted soon.
    ///
    /// # Panics
    /// If there is no room for all.
    pub fn gather(&self, ids: &[[u32; PANEL_ROWS]], next: [u32; PANEL_ROWS], head: &mut Int8Head) {
        let stride = self.stride();
        let (bytes, scales) = head.parts();
        let panels = bytes.chunks_mut(PANEL_ROWS * stride);
        let mut panels = panels.zip(scales.as_chunks_mut::<PANEL_ROWS>().0);
        let rows = |ids: [u32; PANEL_ROWS]| ids.map(|id| self.row(id as usize));
        for (i, &now) in ids.iter().enumerate() {
            let (bytes, scales) = panels.next().expect("there are panels for all rows");
            *scales = now.map(|id| self.scales[id as usize]);
            interleave(rows(now), rows(*ids.get(i + 1).unwrap_or(&next)), bytes);
        }
    }
}
