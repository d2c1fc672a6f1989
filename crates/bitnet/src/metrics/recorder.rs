//! The moments that an engine tells, counted; and passed on to those who look at a stretch of time.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bitnet_inference::{End, FinishReason, Observer};

use super::histogram::{Histogram, SECONDS, SIZES};
use crate::memory;
use crate::monitor::Window;

/// Why requests ended, by the names in the figures, and by those that vLLM has for them.
pub(crate) const REASONS: [(&str, &str); 7] = [
    ("stop", "stop"),
    ("length", "length"),
    ("context", "length"),
    ("deadline", "abort"),
    ("cancelled", "abort"),
    ("scored", "stop"),
    ("error", "error"),
];

/// What was counted for a model.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub queue: Histogram,
    pub prefill: Histogram,
    pub decode: Histogram,
    pub time_to_first_token: Histogram,
    pub inter_token: Histogram,
    pub end_to_end: Histogram,
    pub step: Histogram,
    pub step_requests: Histogram,
    pub step_tokens: Histogram,
    /// By the places in [`REASONS`].
    pub ended: [AtomicU64; REASONS.len()],
}

impl Default for Recorder {
    fn default() -> Self {
        let seconds = || Histogram::new(SECONDS);
        let sizes = || Histogram::new(SIZES);
        Self {
            queue: seconds(),
            prefill: seconds(),
            decode: seconds(),
            time_to_first_token: seconds(),
            inter_token: seconds(),
            end_to_end: seconds(),
            step: seconds(),
            step_requests: sizes(),
            step_tokens: sizes(),
            ended: Default::default(),
        }
    }
}

impl Recorder {
    /// Requests that have ended.
    pub fn requests(&self) -> u64 {
        self.ended.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

fn reason(end: End<'_>) -> usize {
    match end {
        End::Generated(FinishReason::Stop(_)) => 0,
        End::Generated(FinishReason::Length) => 1,
        End::Generated(FinishReason::Context) => 2,
        End::Generated(FinishReason::Deadline) => 3,
        End::Generated(FinishReason::Cancelled) => 4,
        End::AllRows => 5,
        End::Failed(_) => 6,
    }
}

impl Observer for Recorder {
    fn started(&self, waited: Duration) {
        self.queue.observe_time(waited);
    }

    fn first_token(&self, after: Duration) {
        self.time_to_first_token.observe_time(after);
    }

    fn prefilled(&self, time: Duration) {
        self.prefill.observe_time(time);
    }

    fn decoded(&self, time: Duration) {
        self.decode.observe_time(time);
    }

    fn tokens(&self, count: usize, after: Duration) {
        self.inter_token.observe(after.as_secs_f64() / count as f64, count as u64);
    }

    fn ended(&self, end: End<'_>, after: Duration) {
        self.end_to_end.observe_time(after);
        self.ended[reason(end)].fetch_add(1, Ordering::Relaxed);
    }

    fn step(&self, tokens: usize, requests: usize, time: Duration) {
        self.step.observe_time(time);
        self.step_requests.observe(requests as f64, 1);
        self.step_tokens.observe(tokens as f64, 1);
    }
}

/// Those who look at a stretch of time.
#[derive(Debug)]
pub(crate) struct Windows {
    /// Their number, so that nobody is locked out while there are none.
    count: AtomicUsize,
    list: RwLock<Vec<Arc<Window>>>,
}

/// Those who look at all models of the process.
pub(crate) static ALL_MODELS: Windows = Windows::new();

impl Default for Windows {
    fn default() -> Self {
        Self::new()
    }
}

impl Windows {
    pub const fn new() -> Self {
        Self { count: AtomicUsize::new(0), list: RwLock::new(Vec::new()) }
    }

    pub fn add(&self, window: Arc<Window>) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        list.push(window);
        self.count.store(list.len(), Ordering::Release);
    }

    pub fn remove(&self, window: &Arc<Window>) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        list.retain(|other| !Arc::ptr_eq(other, window));
        self.count.store(list.len(), Ordering::Release);
    }

    fn tell(&self, tell: impl Fn(&Window)) {
        if self.count.load(Ordering::Acquire) > 0 {
            let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
            list.iter().for_each(|window| tell(window));
        }
    }
}

/// Passes on what an engine tells.
#[derive(Debug, Default)]
pub(crate) struct Fan {
    pub recorder: Option<Arc<Recorder>>,
    /// Those who look at this model.
    pub windows: Windows,
}

impl Fan {
    fn tell(&self, tell: impl Fn(&dyn Observer)) {
        if let Some(recorder) = &self.recorder {
            tell(&**recorder);
        }
        for windows in [&self.windows, &ALL_MODELS] {
            windows.tell(|window| tell(window));
        }
    }
}

impl Observer for Fan {
    fn started(&self, waited: Duration) {
        self.tell(|to| to.started(waited));
    }

    fn first_token(&self, after: Duration) {
        self.tell(|to| to.first_token(after));
    }

    fn tokens(&self, count: usize, after: Duration) {
        self.tell(|to| to.tokens(count, after));
    }

    fn ended(&self, end: End<'_>, after: Duration) {
        self.tell(|to| to.ended(end, after));
    }

    fn step(&self, tokens: usize, requests: usize, time: Duration) {
        self.tell(|to| to.step(tokens, requests, time));
        memory::look();
    }

    fn prefilled(&self, time: Duration) {
        self.tell(|to| to.prefilled(time));
    }

    fn decoded(&self, time: Duration) {
        self.tell(|to| to.decoded(time));
    }

    fn memory_left(&self) -> Option<u64> {
        memory::left()
    }
}
