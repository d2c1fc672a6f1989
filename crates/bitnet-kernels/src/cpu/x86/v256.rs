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
