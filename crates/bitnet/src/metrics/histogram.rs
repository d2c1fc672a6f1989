//! Counts of values by their size, written by one thread and read by others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Values counted up to each of some bounds.
#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [f64],
    /// How many are in each interval; the last one has no upper bound.
    counts: Vec<AtomicU64>,
    /// Millionths.
    sum: AtomicU64,
}

/// Bounds of seconds, from the time of a token of a small model to that of a long prompt on a slow machine.
pub(crate) const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0,
];
/// Bounds of numbers of requests or tokens in a step.
pub(crate) const SIZES: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

impl Histogram {
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    /// Counts a value of zero or more so many times.
    pub fn observe(&self, value: f64, times: u64) {
        let index = self.bounds.partition_point(|&bound| bound < value);
        self.counts[index].fetch_add(times, Ordering::Relaxed);
        self.sum.fetch_add((value * times as f64 * 1e6) as u64, Ordering::Relaxed);
    }

    pub fn observe_time(&self, time: Duration) {
        self.observe(time.as_secs_f64(), 1);
    }

    /// The upper bounds, and how many values are up to each; the last one is infinite.
    pub fn cumulative(&self) -> Vec<(f64, u64)> {
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let mut total = 0;
        let add = |count: &AtomicU64| {
            total += count.load(Ordering::Relaxed);
            total
        };
        bounds.zip(self.counts.iter().map(add)).collect()
    }

    pub fn sum(&self) -> f64 {
        self.sum.load(Ordering::Relaxed) as f64 / 1e6
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// The mean; 0 of nothing.
    pub fn mean(&self) -> f64 {
        match self.count() {
            0 => 0.0,
            count => self.sum() / count as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_count_up_to_their_bound() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for (value, times) in [(0.5, 2), (1.0, 1), (1.5, 1), (7.0, 3)] {
            histogram.observe(value, times);
        }
        assert_eq!(histogram.cumulative(), [(1.0, 3), (2.0, 4), (f64::INFINITY, 7)]);
        assert_eq!((histogram.count(), histogram.sum()), (7, 24.5));
        assert_eq!(histogram.mean(), 3.5);
        assert_eq!(Histogram::new(&[1.0]).mean(), 0.0);
    }
}
