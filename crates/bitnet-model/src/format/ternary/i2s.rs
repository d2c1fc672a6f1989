//! I2_S, microsoft/BitNet's type: two bits a weight over the flattened tensor, one f32 scale behind them.
//!
//! A block of 128 weights has 32 bytes; weight `32·g + p` lies in bits `6 - 2·g` of byte `p`, the first group on top.
//! Builds of one era on ARM wrote blocks of 64 weights in 16 bytes instead, and nothing in a file tells which.
//! Blocks run over the whole tensor, so rows need not be whole blocks. 32 bytes follow: the scale and padding.

use bitnet_kernels::ternary::{
    CODES_PER_WORD, TernaryMatrix, WeightScale, codes_from_word, word_from_codes,
};

use super::{TernaryError, check_bytes, load, store, tensor_scale, transpose};

/// Bytes behind the codes.
const TAIL: usize = 32;

/// The two byte orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum I2sLayout {
    /// 128 weights in 32 bytes: all published files, whatever machine they are read on.
    #[default]
    Block128,
    /// 64 weights in 16 bytes: files quantized on ARM by bitnet.cpp of late 2025 and early 2026.
    Block64,
}

impl I2sLayout {
    /// Weights per block.
    pub fn block(self) -> usize {
        match self {
            Self::Block128 => 128,
            Self::Block64 => 64,
        }
    }
}

/// Bytes of a tensor of so many weights, if they make whole bytes.
pub fn size(weights: usize) -> Option<usize> {
    weights.is_multiple_of(4).then(|| (weights / 4).checked_add(TAIL))?
}

/// Reads a tensor with its tail.
pub fn decode(
    rows: usize,
    cols: usize,
    data: &[u8],
    layout: I2sLayout,
) -> Result<TernaryMatrix, TernaryError> {
    check_bytes(rows, cols, data.len(), size)?;
    let (found, multiple) = (rows * cols, layout.block());
    if !found.is_multiple_of(multiple) {
        return Err(TernaryError::Multiple { what: "the number of weights", found, multiple });
    }
    let (codes, tail) = data.split_at(data.len() - TAIL);
    let scale = f32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
    let flat = match layout {
        I2sLayout::Block128 => decode_128(codes),
        I2sLayout::Block64 => decode_64(codes),
    };
    let words =
        if cols.is_multiple_of(CODES_PER_WORD) { flat } else { pad_rows(&flat, rows, cols) };
    Ok(TernaryMatrix::new(rows, cols, words, WeightScale::Tensor(scale))?)
}

fn decode_128(codes: &[u8]) -> Vec<u32> {
    let mut words = vec![0; codes.len() / 4];
    for (block, out) in codes.as_chunks::<32>().0.iter().zip(words.as_chunks_mut::<8>().0) {
        for (half, bytes) in block.as_chunks::<16>().0.iter().enumerate() {
            let [last, third, second, first] = transpose(load(bytes));
            out[half] = first;
            out[half + 2] = second;
            out[half + 4] = third;
            out[half + 6] = last;
        }
    }
    words
}

fn decode_64(codes: &[u8]) -> Vec<u32> {
    let mut words = vec![0; codes.len() / 4];
    for (block, out) in codes.as_chunks::<16>().0.iter().zip(words.as_chunks_mut::<4>().0) {
        *out = transpose(load(block));
        out.reverse();
    }
    words
}

/// Words of a flat array, cut into rows that do not end where words do.
fn pad_rows(flat: &[u32], rows: usize, cols: usize) -> Vec<u32> {
    let mut codes = flat.iter().flat_map(|&word| codes_from_word(word));
    let mut words = Vec::with_capacity(rows * cols.div_ceil(CODES_PER_WORD));
    for _ in 0..rows {
        for start in (0..cols).step_by(CODES_PER_WORD) {
            let mut word = [1; CODES_PER_WORD];
            for code in &mut word[..CODES_PER_WORD.min(cols - start)] {
                *code = codes.next().expect("the flat array has rows · cols codes");
            }
            words.push(word_from_codes(&word));
        }
    }
    words
}

/// Writes a tensor with its tail. The matrix has one scale and a number of weights that makes whole blocks.
pub fn encode(matrix: &TernaryMatrix, layout: I2sLayout) -> Result<Vec<u8>, TernaryError> {
    let scale = tensor_scale(matrix)?;
    let (found, multiple) = (matrix.rows() * matrix.cols(), layout.block());
    if !found.is_multiple_of(multiple) {
        return Err(TernaryError::Multiple { what: "the number of weights", found, multiple });
    }
    let flat = flatten(matrix);
    let mut data = Vec::with_capacity(found / 4 + TAIL);
    match layout {
        I2sLayout::Block128 => {
            for words in flat.as_chunks::<8>().0 {
                for half in 0..2 {
                    let [a, b, c, d] = [6, 4, 2, 0].map(|group| words[group + half]);
                    data.extend(store(transpose([a, b, c, d])));
                }
            }
        }
        I2sLayout::Block64 => {
            for &[a, b, c, d] in flat.as_chunks::<4>().0 {
                data.extend(store(transpose([d, c, b, a])));
            }
        }
    }
    data.extend(scale.to_le_bytes());
    data.resize(found / 4 + TAIL, 0);
    Ok(data)
}

/// The codes of all rows one after another without padding.
fn flatten(matrix: &TernaryMatrix) -> Vec<u32> {
    let rows = (0..matrix.rows()).map(|row| matrix.row(row));
    if matrix.cols().is_multiple_of(CODES_PER_WORD) {
        return rows.flatten().copied().collect();
    }
    let codes: Vec<u8> = rows
        .flat_map(|row| row.iter().flat_map(|&word| codes_from_word(word)).take(matrix.cols()))
        .collect();
    let (whole, rest) = codes.as_chunks();
    debug_assert!(rest.is_empty(), "whole blocks are whole words");
    whole.iter().map(word_from_codes).collect()
}
