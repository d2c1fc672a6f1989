//! AVX-512 with VNNI: Ice Lake, Zen 4 and later.

use std::arch::x86_64::_mm512_dpbusd_epi32;

use super::v512::*;
use super::{Avx512Vnni, Strip, prefetch, strips};
use crate::cpu::product::{Out, Tile, TileKernel, Tokens};

impl TileKernel for Avx512Vnni {
    const PANELS: usize = 2;
    const TOKENS: usize = 10; // times two panels: 20 of 32 registers; with 12 the compiler spills

    fn run(self, tile: &Tile<'_>, out: Out<'_>) {
        // SAFETY: the token exists, so this CPU has the instructions.
        unsafe { run(tile, out) }
    }

    fn spin(self, rounds: usize) -> usize {
        // SAFETY: as above.
        unsafe { spin(rounds) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn run(tile: &Tile<'_>, mut out: Out<'_>) {
    macro_rules! few {
        ($n:literal) => {
            // One panel at a time: two streams from memory are half as fast as one.
            for panel in 0..tile.panels.len() {
                few::<1, $n>(strips::<LANES, 1>(tile, panel), tile.x, tile.sums, &mut out);
            }
        };
    }
    macro_rules! many {
        ($n:literal) => {
            match tile.panels.len() {
                2 => many::<2, $n>(strips::<LANES, 2>(tile, 0), tile.x, tile.sums, &mut out),
                _ => many::<1, $n>(strips::<LANES, 1>(tile, 0), tile.x, tile.sums, &mut out),
            }
        };
    }
    match tile.sums.len() {
        n @ 1..=4 => with_tokens!(n, [1 2 3 4], few),
        n => with_tokens!(n, [5 6 7 8 9 10], many),
    }
}

#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn dpbusd(sum: V, codes: V, q: V) -> V {
    _mm512_dpbusd_epi32(sum, codes, q)
}

vnni_kernels!("avx512f,avx512bw,avx512vl,avx512vnni");
