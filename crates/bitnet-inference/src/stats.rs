//! What an engine tells about itself while it works: figures to be read at any time, and moments to be timed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::EngineError;
use crate::sequence::FinishReason;

/// An engine's state and what it has done since it began. Each figure is right by itself; two may be a step apart. A request
/// whose last event was received is in none that says what is at work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Requests in the running batch.
    pub running: usize,
    /// Requests that wait for their first step.
    pub waiting: usize,
    /// Tokens of their prompts.
    pub waiting_tokens: usize,
    /// Pages of the key-value cache.
    pub kv_pages: usize,
    /// Pages that requests hold.
    pub kv_pages_used: usize,
    /// Pages that nobody holds, kept for requests to come.
    pub kv_pages_kept: usize,
    /// Bytes that the system has given for pages, in this process's memory.
    pub kv_bytes: usize,
    /// Bytes of working memory.
    pub scratch_bytes: usize,
    /// Steps.
    pub steps: u64,
    /// Tokens of prompts of the requests that have begun.
    pub prompt_tokens: u64,
    /// Those of them that were in the cache.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Tokens of drafts that were computed.
    pub drafted_tokens: u64,
    /// Those of them that stood.
    pub accepted_tokens: u64,
    /// How often a request that ran had to make room.
    pub preemptions: u64,
    /// Pages with content that were given to others, or back to the system.
    pub evicted_pages: u64,
    /// Steps that broke off.
    pub failed_steps: u64,
    /// Seconds of a step as such, of a token in it, and of a position that a token attends to, as learned from steps with many
    /// tokens.
    pub step_costs: [f64; 3],
}

/// [`EngineStats`] as the engine's thread writes them and all others read them; seconds by their bits.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub running: AtomicU64,
    pub kv_pages: AtomicU64,
    pub kv_pages_used: AtomicU64,
    pub kv_pages_kept: AtomicU64,
    pub kv_bytes: AtomicU64,
    pub scratch_bytes: AtomicU64,
    pub steps: AtomicU64,
    pub prompt_tokens: AtomicU64,
    pub cached_tokens: AtomicU64,
    pub generated_tokens: AtomicU64,
    pub drafted_tokens: AtomicU64,
    pub accepted_tokens: AtomicU64,
    pub preemptions: AtomicU64,
    pub evicted_pages: AtomicU64,
    pub failed_steps: AtomicU64,
    pub step_base: AtomicU64,
    pub step_token: AtomicU64,
    pub step_pair: AtomicU64,
}

impl Counters {
    pub fn read(&self) -> EngineStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let size = |counter: &AtomicU64| get(counter) as usize;
        let seconds = |counter: &AtomicU64| f64::from_bits(get(counter));
        EngineStats {
            running: size(&self.running),
            waiting: 0,
            waiting_tokens: 0,
            kv_pages: size(&self.kv_pages),
            kv_pages_used: size(&self.kv_pages_used),
            kv_pages_kept: size(&self.kv_pages_kept),
            kv_bytes: size(&self.kv_bytes),
            scratch_bytes: size(&self.scratch_bytes),
            steps: get(&self.steps),
            prompt_tokens: get(&self.prompt_tokens),
            cached_tokens: get(&self.cached_tokens),
            generated_tokens: get(&self.generated_tokens),
            drafted_tokens: get(&self.drafted_tokens),
            accepted_tokens: get(&self.accepted_tokens),
            preemptions: get(&self.preemptions),
            evicted_pages: get(&self.evicted_pages),
            failed_steps: get(&self.failed_steps),
            step_costs: [&self.step_base, &self.step_token, &self.step_pair].map(seconds),
        }
    }
}

/// One who is told of moments and may limit memory, on the engine's thread: it must neither wait nor take long.
pub trait Observer: Send + Sync {
    /// A request's first step begins, so long after it was submitted.
    fn started(&self, _waited: Duration) {}
    /// A generation has its first token, so long after it was submitted.
    fn first_token(&self, _after: Duration) {}
    /// The same generation's prompt took so long, from its first step to its first token.
    fn prefilled(&self, _time: Duration) {}
    /// A generation is over whose further tokens took so long, from its first token to its last.
    fn decoded(&self, _time: Duration) {}
    /// A generation has further tokens, so long after the ones before.
    fn tokens(&self, _count: usize, _after: Duration) {}
    /// A request is over, so long after it was submitted.
    fn ended(&self, _end: End<'_>, _after: Duration) {}
    /// A step of so many tokens for so many requests was computed.
    fn step(&self, _tokens: usize, _requests: usize, _time: Duration) {}
    /// Asked before each step: bytes that the process may take from the system, if there is a limit. Requests for which there
    /// are none make room for one another, and fail where that is not enough; answers do not change.
    fn memory_left(&self) -> Option<u64> {
        None
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub enum End<'a> {
    /// A generation, for this reason.
    Generated(&'a FinishReason),
    /// All rows were computed.
    AllRows,
    /// It came to nothing.
    Failed(&'a EngineError),
}

/// Nobody.
impl Observer for () {}
