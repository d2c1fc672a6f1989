//! Ternary weights stored as floats: `s · {-1, 0, 1}` with one `s` for the matrix or for each row, verified and not assumed.

use bitnet_kernels::{
    dense::DenseMatrix,
    ternary::{CODES_PER_WORD, TernaryMatrix, WeightScale, word_from_codes, words_per_row},
};

use super::TernaryError;

/// Reads a matrix whose values are zero or have one magnitude, at least within each row.
pub fn decode(matrix: &DenseMatrix) -> Result<TernaryMatrix, TernaryError> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut words = Vec::with_capacity(rows * words_per_row(cols));
    let mut values = vec![0.0; cols];
    let mut scales = Vec::with_capacity(rows);
    for row in 0..rows {
        matrix.dequantize_row(row, &mut values);
        let scale = values.iter().map(|value| value.abs()).find(|&value| value != 0.0);
        check_row(row, &values, scale)?;
        words.extend(values.chunks(CODES_PER_WORD).map(word_of_signs));
        scales.push(scale);
    }
    Ok(TernaryMatrix::new(rows, cols, words, common_scale(scales))?)
}

/// Reads a matrix whose values are -1, 0 and 1.
pub fn decode_units(matrix: &DenseMatrix, scale: f32) -> Result<TernaryMatrix, TernaryError> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut words = Vec::with_capacity(rows * words_per_row(cols));
    let mut values = vec![0.0; cols];
    for row in 0..rows {
        matrix.dequantize_row(row, &mut values);
        check_row(row, &values, Some(1.0))?;
        words.extend(values.chunks(CODES_PER_WORD).map(word_of_signs));
    }
    Ok(TernaryMatrix::new(rows, cols, words, WeightScale::Tensor(scale))?)
}

fn check_row(row: usize, values: &[f32], scale: Option<f32>) -> Result<(), TernaryError> {
    let scale = scale.unwrap_or(0.0);
    let is_wrong = |value: &f32| !(value.is_finite() && (*value == 0.0 || value.abs() == scale));
    let Some(col) = values.iter().position(is_wrong) else { return Ok(()) };
    let expected = format!("ternary weights here are 0 and ±{scale}");
    Err(TernaryError::Value { row, col, found: values[col], expected })
}

fn word_of_signs(values: &[f32]) -> u32 {
    let mut codes = [1; CODES_PER_WORD];
    for (code, &value) in codes.iter_mut().zip(values) {
        *code = 1 + u8::from(value > 0.0) - u8::from(value < 0.0);
    }
    word_from_codes(&codes)
}

/// One scale if all rows agree; a row of zeros agrees with any.
fn common_scale(scales: Vec<Option<f32>>) -> WeightScale {
    let first = scales.iter().flatten().next().copied().unwrap_or(0.0);
    if scales.iter().flatten().all(|&scale| scale == first) {
        return WeightScale::Tensor(first);
    }
    WeightScale::Rows(scales.into_iter().map(|scale| scale.unwrap_or(0.0)).collect())
}
