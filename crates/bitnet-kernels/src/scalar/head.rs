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

/// Decodes a row of the head and quantizes it as [`super::int8::quantize_row`] does.
///
/// `values`: working memory; `q`: at least `cols` long.
#[inline(always)]
pub fn quantize_head_row(
    head: &DenseMatrix,
    row: usize,
    values: &mut Vec<f32>,
    q: &mut [i8],
) -> Option<f32> {
    values.resize(head.cols(), 0.0);
    dequantize(head.dtype(), head.row(row), values);
    super::int8::quantize_row(values, q)
}
