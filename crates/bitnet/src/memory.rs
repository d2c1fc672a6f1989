//! What memory the process has in use, and a bound on it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bitnet_inference::{GivingBack, Work};
use bitnet_kernels::kv::PAGE;

use crate::error::Error;
use crate::model::{BitNetModel, Inner};
use crate::process;
use crate::response_cache;

mod usage;

pub(crate) use usage::GB;
pub use usage::MemoryUsage;

/// How often the system is asked for the process's memory at most, to see whether something should go.
const LOOK: Duration = Duration::from_millis(10);
/// How long from one automatic clean-up to the next at least: what goes has to be computed again.
const PAUSE: Duration = Duration::from_secs(1);
/// What engines leave free below the limit, in bytes: for what nobody asks about beforehand, such as texts, queues, pages of the
/// program itself, and what the allocator takes more than it is asked for. A megabyte and a third was the most that was seen.
const RESERVE: u64 = 4 << 20;
/// Stands for no limit.
const UNLIMITED: u64 = u64::MAX;

static LIMIT: AtomicU64 = AtomicU64::new(UNLIMITED);
/// The part of the limit from which on things go, by its bits; 0: they stay.
static CLEAN_FROM: AtomicU64 = AtomicU64::new(0);
static CLEANUPS: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);
/// When somebody looked, and when something went.
static LOOKED: Mutex<(Option<Instant>, Option<Instant>)> = Mutex::new((None, None));
static MODELS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

/// Tells what memory the process has in use, and bounds it. What is set holds for all models of the process, whichever monitor
/// it was set through, and also when that is gone.
///
/// ```
/// # #[cfg(feature = "demo-model")] {
/// use bitnet::{BitNetModel, MemoryMonitor};
///
/// # let model = BitNetModel::demo().load()?;
/// let monitor = MemoryMonitor::new();
///
/// // Monitor memory usage
/// let usage = monitor.current_usage();
/// println!("Memory usage: {:.2} GB", usage.total_gb());
///
/// // Set memory limits
/// monitor.set_limit(8 * 1024 * 1024 * 1024); // 8GB limit
///
/// // Enable automatic cleanup
/// monitor.enable_auto_cleanup(0.8); // Cleanup at 80% usage
/// # assert!(usage.total() > 0 && usage.total_gb() < 8.0 && usage.tokenizer > 0);
/// # assert_eq!(monitor.limit(), Some(8 << 30));
/// # }
/// # Ok::<(), bitnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryMonitor(());

impl MemoryMonitor {
    /// A monitor of this process.
    pub fn new() -> Self {
        Self(())
    }

    /// What is in use at this moment. Takes some milliseconds for each gigabyte of weights and of address space for keys and values.
    pub fn current_usage(&self) -> MemoryUsage {
        MemoryUsage::of(&models())
    }

    /// The most bytes that the process is to have in memory (resident set; where the system does not tell, what models take).
    /// Above it requests and models are refused with [`Error::MemoryLimit`], and what runs takes no more: requests that would
    /// make room for one another, and one for which there is not enough alone fails with
    /// [`EngineError::OutOfMemory`](crate::EngineError::OutOfMemory). Nothing that is in use is taken away.
    pub fn set_limit(&self, bytes: u64) {
        LIMIT.store(bytes, Ordering::Release);
    }

    /// Lets the process have as much as the system gives.
    pub fn remove_limit(&self) {
        LIMIT.store(UNLIMITED, Ordering::Release);
    }

    /// The most bytes that the process is to have in memory, if there is a limit.
    pub fn limit(&self) -> Option<u64> {
        limit()
    }

    /// Has all go that is only kept to be faster, as by [`clean_up`](Self::clean_up), whenever the process has this part of the
    /// limit in use while it computes; at most once a second. Taken as the nearest number from 0 to 1. Without a limit nothing
    /// happens.
    pub fn enable_auto_cleanup(&self, part: f64) {
        let part = if part.is_nan() { 1.0 } else { part.clamp(f64::MIN_POSITIVE, 1.0) };
        CLEAN_FROM.store(part.to_bits(), Ordering::Release);
    }

    /// Has nothing go by itself any more.
    pub fn disable_auto_cleanup(&self) {
        CLEAN_FROM.store(0, Ordering::Release);
    }

    /// Gives back to the system what is only kept to be faster: beginnings of texts in key-value caches, working memory, answers in
    /// response caches, and layers that are read from their file when they are needed. Requests that run go on; waits until the
    /// steps under way are done.
    pub fn clean_up(&self) {
        clean_up("asked for").into_iter().for_each(GivingBack::wait);
    }

    /// How often all went that is only kept, automatically or not, since the process began.
    pub fn cleanups(&self) -> u64 {
        CLEANUPS.load(Ordering::Relaxed)
    }

    /// How many requests and models were refused for want of memory.
    pub fn refused(&self) -> u64 {
        REFUSED.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a model's memory from now on.
pub(crate) fn watch(model: Weak<Inner>) {
    let mut models = lock(&MODELS);
    models.retain(|model| model.strong_count() > 0);
    models.push(model);
}

/// All models of the process.
fn models() -> Vec<BitNetModel> {
    // Not while the list is locked: a model that goes with the last of these may take long.
    let models: Vec<Weak<Inner>> = lock(&MODELS).clone();
    models.iter().filter_map(BitNetModel::upgrade).collect()
}

fn limit() -> Option<u64> {
    Some(LIMIT.load(Ordering::Acquire)).filter(|&limit| limit != UNLIMITED)
}

/// Bytes that count against the limit.
fn in_use() -> u64 {
    process::resident().unwrap_or_else(|| MemoryUsage::of(&models()).total())
}

/// Bytes that the caller, one model's engine, may take in its next step. As others may do the same at the same time, each has
/// its part of what is left.
pub(crate) fn left() -> Option<u64> {
    let limit = limit()?;
    let engines = lock(&MODELS).iter().filter(|model| model.strong_count() > 0).count();
    Some(limit.saturating_sub(RESERVE).saturating_sub(in_use()) / engines.max(1) as u64)
}

/// Whether there is memory for a request, at its longest and alone: what other requests have now it can have after them.
pub(crate) fn check(model: &BitNetModel, prompt: usize, work: &Work) -> Result<(), Error> {
    let Some(limit) = limit() else { return Ok(()) };
    look();
    let (limits, stats) = (model.engine().limits(), model.stats());
    let tokens = match work {
        Work::Generate { max_new_tokens, .. } => {
            prompt.saturating_add(*max_new_tokens).min(limits.max_seq_len)
        }
        Work::Score { .. } | Work::Logprobs { .. } | Work::Logits { .. } => prompt,
    };
    let pages = limits.layout.bytes_of_pages(tokens.div_ceil(PAGE));
    let scratch = model.scratch_bytes_at_most().saturating_sub(stats.scratch_bytes);
    refuse_above(limit, pages.saturating_sub(stats.kv_bytes) + scratch)
}

/// Whether there is memory for the weights of a model.
pub(crate) fn check_weights(bytes: u64) -> Result<(), Error> {
    match limit() {
        Some(limit) => refuse_above(limit, usize::try_from(bytes).unwrap_or(usize::MAX)),
        None => Ok(()),
    }
}

fn refuse_above(limit: u64, needed: usize) -> Result<(), Error> {
    let (in_use, needed) = (in_use(), needed as u64);
    if in_use.saturating_add(needed) <= limit {
        return Ok(());
    }
    REFUSED.fetch_add(1, Ordering::Relaxed);
    Err(Error::MemoryLimit { needed, in_use, limit })
}

/// Cleans up if that is wanted and it is time.
pub(crate) fn look() {
    let part = f64::from_bits(CLEAN_FROM.load(Ordering::Acquire));
    let Some(limit) = limit().filter(|_| part > 0.0) else { return };
    // Whoever finds another one looking need not look.
    let Ok(mut looked) = LOOKED.try_lock() else { return };
    let now = Instant::now();
    let is_over = |last: Option<Instant>, time| last.is_none_or(|last| now - last >= time);
    if !is_over(looked.0, LOOK) || !is_over(looked.1, PAUSE) {
        return;
    }
    looked.0 = Some(now);
    if in_use() as f64 >= part * limit as f64 && models().iter().any(has_kept) {
        looked.1 = Some(now);
        drop(clean_up("the limit is near")); // the caller may be one of the engines
    }
}

/// Whether a model has memory that it does not need, or answers are kept.
fn has_kept(model: &BitNetModel) -> bool {
    let stats = model.stats();
    let is_idle = stats.running == 0 && stats.kv_bytes > 0;
    stats.kv_pages_kept > 0 || is_idle || response_cache::totals().entries > 0
}

fn clean_up(why: &str) -> Vec<GivingBack> {
    let count = 1 + CLEANUPS.fetch_add(1, Ordering::Relaxed);
    let (resident, limit) = (process::resident(), limit());
    tracing::info!(count, resident, limit, why, "memory that is only kept is given back");
    response_cache::clear_all();
    models().iter().map(|model| model.engine().give_back()).collect()
}

#[cfg(all(test, feature = "demo-model"))]
mod tests {
    use bitnet_inference::GenerationConfig;

    use super::*;
    use crate::config::ModelConfig;

    #[test]
    fn working_memory_stays_within_what_is_expected_of_it() {
        let config = ModelConfig { threads: 2, ..Default::default() };
        let model = BitNetModel::demo().with_config(config).load().unwrap();
        let config = GenerationConfig { max_new_tokens: 3, ..Default::default() };
        for tokens in [1, 90, 170, 330, 500] {
            let start = |id| model.generate_stream(vec![id; tokens], &config).unwrap().blocking();
            let streams: Vec<_> = (3..19).map(start).collect();
            assert!(streams.into_iter().flatten().all(|piece| piece.is_ok()));
        }
        let (found, most) = (model.stats().scratch_bytes, model.scratch_bytes_at_most());
        assert!(found <= most && found > most / 4, "{found} of {most}");
    }
}
