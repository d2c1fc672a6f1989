//! The weights that are not ternary: embedding and output head, in the encodings that files use for them.
//!
//! They stay as they lie in the file, shared with it, and are turned into f32 a row at a time where they are used.

mod blocks;

use bytes::Bytes;

pub(crate) use blocks::half as half_to_f32;

/// How the elements of a [`DenseMatrix`] are stored, all little-endian; the block types are ggml's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenseType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    BF16,
    /// 32 int8 with an f16 scale.
    Q8_0,
    /// 256 six-bit values in 16 scaled groups.
    Q6K,
    /// 256 five-bit values in 8 groups with scale and minimum.
    Q5K,
    /// 256 four-bit values in 8 groups with scale and minimum.
    Q4K,
    /// 32 five-bit values with an f16 scale.
    Q5_0,
    /// 32 four-bit values with an f16 scale.
    Q4_0,
}

impl DenseType {
    /// Elements and bytes of the smallest piece that can be decoded on its own.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (32, 34),
            Self::Q6K => (256, 210),
            Self::Q5K => (256, 176),
            Self::Q4K => (256, 144),
            Self::Q5_0 => (32, 22),
            Self::Q4_0 => (32, 18),
        }
    }

    /// Bytes of a row of `cols` elements, if that is a whole number of blocks and representable.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let (elements, bytes) = self.block();
        cols.is_multiple_of(elements).then(|| (cols / elements).checked_mul(bytes))?
    }
}

/// Parts of a [`DenseMatrix`] that do not fit together.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{found} bytes do not make a [{rows}, {cols}] matrix of {dtype:?}")]
pub struct InvalidDense {
    /// Rows asked for.
    pub rows: usize,
    /// Columns asked for.
    pub cols: usize,
    /// Their encoding.
    pub dtype: DenseType,
    /// Bytes given.
    pub found: usize,
}

/// A matrix `[rows, cols]` of floats in some encoding, row-major.
#[derive(Clone, Debug)]
pub struct DenseMatrix {
    rows: usize,
    cols: usize,
    dtype: DenseType,
    row_bytes: usize,
    data: Bytes,
}

impl DenseMatrix {
    /// Takes `data` as it is; its length must be that of the shape.
    pub fn new(
        rows: usize,
        cols: usize,
        dtype: DenseType,
        data: Bytes,
    ) -> Result<Self, InvalidDense> {
        let invalid = InvalidDense { rows, cols, dtype, found: data.len() };
        let Some(row_bytes) = dtype.row_bytes(cols) else { return Err(invalid) };
        if row_bytes.checked_mul(rows) != Some(data.len()) {
            return Err(invalid);
        }
        Ok(Self { rows, cols, dtype, row_bytes, data })
    }

    /// Rows: the size of the vocabulary.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the hidden size.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How elements are stored.
    pub fn dtype(&self) -> DenseType {
        self.dtype
    }

    /// The stored bytes of one row.
    pub fn row(&self, row: usize) -> &[u8] {
        &self.data[row * self.row_bytes..][..self.row_bytes]
    }

    /// All stored bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// Writes row `row` as f32 into `out`, which has `cols` elements.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        dequantize(self.dtype, self.row(row), out);
    }
}

/// Decodes `data`, whole blocks of `dtype`, into as many elements as `out` has.
///
/// # Panics
/// If the lengths disagree.
#[inline(always)] // so that it is compiled with the instructions of the tier that calls it
pub fn dequantize(dtype: DenseType, data: &[u8], out: &mut [f32]) {
    assert_eq!(dtype.row_bytes(out.len()), Some(data.len()), "whole blocks");
    match dtype {
        DenseType::F32 => blocks::f32(data, out),
        DenseType::F16 => blocks::f16(data, out),
        DenseType::BF16 => blocks::bf16(data, out),
        DenseType::Q8_0 => blocks::q8_0(data, out),
        DenseType::Q6K => blocks::q6_k(data, out),
        DenseType::Q5K => blocks::q5_k(data, out),
        DenseType::Q4K => blocks::q4_k(data, out),
        DenseType::Q5_0 => blocks::q5_0(data, out),
        DenseType::Q4_0 => blocks::q4_0(data, out),
    }
}
