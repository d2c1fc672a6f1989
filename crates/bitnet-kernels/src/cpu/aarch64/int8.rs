//! Kernels of the int8 output head.

use std::arch::aarch64::*;

use super::dotprod::sdot;
use super::{LANES, Neon, NeonDotprod, QUARTERS, load_activations, store};
use crate::cpu::head::packed::Group;
use crate::cpu::head::product::{Half, Int8Kernel, Int8Tile, Sums};

impl Int8Kernel for NeonDotprod {
    const PANELS: usize = 1;
    const TOKENS: usize = 2; // four halves times four quarters of a panel: 16 of 32 registers

    fn int8_products(self, tile: &Int8Tile<'_>, out: &mut [Sums]) {
        // SAFETY: the token exists, so this CPU has `sdot`.
        unsafe {
            match tile.x.len() {
                2 => with_sdot::<2>(tile, out),
                _ => with_sdot::<4>(tile, out),
            }
        }
    }
}

impl Int8Kernel for Neon {
    const PANELS: usize = 1;
    const TOKENS: usize = 2;

    fn int8_products(self, tile: &Int8Tile<'_>, out: &mut [Sums]) {
        for first in (0..QUARTERS).step_by(2) {
            // SAFETY: the token exists, so this CPU has NEON.
            unsafe {
                match tile.x.len() {
                    2 => with_smull::<2>(tile, first, out),
                    _ => with_smull::<4>(tile, first, out),
                }
            }
        }
    }
}

/// A quarter of a block: four columns of four rows.
#[target_feature(enable = "neon")]
#[inline]
fn load(block: &[u8; 64], quarter: usize) -> int8x16_t {
    let quarter = &block.as_chunks::<16>().0[quarter];
    // SAFETY: a quarter is 16 readable bytes, and `vld1q` needs no alignment.
    vreinterpretq_s8_u8(unsafe { vld1q_u8(quarter.as_ptr()) })
}

fn operands<'a, const N: usize>(tile: &Int8Tile<'a>) -> (&'a [Group], [Half<'a>; N]) {
    let groups = tile.panels[0];
    (groups, std::array::from_fn(|t| &tile.x[t][..groups.len()]))
}

/// Products of all rows of a panel with `N` halves.
#[target_feature(enable = "neon,dotprod")]
fn with_sdot<const N: usize>(tile: &Int8Tile<'_>, out: &mut [Sums]) {
    let (groups, x) = operands::<N>(tile);
    let mut acc = [[vdupq_n_s32(0); N]; QUARTERS];
    for (g, blocks) in groups.iter().enumerate() {
        let mut q = [vdupq_n_s8(0); N];
        for t in 0..N {
            q[t] = load_activations(&x[t][g]);
        }
        for v in 0..QUARTERS {
            let w: [uint8x16_t; 4] = [
                vreinterpretq_u8_s8(load(&blocks[0], v)),
                vreinterpretq_u8_s8(load(&blocks[1], v)),
                vreinterpretq_u8_s8(load(&blocks[2], v)),
                vreinterpretq_u8_s8(load(&blocks[3], v)),
            ];
            for t in 0..N {
                let sum = sdot::<1>(sdot::<0>(acc[v][t], w[0], q[t]), w[1], q[t]);
                acc[v][t] = sdot::<3>(sdot::<2>(sum, w[2], q[t]), w[3], q[t]);
            }
        }
    }
    for v in 0..QUARTERS {
        for t in 0..N {
            let lanes: &mut [i32; LANES] = &mut out[t].as_chunks_mut().0[v];
            store(lanes, acc[v][t]);
        }
    }
}

/// Products of the rows in quarters `first` and `first + 1` of a panel with `N` halves.
///
/// Two products of bytes reach 32258, which 16 bits hold; a third would not fit.
#[target_feature(enable = "neon")]
fn with_smull<const N: usize>(tile: &Int8Tile<'_>, first: usize, out: &mut [Sums]) {
    let (groups, x) = operands::<N>(tile);
    let mut acc = [[[vdupq_n_s32(0); 2]; N]; 2];
    for (g, group) in groups.iter().enumerate() {
        for (pair, blocks) in group.as_chunks::<2>().0.iter().enumerate() {
            let mut q = [[vdupq_n_s8(0); 2]; N];
            for t in 0..N {
                q[t] = [splat(x[t][g][2 * pair]), splat(x[t][g][2 * pair + 1])];
            }
            for v in 0..2 {
                let (a, b) = (load(&blocks[0], first + v), load(&blocks[1], first + v));
                for t in 0..N {
                    let [low, high] = acc[v][t];
                    let products = vmull_s8(vget_low_s8(a), vget_low_s8(q[t][0]));
                    let products = vmlal_s8(products, vget_low_s8(b), vget_low_s8(q[t][1]));
                    let low = vpadalq_s16(low, products);
                    let products = vmlal_high_s8(vmull_high_s8(a, q[t][0]), b, q[t][1]);
                    acc[v][t] = [low, vpadalq_s16(high, products)];
                }
            }
        }
    }
    for v in 0..2 {
        for t in 0..N {
            let [low, high] = acc[v][t];
            let lanes: &mut [i32; LANES] = &mut out[t].as_chunks_mut().0[first + v];
            store(lanes, vpaddq_s32(low, high));
        }
    }
}

/// Four activations in each 32-bit lane.
#[target_feature(enable = "neon")]
#[inline]
fn splat(quad: [i8; 4]) -> int8x16_t {
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(quad.map(|q| q as u8))))
}
