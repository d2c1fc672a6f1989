//! The bytes of one layer's paged key-value cache.
//!
//! A page holds [`PAGE`] positions of all heads, per head first its keys, then its values, both in blocks of [`BLOCK`] positions.
//! A block of keys is `[head_dim, BLOCK]`, so that a query meets sixteen keys at once and no sum runs across a vector; a block of
//! values is `[BLOCK, head_dim]`. Which page belongs to which sequence is decided elsewhere; here a position is a slot,
//! `page · PAGE + offset`.

use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;

use crate::dense::half_to_f32;

/// Positions per page.
pub const PAGE: usize = 64;

/// Positions per block.
pub const BLOCK: usize = 16;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 4 bytes, nothing lost.
    F32,
    /// 2 bytes.
    #[default]
    F16,
}

impl KvType {
    /// Bytes of one stored element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// The shape of one layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Pages of [`PAGE`] positions.
    pub pages: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// How elements are stored.
    pub dtype: KvType,
}

impl KvShape {
    /// Bytes that one position takes in one layer.
    pub fn bytes_per_position(&self) -> usize {
        2 * self.kv_heads * self.head_dim * self.dtype.bytes()
    }
}

/// Keys and values of one layer.
#[derive(Clone, Debug)]
pub struct KvLayer {
    shape: KvShape,
    data: KvData,
}

#[derive(Clone, Debug)]
enum KvData {
    F32(Vec<f32>),
    F16(Vec<f16>),
}

/// A block of one head's keys or values, as it is stored.
#[derive(Clone, Copy, Debug)]
pub enum KvBlock<'a> {
    /// Plain floats.
    F32(&'a [f32]),
    /// Half floats.
    F16(&'a [f16]),
}

impl KvBlock<'_> {
    /// Writes the block's `BLOCK · head_dim` elements as f32.
    #[inline(always)]
    pub fn read(self, out: &mut [f32]) {
        match self {
            Self::F32(block) => out.copy_from_slice(block),
            Self::F16(block) => {
                for (y, x) in out.iter_mut().zip(block) {
                    *y = half_to_f32(x.to_bits());
                }
            }
        }
    }
}

impl KvLayer {
    /// Room for all pages, zeroed. The system hands out the memory when it is first written.
    pub fn new(shape: KvShape) -> Self {
        let elements = shape.pages * PAGE * 2 * shape.kv_heads * shape.head_dim;
        let data = match shape.dtype {
            KvType::F32 => KvData::F32(vec![0.0; elements]),
            // Integers, because a vector of `f16::ZERO` would be written, and so use all its memory at once.
            KvType::F16 => KvData::F16(vec![0u16; elements].reinterpret_into()),
        };
        Self { shape, data }
    }

    /// The shape.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Where a block begins; blocks of a page are counted through.
    fn offset(&self, page: usize, head: usize, values: bool, block: usize) -> usize {
        let part = (page * self.shape.kv_heads + head) * 2 + usize::from(values);
        (part * PAGE + block * BLOCK) * self.shape.head_dim
    }

    /// Stores keys and values of one position, `[kv_heads · head_dim]` each.
    pub fn store(&mut self, slot: usize, k: &[f32], v: &[f32]) {
        let dim = self.shape.head_dim;
        let (page, block, place) = (slot / PAGE, slot % PAGE / BLOCK, slot % BLOCK);
        for (head, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
            let keys = self.offset(page, head, false, block)..;
            let values = self.offset(page, head, true, block) + place * dim..;
            match &mut self.data {
                KvData::F32(data) => {
                    let column = data[keys].iter_mut().skip(place).step_by(BLOCK);
                    column.zip(k).for_each(|(y, &x)| *y = x);
                    data[values][..dim].copy_from_slice(v);
                }
                KvData::F16(data) => {
                    let column = data[keys].iter_mut().skip(place).step_by(BLOCK);
                    column.zip(k).for_each(|(y, &x)| *y = f16::from_f32(x));
                    data[values][..dim].convert_from_f32_slice(v);
                }
            }
        }
    }

    /// Keys of the positions from `start` on, a multiple of [`BLOCK`] within a page: `[head_dim, BLOCK]`.
    pub fn keys(&self, page: usize, head: usize, start: usize) -> KvBlock<'_> {
        self.block(self.offset(page, head, false, start / BLOCK))
    }

    /// Values of the positions from `start` on, a multiple of [`BLOCK`] within a page: `[BLOCK, head_dim]`.
    pub fn values(&self, page: usize, head: usize, start: usize) -> KvBlock<'_> {
        self.block(self.offset(page, head, true, start / BLOCK))
    }

    fn block(&self, start: usize) -> KvBlock<'_> {
        let range = start..start + BLOCK * self.shape.head_dim;
        match &self.data {
            KvData::F32(data) => KvBlock::F32(&data[range]),
            KvData::F16(data) => KvBlock::F16(&data[range]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_found_at_its_page_head_and_place() {
        for dtype in [KvType::F32, KvType::F16] {
            let mut layer = KvLayer::new(KvShape { pages: 3, kv_heads: 2, head_dim: 4, dtype });
            let row = |base: f32| (0..8).map(|i| base + i as f32).collect::<Vec<_>>();
            layer.store(2 * PAGE + 2 * BLOCK + 5, &row(100.0), &row(200.0));
            let mut block = [0.0; 4 * BLOCK];
            layer.keys(2, 1, 2 * BLOCK).read(&mut block);
            let column: Vec<f32> = block.iter().skip(5).step_by(BLOCK).copied().collect();
            assert_eq!(column, [104.0, 105.0, 106.0, 107.0]);
            assert_eq!(block.iter().filter(|&&x| x != 0.0).count(), 4);
            layer.values(2, 0, 2 * BLOCK).read(&mut block);
            assert_eq!(block[5 * 4..6 * 4], [200.0, 201.0, 202.0, 203.0]);
        }
    }
}
