//! Rows of a head, and inputs, as the loops of its product read them: in chunks of four vectors, and what is left.

use super::{CHUNK, Floats};
use crate::dense::{DenseType, dequantize};
use crate::scalar::LANES;

/// A row in chunks of four vectors, and what is left.
pub trait Row: Copy {
    /// Vector `i` of chunk `chunk`.
    fn vector<M: Floats>(self, m: M, chunk: usize, i: usize) -> M::V;
    /// The columns after the last whole chunk, and zeros.
    fn rest(self) -> [f32; CHUNK];
    /// The bytes of a chunk, if it may come from memory.
    #[inline(always)]
    fn stored(&self, _chunk: usize) -> &[u8] {
        &[]
    }
}

/// A row that can be used as it is stored.
pub trait StoredRow<'a>: Row {
    /// Of the bytes of a whole row.
    fn new(bytes: &'a [u8]) -> Self;
}

/// Binary16, or bfloat16 if `BF`.
#[derive(Clone, Copy)]
pub struct HalfRow<'a, const BF: bool> {
    chunks: &'a [[[[u8; 2]; LANES]; 4]],
    rest: &'a [[u8; 2]],
}

impl<'a, const BF: bool> StoredRow<'a> for HalfRow<'a, BF> {
    #[inline(always)]
    fn new(bytes: &'a [u8]) -> Self {
        let (chunks, rest) = bytes.as_chunks::<2>().0.as_chunks::<CHUNK>();
        Self { chunks: chunks.as_flattened().as_chunks::<LANES>().0.as_chunks().0, rest }
    }
}

impl<const BF: bool> Row for HalfRow<'_, BF> {
    #[inline(always)]
    fn vector<M: Floats>(self, m: M, chunk: usize, i: usize) -> M::V {
        let vector = &self.chunks[chunk][i];
        if BF { m.bf16(vector) } else { m.f16(vector) }
    }

    #[inline(always)]
    fn stored(&self, chunk: usize) -> &[u8] {
        self.chunks[chunk].as_flattened().as_flattened()
    }

    #[inline(always)]
    fn rest(self) -> [f32; CHUNK] {
        let mut y = [0.0; CHUNK];
        let dtype = if BF { DenseType::BF16 } else { DenseType::F16 };
        dequantize(dtype, self.rest.as_flattened(), &mut y[..self.rest.len()]);
        y
    }
}

/// Binary32 as stored.
#[derive(Clone, Copy)]
pub struct F32Row<'a> {
    chunks: &'a [[[[u8; 4]; LANES]; 4]],
    rest: &'a [[u8; 4]],
}

impl<'a> StoredRow<'a> for F32Row<'a> {
    #[inline(always)]
    fn new(bytes: &'a [u8]) -> Self {
        let (chunks, rest) = bytes.as_chunks::<4>().0.as_chunks::<CHUNK>();
        Self { chunks: chunks.as_flattened().as_chunks::<LANES>().0.as_chunks().0, rest }
    }
}

impl Row for F32Row<'_> {
    #[inline(always)]
    fn vector<M: Floats>(self, m: M, chunk: usize, i: usize) -> M::V {
        m.f32(&self.chunks[chunk][i])
    }

    #[inline(always)]
    fn stored(&self, chunk: usize) -> &[u8] {
        self.chunks[chunk].as_flattened().as_flattened()
    }

    #[inline(always)]
    fn rest(self) -> [f32; CHUNK] {
        let mut y = [0.0; CHUNK];
        dequantize(DenseType::F32, self.rest.as_flattened(), &mut y[..self.rest.len()]);
        y
    }
}

/// A row, or an input, in memory as floats.
#[derive(Clone, Copy)]
pub struct Plain<'a> {
    pub chunks: &'a [[f32; CHUNK]],
    pub rest: &'a [f32],
}

impl<'a> Plain<'a> {
    #[inline(always)]
    pub fn new(values: &'a [f32]) -> Self {
        let (chunks, rest) = values.as_chunks();
        Self { chunks, rest }
    }
}

impl Row for Plain<'_> {
    #[inline(always)]
    fn vector<M: Floats>(self, m: M, chunk: usize, i: usize) -> M::V {
        m.load(&self.chunks[chunk].as_chunks::<LANES>().0[i])
    }

    #[inline(always)]
    fn rest(self) -> [f32; CHUNK] {
        let mut y = [0.0; CHUNK];
        y[..self.rest.len()].copy_from_slice(self.rest);
        y
    }
}
