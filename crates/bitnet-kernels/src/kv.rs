//! The bytes of one layer's paged key-value cache.
//!
//! A page holds [`PAGE`] positions of all heads: per head first its keys, `[PAGE, head_dim]`, then its values. Which page belongs
//! to which sequence is decided elsewhere; here a position is a slot, `page · PAGE + offset`.

use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;

/// Positions per page.
pub const PAGE: usize = 64;

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

/// One head's keys or values on one page, `[positions, head_dim]`, as they are stored.
#[derive(Clone, Copy, Debug)]
pub enum KvRows<'a> {
    /// Plain floats.
    F32(&'a [f32]),
    /// Half floats.
    F16(&'a [f16]),
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

    fn offset(&self, page: usize, head: usize, values: bool) -> usize {
        ((page * self.shape.kv_heads + head) * 2 + usize::from(values)) * PAGE * self.shape.head_dim
    }

    /// Stores keys and values of one position, `[kv_heads · head_dim]` each.
    pub fn store(&mut self, slot: usize, k: &[f32], v: &[f32]) {
        let dim = self.shape.head_dim;
        for head in 0..self.shape.kv_heads {
            for (values, source) in [(false, k), (true, v)] {
                let start = self.offset(slot / PAGE, head, values) + slot % PAGE * dim;
                let source = &source[head * dim..][..dim];
                match &mut self.data {
                    KvData::F32(data) => data[start..][..dim].copy_from_slice(source),
                    KvData::F16(data) => data[start..][..dim].convert_from_f32_slice(source),
                }
            }
        }
    }

    /// The keys of the first `positions` positions of a page.
    pub fn keys(&self, page: usize, head: usize, positions: usize) -> KvRows<'_> {
        self.rows(self.offset(page, head, false), positions)
    }

    /// The values of the first `positions` positions of a page.
    pub fn values(&self, page: usize, head: usize, positions: usize) -> KvRows<'_> {
        self.rows(self.offset(page, head, true), positions)
    }

    fn rows(&self, start: usize, positions: usize) -> KvRows<'_> {
        let range = start..start + positions * self.shape.head_dim;
        match &self.data {
            KvData::F32(data) => KvRows::F32(&data[range]),
            KvData::F16(data) => KvRows::F16(&data[range]),
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
            layer.store(2 * PAGE + 5, &row(100.0), &row(200.0));
            let at = |rows: KvRows<'_>| match rows {
                KvRows::F32(x) => x[5 * 4..].to_vec(),
                KvRows::F16(x) => x[5 * 4..].to_f32_vec(),
            };
            assert_eq!(at(layer.keys(2, 1, 6)), [104.0, 105.0, 106.0, 107.0]);
            assert_eq!(at(layer.values(2, 0, 6)), [200.0, 201.0, 202.0, 203.0]);
        }
    }
}
