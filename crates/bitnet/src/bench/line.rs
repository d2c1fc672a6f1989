//! One measured speed, held against what the machine gave right before and right after.

use serde::Serialize;

use super::bytes::{TokenBytes, TokenProducts};
use super::probes::Around;
use super::report::Work;
use super::watch::Conditions;

/// What limits a work at best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Reading memory.
    Memory,
    /// Multiplying and adding.
    Arithmetic,
}

/// One measured speed beside what the machine could do in the same seconds.
///
/// A machine's speed drifts, so each measurement is held against the probes on both sides of it, and shares are medians of
/// these ratios; they are no ratios of medians.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// What was measured.
    #[serde(flatten)]
    pub work: Work,
    /// Tokens per second, of all sequences together.
    pub rate: Figure,
    /// The probes on both sides of each measurement of `rate`.
    pub probes: Vec<Around>,
    /// Tokens that one step computes, and that share one reading of the weights, on average.
    pub tokens_per_step: f64,
    /// What a step reads.
    pub bytes_per_step: TokenBytes,
    /// Bytes that a token reads: those of a step, divided by its tokens.
    pub bytes_per_token: f64,
    /// Integer products that a token takes.
    pub products_per_token: TokenProducts,
    /// Bytes read per second.
    pub bytes_per_second: f64,
    /// Ternary products per second.
    pub macs_per_second: f64,
    /// Bytes per second that the same threads read at best, on both sides: the median over all measurements.
    pub read_bandwidth: f64,
    /// Products per second that the same threads form at best, likewise.
    pub peak_macs: f64,
    /// Tokens per second that the probes allow, likewise: the less of bandwidth / bytes and peak / all integer products.
    pub bound: f64,
    /// Which of the two it is.
    pub limited_by: Limit,
    /// Share of the read bandwidth that was reached.
    pub of_bandwidth: Figure,
    /// Share of the peak that the ternary products alone reached.
    pub of_peak: Figure,
    /// Share of the bound that was reached.
    pub of_bound: Figure,
    /// What else happened on the machine.
    pub conditions: Conditions,
    /// Hash of the tokens generated in a run.
    pub tokens_hash: String,
}

/// What a line is made of.
pub(super) struct Measured {
    pub work: Work,
    /// Tokens per second of each measurement, and the probes around it.
    pub samples: Vec<(f64, Around)>,
    pub tokens_per_step: f64,
    pub bytes_per_step: TokenBytes,
    pub products_per_token: TokenProducts,
    pub conditions: Conditions,
    pub tokens_hash: String,
}

impl Line {
    /// Works out the shares. None if nothing was measured.
    pub(super) fn new(measured: Measured) -> Option<Self> {
        let Measured { work, samples, tokens_per_step, bytes_per_step, .. } = measured;
        let products = measured.products_per_token;
        let bytes_per_token = bytes_per_step.total() as f64 / tokens_per_step;
        let of = |value: &dyn Fn(f64, &Around) -> f64| {
            Figure::new(samples.iter().map(|(rate, around)| value(*rate, around)).collect())
        };
        let rate = of(&|rate, _| rate)?;
        let by_memory = |around: &Around| around.read() / bytes_per_token;
        let by_arithmetic = |around: &Around| around.macs() / products.total();
        let bound = |around: &Around| by_memory(around).min(by_arithmetic(around));
        let memory_first =
            of(&|_, around| by_arithmetic(around) / by_memory(around))?.median >= 1.0;
        Some(Self {
            work,
            tokens_per_step,
            bytes_per_step,
            bytes_per_token,
            products_per_token: products,
            bytes_per_second: rate.median * bytes_per_token,
            macs_per_second: rate.median * products.ternary,
            read_bandwidth: of(&|_, around| around.read())?.median,
            peak_macs: of(&|_, around| around.macs())?.median,
            bound: of(&|_, around| bound(around))?.median,
            limited_by: if memory_first { Limit::Memory } else { Limit::Arithmetic },
            of_bandwidth: of(&|rate, around| rate * bytes_per_token / around.read())?,
            of_peak: of(&|rate, around| rate * products.ternary / around.macs())?,
            of_bound: of(&|rate, around| rate / bound(around))?,
            rate,
            probes: samples.into_iter().map(|(_, around)| around).collect(),
            conditions: measured.conditions,
            tokens_hash: measured.tokens_hash,
        })
    }
}

/// A figure over several measurements.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Each measurement, in order.
    pub samples: Vec<f64>,
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// The distance between least and greatest, as a share of the median.
    pub spread: f64,
}

impl Figure {
    pub(super) fn new(samples: Vec<f64>) -> Option<Self> {
        let (median, min, max) = middle(&samples)?;
        Some(Self { median, min, max, spread: (max - min) / median, samples })
    }
}

/// Median, least and greatest.
pub(super) fn middle(samples: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let half = sorted.len() / 2;
    let median = match sorted.len() % 2 {
        1 => sorted[half],
        _ => (sorted[half - 1] + sorted[half]) / 2.0,
    };
    Some((median, min, max))
}

#[cfg(test)]
mod tests {
    use super::super::probes::Probe;
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(middle(&[3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(middle(&[4.0, 1.0]), Some((2.5, 1.0, 4.0)));
        assert_eq!(middle(&[]), None);
        assert_eq!(Figure::new(vec![9.0, 11.0, 10.0]).unwrap().spread, 0.2);
    }

    const BYTES: TokenBytes =
        TokenBytes { ternary: 500, head: 300, other: 100, kv: 100, context: 1.0 };

    /// Three measurements, while the machine becomes half as fast.
    fn measured(tokens_per_step: f64) -> Measured {
        let around = |before: f64, after: f64| Around {
            before: Probe::of(20.0 * before, before),
            after: Probe::of(20.0 * after, after),
        };
        Measured {
            work: Work::Prompt { tokens: 7 },
            samples: vec![
                (3.0, around(200.0, 200.0)),
                (2.25, around(200.0, 100.0)),
                (1.5, around(100.0, 100.0)),
            ],
            tokens_per_step,
            bytes_per_step: BYTES,
            products_per_token: TokenProducts { ternary: 20.0, head: 20.0, attention: 10.0 },
            conditions: Conditions::default(),
            tokens_hash: String::new(),
        }
    }

    #[test]
    fn one_token_at_a_time_is_limited_by_memory() {
        let products_per_token = TokenProducts { ternary: 10.0, head: 0.0, attention: 0.0 };
        let line = Line::new(Measured { products_per_token, ..measured(1.0) }).unwrap();
        assert_eq!((line.bytes_per_token, line.bytes_per_second), (1000.0, 2250.0));
        assert_eq!((line.bound, line.limited_by), (3.0, Limit::Memory));
        assert_eq!((line.of_bandwidth.median, line.of_bound.median), (0.75, 0.75));
        assert_eq!(line.of_peak.median, 0.15);
    }

    #[test]
    fn many_tokens_share_a_reading_and_are_limited_by_arithmetic() {
        let line = Line::new(measured(10.0)).unwrap();
        assert_eq!((line.bytes_per_token, line.bytes_per_second), (100.0, 225.0));
        assert_eq!((line.bound, line.limited_by), (3.0, Limit::Arithmetic));
        // All products bound it; of the peak, the ternary ones count.
        assert_eq!((line.of_bound.median, line.of_peak.median), (0.75, 0.3));
        assert!(Line::new(Measured { samples: vec![], ..measured(1.0) }).is_none());
    }

    #[test]
    fn shares_are_steady_while_the_machine_is_not() {
        let line = Line::new(measured(10.0)).unwrap();
        assert_eq!(line.rate.spread, 1.5 / 2.25);
        assert_eq!(line.of_bound.samples, [0.75; 3]);
        assert_eq!((line.of_bound.spread, line.probes.len()), (0.0, 3));
    }
}
