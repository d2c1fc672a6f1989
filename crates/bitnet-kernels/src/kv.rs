//! The bytes of one layer's paged key-value cache.
//!
//! A page holds [`PAGE`] positions of all heads. The share of one head, a part, is contiguous: keys, values, and for the
//! types that have them a scale for each position's key and one for its value, all little-endian. Which page belongs to which
//! sequence is decided elsewhere; here a position is a slot, `page · PAGE + offset`.
//!
//! Floats lie so that a query meets sixteen keys at once and no sum runs across a vector: keys are blocks of
//! `[head_dim, BLOCK]`, values `[PAGE, head_dim]`. Integers lie as the instructions want them that multiply four neighbouring
//! bytes: keys are blocks of sixteen positions, `[head_dim / 4, BLOCK, 4]`, with 128 added; values are blocks of sixteen
//! elements, `[PAGE / 4, BLOCK, 4 positions]`. There `head_dim` is rounded up to a multiple of sixteen.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Positions per page.
pub const PAGE: usize = 64;

/// Positions per block.
pub const BLOCK: usize = 16;

/// What the cache's bytes begin at a multiple of: a line of the processor's cache, so that no vector lies across two.
const ALIGNMENT: usize = 64;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// 4 bytes, nothing lost.
    F32,
    /// 2 bytes; what lies beyond ±65504 becomes that.
    #[default]
    F16,
    /// 2 bytes: the upper half of binary32, rounded.
    Bf16,
    /// 1 byte and a scale for each position and head, in which attention is integer arithmetic.
    Int8,
    /// 1 byte with 4 bits of exponent and 3 of mantissa, and a scale for each position and head.
    Fp8E4m3,
}

impl KvType {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Int8, Self::Fp8E4m3];

    /// The name, which [`str::parse`] reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Fp8E4m3 => "fp8_e4m3",
        }
    }

    /// Bytes of one stored element, scales apart.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 | Self::Fp8E4m3 => 1,
        }
    }

    /// Whether each position and head has a scale for its key and one for its value.
    pub fn has_scales(self) -> bool {
        matches!(self, Self::Int8 | Self::Fp8E4m3)
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvType {
    type Err = UnknownKvType;

    fn from_str(name: &str) -> Result<Self, UnknownKvType> {
        let found = Self::ALL.into_iter().find(|dtype| dtype.name() == name);
        found.ok_or_else(|| UnknownKvType { name: name.to_owned() })
    }
}

/// Not the name of a type for keys and values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is no type of keys and values")]
pub struct UnknownKvType {
    /// The name given.
    pub name: String,
}

impl UnknownKvType {
    /// What to try instead.
    pub fn help(&self) -> String {
        format!("types are {}", KvType::ALL.map(KvType::name).join(", "))
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
    /// Bytes that one position takes in one layer, scales and padding included.
    pub fn bytes_per_position(&self) -> usize {
        self.kv_heads * self.part_bytes() / PAGE
    }

    /// Elements of a head as they are stored, padding included.
    pub fn stored_dim(&self) -> usize {
        match self.dtype {
            KvType::Int8 => self.head_dim.next_multiple_of(BLOCK),
            _ => self.head_dim,
        }
    }

    /// Bytes of a head's keys in a page, and of its values.
    fn half_bytes(&self) -> usize {
        PAGE * self.stored_dim() * self.dtype.bytes()
    }

    /// Bytes of a head's share of a page.
    fn part_bytes(&self) -> usize {
        let scale = if self.dtype.has_scales() { size_of::<f32>() } else { 0 };
        2 * (self.half_bytes() + PAGE * scale)
    }
}

/// Keys and values of one layer.
#[derive(Clone, Debug)]
pub struct KvLayer {
    shape: KvShape,
    /// Where in `data` the first page begins.
    start: usize,
    data: Vec<u8>,
}

/// A head's share of a page, `B` being its bytes.
#[derive(Clone, Copy, Debug)]
pub struct KvPart<B> {
    shape: KvShape,
    bytes: B,
}

/// A head's share of a page, to be written.
#[derive(Debug)]
pub struct KvPartMut<'a> {
    /// The head.
    pub head: usize,
    /// Which of the slots that were asked for lie here, as a range of [`KvParts::order`].
    pub slots: Range<usize>,
    /// The share.
    pub part: KvPart<&'a mut [u8]>,
}

/// What writing to some slots writes to.
#[derive(Debug)]
pub struct KvParts<'a> {
    /// Indices of the slots, in the order of what they are.
    pub order: Vec<u32>,
    /// The heads' shares of all pages that the slots lie in, each to be written by itself.
    pub parts: Vec<KvPartMut<'a>>,
}

impl KvLayer {
    /// Room for all pages, zeroed. The system hands out the memory when it is first written.
    pub fn new(shape: KvShape) -> Self {
        let bytes = shape.pages * shape.kv_heads * shape.part_bytes();
        let data = vec![0; bytes + ALIGNMENT];
        // If an alignment cannot be had, the cache works without.
        let start = Some(data.as_ptr().align_offset(ALIGNMENT)).filter(|&x| x <= ALIGNMENT);
        Self { shape, start: start.unwrap_or(0), data }
    }

    /// The shape.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    fn offset(&self, page: usize, head: usize) -> usize {
        self.start + (page * self.shape.kv_heads + head) * self.shape.part_bytes()
    }

    /// One head's share of a page.
    pub fn part(&self, page: usize, head: usize) -> KvPart<&[u8]> {
        let bytes = &self.data[self.offset(page, head)..][..self.shape.part_bytes()];
        KvPart { shape: self.shape, bytes }
    }

    /// The shares of all heads in all pages that some slots lie in, which different threads may write.
    pub fn parts_mut(&mut self, slots: &[u32]) -> KvParts<'_> {
        let page = |index: u32| slots[index as usize] as usize / PAGE;
        let mut order: Vec<u32> = (0..slots.len() as u32).collect();
        order.sort_unstable_by_key(|&index| slots[index as usize]);
        let (shape, mut at) = (self.shape, self.start);
        let mut rest = &mut self.data[at..];
        let (mut parts, mut first) = (Vec::new(), 0);
        for run in order.chunk_by(|&a, &b| page(a) == page(b)) {
            let offset = self.start + page(run[0]) * shape.kv_heads * shape.part_bytes();
            rest = rest.split_at_mut(offset - at).1;
            at = offset + shape.kv_heads * shape.part_bytes();
            let (heads, after) = rest.split_at_mut(at - offset);
            rest = after;
            let slots = first..first + run.len();
            first += run.len();
            let heads = heads.chunks_exact_mut(shape.part_bytes()).enumerate();
            parts.extend(heads.map(|(head, bytes)| {
                let part = KvPart { shape, bytes };
                KvPartMut { head, slots: slots.clone(), part }
            }));
        }
        KvParts { order, parts }
    }
}

impl<B> KvPart<B> {
    /// The shape of the layer.
    pub fn shape(&self) -> KvShape {
        self.shape
    }
}

impl<'a> KvPart<&'a [u8]> {
    /// The keys of all positions; see the module for how they lie.
    pub fn keys(&self) -> &'a [u8] {
        &self.bytes[..self.shape.half_bytes()]
    }

    /// The values of all positions; see the module for how they lie.
    pub fn values(&self) -> &'a [u8] {
        &self.bytes[self.shape.half_bytes()..][..self.shape.half_bytes()]
    }

    /// The scale of each position's key, and of its value; empty for types without.
    pub fn scales(&self) -> [&'a [[u8; 4]]; 2] {
        let scales = self.bytes[2 * self.shape.half_bytes()..].as_chunks().0;
        let (keys, values) = scales.split_at(scales.len() / 2);
        [keys, values]
    }
}

impl KvPart<&mut [u8]> {
    /// As [`KvPart::keys`] and [`KvPart::values`], to be written.
    pub fn halves_mut(&mut self) -> (&mut [u8], &mut [u8]) {
        let half = self.shape.half_bytes();
        self.bytes[..2 * half].split_at_mut(half)
    }

    /// As [`KvPart::scales`], to be written.
    pub fn scales_mut(&mut self) -> [&mut [[u8; 4]]; 2] {
        let scales = self.bytes[2 * self.shape.half_bytes()..].as_chunks_mut().0;
        let (keys, values) = scales.split_at_mut(scales.len() / 2);
        [keys, values]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(head_dim: usize, dtype: KvType) -> KvShape {
        KvShape { pages: 3, kv_heads: 2, head_dim, dtype }
    }

    #[test]
    fn a_position_takes_its_elements_and_scales() {
        let bytes = KvType::ALL.map(|dtype| shape(128, dtype).bytes_per_position());
        assert_eq!(bytes, [2048, 1024, 1024, 528, 528]);
        assert_eq!(shape(100, KvType::Int8).bytes_per_position(), 2 * (2 * 112 + 8));
    }

    #[test]
    fn every_name_is_read_and_others_are_refused() {
        for dtype in KvType::ALL {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        let error = "f8".parse::<KvType>().unwrap_err();
        assert_eq!(error.to_string(), "`f8` is no type of keys and values");
        assert_eq!(error.help(), "types are f32, f16, bf16, int8, fp8_e4m3");
    }

    #[test]
    fn parts_to_write_are_those_to_read() {
        let mut layer = KvLayer::new(shape(4, KvType::Int8));
        let slots = [2 * PAGE as u32 + 5, 7, 2 * PAGE as u32];
        let KvParts { order, mut parts } = layer.parts_mut(&slots);
        assert_eq!(order, [1, 2, 0]);
        let found: Vec<_> = parts.iter().map(|part| (part.head, part.slots.clone())).collect();
        assert_eq!(found, [(0, 0..1), (1, 0..1), (0, 1..3), (1, 1..3)]);
        for (mark, KvPartMut { part, .. }) in (1..).zip(&mut parts) {
            part.halves_mut().0.fill(mark);
            part.halves_mut().1.fill(mark + 10);
            part.scales_mut().into_iter().for_each(|scales| scales.fill([mark + 20; 4]));
        }
        for (page, head, mark) in [(0, 0, 1), (0, 1, 2), (1, 0, 0), (1, 1, 0), (2, 0, 3), (2, 1, 4)] {
            let part = layer.part(page, head);
            let other = |offset| if mark == 0 { 0 } else { mark + offset };
            assert!(part.keys().iter().all(|&x| x == mark) && part.keys().len() == 16 * PAGE);
            assert!(part.values().iter().all(|&x| x == other(10)));
            let scales = part.scales();
            assert!(scales.iter().all(|scales| scales.len() == PAGE));
            assert!(scales.concat().iter().all(|&x| x == [other(20); 4]));
        }
    }

    #[test]
    fn pages_begin_at_a_cache_line() {
        let layer = KvLayer::new(shape(16, KvType::Int8));
        assert_eq!(layer.part(0, 0).keys().as_ptr().align_offset(ALIGNMENT), 0);
    }
}
