//! NEON without `sdot`: Cortex-A53, A72 and their generation.

use std::arch::aarch64::*;

use super::{LANES, Neon, QUARTERS, Strips, five_trits, load_activations, splat, store};
use crate::cpu::packed::Packing;
use crate::cpu::product::{Out, Tile, TileKernel, Tokens};

/// A code is at most 2 and an activation at most 127 in size, so 128 products reach 32512 and fit in a 16-bit lane: 32
/// blocks of four products, or 25 of five.
const PRODUCTS_PER_FLUSH: usize = 128;

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
        match tile.packing {
            Packing::TwoBits => match tile.sums.len() {
                1 => products::<4, 2, 1>(strips, x, sums, &mut out),
                2 => products::<4, 2, 2>(strips, x, sums, &mut out),
                3 => products::<4, 2, 3>(strips, x, sums, &mut out),
                _ => products::<4, 2, 4>(strips, x, sums, &mut out),
            },
            Packing::FiveTrits => match tile.sums.len() {
                1 => products::<5, 2, 1>(strips, x, sums, &mut out),
                2 => products::<5, 2, 2>(strips, x, sums, &mut out),
                3 => products::<5, 2, 3>(strips, x, sums, &mut out),
                _ => products::<5, 2, 4>(strips, x, sums, &mut out),
            },
        }
    }
}

#[target_feature(enable = "neon")]
fn products<const QUADS: usize, const V: usize, const N: usize>(
    strips: Strips<'_, V>,
    x: Tokens<'_>,
    sums: &[i32],
    out: &mut Out<'_>,
) {
    let (blocks, blocks_per_flush) = (strips.blocks.len(), PRODUCTS_PER_FLUSH / QUADS);
    let mut acc = [[vdupq_n_s32(0); N]; V];
    let mut tokens = [&[][..]; N];
    for t in 0..N {
        tokens[t] = &x.blocks::<QUADS>(t)[..blocks];
    }
    for first in (0..blocks).step_by(blocks_per_flush) {
        let mut narrow = [[[vdupq_n_s16(0); 2]; N]; V];
        for b in first..blocks.min(first + blocks_per_flush) {
            let packed = strips.load(b);
            let mut codes = [[vdupq_n_s8(0); QUADS]; V];
            for v in 0..V {
                codes[v] = unpack(packed[v]);
            }
            for j in 0..QUADS {
                for t in 0..N {
                    let q = splat(tokens[t][b][j]);
                    for v in 0..V {
                        let [low, high] = narrow[v][t];
                        let low = vmlal_s8(low, vget_low_s8(codes[v][j]), vget_low_s8(q));
                        narrow[v][t] = [low, vmlal_high_s8(high, codes[v][j], q)];
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

/// The codes in a vector by group of four columns: two bits each if there are four groups, five trits a byte if five.
#[target_feature(enable = "neon")]
#[inline]
fn unpack<const QUADS: usize>(x: uint8x16_t) -> [int8x16_t; QUADS] {
    let mask = vdupq_n_u8(3);
    let mut codes = [vdupq_n_s8(0); QUADS];
    if QUADS == 5 {
        for (codes, digits) in codes.iter_mut().zip(five_trits(x)) {
            *codes = vreinterpretq_s8_u8(digits);
        }
    } else {
        let middle = [vandq_u8(vshrq_n_u8::<2>(x), mask), vandq_u8(vshrq_n_u8::<4>(x), mask)];
        let fields = [vandq_u8(x, mask), middle[0], middle[1], vshrq_n_u8::<6>(x)];
        for (codes, field) in codes.iter_mut().zip(fields) {
            *codes = vreinterpretq_s8_u8(field);
        }
    }
    codes
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
