//! Vectors along the rows of a matrix, for `cpu::ablation`: what the panels of `cpu::packed` are better than.

use std::arch::x86_64::*;

use crate::cpu::isa::Isa;
use crate::cpu::packed::Block;
use crate::memory::Line;

/// Words of codes in a vector.
pub fn words(isa: Isa) -> Option<usize> {
    match isa.level().vector_bits() {
        0 => None,
        bits => Some(bits / 32),
    }
}

/// `Σ code · q` of whole vectors of a row; `x` as `cpu::ablation` arranges it.
///
/// # Panics
/// If the tier has no vectors.
pub fn codes_dot(isa: Isa, row: &[u32], x: &[[Block; 4]]) -> i32 {
    // SAFETY: the variant of `Isa` that was matched proves the instructions.
    unsafe {
        match isa {
            Isa::Scalar => unreachable!("the scalar tier has no vectors"),
            Isa::Sse41(_) | Isa::Avx(_) => sse(row, x),
            Isa::Avx2(_) => avx2(row, x),
            Isa::AvxVnni(_) => avx_vnni(row, x),
            Isa::Avx512(_) => avx512(row, x),
            Isa::Avx512Vnni(_) => avx512_vnni(row, x),
        }
    }
}

/// Defines a kernel on the operations of a width of vector in scope: `$add(sum, codes, q)` adds products of bytes in fours.
macro_rules! row_major {
    ($name:ident, $features:literal, $width:ident, $add:ident) => {
        #[target_feature(enable = $features)]
        fn $name(row: &[u32], x: &[[Block; 4]]) -> i32 {
            use super::$width::*;

            let mask = splat([3; 4]);
            let mut sums = [zero(); 4];
            for (words, x) in row.as_chunks::<LANES>().0.iter().zip(x) {
                let mut block = Line([0; 64]);
                for (bytes, word) in block.0.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                    *bytes = word.to_le_bytes();
                }
                let mut codes = load(&block, 0);
                for field in 0..4 {
                    sums[field] = $add(sums[field], and(codes, mask), load(&x[field], 0));
                    codes = shift_down::<2>(codes);
                }
            }
            let sum = add32(add32(sums[0], sums[1]), add32(sums[2], sums[3]));
            let mut lanes = [0; LANES];
            store(&mut lanes, sum);
            lanes.iter().sum()
        }
    };
}

/// Defines the sum of products where there is no instruction for it. Two products of a code and an activation are at most 508
/// in size, so 16 bits hold them, and `madd` with ones adds the pairs.
macro_rules! maddubs_add {
    ($name:ident, $features:literal, $width:ident) => {
        #[target_feature(enable = $features)]
        #[inline]
        fn $name(
            sum: super::$width::V,
            codes: super::$width::V,
            q: super::$width::V,
        ) -> super::$width::V {
            use super::$width::*;
            add32(sum, madd(maddubs(codes, q), splat16(1)))
        }
    };
}

maddubs_add!(add128, "ssse3,sse4.1", v128);
maddubs_add!(add256, "avx2", v256);
maddubs_add!(add512, "avx512f,avx512bw", v512);

#[target_feature(enable = "avx2,avxvnni")]
#[inline]
fn dpbusd256(sum: __m256i, codes: __m256i, q: __m256i) -> __m256i {
    _mm256_dpbusd_avx_epi32(sum, codes, q)
}

#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn dpbusd512(sum: __m512i, codes: __m512i, q: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(sum, codes, q)
}

row_major!(sse, "ssse3,sse4.1", v128, add128);
row_major!(avx2, "avx2", v256, add256);
row_major!(avx_vnni, "avx2,avxvnni", v256, dpbusd256);
row_major!(avx512, "avx512f,avx512bw", v512, add512);
row_major!(avx512_vnni, "avx512f,avx512bw,avx512vnni", v512, dpbusd512);
