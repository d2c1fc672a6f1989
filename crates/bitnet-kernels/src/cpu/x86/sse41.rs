//! SSE4.1 and SSSE3: every 64-bit Intel processor since 2008 and every AMD one since 2011.

use super::v128::*;
use super::{_MM_HINT_T0, _MM_HINT_T1, Sse41, Strip, prefetch, strips};
use crate::cpu::packed::{PANEL_ROWS, Packing};
use crate::cpu::product::{Out, Tile, TileKernel, Tokens};

maddubs_tier!(Sse41, "ssse3,sse4.1", panels 1, strips 4 1);
