//! The bytes of one layer's paged key-value cache.
//!
//! A page holds [`PAGE`] positions of all heads, and [`GROUP`] pages lie together: of each head first the keys of all of them,
//! then the values, and for the types that have them a scale for each position's key and one for its value, all little-endian.
//! Memory is read fast only in long runs, and a sequence often has neighbouring pages. Which page belongs to which sequence is
//! decided elsewhere; here a position is a slot, `page · PAGE + offset`.
//!
//! Floats lie so that a query meets sixteen keys at once and no sum runs across a vector: keys are blocks of
//! `[head_dim, BLOCK]`, values `[PAGE, head_dim]`. Integers lie as the instructions want them that multiply four neighbouring
//! bytes: keys are blocks of sixteen positions, `[head_dim / 4, BLOCK, 4]`, with 128 added; values are blocks of sixteen
//! elements, `[PAGE / 4, BLOCK, 4 positions]`. There `head_dim` is rounded up to a multiple of sixteen.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::memory::{Line, Lines};

/// Positions per page.
pub const PAGE: usize = 64;

/// Pages that lie together.
pub const GROUP: usize = 4;

/// Positions per block.
pub const BLOCK: usize = 16;

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

    /// Bytes of a head's share of a group.
    pub fn share_bytes(&self) -> usize {
        GROUP * self.part_bytes()
    }

    /// Bytes of all heads' shares of a group.
    pub fn group_bytes(&self) -> usize {
        self.kv_heads * self.share_bytes()
    }
}

/// Keys and values of one layer.
#[derive(Clone, Debug)]
pub struct KvLayer {
    shape: KvShape,
    /// All groups.
    data: Lines,
}

/// A head's share of a page.
#[derive(Clone, Copy, Debug)]
pub struct KvPart<'a> {
    shape: KvShape,
    /// The head's share of the group.
    bytes: &'a [u8],
    /// The page within the group.
    page: usize,
}

/// A head's share of a group of pages, to be written.
#[derive(Debug)]
pub struct KvPartMut<'a> {
    shape: KvShape,
    bytes: &'a mut [u8],
}

impl KvLayer {
    /// Room for all pages, zeroed. The system hands out the memory when it is first written.
    pub fn new(shape: KvShape) -> Self {
        let bytes = shape.pages.div_ceil(GROUP) * shape.group_bytes();
        Self { shape, data: Lines::zeroed(bytes.div_ceil(size_of::<Line>())) }
    }

    /// The shape.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// All bytes, whether they have ever been written or not.
    pub fn bytes(&self) -> &[u8] {
        self.data.bytes()
    }

    /// Gives the memory of pages back to the system whose content is of no use any more, as far as they are whole groups.
    ///
    /// # Panics
    /// If there are no such pages.
    pub fn give_back(&mut self, pages: Range<usize>) {
        assert!(pages.end <= self.shape.pages, "pages {pages:?} of {}", self.shape.pages);
        // The last group may have fewer pages than others.
        let end = if pages.end == self.shape.pages {
            pages.end.div_ceil(GROUP)
        } else {
            pages.end / GROUP
        };
        let (start, bytes) = (pages.start.div_ceil(GROUP), self.shape.group_bytes());
        if start < end {
            self.data.give_back(start * bytes..end * bytes);
        }
    }

    /// One head's share of a page.
    pub fn part(&self, page: usize, head: usize) -> KvPart<'_> {
        let len = self.shape.share_bytes();
        let start = page / GROUP * self.shape.group_bytes() + head * len;
        KvPart { shape: self.shape, bytes: &self.data.bytes()[start..][..len], page: page % GROUP }
    }

    /// The head's share of the group that a slot lies in.
    pub fn part_mut(&mut self, slot: usize, head: usize) -> KvPartMut<'_> {
        let (shape, bytes, share) =
            (self.shape, self.shape.group_bytes(), self.shape.share_bytes());
        let start = slot / (GROUP * PAGE) * bytes + head * share;
        KvPartMut::new(shape, &mut self.data.bytes_mut()[start..][..share])
    }

    /// The bytes of all groups, one after the other. A group has the shares of all heads, one after the other, of
    /// [`KvShape::share_bytes`] each.
    pub fn groups_mut(&mut self) -> &mut [u8] {
        let bytes = self.shape.pages.div_ceil(GROUP) * self.shape.group_bytes();
        &mut self.data.bytes_mut()[..bytes]
    }
}

impl<'a> KvPart<'a> {
    /// The shape of the layer.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// The keys of all positions; see the module for how they lie.
    pub fn keys(&self) -> &'a [u8] {
        let half = self.shape.half_bytes();
        &self.bytes[self.page * half..][..half]
    }

    /// The values of all positions; see the module for how they lie.
    pub fn values(&self) -> &'a [u8] {
        let half = self.shape.half_bytes();
        &self.bytes[(GROUP + self.page) * half..][..half]
    }

    /// The scale of each position's key, and of its value; empty for types without.
    pub fn scales(&self) -> [&'a [[u8; 4]]; 2] {
        let scales = self.bytes[2 * GROUP * self.shape.half_bytes()..].as_chunks().0;
        let (keys, values) = scales.split_at(scales.len() / 2);
        let each = keys.len() / GROUP;
        [keys, values].map(|scales| &scales[self.page * each..][..each])
    }
}

/// Where to write the key and the value of a position: a page's keys and values, and the position's scales.
#[derive(Debug)]
pub struct KvPlace<'a> {
    /// The page's keys; see the module for how they lie.
    pub keys: &'a mut [u8],
    /// The page's values.
    pub values: &'a mut [u8],
    /// The scales of the key and the value, for types that have them.
    pub scales: Option<[&'a mut [u8; 4]; 2]>,
}

impl<'a> KvPartMut<'a> {
    /// What `bytes` hold, a head's share of a group.
    ///
    /// # Panics
    /// If they are not [`KvShape::share_bytes`].
    pub fn new(shape: KvShape, bytes: &'a mut [u8]) -> Self {
        assert_eq!(bytes.len(), shape.share_bytes());
        Self { shape, bytes }
    }
}

impl KvPartMut<'_> {
    /// The shape of the layer.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Where the key and value of `slot` are, which lies in this group.
    pub fn place(&mut self, slot: usize) -> KvPlace<'_> {
        let (half, place) = (self.shape.half_bytes(), slot % (GROUP * PAGE));
        let (halves, scales) = self.bytes.split_at_mut(2 * GROUP * half);
        let (keys, values) = halves.split_at_mut(GROUP * half);
        let scales = scales.as_chunks_mut().0;
        let (key_scales, value_scales) = scales.split_at_mut(scales.len() / 2);
        let page = place / PAGE * half;
        KvPlace {
            keys: &mut keys[page..][..half],
            values: &mut values[page..][..half],
            scales: key_scales.get_mut(place).zip(value_scales.get_mut(place)).map(<[_; 2]>::from),
        }
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
    fn places_to_write_are_those_to_read() {
        let slots: [u32; 5] = [9 * 64 + 5, 7, 4 * 64 - 1, 8 * 64, 11 * 64 + 63];
        for dtype in KvType::ALL {
            let mut layer = KvLayer::new(KvShape { pages: 12, ..shape(4, dtype) });
            for head in 0..2 {
                for (index, &slot) in (0_u8..).zip(&slots) {
                    let mut part = layer.part_mut(slot as usize, head);
                    let (mark, place) = (10 * (1 + index) + head as u8, part.place(slot as usize));
                    place.keys.fill(mark);
                    place.values.fill(100 + mark);
                    if let Some([key, value]) = place.scales {
                        (*key, *value) = ([mark; 4], [100 + mark; 4]);
                    }
                }
            }
            for (index, &slot) in slots.iter().enumerate() {
                for head in 0..2 {
                    let (page, place) = (slot as usize / PAGE, slot as usize % PAGE);
                    let (part, mark) =
                        (layer.part(page, head), 10 * (1 + index as u8) + head as u8);
                    assert!(part.keys().iter().all(|&x| x == mark), "{dtype} {slot}");
                    assert!(part.values().iter().all(|&x| x == 100 + mark), "{dtype} {slot}");
                    let scales = part.scales().map(|scales| scales.get(place));
                    let expected = [[mark; 4], [100 + mark; 4]];
                    assert_eq!(
                        scales,
                        expected.each_ref().map(|x| Some(x).filter(|_| dtype.has_scales()))
                    );
                }
            }
            assert!(layer.part(10, 1).keys().iter().all(|&x| x == 0));
        }
    }

    #[test]
    fn pages_given_back_are_whole_groups_and_others_stay() {
        let mut layer = KvLayer::new(KvShape { pages: 14, ..shape(128, KvType::F32) });
        let firsts =
            |layer: &KvLayer| (0..14).map(|page| layer.part(page, 1).values()[0]).collect();
        layer.groups_mut().fill(1);
        layer.give_back(3..13); // pages 4 to 11
        let (all, found): (Vec<u8>, Vec<u8>) = (vec![1; 14], firsts(&layer));
        assert!(found == all || found == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]); // where it is no Linux
        layer.give_back(12..14);
        assert!(!cfg!(target_os = "linux") || firsts(&layer)[12..] == [0, 0]);
        assert_eq!(firsts(&layer)[..4], [1; 4]);
    }

    #[test]
    fn pages_begin_at_a_cache_line() {
        let layer = KvLayer::new(shape(16, KvType::Int8));
        assert_eq!(layer.part(0, 0).keys().as_ptr().align_offset(64), 0);
    }
}
