//! The plainer ways to multiply ternary weights, which the engine does not take: what the packed kernels are better than.
//!
//! All of them read rows of two-bit codes as [`TernaryMatrix`] has them, and all give the same integers. They stand for what is
//! usual elsewhere: decoding by a table, and vectors along a row, which need activations in another order and a sum across
//! the vector for each row.

use super::isa::Isa;
use super::packed::Block;
#[cfg(target_arch = "x86_64")]
use super::x86::row_major as native;
use crate::activation::QuantizedRows;
use crate::memory::Line;
use crate::scalar::ternary::dot;
use crate::ternary::{CODES_PER_WORD, TernaryMatrix, words_per_row};

/// A way to multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The definition: one weight after the other.
    Scalar,
    /// A table of all bytes gives four weights at a time.
    Table,
    /// Vectors along the rows, with the instructions of a tier. Tiers that have no such kernel here give `None`.
    RowMajor(Isa),
}

/// The integer products of some rows with all tokens, `[tokens, rows.len()]`. None if there is no kernel for it.
///
/// # Panics
/// If the columns differ, or `rows` is not within the matrix.
pub fn product(
    step: Step,
    w: &TernaryMatrix,
    rows: std::ops::Range<usize>,
    x: &QuantizedRows,
) -> Option<Vec<i32>> {
    assert_eq!(w.cols(), x.cols(), "weights and activations have the same columns");
    let mut out = Vec::with_capacity(rows.len() * x.rows());
    let table = table();
    let padded = words_per_row(w.cols()) * CODES_PER_WORD;
    for token in 0..x.rows() {
        let (q, sum) = (&x.row(token)[..x.cols()], x.sum[token]);
        match step {
            Step::Scalar => out.extend(rows.clone().map(|row| dot(w.row(row), q))),
            Step::Table => {
                let q = &x.row(token)[..padded];
                out.extend(rows.clone().map(|row| by_table(&table, w.row(row), q)));
            }
            Step::RowMajor(isa) => {
                let activations = Strided::new(native_words(isa)?, &x.row(token)[..padded]);
                let products = rows.clone().map(|row| along(isa, w.row(row), &activations, sum));
                out.extend(products);
            }
        }
    }
    Some(out)
}

/// Four weights for each byte of codes.
fn table() -> [[i8; 4]; 256] {
    std::array::from_fn(|byte| std::array::from_fn(|j| (byte >> (2 * j) & 3) as i8 - 1))
}

/// Byte `q` of a word holds columns `q`, `4 + q`, `8 + q` and `12 + q`.
fn by_table(table: &[[i8; 4]; 256], words: &[u32], q: &[i8]) -> i32 {
    let mut sum = 0;
    for (word, q) in words.iter().zip(q.as_chunks::<CODES_PER_WORD>().0) {
        for (byte, first) in word.to_le_bytes().into_iter().zip(0..) {
            for (weight, q) in table[usize::from(byte)].iter().zip(q[first..].iter().step_by(4)) {
                sum += i32::from(*weight) * i32::from(*q);
            }
        }
    }
    sum
}

/// Activations in the order in which a vector of `words` words of codes needs them: for each such vector, those that belong to
/// bit field 0 of all its bytes, then those of field 1, 2 and 3.
pub(crate) struct Strided {
    words: usize,
    /// A block for each field of a vector; shorter vectors use its start.
    pub blocks: Vec<[Block; 4]>,
    /// What is left after the last whole vector.
    rest: Vec<i8>,
}

impl Strided {
    fn new(words: usize, q: &[i8]) -> Self {
        let vectors = q.chunks_exact(words * CODES_PER_WORD);
        let rest = vectors.remainder().to_vec();
        let blocks = vectors.map(|q| {
            std::array::from_fn(|field| {
                let mut block = Line([0; 64]);
                for (bytes, q) in
                    block.0.as_chunks_mut::<4>().0.iter_mut().zip(q.as_chunks::<CODES_PER_WORD>().0)
                {
                    let q: &[i8; 4] = q[4 * field..].first_chunk().expect("sixteen in a word");
                    *bytes = q.map(|q| q as u8);
                }
                block
            })
        });
        Self { words, blocks: blocks.collect(), rest }
    }
}

/// One row's product: whole vectors, then what is left.
fn along(isa: Isa, words: &[u32], x: &Strided, sum: i32) -> i32 {
    let (whole, rest) = words.split_at(x.blocks.len() * x.words);
    let rest_sum: i32 = x.rest.iter().map(|&q| i32::from(q)).sum();
    native_along(isa, whole, x) - (sum - rest_sum) + dot(rest, &x.rest)
}

/// Words of codes in a vector of the tier's row-major kernel.
fn native_words(isa: Isa) -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    return native::words(isa);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = isa;
        None
    }
}

/// Codes times activations, with codes 0, 1, 2 for weights -1, 0, +1.
fn native_along(isa: Isa, words: &[u32], x: &Strided) -> i32 {
    #[cfg(target_arch = "x86_64")]
    return native::codes_dot(isa, words, &x.blocks);
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("{isa} has no row-major kernel for {} words of {}", words.len(), x.blocks.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ternary::WeightScale;

    #[track_caller]
    fn check(
        rows: usize,
        cols: usize,
        tokens: usize,
        weight: impl Fn(usize) -> i8,
        q: impl Fn(usize) -> i8,
    ) {
        let values: Vec<i8> = (0..rows * cols).map(weight).collect();
        let w = TernaryMatrix::from_values(rows, cols, &values, WeightScale::Tensor(1.0));
        let q: Vec<i8> = (0..tokens * cols).map(q).collect();
        let x = QuantizedRows::from_values(tokens, cols, &q, vec![1.0; tokens]);
        let expected: Vec<i32> = (0..tokens * (rows - 1))
            .map(|i| dot(w.row(1 + i % (rows - 1)), &x.row(i / (rows - 1))[..cols]))
            .collect();
        let isas = Isa::available().iter().map(|&isa| Step::RowMajor(isa));
        for step in [Step::Scalar, Step::Table].into_iter().chain(isas) {
            if let Some(found) = product(step, &w, 1..rows, &x) {
                assert_eq!(found, expected, "{step:?} {rows}x{cols}, {tokens} tokens");
            }
        }
    }

    #[test]
    fn all_steps_give_the_same_integers() {
        for cols in [1, 16, 100, 256, 300, 2560] {
            check(
                7,
                cols,
                3,
                |i| (i * i % 7 % 3) as i8 - 1,
                |i| ((i * 37 % 255) as i16 - 127) as i8,
            );
        }
    }

    #[test]
    fn extreme_rows_do_not_wrap() {
        for (weight, q) in [(1, 127), (1, -127), (-1, 127), (-1, -127)] {
            check(2, 4096, 1, |_| weight, |_| q);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn every_vector_tier_has_a_row_major_kernel() {
        for &isa in &Isa::available()[1..] {
            assert!(native_words(isa).is_some(), "{isa}");
        }
    }
}
