//! The int8 head in the order in which the CPU kernels read it.
//!
//! Sixteen rows form a panel, as those of ternary weights do, and a block is a panel's share of four columns: 64 bytes, byte
//! `4·r + q` for row `r` and column `4·b + q`. So a block meets one broadcast of four activations in `vpdpbusd`,
//! `vpmaddubsw` and `sdot`, without sums across lanes. Panels follow each other, so a thread's share is one stream.

use crate::cpu::isa::Isa;
use crate::cpu::packed::PANEL_ROWS;
use crate::cpu::pool::{ThreadPool, chunks, items};
use crate::dense::{DenseMatrix, DenseType};
use crate::head::InvalidHead;
use crate::memory::Lines;
use crate::scalar::int8::MAX_COLS;

/// Columns of a group.
pub(crate) const GROUP_COLS: usize = 16;

/// Four blocks: sixteen columns of a panel, so that a kernel can keep several sums of one product under way.
pub(crate) type Group = [[u8; 64]; 4];

/// Panels that a thread packs at a time: 4096 rows, whose stored bytes can then be given back.
const PANELS_AT_ONCE: usize = 256;

/// An output head of int8 with a scale for each row, in panels.
#[derive(Debug)]
pub struct Int8Head {
    rows: usize,
    cols: usize,
    lines: Lines,
    /// `[panels · 16]`.
    scales: Vec<f32>,
}

impl Int8Head {
    /// Quantizes and packs a head with the threads of a pool. `taken` hears of rows whose stored bytes have been read.
    ///
    /// # Errors
    /// If a weight is not finite or the head is wider than 32-bit sums allow.
    pub fn pack(
        weights: &DenseMatrix,
        isa: Isa,
        pool: &ThreadPool,
        taken: &(dyn Fn(std::ops::Range<usize>) + Sync),
    ) -> Result<Self, InvalidHead> {
        let (rows, cols) = (weights.rows(), weights.cols());
        if cols > MAX_COLS {
            return Err(InvalidHead::TooWide { cols });
        }
        let mut head = Self::empty(rows, cols);
        let panel_bytes = PANEL_ROWS * cols.next_multiple_of(GROUP_COLS);
        let (bytes, scales) = head.parts();
        let step = PANELS_AT_ONCE * PANEL_ROWS;
        let mut results = vec![Ok(()); rows.div_ceil(step)];
        let packed = chunks(bytes, (PANELS_AT_ONCE * panel_bytes).max(1));
        let parts = ((packed, chunks(scales, step)), items(&mut results));
        pool.for_each(parts, |part, ((bytes, scales), result)| {
            let first = part * step;
            *result = pack_panels(weights, isa, first, bytes, scales);
            taken(first..rows.min(first + scales.len()));
        });
        results.into_iter().collect::<Result<(), _>>()?;
        Ok(head)
    }

    /// Quantizes and packs rows of `cols` finite floats, with portable code and on this thread: for self-tests.
    pub(crate) fn from_floats(values: &[f32], cols: usize) -> Self {
        assert!(cols <= MAX_COLS && values.iter().all(|value| value.is_finite()));
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let rows = values.len() / cols;
        let weights =
            DenseMatrix::new(rows, cols, DenseType::F32, bytes.into()).expect("whole rows");
        let mut head = Self::empty(rows, cols);
        let (bytes, scales) = head.parts();
        pack_panels(&weights, Isa::Scalar, 0, bytes, scales).expect("all values are finite");
        head
    }

    /// A head of zeros.
    pub(super) fn empty(rows: usize, cols: usize) -> Self {
        let panels = rows.div_ceil(PANEL_ROWS);
        let lines = panels * cols.next_multiple_of(GROUP_COLS) / 4; // of four columns each
        Self { rows, cols, lines: Lines::zeroed(lines), scales: vec![0.0; panels * PANEL_ROWS] }
    }

    /// A head `[rows, cols]` that was packed before; none if panels or scales are not as many as it has.
    pub(crate) fn of_panels(
        rows: usize,
        cols: usize,
        lines: Lines,
        scales: Vec<f32>,
    ) -> Option<Self> {
        let panels = rows.div_ceil(PANEL_ROWS);
        let expected = panels.checked_mul(cols.checked_next_multiple_of(GROUP_COLS)? / 4)?;
        (lines.len() == expected && scales.len() == panels * PANEL_ROWS && cols <= MAX_COLS)
            .then_some(Self { rows, cols, lines, scales })
    }

    /// All panels, and all scales, as [`of_panels`](Self::of_panels) takes them.
    pub(crate) fn stored(&self) -> (&[u8], &[f32]) {
        (self.lines.bytes(), &self.scales)
    }

    /// All panels, and all scales.
    pub(super) fn parts(&mut self) -> (&mut [u8], &mut [f32]) {
        (self.lines.bytes_mut(), &mut self.scales)
    }

    /// Rows: the size of the vocabulary.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the hidden size.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The groups of one panel.
    pub(crate) fn panel(&self, panel: usize) -> &[Group] {
        let len = PANEL_ROWS * self.cols.next_multiple_of(GROUP_COLS);
        let bytes = &self.lines.bytes()[panel * len..][..len];
        bytes.as_chunks::<64>().0.as_chunks::<4>().0
    }

    /// The scales of a panel's rows.
    pub(crate) fn scales(&self, panel: usize) -> &[f32; PANEL_ROWS] {
        &self.scales.as_chunks().0[panel]
    }
}

/// Packs the panels of the rows from `first` on, as many as `scales` has room for.
fn pack_panels(
    weights: &DenseMatrix,
    isa: Isa,
    first: usize,
    bytes: &mut [u8],
    scales: &mut [f32],
) -> Result<(), InvalidHead> {
    let stride = weights.cols().next_multiple_of(GROUP_COLS);
    let (mut values, mut quantized) = (Vec::new(), vec![0_i8; PANEL_ROWS * stride]);
    let mut row_bytes = vec![0; quantized.len()];
    let panels = bytes.chunks_mut((PANEL_ROWS * stride).max(1));
    for (panel, (bytes, scales)) in panels.zip(scales.chunks_mut(PANEL_ROWS)).enumerate() {
        let rows = first + panel * PANEL_ROWS..weights.rows().min(first + (panel + 1) * PANEL_ROWS);
        let count = rows.len();
        for ((row, q), scale) in rows.zip(quantized.chunks_mut(stride)).zip(scales) {
            let found = isa.quantize_head_row(weights, row, &mut values, q);
            *scale = found.ok_or(InvalidHead::NotFinite { row })?;
        }
        quantized[count * stride..].fill(0);
        for (byte, q) in row_bytes.iter_mut().zip(&quantized) {
            *byte = *q as u8;
        }
        let rows = std::array::from_fn(|r| &row_bytes[r * stride..][..stride]);
        interleave(rows, rows, bytes);
    }
    Ok(())
}

/// Turns sixteen rows of whole groups into blocks of four columns each; `next` are those that come next.
pub(super) fn interleave(rows: [&[u8]; PANEL_ROWS], next: [&[u8]; PANEL_ROWS], bytes: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    crate::cpu::x86::gather::interleave(rows, next, bytes);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = next; // NEON machines fetch them in time, or so it is hoped: not measured
        let rows: [&[[u8; 4]]; PANEL_ROWS] = rows.map(|row| row.as_chunks().0);
        for (b, block) in bytes.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            for (quad, row) in block.as_chunks_mut::<4>().0.iter_mut().zip(rows) {
                *quad = row[b];
            }
        }
    }
}
