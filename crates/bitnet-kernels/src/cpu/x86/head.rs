//! The float products of the output head, with vectors of 512 and 256 bits where there are.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Avx2, Avx512};
use crate::cpu::isa::Isa;
use crate::dense::{DenseMatrix, half_to_f32};
use crate::scalar::head::{self, Floats};
use crate::scalar::ternary::Portable;

/// Defines `logits` for a tier in a module of its own.
macro_rules! version {
    ($version:ident, $features:literal, $machine:ty) => {
        mod $version {
            use super::*;

            #[target_feature(enable = $features)]
            pub fn logits(
                m: $machine,
                head: &DenseMatrix,
                rows: Range<usize>,
                x: &[f32],
                row: &mut Vec<f32>,
                out: &mut [f32],
            ) {
                head::logits(m, head, rows, x, row, out);
            }
        }
    };
}

version!(sse41, "sse4.1", Portable);
version!(avx, "avx", Portable);
version!(avx2, "avx2", Avx2);
version!(avx512, "avx512f,avx512bw,avx512vl", Avx512);

/// See [`head::logits`].
pub fn logits(
    isa: Isa,
    head: &DenseMatrix,
    rows: Range<usize>,
    x: &[f32],
    row: &mut Vec<f32>,
    out: &mut [f32],
) {
    match isa {
        Isa::Scalar => head::logits(Portable, head, rows, x, row, out),
        // SAFETY: this variant exists only where detection found SSE4.1.
        Isa::Sse41(_) => unsafe { sse41::logits(Portable, head, rows, x, row, out) },
        // SAFETY: this variant exists only where detection found AVX.
        Isa::Avx(_) => unsafe { avx::logits(Portable, head, rows, x, row, out) },
        // SAFETY: this variant exists only where detection found AVX2.
        Isa::Avx2(m) => unsafe { avx2::logits(m, head, rows, x, row, out) },
        // SAFETY: as above.
        Isa::AvxVnni(_) => unsafe { avx2::logits(Avx2(()), head, rows, x, row, out) },
        // SAFETY: this variant exists only where detection found AVX-512 F, BW and VL.
        Isa::Avx512(m) => unsafe { avx512::logits(m, head, rows, x, row, out) },
        // SAFETY: as above.
        Isa::Avx512Vnni(_) => unsafe { avx512::logits(Avx512(()), head, rows, x, row, out) },
    }
}

impl Floats for Avx512 {
    type V = __m512;

    #[inline(always)]
    fn zero(self) -> __m512 {
        // SAFETY: the token exists, so this CPU has AVX-512 F.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> __m512 {
        // SAFETY: the token exists, `x` is 64 readable bytes, and `loadu` needs no alignment.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn f32(self, x: &[[u8; 4]; 16]) -> __m512 {
        // SAFETY: as for `load`.
        unsafe { _mm512_loadu_ps(x.as_ptr().cast()) }
    }

    #[inline(always)]
    fn f16(self, x: &[[u8; 2]; 16]) -> __m512 {
        // SAFETY: the token exists, `x` is 32 readable bytes, and `loadu` needs no alignment.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn bf16(self, x: &[[u8; 2]; 16]) -> __m512 {
        // SAFETY: as for `f16`.
        unsafe {
            let halves = _mm256_loadu_si256(x.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }

    #[inline(always)]
    fn add_product(self, sum: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token exists.
        unsafe { _mm512_add_ps(sum, _mm512_mul_ps(a, b)) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token exists.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn array(self, a: __m512) -> [f32; 16] {
        let mut y = [0.0; 16];
        // SAFETY: the token exists, `y` is 64 writable bytes, and `storeu` needs no alignment.
        unsafe { _mm512_storeu_ps(y.as_mut_ptr(), a) }
        y
    }

    #[inline(always)]
    fn passes(self, bytes: &[u8], once: bool) {
        prefetch(bytes, once);
    }
}

impl Floats for Avx2 {
    type V = [__m256; 2];

    #[inline(always)]
    fn zero(self) -> [__m256; 2] {
        // SAFETY: the token exists, so this CPU has AVX2.
        unsafe { [_mm256_setzero_ps(); 2] }
    }

    #[inline(always)]
    fn load(self, x: &[f32; 16]) -> [__m256; 2] {
        // SAFETY: the token exists, `x` is 64 readable bytes, and `loadu` needs no alignment.
        unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
    }

    #[inline(always)]
    fn f32(self, x: &[[u8; 4]; 16]) -> [__m256; 2] {
        // SAFETY: as for `load`.
        unsafe { [_mm256_loadu_ps(x.as_ptr().cast()), _mm256_loadu_ps(x.as_ptr().add(8).cast())] }
    }

    /// In integer arithmetic, as AVX2 does not promise `vcvtph2ps`.
    #[inline(always)]
    fn f16(self, x: &[[u8; 2]; 16]) -> [__m256; 2] {
        let mut y = [0.0; 16];
        for i in 0..16 {
            y[i] = half_to_f32(u16::from_le_bytes(x[i]));
        }
        self.load(&y)
    }

    #[inline(always)]
    fn bf16(self, x: &[[u8; 2]; 16]) -> [__m256; 2] {
        // SAFETY: the token exists, `x` is 32 readable bytes, and `loadu` needs no alignment.
        unsafe {
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().add(8).cast()));
            let low = _mm256_slli_epi32::<16>(low);
            let high = _mm256_slli_epi32::<16>(high);
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }

    #[inline(always)]
    fn add_product(self, sum: [__m256; 2], a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the token exists.
        unsafe {
            [
                _mm256_add_ps(sum[0], _mm256_mul_ps(a[0], b[0])),
                _mm256_add_ps(sum[1], _mm256_mul_ps(a[1], b[1])),
            ]
        }
    }

    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: the token exists.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn array(self, a: [__m256; 2]) -> [f32; 16] {
        let mut y = [0.0; 16];
        // SAFETY: the token exists, `y` is 64 writable bytes, and `storeu` needs no alignment.
        unsafe {
            _mm256_storeu_ps(y.as_mut_ptr(), a[0]);
            _mm256_storeu_ps(y.as_mut_ptr().add(8), a[1]);
        }
        y
    }

    #[inline(always)]
    fn passes(self, bytes: &[u8], once: bool) {
        prefetch(bytes, once);
    }
}

/// Asks for weights ahead: 4 KB for those that are used once, else 64 KB once in each page, for the reasons that
/// [`super::int8`] and [`super::prefetch`] give.
#[inline(always)]
fn prefetch(bytes: &[u8], once: bool) {
    const PAGE: usize = 4096;
    if once {
        for line in bytes.chunks(64) {
            let ahead = line.as_ptr().wrapping_add(PAGE);
            // SAFETY: a prefetch is a hint: it reads nothing and does not fault, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_NTA>(ahead.cast()) }
        }
    } else if bytes.as_ptr().addr() % PAGE < bytes.len() {
        let ahead = bytes.as_ptr().wrapping_add(16 * PAGE);
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) }
    }
}
