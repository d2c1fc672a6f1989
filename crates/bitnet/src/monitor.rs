//! Figures of a stretch of time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bitnet_inference::Observer;

use crate::memory::GB;
use crate::metrics::recorder::ALL_MODELS;
use crate::model::BitNetModel;
use crate::process::ProcessMemory;

/// How often the system is asked for the process's memory at most.
const LOOK: Duration = Duration::from_millis(10);
/// Times of tokens that are kept; beyond, percentiles are those of a sample that has the newest.
const KEPT: usize = 1 << 16;

/// Measures what is generated between [`start`](Self::start) and [`stop`](Self::stop), by all models of the process or by one.
///
/// ```
/// # #[cfg(feature = "demo-model")] futures_lite::future::block_on(async {
/// # let model = bitnet::BitNetModel::demo().await?;
/// # let config = bitnet::GenerationConfig { max_new_tokens: 8, ..Default::default() };
/// use bitnet::{BitNetModel, PerformanceMonitor};
///
/// let monitor = PerformanceMonitor::new();
///
/// // Start monitoring
/// monitor.start();
///
/// // Run inference
/// let output = model.generate("Hello", &config).await?;
///
/// // Get metrics
/// let metrics = monitor.stop();
/// println!("Tokens/sec: {:.2}", metrics.tokens_per_second);
/// println!("Latency: {:.2}ms", metrics.avg_latency_ms);
/// println!("Memory: {:.2}GB", metrics.peak_memory_gb);
/// # assert!(metrics.generated_tokens >= 8 && metrics.tokens_per_second > 0.0);
/// # Ok::<(), bitnet::Error>(()) }).unwrap();
/// ```
#[derive(Debug, Default)]
pub struct PerformanceMonitor {
    model: Option<BitNetModel>,
    /// Those begun and not ended, the newest last.
    windows: Mutex<Vec<Arc<Window>>>,
}

/// What was generated in a stretch of time. Figures of what did not happen are 0.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PerformanceMetrics {
    /// How long it was.
    pub elapsed: Duration,
    /// Tokens generated, of all requests.
    pub generated_tokens: u64,
    /// Tokens generated after the first of their answers, in all requests together, per second during which there were such.
    pub tokens_per_second: f64,
    /// Mean time from one token of an answer to the next, in milliseconds.
    pub avg_latency_ms: f64,
    /// The time from one token to the next within which half of them came.
    pub p50_ms: f64,
    /// The time within which 95 % came.
    pub p95_ms: f64,
    /// The time within which 99 % came.
    pub p99_ms: f64,
    /// Mean time from a request to its first token, in milliseconds.
    pub ttft_ms: f64,
    /// The most memory of the process (resident set) while models worked, in GB of 1024³ bytes; 0 where the system does
    /// not tell. Exact if it is the most since the process began, else from looks every ten milliseconds.
    pub peak_memory_gb: f64,
}

impl PerformanceMonitor {
    /// A monitor of all models of the process.
    pub fn new() -> Self {
        Self::default()
    }

    /// A monitor of one model.
    pub fn of(model: &BitNetModel) -> Self {
        Self { model: Some(model.clone()), windows: Mutex::default() }
    }

    /// Begins a measurement. Measurements may lie within one another, also of the same monitor.
    pub fn start(&self) {
        let window = Arc::new(Window::new(Instant::now()));
        self.windows().push(Arc::clone(&window));
        match &self.model {
            Some(model) => model.windows().add(window),
            None => ALL_MODELS.add(window),
        }
    }

    /// Ends the measurement that was begun last, and gives its figures; without one, those of no time at all.
    pub fn stop(&self) -> PerformanceMetrics {
        let Some(window) = self.windows().pop() else { return PerformanceMetrics::default() };
        self.forget(&window);
        window.metrics(Instant::now())
    }

    fn forget(&self, window: &Arc<Window>) {
        match &self.model {
            Some(model) => model.windows().remove(window),
            None => ALL_MODELS.remove(window),
        }
    }

    fn windows(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Window>>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PerformanceMonitor {
    fn drop(&mut self) {
        let windows = std::mem::take(&mut *self.windows());
        windows.iter().for_each(|window| self.forget(window));
    }
}

/// A measurement under way.
#[derive(Debug)]
pub(crate) struct Window {
    begin: Instant,
    /// The most memory before it.
    peak_before: Option<u64>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    firsts: u64,
    first_time: Duration,
    tokens: u64,
    token_time: Duration,
    /// During which answers were made, and until when.
    decoding: Duration,
    decoded_until: Option<Instant>,
    /// Seconds of tokens, each with how many had it.
    latencies: Vec<(f64, usize)>,
    next: usize,
    resident: u64,
    looked: Option<Instant>,
}

impl Window {
    fn new(begin: Instant) -> Self {
        let memory = ProcessMemory::now();
        let resident = memory.resident.unwrap_or(0);
        let seen = Mutex::new(Seen { resident, ..Default::default() });
        Self { begin, peak_before: memory.peak, seen }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tokens came at `now`, so long after the ones before.
    fn tokens_at(&self, now: Instant, count: usize, after: Duration) {
        let mut seen = self.seen();
        seen.tokens += count as u64;
        seen.token_time += after;
        // Of what several requests were waiting at the same time, each moment counts once.
        let from = now.checked_sub(after).unwrap_or(now).max(self.begin);
        let from = seen.decoded_until.map_or(from, |until| from.max(until));
        seen.decoding += now.saturating_duration_since(from);
        seen.decoded_until = Some(now);
        let latency = (after.as_secs_f64() / count as f64, count);
        if seen.latencies.len() < KEPT {
            seen.latencies.push(latency);
        } else {
            let next = seen.next;
            seen.latencies[next] = latency;
            seen.next = (next + 1) % KEPT;
        }
    }

    fn metrics(&self, now: Instant) -> PerformanceMetrics {
        let mut seen = self.seen();
        let memory = ProcessMemory::now();
        let peak = match memory.peak {
            Some(peak) if self.peak_before.is_some_and(|before| peak > before) => peak,
            _ => seen.resident.max(memory.resident.unwrap_or(0)),
        };
        seen.latencies.sort_by(|a, b| a.0.total_cmp(&b.0));
        let per = |time: Duration, count: u64| match count {
            0 => 0.0,
            count => time.as_secs_f64() * 1e3 / count as f64,
        };
        let within = |part: f64| percentile(&seen.latencies, part) * 1e3;
        PerformanceMetrics {
            elapsed: now.saturating_duration_since(self.begin),
            generated_tokens: seen.firsts + seen.tokens,
            tokens_per_second: match seen.decoding.as_secs_f64() {
                0.0 => 0.0,
                seconds => seen.tokens as f64 / seconds,
            },
            avg_latency_ms: per(seen.token_time, seen.tokens),
            p50_ms: within(0.5),
            p95_ms: within(0.95),
            p99_ms: within(0.99),
            ttft_ms: per(seen.first_time, seen.firsts),
            peak_memory_gb: peak as f64 / GB,
        }
    }
}

/// The smallest of the values, sorted and each with how often it came, that so large a part of all do not exceed.
pub(crate) fn percentile(sorted: &[(f64, usize)], part: f64) -> f64 {
    let all: usize = sorted.iter().map(|(_, count)| count).sum();
    let wanted = (all as f64 * part).ceil() as usize;
    let mut seen = 0;
    let found = sorted.iter().find(|(_, count)| {
        seen += count;
        seen >= wanted
    });
    found.map_or(0.0, |(value, _)| *value)
}

impl Observer for Window {
    fn first_token(&self, after: Duration) {
        let mut seen = self.seen();
        seen.firsts += 1;
        seen.first_time += after;
    }

    fn tokens(&self, count: usize, after: Duration) {
        self.tokens_at(Instant::now(), count, after);
    }

    fn step(&self, _tokens: usize, _requests: usize, _time: Duration) {
        let mut seen = self.seen();
        let now = Instant::now();
        if seen.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK) {
            seen.looked = Some(now);
            seen.resident = seen.resident.max(ProcessMemory::now().resident.unwrap_or(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn moments_count_once_however_many_wait() {
        let begin = Instant::now();
        let window = Window::new(begin);
        window.first_token(30 * MS);
        for step in 1..=10 {
            window.tokens_at(begin + step * 10 * MS, 1, 10 * MS);
            window.tokens_at(begin + step * 10 * MS, 1, 10 * MS);
        }
        let found = window.metrics(begin + 200 * MS);
        assert_eq!((found.generated_tokens, found.elapsed), (21, 200 * MS));
        assert!((found.tokens_per_second - 200.0).abs() < 1e-6, "{found:?}");
        assert!((found.avg_latency_ms - 10.0).abs() < 1e-6, "{found:?}");
        assert_eq!((found.p50_ms, found.p99_ms, found.ttft_ms), (10.0, 10.0, 30.0));
    }

    #[test]
    fn percentiles_are_values_that_came() {
        let values: Vec<_> = (1..=100).map(|value| (f64::from(value), 1)).collect();
        for (part, expected) in [(0.5, 50.0), (0.95, 95.0), (0.99, 99.0), (1.0, 100.0)] {
            assert_eq!(percentile(&values, part), expected);
        }
        assert_eq!(percentile(&[(1.0, 9), (5.0, 1)], 0.5), 1.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn nothing_begun_is_nothing_measured() {
        assert_eq!(PerformanceMonitor::new().stop(), PerformanceMetrics::default());
    }
}
