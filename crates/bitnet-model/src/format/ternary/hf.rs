//! Hugging Face's packing: `uint8 [rows / 4, cols]`, four quarters of the rows in one byte.
//!
//! With `n = rows / 4`, bits `2·j` of byte `[r, c]` hold the code of weight `[r + j·n, c]`: the lowest bits are the first quarter.
//! The scale is a tensor of its own.

use bitnet_kernels::ternary::{CODES_PER_WORD, TernaryMatrix, WeightScale, words_per_row};

use super::{TernaryError, check_bytes, load, store, transpose};

/// Reads packed bytes of a `[rows, cols]` matrix.
pub fn decode(
    rows: usize,
    cols: usize,
    data: &[u8],
    scale: f32,
) -> Result<TernaryMatrix, TernaryError> {
    check_rows(rows)?;
    check_bytes(rows, cols, data.len(), |weights| Some(weights / 4))?;
    let per_row = words_per_row(cols);
    let mut words = vec![0; rows * per_row];
    if per_row > 0 {
        let (first, rest) = words.split_at_mut(rows / 4 * per_row);
        let (second, rest) = rest.split_at_mut(first.len());
        let (third, fourth) = rest.split_at_mut(first.len());
        let quarters = first
            .chunks_mut(per_row)
            .zip(second.chunks_mut(per_row))
            .zip(third.chunks_mut(per_row).zip(fourth.chunks_mut(per_row)));
        for (bytes, ((a, b), (c, d))) in data.chunks(cols).zip(quarters) {
            decode_row(bytes, [a, b, c, d]);
        }
    }
    Ok(TernaryMatrix::new(rows, cols, words, WeightScale::Tensor(scale))?)
}

/// One stored row into its four rows of weights.
fn decode_row(bytes: &[u8], [a, b, c, d]: [&mut [u32]; 4]) {
    let (blocks, rest) = bytes.as_chunks::<CODES_PER_WORD>();
    for (index, block) in blocks.iter().enumerate() {
        [a[index], b[index], c[index], d[index]] = transpose(load(block));
    }
    if !rest.is_empty() {
        let mut block = [0; CODES_PER_WORD]; // what lies past the row is overwritten by `TernaryMatrix::new`
        block[..rest.len()].copy_from_slice(rest);
        let index = blocks.len();
        [a[index], b[index], c[index], d[index]] = transpose(load(&block));
    }
}

/// Packs the codes; the scale is left to the caller.
pub fn encode(matrix: &TernaryMatrix) -> Result<Vec<u8>, TernaryError> {
    check_rows(matrix.rows())?;
    let quarter = matrix.rows() / 4;
    let mut data = Vec::with_capacity(quarter * matrix.cols());
    for row in 0..quarter {
        let rows: [&[u32]; 4] = std::array::from_fn(|j| matrix.row(row + j * quarter));
        let end = data.len() + matrix.cols();
        for index in 0..words_per_row(matrix.cols()) {
            data.extend(store(transpose(rows.map(|row| row[index]))));
        }
        data.truncate(end);
    }
    Ok(data)
}

fn check_rows(rows: usize) -> Result<(), TernaryError> {
    if rows.is_multiple_of(4) {
        return Ok(());
    }
    Err(TernaryError::Multiple { what: "the number of rows", found: rows, multiple: 4 })
}
