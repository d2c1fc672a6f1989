//! AVX-512 without VNNI: Skylake-X and its kin.

use super::v512::*;
use super::{_MM_HINT_T0, _MM_HINT_T1, Avx512, Strip, prefetch, strips};
use crate::cpu::packed::{PANEL_ROWS, Packing};
use crate::cpu::product::{Out, Tile, TileKernel, Tokens};

// 8 tokens times two panels: 16 of 32 registers for 16-bit sums.
maddubs_tier!(Avx512, "avx512f,avx512bw,avx512vl", panels 2, strips 1 2);
