//! Tiers of instructions by name, and what a CPU must have for them.

use std::fmt;

/// A tier of instructions by name, whether or not this machine has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SimdLevel {
    /// Portable code.
    Scalar,
    /// SSSE3 and SSE4.1.
    Sse41,
    /// AVX: the integer kernels of SSE4.1, which AVX does not widen, and 256-bit floats.
    Avx,
    /// AVX2.
    Avx2,
    /// AVX2 with the 256-bit `vpdpbusd`.
    AvxVnni,
    /// AVX-512 F, BW and VL.
    Avx512,
    /// AVX-512 F, BW, VL and VNNI.
    Avx512Vnni,
    /// NEON, which all 64-bit Arm processors have.
    Neon,
    /// NEON with `sdot`.
    NeonDotprod,
}

impl SimdLevel {
    /// All tiers, those of an architecture from the least to the most demanding.
    pub const ALL: [Self; 9] = [
        Self::Scalar,
        Self::Sse41,
        Self::Avx,
        Self::Avx2,
        Self::AvxVnni,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Neon,
        Self::NeonDotprod,
    ];

    /// The name that [`Isa::parse`](super::isa::Isa::parse) reads.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Sse41 => "sse",
            Self::Avx => "avx",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512-bw",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Neon => "neon",
            Self::NeonDotprod => "neon-dotprod",
        }
    }

    /// Bits in a vector of the integer kernels; 0 for portable code.
    pub fn vector_bits(self) -> usize {
        match self {
            Self::Scalar => 0,
            Self::Sse41 | Self::Avx | Self::Neon | Self::NeonDotprod => 128,
            Self::Avx2 | Self::AvxVnni => 256,
            Self::Avx512 | Self::Avx512Vnni => 512,
        }
    }

    /// The tiers that a CPU with these features has.
    pub fn supported(features: &CpuFeatures) -> Vec<Self> {
        Self::ALL.into_iter().filter(|&level| features.missing(level).is_empty()).collect()
    }

    /// The tiers that some CPU of the architecture of this build has.
    pub fn of_this_architecture() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|level| match level {
            Self::Scalar => true,
            Self::Neon | Self::NeonDotprod => cfg!(target_arch = "aarch64"),
            _ => cfg!(target_arch = "x86_64"),
        })
    }

    /// Tiers that a name stands for, best first; none for an unknown name.
    pub(super) fn named(name: &str) -> Vec<Self> {
        match name {
            "avx512" => vec![Self::Avx512Vnni, Self::Avx512],
            "sse4.1" => vec![Self::Sse41],
            _ => Self::ALL.into_iter().filter(|level| level.name() == name).collect(),
        }
    }
}

impl fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a CPU says that it can do; all false on another architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named as the features are")]
pub struct CpuFeatures {
    pub ssse3: bool,
    pub sse41: bool,
    pub sse42: bool,
    pub avx: bool,
    pub avx2: bool,
    pub fma: bool,
    pub f16c: bool,
    pub avxvnni: bool,
    pub avx512f: bool,
    pub avx512bw: bool,
    pub avx512vl: bool,
    pub avx512vnni: bool,
    pub avx512vbmi: bool,
    pub neon: bool,
    pub dotprod: bool,
}

impl CpuFeatures {
    /// The features of this CPU, as far as the operating system saves their registers.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        return Self {
            ssse3: is_x86_feature_detected!("ssse3"),
            sse41: is_x86_feature_detected!("sse4.1"),
            sse42: is_x86_feature_detected!("sse4.2"),
            avx: is_x86_feature_detected!("avx"),
            avx2: is_x86_feature_detected!("avx2"),
            fma: is_x86_feature_detected!("fma"),
            f16c: is_x86_feature_detected!("f16c"),
            avxvnni: is_x86_feature_detected!("avxvnni"),
            avx512f: is_x86_feature_detected!("avx512f"),
            avx512bw: is_x86_feature_detected!("avx512bw"),
            avx512vl: is_x86_feature_detected!("avx512vl"),
            avx512vnni: is_x86_feature_detected!("avx512vnni"),
            avx512vbmi: is_x86_feature_detected!("avx512vbmi"),
            ..Self::default()
        };
        #[cfg(target_arch = "aarch64")]
        return Self {
            neon: std::arch::is_aarch64_feature_detected!("neon"),
            dotprod: std::arch::is_aarch64_feature_detected!("dotprod"),
            ..Self::default()
        };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        Self::default()
    }

    /// Features that a tier needs and this CPU lacks.
    ///
    /// FMA is needed only because the compiler takes it for granted beside AVX-512 F.
    pub fn missing(&self, level: SimdLevel) -> Vec<&'static str> {
        let sse = [("ssse3", self.ssse3), ("sse4.1", self.sse41)];
        let avx = [("sse4.2", self.sse42), ("avx", self.avx)];
        let avx2 = [("f16c", self.f16c), ("avx2", self.avx2)]; // no processor has the second without the first
        let avx512 = [
            ("fma", self.fma),
            ("avx512f", self.avx512f),
            ("avx512bw", self.avx512bw),
            ("avx512vl", self.avx512vl),
        ];
        let needed: &[&[(&'static str, bool)]] = match level {
            SimdLevel::Scalar => &[],
            SimdLevel::Sse41 => &[&sse],
            SimdLevel::Avx => &[&sse, &avx],
            SimdLevel::Avx2 => &[&sse, &avx, &avx2],
            SimdLevel::AvxVnni => &[&sse, &avx, &avx2, &[("avxvnni", self.avxvnni)]],
            SimdLevel::Avx512 => &[&sse, &avx, &avx2, &avx512],
            SimdLevel::Avx512Vnni => {
                &[&sse, &avx, &avx2, &avx512, &[("avx512vnni", self.avx512vnni)]]
            }
            SimdLevel::Neon => &[&[("neon", self.neon)]],
            SimdLevel::NeonDotprod => &[&[("neon", self.neon), ("dotprod", self.dotprod)]],
        };
        needed.concat().into_iter().filter(|(_, has)| !has).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A CPU with everything that x86 tiers ask for.
    fn x86() -> CpuFeatures {
        CpuFeatures {
            ssse3: true,
            sse41: true,
            sse42: true,
            avx: true,
            avx2: true,
            fma: true,
            f16c: true,
            avxvnni: true,
            avx512f: true,
            avx512bw: true,
            avx512vl: true,
            avx512vnni: true,
            ..CpuFeatures::default()
        }
    }

    #[track_caller]
    fn check(features: CpuFeatures, best: SimdLevel) {
        assert_eq!(SimdLevel::supported(&features).last(), Some(&best));
    }

    #[test]
    fn avx512_needs_f_and_bw_and_vl() {
        check(x86(), SimdLevel::Avx512Vnni);
        check(CpuFeatures { avx512f: false, ..x86() }, SimdLevel::AvxVnni);
        check(CpuFeatures { avx512bw: false, ..x86() }, SimdLevel::AvxVnni);
        check(CpuFeatures { avx512vl: false, ..x86() }, SimdLevel::AvxVnni);
    }

    #[test]
    fn each_generation_gets_its_tier() {
        let skylake_x = CpuFeatures { avx512vnni: false, avxvnni: false, ..x86() };
        check(skylake_x, SimdLevel::Avx512);
        let knights_landing = CpuFeatures { avx512bw: false, avx512vl: false, ..skylake_x };
        check(knights_landing, SimdLevel::Avx2);
        let sandy_bridge = CpuFeatures { avx2: false, fma: false, f16c: false, ..knights_landing };
        check(sandy_bridge, SimdLevel::Avx);
        check(CpuFeatures { ssse3: true, sse41: true, ..Default::default() }, SimdLevel::Sse41);
        check(CpuFeatures { ssse3: true, ..Default::default() }, SimdLevel::Scalar);
        check(CpuFeatures { neon: true, ..Default::default() }, SimdLevel::Neon);
        let cortex_a76 = CpuFeatures { neon: true, dotprod: true, ..Default::default() };
        check(cortex_a76, SimdLevel::NeonDotprod);
    }

    #[test]
    fn what_is_missing_is_named() {
        let features = CpuFeatures { avx512bw: false, avx512vnni: false, ..x86() };
        assert_eq!(features.missing(SimdLevel::Avx512Vnni), ["avx512bw", "avx512vnni"]);
    }
}
