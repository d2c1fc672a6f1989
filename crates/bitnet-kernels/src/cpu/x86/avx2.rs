//! AVX2: Haswell, Zen and later.

use super::v256::*;
use super::{_MM_HINT_T0, _MM_HINT_T1, Avx2, Strip, prefetch, strips};
use crate::cpu::packed::{PANEL_ROWS, Packing};
use crate::cpu::product::{Out, Tile, TileKernel, Tokens};

maddubs_tier!(Avx2, "avx2", panels 1, strips 2 1);
