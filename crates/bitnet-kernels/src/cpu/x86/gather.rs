//! Rows from anywhere, put together as a panel, with what every x86-64 processor has.

use std::arch::x86_64::*;

use crate::cpu::packed::PANEL_ROWS;

/// Turns sixteen rows of whole groups into blocks of four columns each; see `cpu::head::packed`. Meanwhile it fetches the rows
/// that come next.
pub fn interleave(rows: [&[u8]; PANEL_ROWS], next: [&[u8]; PANEL_ROWS], bytes: &mut [u8]) {
    // SAFETY: every x86-64 processor has SSE2.
    unsafe { interleave_sse2(rows, next, bytes) }
}

#[target_feature(enable = "sse2")]
fn interleave_sse2(rows: [&[u8]; PANEL_ROWS], next: [&[u8]; PANEL_ROWS], bytes: &mut [u8]) {
    let groups = bytes.as_chunks_mut::<64>().0.as_chunks_mut::<4>().0;
    let rows = rows.map(|row| &row.as_chunks::<16>().0[..groups.len()]);
    for (g, blocks) in groups.iter_mut().enumerate() {
        // A line of each row holds four groups: four rows' lines for each.
        for row in &next.as_chunks::<4>().0[g % 4] {
            fetch(row.as_ptr().wrapping_add(g / 4 * 64));
        }
        for (four, rows) in rows.as_chunks::<4>().0.iter().enumerate() {
            let [a, b, c, d] = *rows;
            let columns = transpose([load(&a[g]), load(&b[g]), load(&c[g]), load(&d[g])]);
            for (block, quads) in blocks.iter_mut().zip(columns) {
                store(&mut block.as_chunks_mut().0[four], quads);
            }
        }
    }
}

/// Asks for a line, to the second-level cache: 16 rows of 2560 bytes are more than the first level holds.
#[inline(always)]
fn fetch(line: *const u8) {
    // SAFETY: a prefetch is a hint: it reads nothing and does not fault, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
}

/// Four columns of each of four rows, from rows of sixteen columns.
#[target_feature(enable = "sse2")]
#[inline]
fn transpose([a, b, c, d]: [__m128i; 4]) -> [__m128i; 4] {
    let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
    let (ab_high, cd_high) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
    [
        _mm_unpacklo_epi64(ab, cd),
        _mm_unpackhi_epi64(ab, cd),
        _mm_unpacklo_epi64(ab_high, cd_high),
        _mm_unpackhi_epi64(ab_high, cd_high),
    ]
}

#[inline(always)]
fn load(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 readable bytes; `loadu` needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline(always)]
fn store(bytes: &mut [u8; 16], value: __m128i) {
    // SAFETY: 16 writable bytes; `storeu` needs no alignment.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), value) }
}
