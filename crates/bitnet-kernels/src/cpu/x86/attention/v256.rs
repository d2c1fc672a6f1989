//! The operations of attention on vectors of 256 bits.

use std::arch::x86_64::*;

/// A vector of floats.
pub(super) type F = __m256;

/// A vector of integers.
pub(super) type V = __m256i;

/// 32-bit lanes in either.
pub(super) const LANES: usize = 8;

#[target_feature(enable = "avx")]
#[inline]
pub(super) fn zero_floats() -> F {
    _mm256_setzero_ps()
}

/// # Safety
/// A vector can be read there.
#[target_feature(enable = "avx")]
#[inline]
pub(super) unsafe fn load_floats(from: *const f32) -> F {
    // SAFETY: as promised by the caller; `loadu` needs no alignment.
    unsafe { _mm256_loadu_ps(from) }
}

/// As many binary16 numbers as there are lanes, as floats: exact.
///
/// # Safety
/// They can be read there.
#[target_feature(enable = "avx2,f16c")]
#[inline]
pub(super) unsafe fn load_f16(from: *const u8) -> F {
    // SAFETY: as promised by the caller; `loadu` needs no alignment.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
}

/// As many bfloat16 numbers as there are lanes, as floats: exact.
///
/// # Safety
/// They can be read there.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn load_bf16(from: *const u8) -> F {
    // SAFETY: as promised by the caller; `loadu` needs no alignment.
    let halves = unsafe { _mm_loadu_si128(from.cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
}

/// # Safety
/// A vector can be written there.
#[target_feature(enable = "avx")]
#[inline]
pub(super) unsafe fn store_floats(to: *mut f32, x: F) {
    // SAFETY: as promised by the caller; `storeu` needs no alignment.
    unsafe { _mm256_storeu_ps(to, x) }
}

/// `sum + a · b`, rounded twice.
#[target_feature(enable = "avx")]
#[inline]
pub(super) fn add_product(sum: F, a: F, b: F) -> F {
    _mm256_add_ps(sum, _mm256_mul_ps(a, b))
}

#[target_feature(enable = "avx")]
#[inline]
pub(super) fn splat_float(x: f32) -> F {
    _mm256_set1_ps(x)
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn zero() -> V {
    _mm256_setzero_si256()
}

/// # Safety
/// A vector can be read there.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn load(from: *const u8) -> V {
    // SAFETY: as promised by the caller; `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

/// # Safety
/// A vector can be written there.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) unsafe fn store(to: *mut i32, x: V) {
    // SAFETY: as promised by the caller; `storeu` needs no alignment.
    unsafe { _mm256_storeu_si256(to.cast(), x) }
}

/// The same four bytes in each lane.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn splat(quad: [u8; 4]) -> V {
    _mm256_set1_epi32(i32::from_le_bytes(quad))
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn add32(a: V, b: V) -> V {
    _mm256_add_epi32(a, b)
}

/// Lanes of 32 bits times 256.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn times_256(x: V) -> V {
    _mm256_slli_epi32::<8>(x)
}

/// Bytes 0 and 2 of each lane as unsigned 16-bit numbers, and bytes 1 and 3.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn unsigned_pairs(x: V) -> [V; 2] {
    [_mm256_and_si256(x, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(x)]
}

/// Bytes 0 and 2 of each lane as signed 16-bit numbers, and bytes 1 and 3.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn signed_pairs(x: V) -> [V; 2] {
    [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)), _mm256_srai_epi16::<8>(x)]
}

/// Products of 16-bit lanes, neighbours added to 32 bits.
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn madd(a: V, b: V) -> V {
    _mm256_madd_epi16(a, b)
}
