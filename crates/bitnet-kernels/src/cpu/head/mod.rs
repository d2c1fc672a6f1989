//! The output head on the processor.

pub mod packed;
pub(crate) mod product;
mod rows;
mod screen;
mod search;
pub mod split;
pub mod two_stage;

use std::ops::Range;
use std::sync::Arc;

use super::packed::PANEL_ROWS;
use super::pool::{chunks, items, stripes};
use super::{CpuBackend, CpuScratch, Matrix, WorkerScratch};
use crate::backend::Norm;
use crate::dense::DenseMatrix;
use crate::head::{HeadRecord, HeadType, InvalidHead};
use crate::logits::{Logits, Wanted};
use packed::Int8Head;
use product::Int8Product;
use split::SplitRows;
use two_stage::TwoStageHead;

/// Rows that a thread takes at a time of a head in the file's form: 64 times 2560 halves are 320 KB.
const FILE_ROWS: usize = 64;

/// Rows that a thread takes at a time of an int8 head, at most: 1.3 MB of 2560 columns, so that streams from memory are long.
const INT8_ROWS: usize = 512;

/// An output head in one of its forms.
#[derive(Debug)]
pub enum CpuHead {
    /// [`HeadType::Int8`].
    Int8(Int8Head),
    /// [`HeadType::TwoStage`].
    TwoStage(Box<TwoStageHead>),
    /// [`HeadType::File`].
    File(DenseMatrix),
}

impl CpuHead {
    /// Rows: the size of the vocabulary.
    pub fn rows(&self) -> usize {
        match self {
            Self::Int8(head) => head.rows(),
            Self::TwoStage(head) => head.rows(),
            Self::File(head) => head.rows(),
        }
    }

    /// Its bytes in memory, scales apart.
    pub fn memory(&self) -> Vec<&[u8]> {
        match self {
            Self::Int8(head) => vec![head.stored().0],
            Self::TwoStage(head) => head.stored().map(|(panels, _)| panels).into(),
            Self::File(head) => vec![head.bytes()],
        }
    }

    /// Where a two-stage head counts what happens.
    pub fn record(&self) -> Option<&Arc<HeadRecord>> {
        match self {
            Self::TwoStage(head) => Some(head.record()),
            Self::Int8(_) | Self::File(_) => None,
        }
    }
}

impl CpuBackend {
    /// See [`Backend::upload_head`](crate::backend::Backend::upload_head).
    pub(super) fn make_head(
        &self,
        weights: DenseMatrix,
        form: HeadType,
        taken: &(dyn Fn(Range<usize>) + Sync),
    ) -> Result<CpuHead, InvalidHead> {
        Ok(match form {
            HeadType::Int8 => CpuHead::Int8(Int8Head::pack(&weights, self.isa, &self.pool, taken)?),
            HeadType::TwoStage => {
                let head = TwoStageHead::pack(&weights, self.isa, &self.pool, taken)?;
                CpuHead::TwoStage(Box::new(head))
            }
            HeadType::File => CpuHead::File(weights),
        })
    }

    /// See [`Backend::logits`](crate::backend::Backend::logits).
    pub(super) fn head_logits(
        &self,
        scratch: &mut CpuScratch,
        x: &Matrix,
        rows: &[(usize, Wanted)],
        norm: &Norm<Vec<f32>>,
        head: &CpuHead,
        out: &mut Logits,
    ) {
        if rows.is_empty() {
            out.reset_whole(0, head.rows());
            return;
        }
        let CpuScratch { normed, split, two_stage, workers, .. } = scratch;
        normed.resize(rows.len(), x.cols);
        match head {
            CpuHead::Int8(head) => {
                self.norm_and_split(x, rows, norm, normed, split);
                self.int8_row_logits(head, split, out);
            }
            CpuHead::TwoStage(head) => {
                self.norm_and_split(x, rows, norm, normed, split);
                self.two_stage_logits(head, split, rows, two_stage, workers, out);
            }
            CpuHead::File(head) => {
                self.pool.for_each(chunks(&mut normed.data, x.cols), |i, normed| {
                    self.isa.rms_norm(x.row(rows[i].0), &norm.weight, norm.eps, normed);
                });
                let out = out.reset_whole(rows.len(), head.rows());
                self.file_logits(head, workers, normed, out);
            }
        }
    }

    fn norm_and_split(
        &self,
        x: &Matrix,
        rows: &[(usize, Wanted)],
        norm: &Norm<Vec<f32>>,
        normed: &mut Matrix,
        split: &mut SplitRows,
    ) {
        split.resize(rows.len(), x.cols);
        let (halves, splits) = split.as_mut_parts();
        let parts = (chunks(&mut normed.data, x.cols), (halves, items(splits)));
        self.pool.for_each(parts, |i, (normed, (halves, split))| {
            self.isa.rms_norm(x.row(rows[i].0), &norm.weight, norm.eps, normed);
            let (high, low) = halves.split_at_mut(halves.len() / 2);
            *split = self.isa.split(normed, high, low);
        });
    }

    /// All logits with their peaks, which a thread finds while those of its stripe are in its cache.
    fn int8_row_logits(&self, head: &Int8Head, x: &SplitRows, out: &mut Logits) {
        let (vocab, tokens) = (head.rows(), 0..x.rows());
        let panels = vocab.div_ceil(PANEL_ROWS);
        let most = INT8_ROWS / PANEL_ROWS;
        let width = panels.div_ceil(4 * self.threads()).clamp(1, most) * PANEL_ROWS;
        let (logits, peaks) = out.reset_peaked(x.rows(), vocab, width);
        let parts = (stripes(logits, vocab, width), stripes(peaks, vocab.div_ceil(width), 1));
        self.pool.for_each(parts, |_, (mut stripe, mut peak)| {
            let product = Int8Product { head, x, tokens: tokens.clone() };
            self.isa.int8_logits(&product, &mut stripe);
            for token in tokens.clone() {
                peak.row(token)[0] = self.isa.peak(stripe.row(token));
            }
        });
    }

    fn file_logits(
        &self,
        head: &DenseMatrix,
        workers: &mut [WorkerScratch],
        normed: &Matrix,
        out: &mut [f32],
    ) {
        let parts = stripes(out, head.rows(), FILE_ROWS);
        self.pool.for_each_with(
            workers,
            parts,
            |WorkerScratch { row, floats, .. }, _, mut stripe| {
                let columns = stripe.columns();
                floats.resize(normed.rows() * columns.len(), 0.0);
                self.isa.logits(head, columns.clone(), &normed.data, row, floats);
                for (token, y) in floats.chunks(columns.len()).enumerate() {
                    stripe.row(token).copy_from_slice(y);
                }
            },
        );
    }
}

#[cfg(test)]
mod tests;
