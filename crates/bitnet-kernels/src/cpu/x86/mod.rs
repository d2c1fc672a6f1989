//! Kernels for x86-64, a file per tier.
//!
//! `v128`, `v256` and `v512` give the three widths of vector the same operations. On those names, `forms` unpacks weights
//! of either packing, and the kernels are written once: `maddubs` for machines whose widest integer product is
//! `pmaddubsw`, `vnni` for those with `vpdpbusd`.
//! A vector of 32-bit lanes holds four neighbouring codes of 4, 8 or 16 rows: a quarter, a half or all of a block.

/// Implements [`TileKernel`] for a tier on the modules and the function that its file defines.
macro_rules! tile_kernel {
    ($token:ident, panels $panels:literal, tokens $tokens:literal) => {
        impl TileKernel for $token {
            const PANELS: usize = $panels;
            const TOKENS: usize = $tokens;

            fn run(self, tile: &Tile<'_>, out: Out<'_>) {
                match tile.packing {
                    // SAFETY: the token exists, so this CPU has the instructions.
                    Packing::TwoBits => unsafe { two_bits::run(tile, out) },
                    // SAFETY: as above.
                    Packing::FiveTrits => unsafe { five_trits::run(tile, out) },
                }
            }

            fn spin(self, rounds: usize) -> usize {
                // SAFETY: as above.
                unsafe { spin(rounds) }
            }
        }
    };
}

/// Defines `run`, which computes a tile: `$kernel $strips: $n …` names the kernel for `n` tokens and how many strips it
/// takes at a time. Where fewer are left it takes them one by one.
macro_rules! run_tile {
    ($features:literal, $($kernel:ident $strips:literal: $($n:literal)*);*) => {
        #[target_feature(enable = $features)]
        pub(super) fn run(tile: &Tile<'_>, mut out: Out<'_>) {
            let (all, mut first) = (tile.panels.len() * (PANEL_ROWS / LANES), 0);
            match tile.sums.len() {
                $($($n => {
                    while all - first >= $strips {
                        let strips = strips::<LANES, $strips>(tile, first);
                        $kernel::<$strips, $n>(strips, tile.x, tile.sums, &mut out);
                        first += $strips;
                    }
                    while all > first {
                        let strips = strips::<LANES, 1>(tile, first);
                        $kernel::<1, $n>(strips, tile.x, tile.sums, &mut out);
                        first += 1;
                    }
                })*)*
                tokens => unreachable!("a tile of this kernel never has {tokens} tokens"),
            }
        }
    };
}

// These define macros for the modules below.
#[macro_use]
mod forms;
#[macro_use]
mod maddubs;
#[macro_use]
mod vnni;

pub(super) mod attention;
mod avx2;
mod avx512;
mod avx512_vnni;
mod avx_vnni;
pub(super) mod floats;
pub(super) mod gather;
pub(super) mod head;
mod int8;
pub(super) mod probe;
pub(super) mod row_major;
mod sse41;
mod v128;
mod v256;
mod v512;

#[cfg(test)]
pub(crate) use avx_vnni::evex::Evex256;

use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};

use super::level::{CpuFeatures, SimdLevel};
use super::packed::{Block, PANEL_ROWS};
use super::product::Tile;

/// Defines tokens: values that prove that the CPU has a tier's instructions, because only `detect` makes them.
macro_rules! tokens {
    ($($(#[$doc:meta])* $token:ident)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $token(());

        impl $token {
            /// The proof, if the CPU has all instructions of the tier.
            pub fn detect() -> Option<Self> {
                CpuFeatures::detect().missing(SimdLevel::$token).is_empty().then_some(Self(()))
            }
        }
    )* };
}

tokens! {
    /// Proof of SSSE3 and SSE4.1.
    Sse41
    /// Proof of AVX, and of SSE up to 4.2 with it.
    Avx
    /// Proof of AVX2 and F16C.
    Avx2
    /// Proof of AVX2, F16C and AVX-VNNI.
    AvxVnni
    /// Proof of AVX-512 F, BW and VL.
    Avx512
}

/// Proof of AVX-512 F, BW, VL and VNNI, and whether the CPU has VBMI too, which unpacks five trits a byte faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512Vnni {
    vbmi: bool,
}

impl Avx512Vnni {
    /// The proof, if the CPU has all instructions of the tier.
    pub fn detect() -> Option<Self> {
        let features = CpuFeatures::detect();
        let missing = features.missing(SimdLevel::Avx512Vnni);
        missing.is_empty().then_some(Self { vbmi: features.avx512vbmi })
    }

    /// Whether VBMI was found.
    pub fn has_vbmi(self) -> bool {
        self.vbmi
    }

    /// As if VBMI had not been found.
    pub fn without_vbmi(self) -> Self {
        Self { vbmi: false }
    }
}

impl Avx {
    /// AVX has no integers of its own: its integer kernels are those of SSE.
    pub fn sse41(self) -> Sse41 {
        Sse41(())
    }
}

/// As many rows of a panel as a vector has lanes.
#[derive(Clone, Copy)]
struct Strip<'a> {
    blocks: &'a [Block],
    /// Which part of each block.
    part: usize,
    /// Its first row in the tile.
    row: usize,
}

/// The `V` strips of `LANES` rows from strip `first` of a tile on.
#[inline(always)]
fn strips<'a, const LANES: usize, const V: usize>(tile: &Tile<'a>, first: usize) -> [Strip<'a>; V] {
    let per_panel = const { PANEL_ROWS / LANES };
    std::array::from_fn(|v| {
        let strip = first + v;
        let (panel, part) = (strip / per_panel, strip % per_panel);
        Strip { blocks: tile.panels[panel], part, row: strip * LANES }
    })
}

/// Asks for the blocks of the next tile that lie where the blocks `b` of these strips do; `HINT` says for which cache.
///
/// Left to itself, the hardware keeps up with no kernel of several tokens. Each line asked for a tile ahead, one token reads
/// memory at 0.84 to 0.97 of a probe, and four and more multiply at 0.88 to 0.99 of the peak, mostly at 0.95 and above, on a
/// virtual Zen 4 with large pages.
#[inline(always)]
fn prefetch<const HINT: i32, const LANES: usize, const V: usize>(
    strips: &[Strip<'_>; V],
    b: usize,
) {
    let panels = const { (V * LANES).div_ceil(PANEL_ROWS) };
    for strip in strips.iter().step_by(const { PANEL_ROWS / LANES }) {
        let ahead = strip.blocks.as_ptr().wrapping_add(b + panels * strip.blocks.len());
        // SAFETY: a prefetch is a hint: it reads nothing and does not fault, whatever the address.
        unsafe { _mm_prefetch::<HINT>(ahead.cast()) }
    }
}

/// Asks for one block 64 KB ahead of block `b`, once in each page of 4 KB.
///
/// The hardware fetches ahead within a page by itself; what it does not do in time is find the next pages. Reading a
/// matrix in pages of 4 KB on a virtual Zen 4 ran at 1.26 times the speed of a plain read loop this way (also of this kernel
/// without any prefetch), at 1.1 from one page ahead, and at 0.65 to 0.9 when every block was asked for.
#[inline(always)]
fn prefetch_page<T>(blocks: &[T], b: usize) {
    const PAGE: usize = 4096;
    let block = blocks.as_ptr().wrapping_add(b);
    if block.addr().is_multiple_of(PAGE) {
        let ahead = block.wrapping_byte_add(16 * PAGE);
        // SAFETY: a prefetch is a hint: it reads nothing and does not fault, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) }
    }
}
