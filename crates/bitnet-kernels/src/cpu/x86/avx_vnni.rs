//! AVX-VNNI: the 256-bit `vpdpbusd` of processors without AVX-512 (Alder Lake to Arrow Lake), and of Zen 5.

use std::arch::x86_64::_mm256_dpbusd_avx_epi32;

use super::v256::*;
use super::{_MM_HINT_T0, _MM_HINT_T1, AvxVnni, Strip, prefetch, strips};
use crate::cpu::packed::{PANEL_ROWS, Packing};
use crate::cpu::product::{Out, Tile, TileKernel, Tokens};

/// Defines the kernels on a `dpbusd`, so that tests can run them on the AVX-512 encoding of the same instruction.
macro_rules! tier {
    ($token:ident, $features:literal, $dpbusd:path) => {
        tile_kernel!($token, panels 1, tokens 5); // times two halves of a panel: 10 of 16 registers
        vnni_spin!($features, $dpbusd);

        mod two_bits {
            use super::*;
            two_bits!($features);
            vnni_kernels!($features, $dpbusd);
            run_tile!($features, few 2: 1; many 2: 2 3 4 5);
        }

        mod five_trits {
            use super::*;
            five_trits!($features);
            vnni_kernels!($features, $dpbusd);
            run_tile!($features, few 2: 1; many 2: 2 3 4 5);
        }
    };
}

tier!(AvxVnni, "avx2,avxvnni", _mm256_dpbusd_avx_epi32);

/// The kernels of AVX-VNNI, where only AVX-512 has the instruction.
#[cfg(test)]
pub(crate) mod evex {
    use std::arch::x86_64::_mm256_dpbusd_epi32;

    use super::*;

    #[derive(Clone, Copy)]
    pub(crate) struct Evex256 {
        _proof: super::super::Avx512Vnni,
    }

    impl Evex256 {
        pub fn detect() -> Option<Self> {
            super::super::Avx512Vnni::detect().map(|_proof| Self { _proof })
        }
    }

    tier!(Evex256, "avx2,avx512f,avx512vl,avx512vnni", _mm256_dpbusd_epi32);
}
