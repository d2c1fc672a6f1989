//! Vectors of 256 bits: eight rows.

use std::arch::x86_64::*;

use crate::cpu::packed::Block;

/// A vector.
pub(super) type V = __m256i;

/// 32-bit lanes in it.
pub(super) const LANES: usize = 8;

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn zero() -> V {
    _mm256_setzero_si256()
}

/// Four activations, or four bytes of a mask, in each lane.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn splat(quad: [i8; 4]) -> V {
    _mm256_set1_epi32(i32::from_le_bytes(quad.map(|q| q as u8)))
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn splat16(value: i16) -> V {
    _mm256_set1_epi16(value)
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn splat32(value: i32) -> V {
    _mm256_set1_epi32(value)
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load(block: &Block, part: usize) -> V {
    let half = &block.0.as_chunks::<32>().0[part];
    // SAFETY: `half` is 32 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(half.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store(out: &mut [i32; LANES], lanes: V) {
    // SAFETY: `out` is 32 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), lanes) }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn and(a: V, b: V) -> V {
    _mm256_and_si256(a, b)
}

/// Shifts bits down, across the bytes of a 16-bit lane; a mask must follow.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn shift_down<const BITS: i32>(a: V) -> V {
    _mm256_srli_epi16::<BITS>(a)
}

/// Divides 32-bit lanes by a power of two that they are multiples of.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn divide<const BITS: i32>(a: V) -> V {
    _mm256_srai_epi32::<BITS>(a)
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn add16(a: V, b: V) -> V {
    _mm256_add_epi16(a, b)
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn add32(a: V, b: V) -> V {
    _mm256_add_epi32(a, b)
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn sub32(a: V, b: V) -> V {
    _mm256_sub_epi32(a, b)
}

/// Unsigned codes times signed activations, neighbours added to 16 bits.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn maddubs(codes: V, q: V) -> V {
    _mm256_maddubs_epi16(codes, q)
}

/// Products of 16-bit lanes, neighbours added to 32 bits.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn madd(a: V, b: V) -> V {
    _mm256_madd_epi16(a, b)
}

/// A table of sixteen bytes for [`look_up`].
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn table(table: &[u8; 16]) -> V {
    // SAFETY: `table` is 16 readable bytes, and `loadu` needs no alignment.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
}

/// The byte of a table at the place that each byte's low four bits say; bytes from 128 on give 0.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn look_up(table: V, places: V) -> V {
    _mm256_shuffle_epi8(table, places)
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn or(a: V, b: V) -> V {
    _mm256_or_si256(a, b)
}

/// Shifts bits up, across the bytes of a 16-bit lane.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn shift_up<const BITS: i32>(a: V) -> V {
    _mm256_slli_epi16::<BITS>(a)
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn sub8(a: V, b: V) -> V {
    _mm256_sub_epi8(a, b)
}

/// The lesser of unsigned bytes.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn min8(a: V, b: V) -> V {
    _mm256_min_epu8(a, b)
}

/// The upper halves of products of unsigned 16-bit lanes.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn high_product16(a: V, b: V) -> V {
    _mm256_mulhi_epu16(a, b)
}
