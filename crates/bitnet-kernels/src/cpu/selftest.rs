//! Runs the kernels of a tier against the scalar oracle before the tier is trusted.
//!
//! CPUID can promise instructions that a hypervisor does not deliver, and kernels that no developer's machine can run
//! must prove themselves on the first one that can. All of it takes about a millisecond.

use std::ops::Range;

use super::head::packed::Int8Head;
use super::head::product::Int8Product;
use super::head::split::SplitRows;
use super::packed::{PANEL_ROWS, PackedTernary, Packing};
use super::pool::{Stripe, stripes};
use super::product::Product;
use crate::activation::QuantizedRows;
use crate::scalar;
use crate::ternary::{TernaryMatrix, WeightScale};

/// A product that came out wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "self-test `{case}` of {weights} weights with {tokens} tokens: row {row} of token {token} is {found}, but the definition gives {expected}"
)]
pub struct WrongProduct {
    case: &'static str,
    weights: String,
    tokens: usize,
    row: usize,
    token: usize,
    found: i32,
    expected: i32,
}

/// Holds `run` against the oracle in both packings: each number of tokens that has a kernel of its own, odd panels,
/// padding, the values that come nearest to overflow, and a slice of the columns.
pub(super) fn check(run: impl Fn(&Product<'_>, &mut [i32])) -> Result<(), WrongProduct> {
    for packing in Packing::ALL {
        let case = |name, matrix: TernaryMatrix, x, blocks: Range<usize>| {
            Case::new(name, PackedTernary::pack_as(packing, &matrix), &matrix, x, blocks)
        };
        let all = 0..84_usize.div_ceil(packing.block_cols());
        let mixed = case("mixed", mixed_matrix(40, 84), mixed_rows(13, 84), all);
        for tokens in 1..=13 {
            mixed.check(tokens, &run)?;
        }
        let slice = case("slice", mixed_matrix(40, 84), mixed_rows(3, 84), 2..4);
        slice.check(1, &run)?;
        slice.check(3, &run)?;
        // 33 blocks: one more than the longest run of 16-bit sums.
        let cols = 33 * packing.block_cols();
        let (matrix, x) = (extreme_matrix(PANEL_ROWS, cols), extreme_rows(4, cols));
        let extreme = case("extreme", matrix, x, 0..33);
        extreme.check(1, &run)?;
        extreme.check(4, &run)?;
    }
    Ok(())
}

/// Holds `run`, which computes logits of an int8 head, against the oracle.
pub(super) fn check_int8(
    run: impl Fn(&Int8Product<'_>, &mut Stripe<'_>),
) -> Result<(), WrongProduct> {
    let tokens = 7;
    for (case, cols, extreme) in [("head", 84, false), ("extreme head", 40, true)] {
        let rows = 40;
        // The largest value of each row makes scales of 1, so that logits are integers.
        let values = |count: usize, largest: i32| -> Vec<f32> {
            let value = |(i, bits): (usize, u32)| match (i % cols, extreme) {
                (0, _) => largest,
                (_, false) => (bits % (2 * largest as u32 + 1)) as i32 - largest,
                (k, true) => {
                    if (i / cols + k * (i / cols % 3)).is_multiple_of(2) {
                        largest
                    } else {
                        -largest
                    }
                }
            };
            scramble(count * cols).enumerate().map(|item| value(item) as f32).collect()
        };
        let (weights, inputs) = (values(rows, 127), values(tokens, 32512));
        let head = Int8Head::from_floats(&weights, cols);
        for tokens in 1..=tokens {
            let inputs = &inputs[..tokens * cols];
            let x = SplitRows::from_floats(inputs, cols);
            let mut out = vec![f32::NAN; tokens * rows];
            stripes(&mut out, rows, rows).all().for_each(|mut out| {
                run(&Int8Product { head: &head, x: &x, tokens: 0..tokens }, &mut out)
            });
            for (i, &found) in out.iter().enumerate() {
                let (token, row) = (i / rows, i % rows);
                let expected = scalar::int8::logit(
                    &weights[row * cols..][..cols],
                    &inputs[token * cols..][..cols],
                );
                if found != expected {
                    let [found, expected] = [found, expected].map(|y| y as i32);
                    let weights = "int8".to_owned();
                    return Err(WrongProduct {
                        case,
                        weights,
                        tokens,
                        row,
                        token,
                        found,
                        expected,
                    });
                }
            }
        }
    }
    Ok(())
}

struct Case {
    name: &'static str,
    w: PackedTernary,
    x: QuantizedRows,
    blocks: Range<usize>,
    /// What the oracle gives, `[tokens, rows]`.
    expected: Vec<i32>,
}

impl Case {
    fn new(
        name: &'static str,
        w: PackedTernary,
        matrix: &TernaryMatrix,
        x: QuantizedRows,
        blocks: Range<usize>,
    ) -> Self {
        let expected = expected(matrix, &x, blocks.clone(), w.packing());
        Self { name, w, x, blocks, expected }
    }

    fn check(
        &self,
        tokens: usize,
        run: impl Fn(&Product<'_>, &mut [i32]),
    ) -> Result<(), WrongProduct> {
        let (w, x, blocks) = (&self.w, &self.x, self.blocks.clone());
        let product = Product { blocks, tokens: 0..tokens, ..Product::whole(w, x) };
        let mut out = vec![i32::MIN; product.len()];
        run(&product, &mut out);
        let found = out.chunks(w.panels() * PANEL_ROWS).map(|out| &out[..w.rows()]);
        for (token, (found, expected)) in found.zip(self.expected.chunks(w.rows())).enumerate() {
            if let Some(row) = (0..w.rows()).find(|&row| found[row] != expected[row]) {
                let (case, weights) = (self.name, w.packing().to_string());
                let (found, expected) = (found[row], expected[row]);
                return Err(WrongProduct { case, weights, tokens, row, token, found, expected });
            }
        }
        Ok(())
    }
}

/// What the oracle gives for the columns of some blocks, `[tokens, rows]`.
pub(super) fn expected(
    matrix: &TernaryMatrix,
    x: &QuantizedRows,
    blocks: Range<usize>,
    packing: Packing,
) -> Vec<i32> {
    let columns = blocks.start * packing.block_cols()..blocks.end * packing.block_cols();
    let inside = |(k, &q)| if columns.contains(&k) { q } else { 0 };
    let tokens = (0..x.rows()).map(|t| x.row(t)[..x.cols()].iter().enumerate().map(inside));
    tokens
        .map(Iterator::collect::<Vec<i8>>)
        .flat_map(|q| (0..matrix.rows()).map(move |row| scalar::ternary::dot(matrix.row(row), &q)))
        .collect()
}

/// A matrix of all three weights without a visible pattern.
pub(super) fn mixed_matrix(rows: usize, cols: usize) -> TernaryMatrix {
    let values: Vec<i8> = scramble(rows * cols).map(|bits| (bits % 3) as i8 - 1).collect();
    TernaryMatrix::from_values(rows, cols, &values, WeightScale::Tensor(1.0))
}

/// Activations from -127 to 127 without a visible pattern.
pub(super) fn mixed_rows(rows: usize, cols: usize) -> QuantizedRows {
    let values: Vec<i8> =
        scramble(rows * cols).map(|bits| (bits % 255) as u8 as i8).map(|q| q.max(-127)).collect();
    QuantizedRows::from_values(rows, cols, &values, vec![1.0; rows])
}

/// Rows of only +1, only -1, and both in turn.
fn extreme_matrix(rows: usize, cols: usize) -> TernaryMatrix {
    let value = |i: usize| match i / cols % 3 {
        0 => 1,
        1 => -1,
        _ => 1 - 2 * (i % 2) as i8,
    };
    let values: Vec<i8> = (0..rows * cols).map(value).collect();
    TernaryMatrix::from_values(rows, cols, &values, WeightScale::Tensor(1.0))
}

/// Rows of only 127, only -127, both in turn, and one 127 among zeros.
fn extreme_rows(rows: usize, cols: usize) -> QuantizedRows {
    let value = |i: usize| match (i / cols % 4, i % cols) {
        (0, _) => 127,
        (1, _) => -127,
        (2, col) => {
            if col % 2 == 0 {
                127
            } else {
                -127
            }
        }
        (_, col) => 127 * i8::from(col == cols / 2),
    };
    let values: Vec<i8> = (0..rows * cols).map(value).collect();
    QuantizedRows::from_values(rows, cols, &values, vec![1.0; rows])
}

/// The same pseudo-random numbers on every call.
fn scramble(len: usize) -> impl Iterator<Item = u32> {
    (1..=len as u32).map(|i| {
        let mixed = i.wrapping_mul(0x9E37_79B1);
        (mixed ^ mixed >> 15).wrapping_mul(0x85EB_CA77) >> 8
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;

    /// A kernel that is right but for one mistake.
    #[track_caller]
    fn check_found(mistake: impl Fn(&Product<'_>, &mut [i32])) {
        let run = |product: &Product<'_>, out: &mut [i32]| {
            product.run_on(Isa::Scalar, out);
            mistake(product, out);
        };
        assert!(check(run).is_err());
    }

    #[test]
    fn a_right_kernel_passes() {
        assert_eq!(check(|product, out| product.run_on(Isa::Scalar, out)), Ok(()));
    }

    #[test]
    fn one_wrong_value_is_reported_with_its_place() {
        let run = |product: &Product<'_>, out: &mut [i32]| {
            product.run_on(Isa::Scalar, out);
            out[if product.tokens.len() == 7 { 6 * 48 + 39 } else { 47 }] ^= 1; // row 47 is padding
        };
        let wrong = check(run).unwrap_err();
        assert_eq!((wrong.tokens, wrong.token, wrong.row), (7, 6, 39));
    }

    #[test]
    fn sums_that_wrap_at_16_bits_are_found() {
        check_found(|product, out| {
            let wrapped = |x: i32, sum: i32| i32::from((x + sum) as i16) - sum;
            for (token, out) in out.chunks_mut(product.panels.len() * PANEL_ROWS).enumerate() {
                out.iter_mut().for_each(|x| *x = wrapped(*x, product.x.sum[token]));
            }
        });
    }

    #[test]
    fn one_wrong_logit_of_an_int8_head_is_reported_with_its_place() {
        let right =
            |product: &Int8Product<'_>, out: &mut Stripe<'_>| Isa::Scalar.int8_logits(product, out);
        assert_eq!(check_int8(right), Ok(()));
        let run = |product: &Int8Product<'_>, out: &mut Stripe<'_>| {
            right(product, out);
            if out.rows().len() == 5 {
                out.row(4)[39] += 4096.0;
            }
        };
        let wrong = check_int8(run).unwrap_err();
        assert_eq!((wrong.tokens, wrong.token, wrong.row), (5, 4, 39));
    }

    #[test]
    fn the_sum_of_all_columns_in_place_of_a_slice_is_found() {
        check_found(|product, out| {
            if product.blocks.len() != product.w.blocks_per_panel() {
                out.iter_mut().for_each(|x| *x += product.x.sum[0]);
            }
        });
    }
}
