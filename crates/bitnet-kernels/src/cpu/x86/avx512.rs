//! AVX-512 without VNNI: Skylake-X and its kin.

use super::v512::*;
use super::{Avx512, Strip, prefetch, strips};
use crate::cpu::product::{Out, Tile, TileKernel, Tokens};

impl TileKernel for Avx512 {
    const PANELS: usize = 2;
    const TOKENS: usize = 8; // times two panels: 16 of 32 registers for 16-bit sums

    fn run(self, tile: &Tile<'_>, out: Out<'_>) {
        // SAFETY: the token exists, so this CPU has the instructions.
        unsafe { run(tile, out) }
    }

    fn spin(self, rounds: usize) -> usize {
        // SAFETY: as above.
        unsafe { spin(rounds) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn run(tile: &Tile<'_>, mut out: Out<'_>) {
    macro_rules! many {
        ($n:literal) => {
            match tile.panels.len() {
                2 => many::<2, $n>(strips::<LANES, 2>(tile, 0), tile.x, tile.sums, &mut out),
                _ => many::<1, $n>(strips::<LANES, 1>(tile, 0), tile.x, tile.sums, &mut out),
            }
        };
    }
    match tile.sums.len() {
        1 => {
            for panel in 0..tile.panels.len() {
                one::<1>(strips::<LANES, 1>(tile, panel), tile.x, tile.sums, &mut out);
            }
        }
        n => with_tokens!(n, [2 3 4 5 6 7 8], many),
    }
}

maddubs_kernels!("avx512f,avx512bw,avx512vl");
