//! `wf-msb`, the order of one vLLM-style fork: row-major `uint8 [rows, cols / 4]`, the first weight in the most significant bits.
//!
//! Weight `4·c + i` of a row lies in bits `6 - 2·i` of its byte `c`; the scale is a tensor of its own.

use bitnet_kernels::ternary::{
    CODES_PER_WORD, TernaryMatrix, WeightScale, codes_from_word, words_per_row,
};

use super::{TernaryError, check_bytes};

/// The four codes of every byte, in the order of their weights and one byte each: a lookup instead of four shifts.
const CODES_OF_BYTE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut i = 0;
        while i < 4 {
            table[byte] |= (byte as u32 >> (6 - 2 * i) & 3) << (8 * i);
            i += 1;
        }
        byte += 1;
    }
    table
};

/// The four weights of a byte, or nothing if one of them has code 3.
pub fn unpack(byte: u8) -> Option<[i8; 4]> {
    let codes = CODES_OF_BYTE[usize::from(byte)].to_le_bytes();
    codes.iter().all(|&code| code < 3).then(|| codes.map(|code| code as i8 - 1))
}

/// Reads packed bytes of a `[rows, cols]` matrix.
pub fn decode(
    rows: usize,
    cols: usize,
    data: &[u8],
    scale: f32,
) -> Result<TernaryMatrix, TernaryError> {
    check_cols(cols)?;
    check_bytes(rows, cols, data.len(), |weights| Some(weights / 4))?;
    let mut words = Vec::with_capacity(rows * words_per_row(cols));
    for row in data.chunks((cols / 4).max(1)) {
        let (whole, rest) = row.as_chunks::<{ CODES_PER_WORD / 4 }>();
        words.extend(whole.iter().map(|bytes| word(bytes)));
        if !rest.is_empty() {
            words.push(word(rest));
        }
    }
    Ok(TernaryMatrix::new(rows, cols, words, WeightScale::Tensor(scale))?)
}

/// The neutral word of up to four bytes.
fn word(bytes: &[u8]) -> u32 {
    let codes = bytes.iter().map(|&byte| CODES_OF_BYTE[usize::from(byte)]);
    codes.enumerate().fold(0, |word, (j, codes)| word | codes << (2 * j))
}

/// Packs the codes; the scale is left to the caller.
pub fn encode(matrix: &TernaryMatrix) -> Result<Vec<u8>, TernaryError> {
    check_cols(matrix.cols())?;
    let byte = |codes: &[u8; 4]| codes.iter().fold(0, |byte, &code| byte << 2 | code);
    let mut data = Vec::with_capacity(matrix.rows() * matrix.cols() / 4);
    for row in 0..matrix.rows() {
        let end = data.len() + matrix.cols() / 4;
        for &word in matrix.row(row) {
            data.extend(codes_from_word(word).as_chunks().0.iter().map(byte));
        }
        data.truncate(end);
    }
    Ok(data)
}

fn check_cols(cols: usize) -> Result<(), TernaryError> {
    if cols.is_multiple_of(4) {
        return Ok(());
    }
    Err(TernaryError::Multiple { what: "the number of columns", found: cols, multiple: 4 })
}
