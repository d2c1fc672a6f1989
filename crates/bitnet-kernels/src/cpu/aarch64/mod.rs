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

/// Sixteen neighbouring activations.
#[target_feature(enable = "neon")]
#[inline]
fn load_activations(q: &[[i8; 4]; 4]) -> int8x16_t {
    // SAFETY: `q` is 16 readable bytes, and `vld1q` needs no alignment.
    unsafe { vld1q_s8(q.as_flattened().as_ptr()) }
}
