//! On-disk encodings of ternary weights, each to and from the neutral [`TernaryMatrix`]. Only these modules know byte orders.

pub mod float;
pub mod hf;
pub mod i2s;
pub mod tq;
pub mod wf_msb;

use bitnet_kernels::ternary::{InvalidTernary, TernaryMatrix, WeightScale};

/// Weights that an encoding cannot hold, or bytes that do not hold weights.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TernaryError {
    /// Codes, scales or lengths.
    #[error(transparent)]
    Invalid(#[from] InvalidTernary),
    /// A byte count that is not that of the shape.
    #[error("a [{rows}, {cols}] matrix does not fit {found} bytes")]
    Bytes {
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// Bytes given.
        found: usize,
    },
    /// A shape that does not make whole blocks.
    #[error("{what} is {found}, but this encoding needs a multiple of {multiple}")]
    Multiple {
        /// What is counted.
        what: &'static str,
        /// The count.
        found: usize,
        /// What it has to be a multiple of.
        multiple: usize,
    },
    /// A float that is no ternary weight.
    #[error("row {row}, column {col} holds {found}, but {expected}")]
    Value {
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
        /// The value.
        found: f32,
        /// What would be one.
        expected: String,
    },
    /// Scales that this encoding has no place for.
    #[error("the weights have {found}, but this encoding holds {expected}")]
    Scales {
        /// What the matrix has.
        found: &'static str,
        /// What the encoding has.
        expected: &'static str,
    },
}

/// Four little-endian words of a 16-byte block whose byte `4·j + q` holds the codes of elements `16·s + 4·j + q` in bits
/// `2·s`, turned into the neutral words of elements `16·s ..`, for `s` from 0 to 3. It is its own inverse.
///
/// All of I2_S, TQ2_0 and Hugging Face's packing put elements 16, 32 or whole rows apart into one byte, so all of them
/// come down to this transposition of a 4×4 matrix of codes, in two steps of butterflies.
fn transpose(mut words: [u32; 4]) -> [u32; 4] {
    for (low, high) in [(0, 1), (2, 3)] {
        let changed = (words[low] >> 2 ^ words[high]) & 0x3333_3333;
        words[high] ^= changed;
        words[low] ^= changed << 2;
    }
    for (low, high) in [(0, 2), (1, 3)] {
        let changed = (words[low] >> 4 ^ words[high]) & 0x0f0f_0f0f;
        words[high] ^= changed;
        words[low] ^= changed << 4;
    }
    words
}

fn load(block: &[u8; 16]) -> [u32; 4] {
    std::array::from_fn(|j| {
        u32::from_le_bytes([block[4 * j], block[4 * j + 1], block[4 * j + 2], block[4 * j + 3]])
    })
}

fn store(words: [u32; 4]) -> [u8; 16] {
    std::array::from_fn(|i| words[i / 4].to_le_bytes()[i % 4])
}

/// Fails unless `found` bytes are `bytes_of(rows · cols)`.
fn check_bytes(
    rows: usize,
    cols: usize,
    found: usize,
    bytes_of: impl Fn(usize) -> Option<usize>,
) -> Result<(), TernaryError> {
    match rows.checked_mul(cols).and_then(bytes_of) {
        Some(expected) if expected == found => Ok(()),
        _ => Err(TernaryError::Bytes { rows, cols, found }),
    }
}

/// The one scale of a matrix.
fn tensor_scale(matrix: &TernaryMatrix) -> Result<f32, TernaryError> {
    let found = match matrix.scale() {
        WeightScale::Tensor(scale) => return Ok(*scale),
        WeightScale::Rows(_) => "a scale per row",
        WeightScale::Groups { .. } => "a scale per group",
    };
    Err(TernaryError::Scales { found, expected: "one scale" })
}

#[cfg(test)]
mod tests;
