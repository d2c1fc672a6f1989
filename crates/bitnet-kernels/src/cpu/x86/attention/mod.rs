//! The loops of attention over keys and values, for SSE4.1 to AVX-512 with VNNI.
//!
//! They are written once, in `loops`, on names that `v128`, `v256` and `v512` give three widths of vector, and `words` and
//! `bytes` two ways to multiply int8 with 16-bit numbers.

// This defines macros for the modules below.
#[macro_use]
mod loops;

mod halves;
mod v128;
mod v256;
mod v512;

use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};

use crate::cpu::isa::Isa;
use crate::dense::half_to_f32;
use crate::kv::KvType;
use crate::scalar::attention::{self as portable, Dots, Form, Quad, Row, TOGETHER, Weights};
pub use halves::{read_keys, read_values};

mod sse {
    use super::v128::*;

    floats!("sse4.1");
    float_loops!("sse4.1", 2);
    words!("sse4.1");
    int8_loops!("sse4.1", 2);
}

mod avx {
    use super::v256::*;

    floats!("avx");
    float_loops!("avx", 2);
}

mod avx2_f16 {
    use super::v256::*;

    stored!("avx2,f16c", load_f16, super::f16);
    float_loops!("avx2,f16c", 2);
}

mod avx2_bf16 {
    use super::v256::*;

    stored!("avx2", load_bf16, super::bf16);
    float_loops!("avx2", 2);
}

mod avx2 {
    use super::v256::*;

    words!("avx2");
    int8_loops!("avx2", 2);
}

mod avx_vnni {
    use std::arch::x86_64::_mm256_dpbusd_avx_epi32;

    use super::v256::*;

    bytes!("avx2,avxvnni", _mm256_dpbusd_avx_epi32);
    int8_loops!("avx2,avxvnni", 1);
}

mod avx512 {
    use super::v512::*;

    floats!("avx512f,avx512bw,avx512vl");
    float_loops!("avx512f,avx512bw,avx512vl", 4);
    words!("avx512f,avx512bw,avx512vl");
    int8_loops!("avx512f,avx512bw,avx512vl", 2);
}

mod avx512_f16 {
    use super::v512::*;

    stored!("avx512f,avx512bw,avx512vl", load_f16, super::f16);
    float_loops!("avx512f,avx512bw,avx512vl", 4);
}

mod avx512_bf16 {
    use super::v512::*;

    stored!("avx512f,avx512bw,avx512vl", load_bf16, super::bf16);
    float_loops!("avx512f,avx512bw,avx512vl", 4);
}

mod avx512_vnni {
    use std::arch::x86_64::_mm512_dpbusd_epi32;

    use super::v512::*;

    bytes!("avx512f,avx512bw,avx512vl,avx512vnni", _mm512_dpbusd_epi32);
    int8_loops!("avx512f,avx512bw,avx512vl,avx512vnni", 2);
}

/// Values of a page, rows of `stride` of which the first ones count, the column of the first one's weights, and the bytes that
/// will be wanted next.
#[derive(Clone, Copy)]
struct Values<'a, T> {
    values: &'a [T],
    stride: usize,
    positions: usize,
    column: usize,
    ahead: &'a [u8],
}

fn f16(bytes: [u8; 2]) -> f32 {
    half_to_f32(u16::from_le_bytes(bytes))
}

fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// Asks for as many bytes as `count` elements have, of which `index` times as many lie between `from` and them. Floats have been
/// read already when loops take them.
#[inline(always)]
fn fetch<T>(from: *const u8, index: usize, count: usize) {
    if size_of::<T>() < size_of::<f32>() {
        let bytes = count * size_of::<T>();
        for line in 0..bytes.div_ceil(LINE) {
            prefetch(from.wrapping_add(index * bytes + line * LINE));
        }
    }
}

/// Values of the first `positions` positions of a chunk as int8.
#[derive(Clone, Copy)]
struct Int8Values<'a> {
    pages: &'a [&'a [u8]],
    ahead: &'a [&'a [u8]],
    positions: usize,
}

/// Bytes of a line of the processor's cache.
const LINE: usize = 64;

/// Asks for a line of the second-level cache: more of them may be on their way than to the first.
#[inline(always)]
fn prefetch(line: *const u8) {
    // SAFETY: a prefetch is a hint: it reads nothing and does not fault, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) }
}

/// Asks for the first line of each page of memory that `bytes` lie in: within a page the hardware fetches ahead by itself.
pub fn announce(bytes: &[u8]) {
    bytes.chunks(4096).for_each(|page| prefetch(page.as_ptr()));
}

/// Bits of the vectors in the tier's loops over floats; 0 for the portable ones. As `score` chooses.
pub fn vector_bits(isa: Isa) -> usize {
    match isa {
        Isa::Scalar => 0,
        Isa::Sse41(_) => 128,
        Isa::Avx(_) | Isa::Avx2(_) | Isa::AvxVnni(_) => 256,
        Isa::Avx512(_) | Isa::Avx512Vnni(_) => 512,
    }
}

/// How the tier's loops over int8 take 16-bit numbers.
pub fn form(isa: Isa) -> Form {
    match isa {
        Isa::AvxVnni(_) | Isa::Avx512Vnni(_) => Form::Bytes,
        _ => Form::Pairs,
    }
}

/// See [`portable::score`].
pub fn score(isa: Isa, q: &[[f32; TOGETHER]], keys: &[f32], column: usize, scores: &mut [Row]) {
    match isa {
        Isa::Scalar => portable::score(q, keys, column, scores),
        // SAFETY: this variant exists only where detection found SSE4.1.
        Isa::Sse41(_) => unsafe { sse::score(q, keys, &[], column, scores) },
        // SAFETY: these variants exist only where detection found AVX.
        Isa::Avx(_) | Isa::Avx2(_) | Isa::AvxVnni(_) => unsafe {
            avx::score(q, keys, &[], column, scores)
        },
        // SAFETY: these variants exist only where detection found AVX-512 F, BW and VL.
        Isa::Avx512(_) | Isa::Avx512Vnni(_) => unsafe {
            avx512::score(q, keys, &[], column, scores)
        },
    }
}

/// The same with keys as they are stored, if the tier has loops that read them so; `ahead` are bytes that will be wanted next.
pub fn score_stored(
    isa: Isa,
    dtype: KvType,
    q: &[[f32; TOGETHER]],
    keys: &[u8],
    ahead: &[u8],
    column: usize,
    scores: &mut [Row],
) {
    let halves = keys.as_chunks().0;
    match (isa, dtype) {
        // SAFETY: these variants exist only where detection found AVX2 and F16C.
        (Isa::Avx2(_) | Isa::AvxVnni(_), KvType::F16) => unsafe {
            avx2_f16::score(q, halves, ahead, column, scores)
        },
        // SAFETY: as above.
        (Isa::Avx2(_) | Isa::AvxVnni(_), KvType::Bf16) => unsafe {
            avx2_bf16::score(q, halves, ahead, column, scores)
        },
        // SAFETY: these variants exist only where detection found AVX-512 F, BW and VL.
        (Isa::Avx512(_) | Isa::Avx512Vnni(_), KvType::F16) => unsafe {
            avx512_f16::score(q, halves, ahead, column, scores)
        },
        // SAFETY: as above.
        (Isa::Avx512(_) | Isa::Avx512Vnni(_), KvType::Bf16) => unsafe {
            avx512_bf16::score(q, halves, ahead, column, scores)
        },
        _ => unreachable!("{} reads no {dtype} as it is stored", isa.name()),
    }
}

/// Whether `score_stored` and `weigh_stored` read keys and values of a type.
pub fn reads_stored(isa: Isa, dtype: KvType) -> bool {
    let tier = matches!(isa, Isa::Avx2(_) | Isa::AvxVnni(_) | Isa::Avx512(_) | Isa::Avx512Vnni(_));
    tier && matches!(dtype, KvType::F16 | KvType::Bf16)
}

/// See [`portable::weigh`]: the same with values as they are stored, rows without gaps; `ahead` as for `score_stored`.
pub fn weigh_stored(
    isa: Isa,
    dtype: KvType,
    weights: &[Row],
    column: usize,
    values: &[u8],
    ahead: &[u8],
    out: &mut [f32],
) {
    let (halves, dim) = (values.as_chunks().0, out.len() / weights.len());
    match (isa, dtype) {
        // SAFETY: these variants exist only where detection found AVX2 and F16C.
        (Isa::Avx2(_) | Isa::AvxVnni(_), KvType::F16) => unsafe {
            avx2_f16::weigh(weights, column, halves, dim, ahead, out)
        },
        // SAFETY: as above.
        (Isa::Avx2(_) | Isa::AvxVnni(_), KvType::Bf16) => unsafe {
            avx2_bf16::weigh(weights, column, halves, dim, ahead, out)
        },
        // SAFETY: these variants exist only where detection found AVX-512 F, BW and VL.
        (Isa::Avx512(_) | Isa::Avx512Vnni(_), KvType::F16) => unsafe {
            avx512_f16::weigh(weights, column, halves, dim, ahead, out)
        },
        // SAFETY: as above.
        (Isa::Avx512(_) | Isa::Avx512Vnni(_), KvType::Bf16) => unsafe {
            avx512_bf16::weigh(weights, column, halves, dim, ahead, out)
        },
        _ => unreachable!("{} reads no {dtype} as it is stored", isa.name()),
    }
}

/// See [`portable::weigh`].
pub fn weigh(
    isa: Isa,
    weights: &[Row],
    column: usize,
    values: &[f32],
    stride: usize,
    out: &mut [f32],
) {
    match isa {
        Isa::Scalar => portable::weigh(weights, column, values, stride, out),
        // SAFETY: this variant exists only where detection found SSE4.1.
        Isa::Sse41(_) => unsafe { sse::weigh(weights, column, values, stride, &[], out) },
        // SAFETY: these variants exist only where detection found AVX.
        Isa::Avx(_) | Isa::Avx2(_) | Isa::AvxVnni(_) => unsafe {
            avx::weigh(weights, column, values, stride, &[], out)
        },
        // SAFETY: these variants exist only where detection found AVX-512 F, BW and VL.
        Isa::Avx512(_) | Isa::Avx512Vnni(_) => unsafe {
            avx512::weigh(weights, column, values, stride, &[], out)
        },
    }
}

/// See [`portable::score_int8`]; `ahead` are bytes, as many as keys, that will be wanted next.
pub fn score_int8(
    isa: Isa,
    q: &[[Quad; TOGETHER]],
    keys: &[u8],
    ahead: &[u8],
    column: usize,
    dots: &mut [Dots],
) {
    match isa {
        Isa::Scalar => portable::score_int8(q, keys, column, dots),
        // SAFETY: these variants exist only where detection found SSE4.1.
        Isa::Sse41(_) | Isa::Avx(_) => unsafe { sse::score_int8(q, keys, ahead, column, dots) },
        // SAFETY: this variant exists only where detection found AVX2.
        Isa::Avx2(_) => unsafe { avx2::score_int8(q, keys, ahead, column, dots) },
        // SAFETY: this variant exists only where detection found AVX2 and AVX-VNNI.
        Isa::AvxVnni(_) => unsafe { avx_vnni::score_int8(q, keys, ahead, column, dots) },
        // SAFETY: this variant exists only where detection found AVX-512 F, BW and VL.
        Isa::Avx512(_) => unsafe { avx512::score_int8(q, keys, ahead, column, dots) },
        // SAFETY: this variant exists only where detection found AVX-512 F, BW, VL and VNNI.
        Isa::Avx512Vnni(_) => unsafe { avx512_vnni::score_int8(q, keys, ahead, column, dots) },
    }
}

/// See [`portable::weigh_int8`]; `ahead` are bytes for each page, as many as it has, that will be wanted next.
pub fn weigh_int8(
    isa: Isa,
    weights: &[Weights],
    pages: &[&[u8]],
    ahead: &[&[u8]],
    positions: usize,
    out: &mut [i32],
) {
    match isa {
        Isa::Scalar => portable::weigh_int8(weights, pages, positions, out),
        // SAFETY: these variants exist only where detection found SSE4.1.
        Isa::Sse41(_) | Isa::Avx(_) => unsafe {
            sse::weigh_int8(weights, pages, ahead, positions, out)
        },
        // SAFETY: this variant exists only where detection found AVX2.
        Isa::Avx2(_) => unsafe { avx2::weigh_int8(weights, pages, ahead, positions, out) },
        // SAFETY: this variant exists only where detection found AVX2 and AVX-VNNI.
        Isa::AvxVnni(_) => unsafe { avx_vnni::weigh_int8(weights, pages, ahead, positions, out) },
        // SAFETY: this variant exists only where detection found AVX-512 F, BW and VL.
        Isa::Avx512(_) => unsafe { avx512::weigh_int8(weights, pages, ahead, positions, out) },
        // SAFETY: this variant exists only where detection found AVX-512 F, BW, VL and VNNI.
        Isa::Avx512Vnni(_) => unsafe {
            avx512_vnni::weigh_int8(weights, pages, ahead, positions, out)
        },
    }
}

#[cfg(test)]
mod tests;
