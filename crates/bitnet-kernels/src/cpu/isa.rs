//! Which instructions the CPU kernels use: found once, tested once, chosen once, and dispatched in one place.
//!
//! [`SimdLevel`] names a tier on any machine, [`Isa`] proves that this machine has it. [`Isa::available`] lists only
//! tiers whose kernels have just given the right answers here (`selftest.rs`), since CPUID can promise too much
//! under virtualization, and [`Isa::best`] takes the one that a short timing finds fastest.

use std::fmt;
use std::ops::Range;
use std::sync::OnceLock;

#[cfg(target_arch = "aarch64")]
use super::aarch64::{Neon, NeonDotprod};
use super::head::product::{Int8Kernel, Int8Product};
use super::level::{CpuFeatures, SimdLevel};
use super::packed::PackedTernary;
use super::pool::Stripe;
use super::product::{Product, TileKernel};
use super::selection::{self, Selection};
use super::selftest::{self, WrongProduct};
#[cfg(target_arch = "x86_64")]
use super::x86::{Avx, Avx2, Avx512, Avx512Vnni, AvxVnni, Sse41};
use crate::activation::QuantizedRows;
use crate::scalar::ternary::Portable;

/// The one place where a tier turns into its kernel.
macro_rules! with_kernel {
    ($isa:expr, |$kernel:ident| $body:expr) => {
        match $isa {
            Isa::Scalar => {
                let $kernel = Portable;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Sse41($kernel) => $body,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx(avx) => {
                let $kernel = avx.sse41();
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2($kernel) => $body,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni($kernel) => $body,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512($kernel) => $body,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni($kernel) => $body,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon($kernel) => $body,
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod($kernel) => $body,
        }
    };
}

/// A tier that this CPU has: the variants carry proofs that only detection makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants are those of `SimdLevel`")]
pub enum Isa {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Sse41(Sse41),
    #[cfg(target_arch = "x86_64")]
    Avx(Avx),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(NeonDotprod),
}

impl Isa {
    /// The tiers that may be used here, from the least to the most demanding: the CPU has them and their self-test passed.
    pub fn available() -> &'static [Self] {
        static AVAILABLE: OnceLock<Vec<Isa>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            tested().iter().filter(|(_, failure)| failure.is_none()).map(|&(isa, _)| isa).collect()
        })
    }

    /// The fastest available tier, which is what runs unless a user asks for another.
    pub fn best() -> Self {
        Self::selection().chosen
    }

    /// How [`Isa::best`] was found.
    pub fn selection() -> &'static Selection {
        static SELECTION: OnceLock<Selection> = OnceLock::new();
        SELECTION.get_or_init(|| selection::select(Self::available(), failure))
    }

    /// The tier of a name: one of [`SimdLevel::name`], or `sse4.1`, `avx512` (the better AVX-512 tier) or `auto`.
    pub fn parse(name: &str) -> Result<Self, IsaError> {
        if name == "auto" {
            return Ok(Self::best());
        }
        let levels = SimdLevel::named(name);
        let available =
            |&level: &SimdLevel| Self::available().iter().find(|isa| isa.level() == level);
        let found = levels.iter().find_map(available);
        match (found, levels.last()) {
            (Some(&isa), _) => Ok(isa),
            (None, Some(&level)) => Err(IsaError::not_available(level)),
            (None, None) => Err(IsaError::Unknown { name: name.to_owned() }),
        }
    }

    /// The tier's name.
    pub fn name(self) -> &'static str {
        self.level().name()
    }

    /// The tier without its proof.
    pub fn level(self) -> SimdLevel {
        match self {
            Self::Scalar => SimdLevel::Scalar,
            #[cfg(target_arch = "x86_64")]
            Self::Sse41(_) => SimdLevel::Sse41,
            #[cfg(target_arch = "x86_64")]
            Self::Avx(_) => SimdLevel::Avx,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => SimdLevel::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(_) => SimdLevel::AvxVnni,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => SimdLevel::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni(_) => SimdLevel::Avx512Vnni,
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => SimdLevel::Neon,
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(_) => SimdLevel::NeonDotprod,
        }
    }

    /// The proof that the CPU has a tier, before any self-test.
    fn detect(level: SimdLevel) -> Option<Self> {
        match level {
            SimdLevel::Scalar => Some(Self::Scalar),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Sse41 => Sse41::detect().map(Self::Sse41),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx => Avx::detect().map(Self::Avx),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::AvxVnni => AvxVnni::detect().map(Self::AvxVnni),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => Avx512::detect().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512Vnni => Avx512Vnni::detect().map(Self::Avx512Vnni),
            #[cfg(target_arch = "aarch64")]
            SimdLevel::Neon => Neon::detect().map(Self::Neon),
            #[cfg(target_arch = "aarch64")]
            SimdLevel::NeonDotprod => NeonDotprod::detect().map(Self::NeonDotprod),
            _ => None,
        }
    }

    /// `out[t][r] = Σ w·q`, exactly, for `tokens` of `x` by the rows of `panels`, over the columns of `blocks`.
    ///
    /// `panels` counts in [`super::packed::PANEL_ROWS`], `blocks` in [`super::packed::Packing::block_cols`]: all of
    /// `0..w.blocks_per_panel()`, or a group with a scale of its own. `out` is `[tokens.len(), panels.len() · 16]`,
    /// the rows that pad the last panel included (as zeros). All tiers give the same, whatever the number of tokens.
    ///
    /// # Panics
    /// If ranges or lengths do not fit.
    pub fn ternary_product(
        self,
        w: &PackedTernary,
        panels: Range<usize>,
        blocks: Range<usize>,
        x: &QuantizedRows,
        tokens: Range<usize>,
        out: &mut [i32],
    ) {
        Product { w, panels, blocks, x, tokens }.run_on(self, out);
    }

    /// The logits of an int8 head, for the rows that are the columns of `out`; see [`crate::scalar::int8`].
    pub(crate) fn int8_logits(self, product: &Int8Product<'_>, out: &mut Stripe<'_>) {
        with_kernel!(self, |kernel| product.run(kernel, out));
    }

    /// The tile that the tier's kernel computes at a time: rows and tokens at most.
    pub fn tile(self) -> (usize, usize) {
        fn of<K: TileKernel>(_: K) -> (usize, usize) {
            (K::PANELS * super::packed::PANEL_ROWS, K::TOKENS)
        }
        with_kernel!(self, |kernel| of(kernel))
    }

    /// The tile that the tier's kernel for an int8 head computes at a time: rows and tokens at most.
    pub fn head_tile(self) -> (usize, usize) {
        fn of<K: Int8Kernel>(_: K) -> (usize, usize) {
            (K::PANELS * super::packed::PANEL_ROWS, K::TOKENS)
        }
        with_kernel!(self, |kernel| of(kernel))
    }

    /// Multiplies and adds in registers as fast as the tier's instructions go, and returns how many products that made.
    /// This is the peak that benchmarks hold the kernels against.
    pub fn spin(self, rounds: usize) -> usize {
        with_kernel!(self, |kernel| kernel.spin(rounds))
    }
}

impl Product<'_> {
    /// Computes it with the kernel of a tier.
    pub(super) fn run_on(&self, isa: Isa, out: &mut [i32]) {
        with_kernel!(isa, |kernel| self.run(kernel, out));
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Every tier that the CPU has, with what its self-test found wrong.
fn tested() -> &'static [(Isa, Option<WrongProduct>)] {
    static TESTED: OnceLock<Vec<(Isa, Option<WrongProduct>)>> = OnceLock::new();
    TESTED.get_or_init(|| {
        let test = |isa| {
            let wrong = selftest::check(|product, out| product.run_on(isa, out))
                .and_then(|()| selftest::check_int8(|product, out| isa.int8_logits(product, out)))
                .err();
            if let Some(wrong) = &wrong {
                tracing::warn!(simd_level = isa.name(), %wrong, "self-test failed");
            }
            (isa, wrong)
        };
        SimdLevel::ALL.into_iter().filter_map(Isa::detect).map(test).collect()
    })
}

/// What the self-test of a tier found wrong.
fn failure(level: SimdLevel) -> Option<WrongProduct> {
    tested().iter().find(|(isa, _)| isa.level() == level).and_then(|(_, wrong)| wrong.clone())
}

/// Why a tier cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum IsaError {
    /// Not a name of a tier.
    #[error("`{name}` is no SIMD level; levels are auto, avx512, {}", names(&SimdLevel::ALL))]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// The CPU does not have it.
    #[error("SIMD level {level} is not available here: this CPU lacks {}", missing.join(", "))]
    NotAvailable {
        /// The tier asked for.
        level: SimdLevel,
        /// Features that it needs and the CPU lacks.
        missing: Vec<&'static str>,
    },
    /// The CPU claims to have it and computes wrongly with it.
    #[error("SIMD level {level} is not used here: its self-test failed")]
    SelfTest {
        /// The tier asked for.
        level: SimdLevel,
        /// What came out wrong.
        source: WrongProduct,
    },
}

impl IsaError {
    fn not_available(level: SimdLevel) -> Self {
        match failure(level) {
            Some(source) => Self::SelfTest { level, source },
            None => Self::NotAvailable { level, missing: CpuFeatures::detect().missing(level) },
        }
    }

    /// What to try instead.
    pub fn help(&self) -> String {
        let available: Vec<_> = Isa::available().iter().map(|isa| isa.level()).collect();
        format!("available here: auto, {}", names(&available))
    }
}

fn names(levels: &[SimdLevel]) -> String {
    levels.iter().map(|level| level.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_available_tier_is_found_by_its_name() {
        for isa in Isa::available() {
            assert_eq!(Isa::parse(isa.name()), Ok(*isa));
        }
        assert_eq!(Isa::available()[0], Isa::Scalar);
    }

    #[test]
    fn no_tier_of_this_cpu_fails_its_self_test() {
        for (isa, wrong) in tested() {
            assert_eq!(*wrong, None, "{isa}");
        }
    }

    #[test]
    fn avx512_means_the_best_of_its_tiers() {
        let best = Isa::available().iter().rev().find(|isa| isa.level().vector_bits() == 512);
        assert_eq!(Isa::parse("avx512").ok(), best.copied());
    }

    #[test]
    fn another_architecture_is_not_available_and_says_what_is() {
        let foreign = if cfg!(target_arch = "x86_64") { "neon" } else { "sse4.1" };
        let error = Isa::parse(foreign).unwrap_err();
        assert!(matches!(error, IsaError::NotAvailable { .. }), "{error}");
        assert!(error.help().starts_with("available here: auto, scalar"), "{}", error.help());
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = Isa::parse("mmx").unwrap_err();
        assert_eq!(
            error.to_string(),
            "`mmx` is no SIMD level; levels are auto, avx512, scalar, sse, avx, avx2, avx-vnni, \
             avx512-bw, avx512-vnni, neon, neon-dotprod"
        );
    }
}
