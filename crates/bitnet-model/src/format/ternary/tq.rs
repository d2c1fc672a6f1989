//! TQ1_0 and TQ2_0, ggml's ternary blocks of 256 weights with an f16 scale at the end of each.
//!
//! TQ2_0, 66 bytes: weight `128·h + 32·l + m` in bits `2·l` of byte `32·h + m`.
//! TQ1_0, 54 bytes: five base-3 digits to a byte, of the number `n` as `ceil(n · 256 / 243)`. 32 bytes hold weights `32·k + m`, 16 bytes weights
//! `160 + 16·k + m`, and 4 bytes of four digits weights `240 + 4·k + m`, where `k` is the digit and `m` the byte.

use bitnet_kernels::ternary::{
    CODES_PER_WORD, TernaryMatrix, WeightScale, ZERO_WORD, codes_from_word, word_from_codes,
};
use half::f16;

use super::{TernaryError, check_bytes, load, store, transpose};

/// Weights per block.
const BLOCK: usize = 256;
const WORDS: usize = BLOCK / CODES_PER_WORD;
const TQ1_BYTES: usize = 54;
const TQ2_BYTES: usize = 66;

/// Reads TQ1_0. Rows are whole blocks.
pub fn decode_tq1(rows: usize, cols: usize, data: &[u8]) -> Result<TernaryMatrix, TernaryError> {
    decode::<TQ1_BYTES>(rows, cols, data, tq1_block)
}

/// Reads TQ2_0. Rows are whole blocks.
pub fn decode_tq2(rows: usize, cols: usize, data: &[u8]) -> Result<TernaryMatrix, TernaryError> {
    decode::<TQ2_BYTES>(rows, cols, data, tq2_block)
}

fn decode<const BYTES: usize>(
    rows: usize,
    cols: usize,
    data: &[u8],
    decode_block: impl Fn(&[u8; BYTES], &mut [u32; WORDS]),
) -> Result<TernaryMatrix, TernaryError> {
    check_cols(cols)?;
    check_bytes(rows, cols, data.len(), |weights| (weights / BLOCK).checked_mul(BYTES))?;
    let (blocks, _) = data.as_chunks::<BYTES>();
    let mut words = vec![0; blocks.len() * WORDS];
    let mut scales = Vec::with_capacity(blocks.len());
    for (block, out) in blocks.iter().zip(words.as_chunks_mut().0) {
        decode_block(block, out);
        let scale = f16::from_le_bytes([block[BYTES - 2], block[BYTES - 1]]).to_f32();
        // The scale of a block of zeros means nothing, and ggml writes 0 there; but damage has to show.
        let means_nothing = *out == [ZERO_WORD; WORDS] && scale.is_finite();
        scales.push((!means_nothing).then_some(scale));
    }
    Ok(TernaryMatrix::new(rows, cols, words, simplest_scale(&scales, cols / BLOCK))?)
}

/// One scale if all blocks that have one agree, else one per row, else one per block.
fn simplest_scale(scales: &[Option<f32>], per_row: usize) -> WeightScale {
    let common = |scales: &[Option<f32>]| {
        let first = scales.iter().flatten().next().copied().unwrap_or(0.0);
        scales.iter().flatten().all(|&scale| scale == first).then_some(first)
    };
    if let Some(scale) = common(scales) {
        return WeightScale::Tensor(scale);
    }
    match scales.chunks(per_row).map(common).collect() {
        Some(rows) => WeightScale::Rows(rows),
        None => {
            let scales = scales.iter().map(|scale| scale.unwrap_or(0.0)).collect();
            WeightScale::Groups { size: BLOCK, scales }
        }
    }
}

fn tq2_block(block: &[u8; TQ2_BYTES], words: &mut [u32; WORDS]) {
    for (h, bytes) in block.as_chunks::<32>().0.iter().enumerate() {
        for (half, bytes) in bytes.as_chunks::<16>().0.iter().enumerate() {
            for (l, word) in transpose(load(bytes)).into_iter().enumerate() {
                words[8 * h + 2 * l + half] = word;
            }
        }
    }
}

fn tq1_block(block: &[u8; TQ1_BYTES], words: &mut [u32; WORDS]) {
    let mut codes = [0; BLOCK];
    let mut power = 1;
    for k in 0..5 {
        for m in 0..32 {
            codes[32 * k + m] = digit(block[m], power);
        }
        for m in 0..16 {
            codes[160 + 16 * k + m] = digit(block[32 + m], power);
        }
        if k < 4 {
            for m in 0..4 {
                codes[240 + 4 * k + m] = digit(block[48 + m], power);
            }
        }
        power = power.wrapping_mul(3);
    }
    for (codes, word) in codes.as_chunks().0.iter().zip(words) {
        *word = word_from_codes(codes);
    }
}

/// A digit of a byte that stores the five-digit base-3 number `n` as `ceil(n · 256 / 243)`: as a fraction of 256 it starts
/// with `n`'s digits. Multiplying by `power = 3^k` and dropping whole parts brings digit `k` to the front.
fn digit(byte: u8, power: u8) -> u8 {
    let fraction = byte.wrapping_mul(power);
    ((u16::from(fraction) * 3) >> 8) as u8
}

/// Writes TQ1_0. Scales are rounded to f16; those of zero blocks become 0, as in ggml.
pub fn encode_tq1(matrix: &TernaryMatrix) -> Result<Vec<u8>, TernaryError> {
    encode(matrix, |words, data| {
        let codes: Vec<u8> = words.iter().flat_map(|&word| codes_from_word(word)).collect();
        let mut group = |start: usize, bytes: usize, digits: usize| {
            for m in 0..bytes {
                let number = (0..5).fold(0, |number, k| {
                    3 * number
                        + if k < digits { u16::from(codes[start + bytes * k + m]) } else { 0 }
                });
                data.push((number * 256).div_ceil(243) as u8);
            }
        };
        group(0, 32, 5);
        group(160, 16, 5);
        group(240, 4, 4);
    })
}

/// Writes TQ2_0. Scales are rounded to f16; those of zero blocks become 0, as in ggml.
pub fn encode_tq2(matrix: &TernaryMatrix) -> Result<Vec<u8>, TernaryError> {
    encode(matrix, |words, data| {
        for half_block in words.as_chunks::<8>().0 {
            for half in 0..2 {
                let quad = std::array::from_fn(|l| half_block[2 * l + half]);
                data.extend(store(transpose(quad)));
            }
        }
    })
}

fn encode(
    matrix: &TernaryMatrix,
    encode_block: impl Fn(&[u32; WORDS], &mut Vec<u8>),
) -> Result<Vec<u8>, TernaryError> {
    check_cols(matrix.cols())?;
    let scale = scale_of_block(matrix)?;
    let mut data = Vec::new();
    for row in 0..matrix.rows() {
        for (index, block) in matrix.row(row).as_chunks().0.iter().enumerate() {
            encode_block(block, &mut data);
            let scale = if *block == [ZERO_WORD; WORDS] { 0.0 } else { scale(row, index) };
            data.extend(f16::from_f32(scale).to_le_bytes());
        }
    }
    Ok(data)
}

/// The scale of block `index` of row `row`.
fn scale_of_block(matrix: &TernaryMatrix) -> Result<impl Fn(usize, usize) -> f32, TernaryError> {
    let per_row = matrix.cols() / BLOCK;
    let scale = matrix.scale();
    if matches!(scale, WeightScale::Groups { size, .. } if *size != BLOCK) {
        let (found, expected) = ("a scale per group of another size", "one per 256 weights");
        return Err(TernaryError::Scales { found, expected });
    }
    Ok(move |row: usize, index: usize| match scale {
        WeightScale::Tensor(scale) => *scale,
        WeightScale::Rows(scales) => scales[row],
        WeightScale::Groups { scales, .. } => scales[row * per_row + index],
    })
}

fn check_cols(cols: usize) -> Result<(), TernaryError> {
    if cols.is_multiple_of(BLOCK) {
        return Ok(());
    }
    Err(TernaryError::Multiple { what: "the number of columns", found: cols, multiple: BLOCK })
}
