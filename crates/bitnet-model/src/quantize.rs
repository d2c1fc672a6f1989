//! Float weights made ternary, as BitNet b1.58 defines it.

pub mod blocks;

use bitnet_kernels::{
    dense::DenseMatrix,
    ternary::{CODES_PER_WORD, TernaryMatrix, WeightScale, word_from_codes, words_per_row},
};

use crate::format::ternary::TernaryError;

/// Smallest scale, so that a matrix of zeros has a reciprocal.
const SMALLEST_SCALE: f32 = 1e-5;

/// Absmean quantization of master weights: `w = max(mean |W|, 1e-5)` over the whole matrix, `t = clamp(round_half_even(W · (1/w)), -1, 1)`.
///
/// The mean is summed in f64, in order within 8 interleaved lanes, then over lanes and rows, and rounded to f32 once.
/// transformers sums in f32 in an order of its own, so that its `w` can differ in the last bit or two; a code differs
/// only where a weight lies that close to `w / 2`.
/// Source: Ma et al. 2024, arXiv:2402.17764, and transformers' `AutoBitLinear` for the order of operations.
pub fn absmean(weights: &DenseMatrix) -> Result<TernaryMatrix, TernaryError> {
    let (rows, cols) = (weights.rows(), weights.cols());
    let mut values = vec![0.0; cols];
    let mut sum = 0.0;
    for row in 0..rows {
        weights.dequantize_row(row, &mut values);
        let row_sum = sum_of_magnitudes(&values);
        if !row_sum.is_finite() {
            return Err(not_finite(row, &values));
        }
        sum += row_sum;
    }
    let scale = ((sum / (rows * cols) as f64) as f32).max(SMALLEST_SCALE);
    let reciprocal = 1.0 / scale;
    let mut words = Vec::with_capacity(rows * words_per_row(cols));
    for row in 0..rows {
        weights.dequantize_row(row, &mut values);
        words.extend(values.chunks(CODES_PER_WORD).map(|values| ternary_word(values, reciprocal)));
    }
    Ok(TernaryMatrix::new(rows, cols, words, WeightScale::Tensor(scale))?)
}

fn sum_of_magnitudes(values: &[f32]) -> f64 {
    let mut lanes = [0.0; 8];
    let (whole, rest) = values.as_chunks::<8>();
    for values in whole {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += f64::from(value.abs());
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|value| f64::from(value.abs())).sum::<f64>()
}

fn ternary_word(values: &[f32], reciprocal: f32) -> u32 {
    let mut codes = [1; CODES_PER_WORD];
    for (code, value) in codes.iter_mut().zip(values) {
        // Rounding half to even and clamping to ±1 puts exactly what lies beyond ±0.5 on ±1.
        let scaled = value * reciprocal;
        *code = 1 + u8::from(scaled > 0.5) - u8::from(scaled < -0.5);
    }
    word_from_codes(&codes)
}

fn not_finite(row: usize, values: &[f32]) -> TernaryError {
    let col = values
        .iter()
        .position(|value| !value.is_finite())
        .expect("finite f32 have a finite sum in f64");
    TernaryError::Value { row, col, found: values[col], expected: "weights are finite".into() }
}

#[cfg(test)]
mod tests {
    use bitnet_kernels::dense::DenseType;

    use super::*;

    fn matrix(rows: usize, weights: &[f32]) -> DenseMatrix {
        let data: Vec<u8> = weights.iter().flat_map(|weight| weight.to_le_bytes()).collect();
        DenseMatrix::new(rows, weights.len() / rows, DenseType::F32, data.into()).unwrap()
    }

    /// Weights become these codes with this scale.
    #[track_caller]
    fn check(rows: usize, weights: &[f32], codes: &[i8], scale: f32) {
        let scale = WeightScale::Tensor(scale);
        let expected = TernaryMatrix::from_values(rows, weights.len() / rows, codes, scale);
        assert_eq!(absmean(&matrix(rows, weights)).unwrap(), expected);
    }

    #[test]
    fn half_the_mean_rounds_to_zero_and_more_to_one() {
        check(1, &[1.5, -1.5, 0.5, -0.5], &[1, -1, 0, 0], 1.0);
        let above = 0.5_f32.next_up();
        check(1, &[1.5, -1.5, above, -above], &[1, -1, 1, -1], 1.0);
    }

    #[test]
    fn zeros_stay_zeros() {
        check(1, &[0.0; 20], &[0; 20], 1e-5);
    }

    #[test]
    fn tiny_weights_have_the_smallest_scale() {
        check(1, &[4e-6, -6e-6], &[0, -1], 1e-5);
    }

    #[test]
    fn the_mean_is_that_of_the_whole_matrix() {
        check(2, &[8.0, 8.0, 1.0, -1.0], &[1, 1, 0, 0], 4.5);
    }

    #[test]
    fn a_weight_that_is_no_number_is_refused_with_its_place() {
        let error = absmean(&matrix(2, &[1.0, 2.0, 3.0, f32::INFINITY])).unwrap_err();
        assert_eq!(error.to_string(), "row 1, column 1 holds inf, but weights are finite");
    }
}
