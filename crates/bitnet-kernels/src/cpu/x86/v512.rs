//! Vectors of 512 bits: all sixteen rows of a panel.

use std::arch::x86_64::*;

use crate::cpu::packed::Block;

/// A vector.
pub(super) type V = __m512i;

/// 32-bit lanes in it.
pub(super) const LANES: usize = 16;

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn zero() -> V {
    _mm512_setzero_si512()
}

/// Four activations, or four bytes of a mask, in each lane.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn splat(quad: [i8; 4]) -> V {
    _mm512_set1_epi32(i32::from_le_bytes(quad.map(|q| q as u8)))
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn splat16(value: i16) -> V {
    _mm512_set1_epi16(value)
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn splat32(value: i32) -> V {
    _mm512_set1_epi32(value)
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn load(block: &Block, part: usize) -> V {
    let whole = &block.0.as_chunks::<64>().0[part];
    // SAFETY: `whole` is 64 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(whole.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn store(out: &mut [i32; LANES], lanes: V) {
    // SAFETY: `out` is 64 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), lanes) }
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn and(a: V, b: V) -> V {
    _mm512_and_si512(a, b)
}

/// Shifts bits down, across the bytes of a 16-bit lane; a mask must follow.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn shift_down<const BITS: u32>(a: V) -> V {
    _mm512_srli_epi16::<BITS>(a)
}

/// Divides 32-bit lanes by a power of two that they are multiples of.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn divide<const BITS: u32>(a: V) -> V {
    _mm512_srai_epi32::<BITS>(a)
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn add16(a: V, b: V) -> V {
    _mm512_add_epi16(a, b)
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn add32(a: V, b: V) -> V {
    _mm512_add_epi32(a, b)
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn sub32(a: V, b: V) -> V {
    _mm512_sub_epi32(a, b)
}

/// Unsigned codes times signed activations, neighbours added to 16 bits.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn maddubs(codes: V, q: V) -> V {
    _mm512_maddubs_epi16(codes, q)
}

/// Products of 16-bit lanes, neighbours added to 32 bits.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn madd(a: V, b: V) -> V {
    _mm512_madd_epi16(a, b)
}

/// A table of sixteen bytes for [`look_up`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn table(table: &[u8; 16]) -> V {
    // SAFETY: `table` is 16 readable bytes, and `loadu` needs no alignment.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(table.as_ptr().cast()) })
}

/// The byte of a table at the place that each byte's low four bits say; bytes from 128 on give 0.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn look_up(table: V, places: V) -> V {
    _mm512_shuffle_epi8(table, places)
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn or(a: V, b: V) -> V {
    _mm512_or_si512(a, b)
}

/// Shifts bits up, across the bytes of a 16-bit lane.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn shift_up<const BITS: u32>(a: V) -> V {
    _mm512_slli_epi16::<BITS>(a)
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn sub8(a: V, b: V) -> V {
    _mm512_sub_epi8(a, b)
}

/// The lesser of unsigned bytes.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn min8(a: V, b: V) -> V {
    _mm512_min_epu8(a, b)
}

/// The upper halves of products of unsigned 16-bit lanes.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn high_product16(a: V, b: V) -> V {
    _mm512_mulhi_epu16(a, b)
}

/// A table for [`look_up64`].
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn table64(table: &[u8; 64]) -> V {
    // SAFETY: `table` is 64 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm512_loadu_si512(table.as_ptr().cast()) }
}

/// The byte of a table at the place that each byte's low six bits say.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
pub(super) fn look_up64(table: V, places: V) -> V {
    _mm512_permutexvar_epi8(places, table)
}

/// A table for [`look_up128`], in two vectors.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn table128(table: &[u8; 128]) -> [V; 2] {
    let [low, high] = table.as_chunks::<64>().0 else { unreachable!("128 is twice 64") };
    // SAFETY: both halves are 64 readable bytes, and `loadu` needs no alignment.
    unsafe { [_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast())] }
}

/// The byte of a table at the place that each byte's low seven bits say.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
pub(super) fn look_up128(table: [V; 2], places: V) -> V {
    _mm512_permutex2var_epi8(table[0], places, table[1])
}

/// The lower halves of products of 32-bit lanes.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(super) fn low_product32(a: V, b: V) -> V {
    _mm512_mullo_epi32(a, b)
}
