//! Kernels of the int8 output head: `vnni` and `maddubs`, written once and compiled for each tier here.
//!
//! Weights are signed bytes, and so are activations, but both instructions want one unsigned operand. With `vpdpbusd` the
//! weights get 128 added, and 128 times the activations' sum is taken off at the end. `vpmaddubsw` would overflow that
//! way, so there the weights' sign moves over to the activations; no byte is -128, whose sign could not be turned.

#[macro_use]
mod maddubs;
#[macro_use]
mod vnni;

use std::arch::x86_64::{_MM_HINT_NTA, _MM_HINT_T1, _mm_prefetch};

use super::prefetch_page;
use crate::cpu::head::packed::Group;
use crate::cpu::head::product::{Half, Int8Kernel, Int8Tile, RESIDENT_PANELS, Sums};
use crate::cpu::packed::PANEL_ROWS;

/// As many rows of a panel as a vector has lanes.
#[derive(Clone, Copy)]
struct Strip<'a> {
    groups: &'a [Group],
    /// Which part of each block.
    part: usize,
    /// Its panel in the tile.
    panel: usize,
}

/// Asks for one block 16 KB ahead of block `b`, once in each page of 4 KB; the hardware fetches the rest of that page by itself.
///
/// For one token, whose products take half as long as reading. On a virtual Zen 4 this reads at 0.98 to 0.99 of a plain read of the
/// same memory in large pages, and each line asked for at 0.93 to 0.94; in pages of 4 KB it makes 19.0 GB/s of 16.6.
#[inline(always)]
fn prefetch_next_pages(blocks: &[[u8; 64]], b: usize) {
    const PAGE: usize = 4096;
    let block = blocks.as_ptr().wrapping_add(b);
    if block.addr().is_multiple_of(PAGE) {
        let ahead = block.wrapping_byte_add(4 * PAGE);
        // SAFETY: a prefetch is a hint: it reads nothing and does not fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(ahead.cast()) }
    }
}

/// Asks for the block 4 KB ahead of block `b`, to be used once.
///
/// With two tokens this is faster than a prefetch 64 KB ahead once a page, by 25 % on Zen 4; with four, whose inputs fill half the
/// first-level cache, it is half as fast.
#[inline(always)]
fn prefetch_block(blocks: &[[u8; 64]], b: usize) {
    let ahead = blocks.as_ptr().wrapping_add(b + 64);
    // SAFETY: as above.
    unsafe { _mm_prefetch::<_MM_HINT_NTA>(ahead.cast()) }
}

/// Asks for the panels that will be multiplied when those under way have met all tokens, for the second-level cache: inputs
/// fill the first. Each tile of tokens takes its share of them, so that memory is read all the time and not only while the
/// first tile is computed, which would wait for it.
struct Ahead<const V: usize> {
    /// Where the share begins in what comes after each strip's panel.
    first: [*const [u8; 64]; V],
    /// Blocks asked for with each block that is multiplied, in 256ths.
    step: usize,
}

impl<const V: usize> Ahead<V> {
    #[inline(always)]
    fn new(strips: &[Strip<'_>; V], (turn, turns): (usize, usize)) -> Self {
        let first = strips.map(|strip| {
            let blocks = strip.groups.as_flattened();
            let share = turn * blocks.len() / turns;
            blocks.as_ptr().wrapping_add(RESIDENT_PANELS * blocks.len() + share)
        });
        Self { first, step: 256_usize.div_ceil(turns) }
    }

    /// While block `b` is multiplied.
    #[inline(always)]
    fn fetch<const LANES: usize>(&self, b: usize) {
        for first in self.first.iter().step_by(const { PANEL_ROWS / LANES }) {
            let ahead = first.wrapping_add((b * self.step) >> 8);
            // SAFETY: as above.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(ahead.cast()) }
        }
    }
}

/// The `V` strips of `LANES` rows from strip `first` of a tile on.
#[inline(always)]
fn strips<'a, const LANES: usize, const V: usize>(
    tile: &Int8Tile<'a>,
    first: usize,
) -> [Strip<'a>; V] {
    let per_panel = const { PANEL_ROWS / LANES };
    std::array::from_fn(|v| {
        let (panel, part) = ((first + v) / per_panel, (first + v) % per_panel);
        Strip { groups: tile.panels[panel], part, panel }
    })
}

/// The halves of a tile's tokens, all as long as its panels.
#[inline(always)]
fn halves<'a, const N: usize>(tile: &Int8Tile<'a>, groups: usize) -> [Half<'a>; N] {
    std::array::from_fn(|t| &tile.x[t][..groups])
}

/// Calls `$run!(N)` for the constant `N` that equals a number of tokens.
macro_rules! with_tokens {
    ($tokens:expr, [$($n:literal)*], $run:ident) => {
        match $tokens {
            $($n => $run!($n),)*
            tokens => unreachable!("a tile of this kernel never has {tokens} tokens"),
        }
    };
}

/// Defines the kernel of a tier: its module, token, most panels and tokens, and the arms that choose by number of halves.
macro_rules! tier {
    ($token:ident, $panels:literal, $tokens:literal, $run:path) => {
        impl Int8Kernel for super::$token {
            const PANELS: usize = $panels;
            const TOKENS: usize = $tokens;

            fn int8_products(self, tile: &Int8Tile<'_>, out: &mut [Sums]) {
                // SAFETY: the token exists, so this CPU has the instructions.
                unsafe { $run(tile, out) }
            }
        }
    };
}

tier!(Sse41, 1, 2, sse41::run);
tier!(Avx2, 1, 4, avx2::run);
tier!(AvxVnni, 1, 2, avx_vnni::run);
tier!(Avx512, 1, 6, avx512::run);
tier!(Avx512Vnni, 2, 5, avx512_vnni::run);
#[cfg(test)]
tier!(Evex256, 1, 2, evex256::run);

mod sse41 {
    use std::arch::x86_64::{
        __m128i, _mm_abs_epi8, _mm_loadu_si128, _mm_maddubs_epi16, _mm_sign_epi8,
    };

    use super::super::v128::{LANES, V, add32, madd, splat, splat16, store, zero};
    use super::*;

    #[target_feature(enable = "ssse3,sse4.1")]
    pub(super) fn run(tile: &Int8Tile<'_>, out: &mut [Sums]) {
        match tile.x.len() {
            2 => products::<4, 2>(strips::<LANES, 4>(tile, 0), tile, out),
            _ => {
                products::<2, 4>(strips::<LANES, 2>(tile, 0), tile, out);
                products::<2, 4>(strips::<LANES, 2>(tile, 2), tile, out);
            }
        }
    }

    load!("ssse3,sse4.1", _mm_loadu_si128, __m128i);
    sign!("ssse3,sse4.1", _mm_abs_epi8, _mm_sign_epi8);
    maddubs_int8!("ssse3,sse4.1", _mm_maddubs_epi16);
}

mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm256_abs_epi8, _mm256_loadu_si256, _mm256_maddubs_epi16, _mm256_sign_epi8,
    };

    use super::super::v256::{LANES, V, add32, madd, splat, splat16, store, zero};
    use super::*;

    #[target_feature(enable = "avx2")]
    pub(super) fn run(tile: &Int8Tile<'_>, out: &mut [Sums]) {
        macro_rules! many {
            ($n:literal) => {
                for half in 0..2 {
                    products::<1, $n>(strips::<LANES, 1>(tile, half), tile, out);
                }
            };
        }
        match tile.x.len() {
            2 => products::<2, 2>(strips::<LANES, 2>(tile, 0), tile, out),
            4 => products::<2, 4>(strips::<LANES, 2>(tile, 0), tile, out),
            n => with_tokens!(n, [6 8], many),
        }
    }

    load!("avx2", _mm256_loadu_si256, __m256i);
    sign!("avx2", _mm256_abs_epi8, _mm256_sign_epi8);
    maddubs_int8!("avx2", _mm256_maddubs_epi16);
}

mod avx512 {
    use std::arch::x86_64::{
        __m512i, _mm512_abs_epi8, _mm512_loadu_si512, _mm512_maddubs_epi16, _mm512_mask_sub_epi8,
        _mm512_movepi8_mask,
    };

    use super::super::v512::{LANES, V, add32, madd, splat, splat16, store, zero};
    use super::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) fn run(tile: &Int8Tile<'_>, out: &mut [Sums]) {
        macro_rules! many {
            ($n:literal) => {
                products::<1, $n>(strips::<LANES, 1>(tile, 0), tile, out)
            };
        }
        with_tokens!(tile.x.len(), [2 4 6 8 10 12], many);
    }

    load!("avx512f,avx512bw,avx512vl", _mm512_loadu_si512, __m512i);

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    fn abs(w: V) -> V {
        _mm512_abs_epi8(w)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    #[inline]
    fn sign(q: V, w: V) -> V {
        _mm512_mask_sub_epi8(q, _mm512_movepi8_mask(w), zero(), q)
    }

    maddubs_int8!("avx512f,avx512bw,avx512vl", _mm512_maddubs_epi16);
}

mod avx512_vnni {
    use std::arch::x86_64::{__m512i, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_xor_si512};

    use super::super::v512::{LANES, V, add32, splat, splat32, store, sub32, zero};
    use super::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    pub(super) fn run(tile: &Int8Tile<'_>, out: &mut [Sums]) {
        macro_rules! few {
            ($n:literal, $sums:literal) => {
                // One panel at a time: two streams from memory are slower than one.
                for panel in 0..tile.panels.len() {
                    products::<1, $n, $sums>(strips::<LANES, 1>(tile, panel), tile, out);
                }
            };
        }
        macro_rules! many {
            ($n:literal) => {
                match tile.panels.len() {
                    2 => products::<2, $n, 1>(strips::<LANES, 2>(tile, 0), tile, out),
                    _ => products::<1, $n, 1>(strips::<LANES, 1>(tile, 0), tile, out),
                }
            };
        }
        match tile.x.len() {
            2 => few!(2, 4),
            4 => few!(4, 2),
            n => with_tokens!(n, [6 8 10], many),
        }
    }

    load!("avx512f,avx512bw,avx512vl,avx512vnni", _mm512_loadu_si512, __m512i);
    vnni_int8!("avx512f,avx512bw,avx512vl,avx512vnni", _mm512_dpbusd_epi32, _mm512_xor_si512);
}

/// AVX-VNNI, and for tests the same on the AVX-512 encoding of its instruction.
macro_rules! vnni_256 {
    ($module:ident, $features:literal, $dpbusd:ident) => {
        mod $module {
            use std::arch::x86_64::{__m256i, _mm256_loadu_si256, _mm256_xor_si256, $dpbusd};

            use super::super::v256::{LANES, V, add32, splat, splat32, store, sub32, zero};
            use super::*;

            #[target_feature(enable = $features)]
            pub(super) fn run(tile: &Int8Tile<'_>, out: &mut [Sums]) {
                match tile.x.len() {
                    2 => products::<2, 2, 2>(strips::<LANES, 2>(tile, 0), tile, out),
                    _ => products::<2, 4, 1>(strips::<LANES, 2>(tile, 0), tile, out),
                }
            }

            load!($features, _mm256_loadu_si256, __m256i);
            vnni_int8!($features, $dpbusd, _mm256_xor_si256);
        }
    };
}

vnni_256!(avx_vnni, "avx2,avxvnni", _mm256_dpbusd_avx_epi32);
#[cfg(test)]
vnni_256!(evex256, "avx2,avx512f,avx512vl,avx512vnni", _mm256_dpbusd_epi32);
