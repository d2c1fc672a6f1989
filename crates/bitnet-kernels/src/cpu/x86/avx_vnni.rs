//! AVX-VNNI: the 256-bit `vpdpbusd` of processors without AVX-512 (Alder Lake to Arrow Lake), and of Zen 5.

use std::arch::x86_64::_mm256_dpbusd_avx_epi32;

use super::v256::*;
use super::{AvxVnni, Strip, prefetch, strips};
use crate::cpu::product::{Out, Tile, TileKernel, Tokens};

impl TileKernel for AvxVnni {
    const PANELS: usize = 1;
    const TOKENS: usize = 5; // times two halves of a panel: 10 of 16 registers

    fn run(self, tile: &Tile<'_>, out: Out<'_>) {
        // SAFETY: the token exists, so this CPU has the instructions.
        unsafe { run(tile, out) }
    }

    fn spin(self, rounds: usize) -> usize {
        // SAFETY: as above.
        unsafe { spin(rounds) }
    }
}

/// Defines the kernels on a `dpbusd`, so that tests can run them on the AVX-512 encoding of the same instruction.
macro_rules! kernels {
    ($features:literal, $dpbusd:ident) => {
        #[target_feature(enable = $features)]
        pub(super) fn run(tile: &Tile<'_>, mut out: Out<'_>) {
            macro_rules! many {
                ($n:literal) => {
                    many::<2, $n>(strips::<LANES, 2>(tile, 0), tile.x, tile.sums, &mut out)
                };
            }
            match tile.sums.len() {
                1 => few::<2, 1>(strips::<LANES, 2>(tile, 0), tile.x, tile.sums, &mut out),
                n => with_tokens!(n, [2 3 4 5], many),
            }
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn dpbusd(sum: V, codes: V, q: V) -> V {
            $dpbusd(sum, codes, q)
        }

        vnni_kernels!($features);
    };
}

kernels!("avx2,avxvnni", _mm256_dpbusd_avx_epi32);

/// The kernels of AVX-VNNI, where only AVX-512 has the instruction.
#[cfg(test)]
#[derive(Clone, Copy)]
pub(crate) struct Evex256(super::Avx512Vnni);

#[cfg(test)]
impl Evex256 {
    pub fn detect() -> Option<Self> {
        super::Avx512Vnni::detect().map(Self)
    }
}

#[cfg(test)]
impl TileKernel for Evex256 {
    const PANELS: usize = AvxVnni::PANELS;
    const TOKENS: usize = AvxVnni::TOKENS;

    fn run(self, tile: &Tile<'_>, out: Out<'_>) {
        // SAFETY: the token exists, so this CPU has AVX-512 VL and VNNI.
        unsafe { evex::run(tile, out) }
    }

    fn spin(self, rounds: usize) -> usize {
        // SAFETY: as above.
        unsafe { evex::spin(rounds) }
    }
}

#[cfg(test)]
mod evex {
    use std::arch::x86_64::_mm256_dpbusd_epi32;

    use super::*;

    kernels!("avx2,avx512f,avx512vl,avx512vnni", _mm256_dpbusd_epi32);
}
