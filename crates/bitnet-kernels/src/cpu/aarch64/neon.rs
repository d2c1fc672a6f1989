//! NEON without `sdot`: Cortex-A53, A72 and their generation.

use std::arch::aarch64::*;

use super::{LANES, Neon, QUARTERS, Strips, load_activations, store};
use crate::cpu::product::{Out, Tile, TileKernel, Tokens};

/// A code is at most 2 and an activation at most 127 in size, so a 16-bit lane grows by at most 4 · 254 with a block,
/// and 32 blocks reach 32512.
const BLOCKS_PER_FLUSH: usize = 32;

impl TileKernel for Neon {
    const PANELS: usize = 1;
    const TOKENS: usize = 4;

    fn run(self, tile: &Tile<'_>, out: Out<'_>) {
        // SAFETY: the token exists, so this CPU has NEON.
        unsafe { run(tile, out) }
    }

    fn spin(self, rounds: usize) -> usize {
        // SAFETY: as above.
        unsafe { spin(rounds) }
    }
}

#[target_feature(enable = "neon")]
fn run(tile: &Tile<'_>, mut out: Out<'_>) {
    // Two quarters by four tokens: 16 of 32 registers for sums.
    for first in (0..QUARTERS).step_by(2) {
        let (strips, x, sums) = (Strips::<2>::of(tile, first), tile.x, tile.sums);
        match tile.sums.len() {
            1 => products::<2, 1>(strips, x, sums, &mut out),
            2 => products::<2, 2>(strips, x, sums, &mut out),
            3 => products::<2, 3>(strips, x, sums, &mut out),
            _ => products::<2, 4>(strips, x, sums, &mut out),
        }
    }
}

#[target_feature(enable = "neon")]
fn products<const V: usize, const N: usize>(
    strips: Strips<'_, V>,
    x: Tokens<'_>,
    sums: &[i32],
    out: &mut Out<'_>,
) {
    let blocks = strips.blocks.len();
    let mut acc = [[vdupq_n_s32(0); N]; V];
    let mut tokens = [&[][..]; N];
    for t in 0..N {
        tokens[t] = &x.blocks(t)[..blocks];
    }
    for first in (0..blocks).step_by(BLOCKS_PER_FLUSH) {
        let mut narrow = [[[vdupq_n_s16(0); 2]; N]; V];
        for b in first..blocks.min(first + BLOCKS_PER_FLUSH) {
            let mut codes = strips.load(b);
            for j in 0..4 {
                let mut fields = [vdupq_n_s8(0); V];
                for v in 0..V {
                    fields[v] = vreinterpretq_s8_u8(vandq_u8(codes[v], vdupq_n_u8(3)));
                    codes[v] = vshrq_n_u8::<2>(codes[v]);
                }
                for t in 0..N {
                    let q = splat(tokens[t][b][j]);
                    for v in 0..V {
                        let [low, high] = narrow[v][t];
                        let low = vmlal_s8(low, vget_low_s8(fields[v]), vget_low_s8(q));
                        narrow[v][t] = [low, vmlal_high_s8(high, fields[v], q)];
                    }
                }
            }
        }
        for v in 0..V {
            for t in 0..N {
                let [low, high] = narrow[v][t];
                let rows = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
                acc[v][t] = vaddq_s32(acc[v][t], rows);
            }
        }
    }
    for v in 0..V {
        for t in 0..N {
            let lanes: &mut [i32; LANES] = out.lanes(t, strips.row(v));
            store(lanes, vsubq_s32(acc[v][t], vdupq_n_s32(sums[t])));
        }
    }
}

/// Four activations in each 32-bit lane.
#[target_feature(enable = "neon")]
#[inline]
fn splat(quad: [i8; 4]) -> int8x16_t {
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(quad.map(|q| q as u8))))
}

/// Runs nothing but `smlal`; see `Isa::spin`.
#[target_feature(enable = "neon")]
fn spin(rounds: usize) -> usize {
    let mut acc = [vdupq_n_s16(1); 16];
    let q = vget_low_s8(load_activations(std::hint::black_box(&[[3; 4]; 4])));
    for _ in 0..rounds {
        for i in 0..acc.len() {
            // The operand changes with the sum, else the product would be taken out of the loop.
            acc[i] = vmlal_s8(acc[i], vget_low_s8(vreinterpretq_s8_s16(acc[i])), q);
        }
    }
    std::hint::black_box(acc);
    rounds * acc.len() * 8
}
