//! SSE4.1 and SSSE3: every 64-bit Intel processor since 2008 and every AMD one since 2011.

use super::v128::*;
use super::{Sse41, Strip, prefetch, strips};
use crate::cpu::product::{Out, Tile, TileKernel, Tokens};

impl TileKernel for Sse41 {
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

#[target_feature(enable = "ssse3,sse4.1")]
fn run(tile: &Tile<'_>, mut out: Out<'_>) {
    macro_rules! many {
        ($n:literal) => {
            for quarter in 0..4 {
                many::<1, $n>(strips::<LANES, 1>(tile, quarter), tile.x, tile.sums, &mut out);
            }
        };
    }
    match tile.sums.len() {
        1 => one::<4>(strips::<LANES, 4>(tile, 0), tile.x, tile.sums, &mut out),
        n => with_tokens!(n, [2 3 4 5 6 7 8], many),
    }
}

maddubs_kernels!("ssse3,sse4.1");
