//! Keys and values of 16 bits as floats, with the instruction that does it: exact, as the portable conversion is.

use std::arch::x86_64::*;

use super::LINE;
use crate::cpu::isa::Isa;
use crate::dense::half_to_f32;
use crate::kv::{BLOCK, KvPart, KvShape, KvType};

/// See [`crate::scalar::kv::read_keys`]; `ahead` are bytes that will be wanted next.
pub fn read_keys(isa: Isa, part: KvPart<'_>, blocks: usize, ahead: &[u8], out: &mut [f32]) {
    let KvShape { head_dim, dtype, .. } = part.shape();
    match (isa, dtype) {
        (Isa::Avx512(_) | Isa::Avx512Vnni(_), KvType::F16) => {
            let out = &mut out[..blocks * head_dim * BLOCK];
            // SAFETY: these variants exist only where detection found AVX-512 F.
            unsafe { widen(part.keys(), ahead, out) }
        }
        _ => {
            fetch(ahead);
            isa.read_keys(part, blocks, out);
        }
    }
}

/// See [`crate::scalar::kv::read_values`]; `ahead` are bytes that will be wanted next.
pub fn read_values(
    isa: Isa,
    part: KvPart<'_>,
    positions: usize,
    stride: usize,
    ahead: &[u8],
    out: &mut [f32],
) {
    let KvShape { head_dim, dtype, .. } = part.shape();
    match (isa, dtype) {
        (Isa::Avx512(_) | Isa::Avx512Vnni(_), KvType::F16) => {
            let row = head_dim * dtype.bytes();
            // If less than a page is wanted of these, more of the others goes with each.
            let share = ahead.len().div_ceil(positions.max(1)).next_multiple_of(LINE).max(LINE);
            let ahead = ahead.chunks(share).chain(std::iter::repeat(&[][..]));
            let rows = part.values().chunks_exact(row).take(positions).zip(ahead);
            for ((row, ahead), out) in rows.zip(out.chunks_exact_mut(stride)) {
                // SAFETY: as above.
                unsafe { widen(row, ahead, &mut out[..head_dim]) }
            }
        }
        _ => {
            fetch(ahead);
            isa.read_values(part, positions, stride, out);
        }
    }
}

fn fetch(bytes: &[u8]) {
    bytes.chunks(LINE).for_each(|line| super::prefetch(line.as_ptr()));
}

/// Fills `to` with the first of some halves, and fetches as many bytes of `ahead`, and at the end the rest of them.
#[target_feature(enable = "avx512f")]
fn widen(from: &[u8], ahead: &[u8], to: &mut [f32]) {
    let (whole, rest) = from.as_chunks::<2>().0[..to.len()].as_chunks::<16>();
    let (vectors, last) = to.as_chunks_mut::<16>();
    let mut lines = ahead.chunks(LINE);
    for (index, (from, to)) in whole.iter().zip(vectors).enumerate() {
        if index % 2 == 0
            && let Some(line) = lines.next()
        {
            super::prefetch(line.as_ptr());
        }
        // SAFETY: `from` is 32 readable bytes and `to` 64 writable ones; neither instruction needs alignment.
        unsafe {
            let halves = _mm256_loadu_si256(from.as_ptr().cast());
            _mm512_storeu_ps(to.as_mut_ptr(), _mm512_cvtph_ps(halves));
        }
    }
    lines.for_each(|line| super::prefetch(line.as_ptr()));
    for (from, to) in rest.iter().zip(last) {
        *to = half_to_f32(u16::from_le_bytes(*from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_halves_are_widened_as_the_portable_way_does_it() {
        if !matches!(Isa::best(), Isa::Avx512(_) | Isa::Avx512Vnni(_)) {
            return;
        }
        // NaN is never stored, and the instruction sets a bit in those that signal.
        let halves: Vec<u16> = (0..=u16::MAX).filter(|bits| bits & 0x7fff <= 0x7c00).collect();
        let bytes: Vec<u8> = halves.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        for count in [0, 1, 15, 16, 17, halves.len()] {
            let mut found = vec![0.0; count];
            // SAFETY: the tier has AVX-512 F.
            unsafe { widen(&bytes, &[], &mut found) };
            for (&found, &bits) in found.iter().zip(&halves) {
                assert_eq!(found.to_bits(), half_to_f32(bits).to_bits(), "{bits:#x}");
            }
        }
    }
}
