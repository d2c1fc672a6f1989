//! The start-up choice of a tier, by a short timing and not by vendor: on some processors 512-bit vectors run in two
//! passes or slow the clock down, on others they double the speed.

use std::fmt;
use std::time::{Duration, Instant};

use super::isa::Isa;
use super::level::{CpuFeatures, SimdLevel};
use super::packed::PackedTernary;
use super::product::Product;
use super::selftest::{WrongProduct, mixed_matrix, mixed_rows};

/// Rows of the matrix that the choice is timed on. It takes 128 KB, which fits the second-level cache of any processor.
pub const TIMED_ROWS: usize = 512;

/// Its columns.
pub const TIMED_COLS: usize = 1024;

/// Time for each candidate: hundreds of products, so that some meet no interruption.
const TIME_EACH: Duration = Duration::from_millis(1);

/// How much faster narrower vectors must be to be taken: many tokens at once gain more from wide ones than one token does.
const CLEARLY_FASTER: f64 = 0.95;

/// How the start-up choice of a tier went.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// The tier that [`Isa::best`] gives.
    pub chosen: Isa,
    /// Every tier of this architecture.
    pub candidates: Vec<Candidate>,
}

/// A tier as the start-up choice saw it.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Which tier.
    pub level: SimdLevel,
    /// What became of it.
    pub verdict: Verdict,
    /// Nanoseconds for the product of one token with [`TIMED_ROWS`] by [`TIMED_COLS`] weights in cache, if it was timed.
    pub nanoseconds: Option<f64>,
}

/// What the start-up choice made of a tier.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is used.
    Chosen,
    /// It was timed, and the chosen one is faster.
    Slower,
    /// It was not timed: this one has better instructions in vectors at least as wide.
    Superseded(SimdLevel),
    /// The CPU lacks these features.
    Missing(Vec<&'static str>),
    /// It gave a wrong product.
    Wrong(WrongProduct),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chosen => f.write_str("chosen"),
            Self::Slower => f.write_str("slower"),
            Self::Superseded(level) => write!(f, "superseded by {level}"),
            Self::Missing(features) => {
                write!(f, "not available here: this CPU lacks {}", features.join(", "))
            }
            Self::Wrong(wrong) => write!(f, "not used: {wrong}"),
        }
    }
}

/// Times the finalists among the available tiers and judges all.
pub(super) fn select(
    available: &[Isa],
    wrong: impl Fn(SimdLevel) -> Option<WrongProduct>,
) -> Selection {
    let finalists = finalists(available);
    let times = time(&finalists);
    let chosen = finalists[fastest(&times)];
    let judge = |level: SimdLevel| {
        let place = finalists.iter().position(|isa| isa.level() == level);
        let verdict = match (place, wrong(level)) {
            (Some(_), _) if level == chosen.level() => Verdict::Chosen,
            (Some(_), _) => Verdict::Slower,
            (None, Some(wrong)) => Verdict::Wrong(wrong),
            (None, None) => match CpuFeatures::detect().missing(level) {
                missing if missing.is_empty() => Verdict::Superseded(superior(level, &finalists)),
                missing => Verdict::Missing(missing),
            },
        };
        Candidate { level, verdict, nanoseconds: place.map(|place| times[place]) }
    };
    let candidates = SimdLevel::of_this_architecture().map(judge).collect();
    tracing::info!(simd_level = chosen.name(), "chose the instructions of the CPU kernels");
    Selection { chosen, candidates }
}

/// The best tier of 256 and of 512 bits, wide ones first; without them the best of all.
fn finalists(available: &[Isa]) -> Vec<Isa> {
    let best = |bits| available.iter().rev().find(|isa| isa.level().vector_bits() == bits).copied();
    let wide: Vec<_> = [512, 256].into_iter().filter_map(best).collect();
    if wide.is_empty() { available.last().copied().into_iter().collect() } else { wide }
}

/// The finalist that made timing a tier pointless.
fn superior(level: SimdLevel, finalists: &[Isa]) -> SimdLevel {
    let at_least_as_wide = |isa: &&Isa| isa.level().vector_bits() >= level.vector_bits();
    let narrowest = finalists.iter().rev().find(at_least_as_wide);
    narrowest.expect("the best tier of each width is a finalist").level()
}

/// The place of the least time, where earlier ones win unless a later one is clearly less.
fn fastest(times: &[f64]) -> usize {
    (1..times.len()).fold(
        0,
        |best, place| {
            if times[place] < CLEARLY_FASTER * times[best] { place } else { best }
        },
    )
}

/// Nanoseconds of a one-token product for each tier, the best of many, taken in turns so that all see the same clock.
fn time(isas: &[Isa]) -> Vec<f64> {
    let w = PackedTernary::pack(&mixed_matrix(TIMED_ROWS, TIMED_COLS));
    let x = mixed_rows(1, TIMED_COLS);
    let mut out = vec![0; TIMED_ROWS];
    let mut best = vec![f64::INFINITY; isas.len()];
    let start = Instant::now();
    while start.elapsed() < TIME_EACH * isas.len() as u32 {
        for (isa, best) in isas.iter().zip(&mut best) {
            let before = Instant::now();
            Product::whole(&w, &x).run_on(*isa, &mut out);
            *best = best.min(before.elapsed().as_nanos() as f64);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrower_tier_must_be_clearly_faster() {
        assert_eq!(fastest(&[100.0, 99.0]), 0);
        assert_eq!(fastest(&[100.0, 80.0]), 1);
        assert_eq!(fastest(&[100.0, 120.0]), 0);
        assert_eq!(fastest(&[100.0]), 0);
    }

    #[test]
    fn every_tier_of_this_architecture_gets_a_verdict() {
        let selection = Isa::selection();
        let levels: Vec<_> = selection.candidates.iter().map(|candidate| candidate.level).collect();
        assert_eq!(levels, SimdLevel::of_this_architecture().collect::<Vec<_>>());
        for Candidate { level, verdict, nanoseconds } in &selection.candidates {
            let timed = matches!(verdict, Verdict::Chosen | Verdict::Slower);
            assert_eq!(nanoseconds.is_some(), timed, "{level}");
            assert_eq!(*verdict == Verdict::Chosen, *level == selection.chosen.level(), "{level}");
        }
    }

    #[test]
    fn without_wide_vectors_the_most_demanding_tier_is_taken() {
        assert_eq!(finalists(&[Isa::Scalar]), [Isa::Scalar]);
    }
}
