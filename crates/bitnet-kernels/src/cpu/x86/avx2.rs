//! AVX2: Haswell, Zen and later.

use super::v256::*;
use super::{Avx2, Strip, prefetch, strips};
use crate::cpu::product::{Out, Tile, TileKernel, Tokens};

impl TileKernel for Avx2 {
    const PANELS: usize = 1;
    const TOKENS: usize = 8;

    fn run(self, tile: &Tile<'_>, out: Out<'_>) {
        // SAFETY: the token exists, so this CPU has the instructions.
        unsafe { run(tile, out) }
    }

    fn spin(self, rounds: usize) -> usize {
        // SAFETY: as above.
        unsafe { spin(rounds) }
    }
}

#[target_feature(enable = "avx2")]
fn run(tile: &Tile<'_>, mut out: Out<'_>) {
    macro_rules! many {
        ($n:literal) => {
            for half in 0..2 {
                many::<1, $n>(strips::<LANES, 1>(tile, half), tile.x, tile.sums, &mut out);
            }
        };
    }
    match tile.sums.len() {
        1 => one::<2>(strips::<LANES, 2>(tile, 0), tile.x, tile.sums, &mut out),
        n => with_tokens!(n, [2 3 4 5 6 7 8], many),
    }
}

maddubs_kernels!("avx2");
