//! The product with the output head, in f32 from whatever encoding the head has.

use std::ops::Range;

use super::dot;
use crate::dense::{DenseMatrix, dequantize};

/// `out[t][i] = head[rows.start + i] · x[t]`.
///
/// `x`: `[tokens, hidden_size]`; `row`: working memory; `out`: `[tokens, rows.len()]`.
#[inline(always)]
pub fn logits(
    head: &DenseMatrix,
    rows: Range<usize>,
    x: &[f32],
    row: &mut Vec<f32>,
    out: &mut [f32],
) {
    let width = rows.len();
    row.resize(head.cols(), 0.0);
    for (i, index) in rows.enumerate() {
        dequantize(head.dtype(), head.row(index), row);
        for (x, out) in x.chunks_exact(head.cols()).zip(out.chunks_exact_mut(width)) {
            out[i] = dot(x, row);
        }
    }
}
