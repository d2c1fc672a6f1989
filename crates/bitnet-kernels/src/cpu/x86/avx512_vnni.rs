//! AVX-512 with VNNI: Ice Lake, Zen 4 and later. Cascade Lake lacks VBMI, which the others have too.

use std::arch::x86_64::_mm512_dpbusd_epi32;

use super::v512::*;
use super::{_MM_HINT_T0, _MM_HINT_T1, Avx512Vnni, Strip, prefetch, strips};
use crate::cpu::packed::{PANEL_ROWS, Packing};
use crate::cpu::product::{Out, Tile, TileKernel, Tokens};

impl TileKernel for Avx512Vnni {
    const PANELS: usize = 2;
    const TOKENS: usize = 8; // times two panels: 16 of 32 registers; from 10 on the compiler may spill

    fn run(self, tile: &Tile<'_>, out: Out<'_>) {
        match tile.packing {
            // SAFETY: the token exists, so this CPU has the instructions.
            Packing::TwoBits => unsafe { two_bits::run(tile, out) },
            // SAFETY: as above, and detection found VBMI too.
            Packing::FiveTrits if self.has_vbmi() => unsafe { five_trits_vbmi::run(tile, out) },
            // SAFETY: as above, without VBMI.
            Packing::FiveTrits => unsafe { five_trits::run(tile, out) },
        }
    }

    fn spin(self, rounds: usize) -> usize {
        // SAFETY: as above.
        unsafe { spin(rounds) }
    }
}

vnni_spin!("avx512f,avx512bw,avx512vl,avx512vnni", _mm512_dpbusd_epi32);

mod two_bits {
    use super::*;
    two_bits!("avx512f,avx512bw,avx512vl,avx512vnni");
    vnni_kernels!("avx512f,avx512bw,avx512vl,avx512vnni", _mm512_dpbusd_epi32);
    // One panel at a time for few tokens: two streams from memory are half as fast as one.
    run_tile!("avx512f,avx512bw,avx512vl,avx512vnni", few 1: 1 2 3 4 5; many 2: 6 7 8);
}

mod five_trits {
    use super::*;
    five_trits!("avx512f,avx512bw,avx512vl,avx512vnni");
    vnni_kernels!("avx512f,avx512bw,avx512vl,avx512vnni", _mm512_dpbusd_epi32);
    run_tile!("avx512f,avx512bw,avx512vl,avx512vnni", few 1: 1 2 3 4; many 2: 5 6 7 8);
}

mod five_trits_vbmi {
    use super::*;
    five_trits_in_fields!("avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi");
    vnni_kernels!("avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi", _mm512_dpbusd_epi32);
    run_tile!("avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi", few 1: 1 2 3 4; many 2: 5 6 7 8);
}
