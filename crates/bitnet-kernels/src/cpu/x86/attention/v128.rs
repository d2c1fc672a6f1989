//! The operations of attention on vectors of 128 bits.

use std::arch::x86_64::*;

/// A vector of floats.
pub(super) type F = __m128;

/// A vector of integers.
pub(super) type V = __m128i;

/// 32-bit lanes in either.
pub(super) const LANES: usize = 4;

#[target_feature(enable = "sse4.1")]
#[inline]
pub(super) fn zero_floats() -> F {
    _mm_setzero_ps()
}

/// # Safety
/// A vector can be read there.
#[target_feature(enable = "sse4.1")]
#[inline]
pub(super) unsafe fn load_floats(from: *const f32) -> F {
    // SAFETY: as promised by the caller; `loadu` needs no alignment.
    unsafe { _mm_loadu_ps(from) }
}

/// # Safety
/// A vector can be written there.
#[target_feature(enable = "sse4.1")]
#[inline]
pub(super) unsafe fn store_floats(to: *mut f32, x: F) {
    // SAFETY: as promised by the caller; `storeu` needs no alignment.
    unsafe { _mm_storeu_ps(to, x) }
}

/// `sum + a · b`, rounded twice.
#[target_feature(enable = "sse4.1")]
#[inline]
pub(super) fn add_product(sum: F, a: F, b: F) -> F {
    _mm_add_ps(sum, _mm_mul_ps(a, b))
}

#[target_feature(enable = "sse4.1")]
#[inline]
pub(super) fn splat_float(x: f32) -> F {
    _mm_set1_ps(x)
}

#[target_feature(enable = "sse4.1")]
#[inline]
pub(super) fn zero() -> V {
    _mm_setzero_si128()
}

/// # Safety
/// A vector can be read there.
#[target_feature(enable = "sse4.1")]
#[inline]
pub(super) unsafe fn load(from: *const u8) -> V {
    // SAFETY: as promised by the caller; `loadu` needs no alignment.
    unsafe { _mm_loadu_si128(from.cast()) }
}

/// # Safety
/// A vector can be written there.
#[target_feature(enable = "sse4.1")]
#[inline]
pub(super) unsafe fn store(to: *mut i32, x: V) {
    // SAFETY: as promised by the caller; `storeu` needs no alignment.
    unsafe { _mm_storeu_si128(to.cast(), x) }
}

/// The same four bytes in each lane.
#[target_feature(enable = "sse4.1")]
#[inline]
pub(super) fn splat(quad: [u8; 4]) -> V {
    _mm_set1_epi32(i32::from_le_bytes(quad))
}

#[target_feature(enable = "sse4.1")]
#[inline]
pub(super) fn add32(a: V, b: V) -> V {
    _mm_add_epi32(a, b)
}

/// Bytes 0 and 2 of each lane as unsigned 16-bit numbers, and bytes 1 and 3.
#[target_feature(enable = "sse4.1")]
#[inline]
pub(super) fn unsigned_pairs(x: V) -> [V; 2] {
    [_mm_and_si128(x, _mm_set1_epi16(0xff)), _mm_srli_epi16::<8>(x)]
}

/// Bytes 0 and 2 of each lane as signed 16-bit numbers, and bytes 1 and 3.
#[target_feature(enable = "sse4.1")]
#[inline]
pub(super) fn signed_pairs(x: V) -> [V; 2] {
    [_mm_srai_epi16::<8>(_mm_slli_epi16::<8>(x)), _mm_srai_epi16::<8>(x)]
}

/// Products of 16-bit lanes, neighbours added to 32 bits.
#[target_feature(enable = "sse4.1")]
#[inline]
pub(super) fn madd(a: V, b: V) -> V {
    _mm_madd_epi16(a, b)
}
