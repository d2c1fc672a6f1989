//! The product with the output head, in f32 from whatever encoding the head has.
//!
//! Each logit is [`dot`](super::dot) of a row and an input: 64 partial sums in four vectors of sixteen. Here a few rows and
//! tokens go through the columns together, so that what is loaded and decoded serves several products.

mod rows;

use std::ops::Range;

use super::{LANES, add_lanes};
use crate::dense::{DenseMatrix, DenseType, dequantize, half_to_f32};
use rows::{F32Row, HalfRow, Plain, Row, StoredRow};

/// Columns of a chunk: a vector for each of four sums.
const CHUNK: usize = 4 * LANES;

/// Tokens whose inputs stay in cache while rows go by: 240 KB of 2560 columns.
const TOKEN_BLOCK: usize = 24;

/// Vectors of sixteen floats on some machine. Nothing here may fuse a multiplication with an addition.
pub trait Floats: Copy {
    /// Sixteen floats.
    type V: Copy;
    /// Zeros.
    fn zero(self) -> Self::V;
    /// Sixteen neighbours.
    fn load(self, x: &[f32; LANES]) -> Self::V;
    /// Sixteen stored floats.
    fn f32(self, x: &[[u8; 4]; LANES]) -> Self::V;
    /// Sixteen stored halves.
    fn f16(self, x: &[[u8; 2]; LANES]) -> Self::V;
    /// Sixteen stored upper halves.
    fn bf16(self, x: &[[u8; 2]; LANES]) -> Self::V;
    /// `sum + a · b`, rounded twice.
    fn add_product(self, sum: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// As an array.
    fn array(self, a: Self::V) -> [f32; LANES];
    /// Told of stored weights before they are used, so that those far ahead can be asked for; `once`: they are used for one
    /// input and not again.
    #[inline(always)]
    fn passes(self, _: &[u8], once: bool) {
        let _ = once;
    }
}

impl Floats for super::ternary::Portable {
    type V = [f32; LANES];

    #[inline(always)]
    fn zero(self) -> Self::V {
        [0.0; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        *x
    }

    #[inline(always)]
    fn f32(self, x: &[[u8; 4]; LANES]) -> Self::V {
        let mut y = [0.0; LANES];
        for i in 0..LANES {
            y[i] = f32::from_le_bytes(x[i]);
        }
        y
    }

    #[inline(always)]
    fn f16(self, x: &[[u8; 2]; LANES]) -> Self::V {
        let mut y = [0.0; LANES];
        for i in 0..LANES {
            y[i] = half_to_f32(u16::from_le_bytes(x[i]));
        }
        y
    }

    #[inline(always)]
    fn bf16(self, x: &[[u8; 2]; LANES]) -> Self::V {
        let mut y = [0.0; LANES];
        for i in 0..LANES {
            y[i] = f32::from_bits(u32::from(u16::from_le_bytes(x[i])) << 16);
        }
        y
    }

    #[inline(always)]
    fn add_product(self, mut sum: Self::V, a: Self::V, b: Self::V) -> Self::V {
        for i in 0..LANES {
            sum[i] += a[i] * b[i];
        }
        sum
    }

    #[inline(always)]
    fn add(self, mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..LANES {
            a[i] += b[i];
        }
        a
    }

    #[inline(always)]
    fn array(self, a: Self::V) -> [f32; LANES] {
        a
    }
}

/// `out[t][i] = head[rows.start + i] · x[t]`.
///
/// `x`: `[tokens, hidden_size]`; `row`: working memory; `out`: `[tokens, rows.len()]`.
#[inline(always)]
pub fn logits<M: Floats>(
    m: M,
    head: &DenseMatrix,
    rows: Range<usize>,
    x: &[f32],
    row: &mut Vec<f32>,
    out: &mut [f32],
) {
    let (block, width) = (TOKEN_BLOCK * head.cols(), rows.len());
    for (x, out) in x.chunks(block).zip(out.chunks_mut(TOKEN_BLOCK * width)) {
        let rows = rows.clone();
        match head.dtype() {
            DenseType::F32 => stored::<M, F32Row<'_>>(m, head, rows, x, out),
            DenseType::F16 => stored::<M, HalfRow<'_, false>>(m, head, rows, x, out),
            DenseType::BF16 => stored::<M, HalfRow<'_, true>>(m, head, rows, x, out),
            _ => decoded(m, head, rows, x, row, out),
        }
    }
}

/// Rows in a form that is decoded on the way into a register.
#[inline(always)]
fn stored<'a, M: Floats, W: StoredRow<'a>>(
    m: M,
    head: &'a DenseMatrix,
    rows: Range<usize>,
    x: &[f32],
    out: &mut [f32],
) {
    let (cols, width) = (head.cols(), rows.len());
    let row = |i: usize| W::new(head.row(rows.start + i));
    let mut i = 0;
    // With few tokens memory is what limits, and one stream of it is faster than several.
    if x.len() > 3 * cols {
        while i + 2 <= width {
            tokens(m, &[row(i), row(i + 1)], x, cols, width, i, out);
            i += 2;
        }
    }
    while i < width {
        tokens(m, &[row(i)], x, cols, width, i, out);
        i += 1;
    }
}

/// Rows of blocks, each decoded to memory.
#[inline(always)]
fn decoded<M: Floats>(
    m: M,
    head: &DenseMatrix,
    rows: Range<usize>,
    x: &[f32],
    row: &mut Vec<f32>,
    out: &mut [f32],
) {
    let (cols, width) = (head.cols(), rows.len());
    row.resize(cols, 0.0);
    for (i, index) in rows.enumerate() {
        dequantize(head.dtype(), head.row(index), row);
        tokens(m, &[Plain::new(row)], x, cols, width, i, out);
    }
}

/// The products of `R` rows with all inputs, for columns `i..i + R` of the output.
#[inline(always)]
fn tokens<M: Floats, W: Row, const R: usize>(
    m: M,
    w: &[W; R],
    x: &[f32],
    cols: usize,
    width: usize,
    i: usize,
    out: &mut [f32],
) {
    let count = x.len() / cols;
    // As even as possible: 4 inputs are 2 and 2, not 3 and 1.
    let together = count.div_ceil(count.div_ceil(3).max(1)).max(1);
    let outs = out.chunks_mut(together * width);
    for (x, out) in x.chunks(together * cols).zip(outs) {
        let input = |t: usize| Plain::new(&x[t * cols..][..cols]);
        match x.len() / cols {
            1 => put(products(m, w, [input(0)]), i, width, out),
            2 => put(products(m, w, [input(0), input(1)]), i, width, out),
            _ => put(products(m, w, [input(0), input(1), input(2)]), i, width, out),
        }
    }
}

#[inline(always)]
fn put<const R: usize, const T: usize>(
    products: [[f32; R]; T],
    i: usize,
    width: usize,
    out: &mut [f32],
) {
    for (t, products) in products.iter().enumerate() {
        out[t * width + i..][..R].copy_from_slice(products);
    }
}

/// The products of `R` rows with `T` inputs.
#[expect(clippy::needless_range_loop, reason = "indices that several arrays share")]
#[inline(always)]
fn products<M: Floats, W: Row, const R: usize, const T: usize>(
    m: M,
    w: &[W; R],
    x: [Plain<'_>; T],
) -> [[f32; R]; T] {
    let mut sums = [[[m.zero(); 4]; T]; R];
    for chunk in 0..x[0].chunks.len() {
        for w in w {
            m.passes(w.stored(chunk), T == 1);
        }
        for i in 0..4 {
            let mut rows = [m.zero(); R];
            for r in 0..R {
                rows[r] = w[r].vector(m, chunk, i);
            }
            for t in 0..T {
                let x = x[t].vector(m, chunk, i);
                for r in 0..R {
                    sums[r][t][i] = m.add_product(sums[r][t][i], rows[r], x);
                }
            }
        }
    }
    if !x[0].rest.is_empty() {
        // Zeros past the end add +0, which changes no sum, as none is -0.
        for r in 0..R {
            let w = w[r].rest();
            for t in 0..T {
                let x = x[t].rest();
                for i in 0..4 {
                    let [w, x] = [&w, &x].map(|values| m.load(&values.as_chunks::<LANES>().0[i]));
                    sums[r][t][i] = m.add_product(sums[r][t][i], w, x);
                }
            }
        }
    }
    let mut y = [[0.0; R]; T];
    for r in 0..R {
        for t in 0..T {
            let [a, b, c, d] = sums[r][t];
            y[t][r] = add_lanes(m.array(m.add(m.add(a, c), m.add(b, d))));
        }
    }
    y
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

/// The greatest of some logits; NaN if any is NaN or plus infinity, after which no token can be drawn.
#[inline(always)]
pub fn peak(logits: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let (mut lanes, mut bad) = ([f32::NEG_INFINITY; LANES], [false; LANES]);
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = greater(lanes[i], chunk[i]);
            bad[i] |= chunk[i].is_nan() | (chunk[i] == f32::INFINITY);
        }
    }
    let is_bad = |x: &f32| x.is_nan() || *x == f32::INFINITY;
    match bad.contains(&true) || rest.iter().any(is_bad) {
        true => f32::NAN,
        false => lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, greater),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;
    use crate::scalar::dot;

    /// Each logit has the bits of [`dot`] of the decoded row, on every tier and in every batch.
    #[track_caller]
    #[test]
    fn a_peak_is_the_greatest_unless_nothing_can_be_drawn() {
        let mut logits = vec![f32::NEG_INFINITY; 40];
        assert_eq!(peak(&logits), f32::NEG_INFINITY);
        for at in 0..40 {
            logits[at] = at as f32 - 90.0;
            assert_eq!(peak(&logits), at as f32 - 90.0);
        }
        for (at, bad) in [(0, f32::NAN), (17, f32::INFINITY), (39, f32::NAN)] {
            let old = std::mem::replace(&mut logits[at], bad);
            assert!(peak(&logits).is_nan(), "{bad} at {at}");
            logits[at] = old;
        }
    }

    fn check(dtype: DenseType, rows: usize, cols: usize, tokens: usize) {
        let mut state = 1_u32;
        let mut next = move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 8
        };
        let stored = rows * dtype.row_bytes(cols).unwrap();
        // Without the top bits of exponents, in whichever byte they are, no half is infinite.
        let data: Vec<u8> = (0..stored).map(|_| next() as u8 & 0xbb).collect();
        let head = DenseMatrix::new(rows, cols, dtype, data.into()).unwrap();
        let x: Vec<f32> = (0..tokens * cols).map(|_| next() as f32 / 8e6 - 1.0).collect();
        let mut expected = vec![0.0; tokens * rows];
        let mut row = vec![0.0; cols];
        for r in 0..rows {
            head.dequantize_row(r, &mut row);
            for (t, x) in x.chunks(cols).enumerate() {
                expected[t * rows + r] = dot(x, &row);
            }
        }
        let bits = |y: &[f32]| y.iter().map(|y| y.to_bits()).collect::<Vec<_>>();
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; tokens * rows];
            isa.logits(&head, 0..rows, &x, &mut Vec::new(), &mut out);
            assert_eq!(bits(&out), bits(&expected), "{dtype:?} [{rows}, {cols}] × {tokens}, {isa}");
        }
    }

    #[test]
    fn every_encoding_is_the_dot_product_of_decoded_rows() {
        for dtype in [DenseType::F32, DenseType::F16, DenseType::BF16] {
            for (rows, cols, tokens) in
                [(1, 1, 1), (7, 63, 2), (5, 200, 1), (9, 130, 7), (6, 64, 30)]
            {
                check(dtype, rows, cols, tokens);
            }
        }
        use DenseType::{Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0};
        for dtype in [Q8_0, Q4_0, Q5_0, Q4K, Q5K, Q6K] {
            for tokens in [1, 2, 3, 26] {
                check(dtype, 5, 512, tokens);
            }
        }
        check(Q8_0, 3, 96, 4);
    }
}
