//! Kernels for 64-bit Arm, a file per tier.
//!
//! A vector holds a quarter of a block: four neighbouring codes of four rows.

mod dotprod;
mod int8;
mod neon;

use std::arch::aarch64::*;

use super::level::{CpuFeatures, SimdLevel};
use super::packed::{Block, PANEL_ROWS};
use super::product::Tile;

/// 32-bit lanes in a vector.
const LANES: usize = 4;

/// Vectors in a block.
const QUARTERS: usize = PANEL_ROWS / LANES;

/// Proof of NEON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neon(());

/// Proof of NEON with `sdot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeonDotprod(());

impl Neon {
    /// The proof, if the CPU has all instructions of the tier.
    pub fn detect() -> Option<Self> {
        CpuFeatures::detect().missing(SimdLevel::Neon).is_empty().then_some(Self(()))
    }
}

impl NeonDotprod {
    /// The proof, if the CPU has all instructions of the tier.
    pub fn detect() -> Option<Self> {
        CpuFeatures::detect().missing(SimdLevel::NeonDotprod).is_empty().then_some(Self(()))
    }
}

/// `V` quarters of a panel.
#[derive(Clone, Copy)]
struct Strips<'a, const V: usize> {
    blocks: &'a [Block],
    /// The first of the quarters.
    first: usize,
}

impl<'a, const V: usize> Strips<'a, V> {
    fn of(tile: &Tile<'a>, first: usize) -> Self {
        Self { blocks: tile.panels[0], first }
    }

    /// The tile's first row in quarter `v`.
    fn row(&self, v: usize) -> usize {
        (self.first + v) * LANES
    }

    #[target_feature(enable = "neon")]
    #[inline]
    fn load(&self, b: usize) -> [uint8x16_t; V] {
        let quarters = self.blocks[b].0.as_chunks::<16>().0;
        let mut codes = [vdupq_n_u8(0); V];
        for v in 0..V {
            // SAFETY: a quarter is 16 readable bytes, and `vld1q` needs no alignment.
            codes[v] = unsafe { vld1q_u8(quarters[self.first + v].as_ptr()) };
        }
        codes
    }
}

#[target_feature(enable = "neon")]
#[inline]
fn store(out: &mut [i32; LANES], lanes: int32x4_t) {
    // SAFETY: `out` is 16 writable bytes, and `vst1q` needs no alignment.
    unsafe { vst1q_s32(out.as_mut_ptr(), lanes) }
}

/// The codes of five trits a byte, by group of four columns: `x = t0 + 3·t1 + 9·t2 + 27·t3 + 84·t4`.
///
/// Division by 84 is two comparisons; division of the remainder by 9 gives `t2 + 3·t3` and `t0 + 3·t1`, 8 at most, which
/// are looked up.
#[target_feature(enable = "neon")]
#[inline]
fn five_trits(x: uint8x16_t) -> [uint8x16_t; 5] {
    const ONES: [u8; 16] = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0];
    const THREES: [u8; 16] = [0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: both tables are 16 readable bytes, and `vld1q` needs no alignment.
    let (ones, threes) = unsafe { (vld1q_u8(ONES.as_ptr()), vld1q_u8(THREES.as_ptr())) };
    // A comparison that holds gives -1.
    let (one, two) = (vcgeq_u8(x, vdupq_n_u8(84)), vcgeq_u8(x, vdupq_n_u8(168)));
    let minus_top = vaddq_u8(one, two);
    let below_84 = vmlaq_u8(x, minus_top, vdupq_n_u8(84));
    // 57 / 512 is more than 1/9 by so little that the quotient is right up to 80 and far beyond.
    let ninth = vdupq_n_u8(57);
    let low = vmull_u8(vget_low_u8(below_84), vget_low_u8(ninth));
    let high = vmull_high_u8(below_84, ninth);
    let upper_bytes = vuzp2q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high));
    let quotient = vshrq_n_u8::<1>(upper_bytes);
    let rest = vmlsq_u8(below_84, quotient, vdupq_n_u8(9));
    [
        vqtbl1q_u8(ones, rest),
        vqtbl1q_u8(threes, rest),
        vqtbl1q_u8(ones, quotient),
        vqtbl1q_u8(threes, quotient),
        vsubq_u8(vdupq_n_u8(0), minus_top),
    ]
}

/// Four activations in each 32-bit lane.
#[target_feature(enable = "neon")]
#[inline]
fn splat(quad: [i8; 4]) -> int8x16_t {
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(quad.map(|q| q as u8))))
}

/// Sixteen neighbouring activations.
#[target_feature(enable = "neon")]
#[inline]
fn load_activations(q: &[[i8; 4]; 4]) -> int8x16_t {
    // SAFETY: `q` is 16 readable bytes, and `vld1q` needs no alignment.
    unsafe { vld1q_s8(q.as_flattened().as_ptr()) }
}
