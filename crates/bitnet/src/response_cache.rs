//! Answers that are given again where the same is asked again.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use bitnet_inference::{FinishReason, GenerationConfig, Output, RequestOptions};

use crate::error::Error;
use crate::model::BitNetModel;
use crate::prompt::Prompt;

/// Which answer goes when there is no room for another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheStrategy {
    /// The one that was last asked for the longest ago.
    #[default]
    LRU,
    /// The oldest.
    FIFO,
}

/// Answers by what was asked: the model as it was loaded, the prompt's tokens and all settings. Only what a model would answer
/// again is kept, so that a cache changes nothing but the time: greedy answers and those with a seed, and the others after
/// [`cache_sampled`](Self::cache_sampled). If the same is asked several times at once, it is computed once.
///
/// ```
/// # #[cfg(feature = "demo-model")] futures_lite::future::block_on(async {
/// # let model = bitnet::BitNetModel::demo().await?;
/// # let config = bitnet::GenerationConfig { max_new_tokens: 4, ..Default::default() };
/// use std::time::Duration;
/// use bitnet::{ResponseCache, CacheStrategy};
///
/// let cache = ResponseCache::new(CacheStrategy::LRU)
///     .max_size(1000)
///     .ttl(Duration::from_secs(3600));
///
/// // Cache responses for identical prompts
/// let output = model.generate_with_cache("Hello", &config, &cache).await?;
/// assert!(!output.cached);
///
/// let again = model.generate_with_cache("Hello", &config, &cache).await?;
/// assert!(again.cached && again.text == output.text);
/// # Ok::<(), bitnet::Error>(()) }).unwrap();
/// ```
pub struct ResponseCache {
    strategy: CacheStrategy,
    max_size: usize,
    ttl: Option<Duration>,
    sampled: bool,
    clock: Box<dyn Fn() -> Instant + Send + Sync>,
    state: Arc<Mutex<State>>,
}

/// An answer, and whether it was there already.
#[derive(Clone, Debug, PartialEq)]
pub struct CachedOutput {
    /// The answer. Its timings are those of when it was made.
    pub output: Arc<Output>,
    /// Whether it came out of the cache.
    pub cached: bool,
}

/// What a cache has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Answers in it.
    pub entries: usize,
    /// Bytes that they take, about.
    pub bytes: u64,
    /// Times that an answer was there.
    pub hits: u64,
    /// Times that one had to be made; requests that may not be kept are not counted.
    pub misses: u64,
    /// Answers that had to go for others.
    pub evictions: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// The number of the loaded model.
    model: u64,
    ids: Vec<u32>,
    /// Whether the answer is a text of its own, and not the rest of one.
    chat: bool,
    /// All settings as a text, in which different numbers are different.
    config: String,
}

#[derive(Debug)]
struct Entry {
    output: Arc<Output>,
    made: Instant,
    turn: u64,
    bytes: u64,
}

/// All caches of the process, and what those have done that are gone.
static ALL: Mutex<(Vec<Weak<Mutex<State>>>, CacheStats)> =
    Mutex::new((Vec::new(), CacheStats { entries: 0, bytes: 0, hits: 0, misses: 0, evictions: 0 }));

/// What all caches of the process have, and have done since it began.
pub(crate) fn totals() -> CacheStats {
    let all = lock(&ALL);
    let caches = all.0.iter().filter_map(Weak::upgrade);
    caches.fold(all.1, |sum, state| sum.plus(lock(&state).stats()))
}

/// Has all caches of the process forget their answers.
pub(crate) fn clear_all() {
    let caches: Vec<_> = lock(&ALL).0.iter().filter_map(Weak::upgrade).collect();
    caches.iter().for_each(|state| lock(state).clear());
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl CacheStats {
    fn plus(self, other: Self) -> Self {
        Self {
            entries: self.entries + other.entries,
            bytes: self.bytes + other.bytes,
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
            evictions: self.evictions + other.evictions,
        }
    }
}

impl State {
    fn stats(&self) -> CacheStats {
        CacheStats { entries: self.entries.len(), ..self.stats }
    }

    /// Forgets all answers.
    fn clear(&mut self) {
        (self.entries, self.order) = Default::default();
        self.stats.bytes = 0;
    }

    /// Forgets an answer that is there.
    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.order.remove(&entry.turn);
        self.stats.bytes -= entry.bytes;
    }
}

/// Bytes of an answer and of what was asked, in a map and a list.
fn bytes(key: &Key, output: &Output) -> u64 {
    let ids = key.ids.len() + output.prompt_ids.len() + output.ids.len();
    let fixed = size_of::<Key>() + size_of::<Entry>() + size_of::<Output>() + 128;
    (ids * size_of::<u32>() + key.config.len() + output.text.len() + fixed) as u64
}

#[derive(Default)]
struct State {
    entries: HashMap<Arc<Key>, Entry>,
    /// By the turn in which they go.
    order: BTreeMap<u64, Arc<Key>>,
    turns: u64,
    /// What is being computed; closed when that is over.
    under_way: HashMap<Arc<Key>, Receiver<()>>,
    stats: CacheStats,
}

/// What there is for a key.
enum Found<'a> {
    Answer(Arc<Output>),
    /// Somebody computes it.
    UnderWay(Receiver<()>),
    Nothing(Flight<'a>),
}

/// The duty to compute an answer; when it ends, those who wait look again.
struct Flight<'a> {
    cache: &'a ResponseCache,
    key: Arc<Key>,
    /// Closed with it.
    _over: Sender<()>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.cache.state().under_way.remove(&self.key);
    }
}

impl Drop for ResponseCache {
    /// What it has done still counts for the process.
    fn drop(&mut self) {
        let CacheStats { hits, misses, evictions, .. } = self.stats();
        let mut all = lock(&ALL);
        let gone = Arc::as_ptr(&self.state);
        all.0.retain(|state| !std::ptr::eq(state.as_ptr(), gone));
        all.1 = all.1.plus(CacheStats { hits, misses, evictions, ..Default::default() });
    }
}

impl Deref for CachedOutput {
    type Target = Output;

    fn deref(&self) -> &Output {
        &self.output
    }
}

impl fmt::Display for CachedOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.output.fmt(f)
    }
}

impl fmt::Debug for ResponseCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseCache")
            .field("strategy", &self.strategy)
            .field("max_size", &self.max_size)
            .field("ttl", &self.ttl)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl ResponseCache {
    /// A cache for a thousand answers, which do not grow too old.
    pub fn new(strategy: CacheStrategy) -> Self {
        let state = Arc::default();
        lock(&ALL).0.push(Arc::downgrade(&state));
        Self {
            strategy,
            max_size: 1000,
            ttl: None,
            sampled: false,
            clock: Box::new(Instant::now),
            state,
        }
    }

    /// Answers that it has room for; with 0 it keeps nothing, and what is asked at the same time is still computed once each.
    pub fn max_size(mut self, max_size: usize) -> Self {
        self.max_size = max_size;
        self
    }

    /// How long an answer is given again after it was made.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Whether answers are kept that were drawn by chance without a seed, so that the same answer is given again where
    /// another one would have come.
    pub fn cache_sampled(mut self, sampled: bool) -> Self {
        self.sampled = sampled;
        self
    }

    /// Tells the time by another clock.
    pub fn with_clock(mut self, clock: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        self.clock = Box::new(clock);
        self
    }

    /// What it has done so far.
    pub fn stats(&self) -> CacheStats {
        self.state().stats()
    }

    /// Forgets all answers.
    pub fn clear(&self) {
        self.state().clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn keeps(&self, config: &GenerationConfig) -> bool {
        config.temperature == 0.0 || config.seed.is_some() || self.sampled
    }

    fn look(&self, key: &Arc<Key>) -> Found<'_> {
        let now = (self.clock)();
        let mut guard = self.state();
        let State { entries, order, turns, stats, .. } = &mut *guard;
        if let Some(entry) = entries.get_mut(key) {
            let is_old = |ttl: Duration| now.saturating_duration_since(entry.made) >= ttl;
            if !self.ttl.is_some_and(is_old) {
                if self.strategy == CacheStrategy::LRU {
                    *turns += 1;
                    let key = order.remove(&entry.turn).expect("every entry has a turn");
                    order.insert(*turns, key);
                    entry.turn = *turns;
                }
                stats.hits += 1;
                return Found::Answer(Arc::clone(&entry.output));
            }
            guard.remove(key);
        }
        let State { under_way, stats, .. } = &mut *guard;
        if let Some(over) = under_way.get(key) {
            return Found::UnderWay(over.clone());
        }
        stats.misses += 1;
        let (sender, over) = async_channel::bounded(1);
        under_way.insert(Arc::clone(key), over);
        Found::Nothing(Flight { cache: self, key: Arc::clone(key), _over: sender })
    }

    fn keep(&self, key: &Arc<Key>, output: &Arc<Output>) {
        if self.max_size == 0 || output.finish_reason == FinishReason::Cancelled {
            return;
        }
        let made = (self.clock)();
        let mut state = self.state();
        state.remove(key);
        state.turns += 1;
        let (turn, bytes) = (state.turns, bytes(key, output));
        let entry = Entry { output: Arc::clone(output), made, turn, bytes };
        state.entries.insert(Arc::clone(key), entry);
        state.stats.bytes += bytes;
        state.order.insert(turn, Arc::clone(key));
        while state.entries.len() > self.max_size
            && let Some((_, key)) = state.order.pop_first()
        {
            state.remove(&key);
            state.stats.evictions += 1;
        }
    }
}

impl BitNetModel {
    /// [`generate`](Self::generate), or the answer that was given before. Dropping the future ends the work, unless others wait
    /// for the same answer: then one of them begins it anew.
    ///
    /// # Errors
    /// As [`generate`](Self::generate). Errors are not kept.
    pub async fn generate_with_cache(
        &self,
        prompt: impl Into<Prompt>,
        config: &GenerationConfig,
        cache: &ResponseCache,
    ) -> Result<CachedOutput, Error> {
        config.sampling()?;
        let prompt = prompt.into();
        let ids = self.encode(&prompt)?;
        let chat = matches!(prompt, Prompt::Chat(_));
        let key = Key { model: self.id(), ids, chat, config: format!("{config:?}") };
        let compute = async |ids: Vec<u32>| {
            let options = RequestOptions::default();
            self.start(&prompt, ids, config, options, None)?.finish().await.map(Arc::new)
        };
        if !cache.keeps(config) {
            return Ok(CachedOutput { output: compute(key.ids).await?, cached: false });
        }
        let key = Arc::new(key);
        loop {
            match cache.look(&key) {
                Found::Answer(output) => return Ok(CachedOutput { output, cached: true }),
                // Nothing is ever sent: it ends by being closed.
                Found::UnderWay(over) => drop(over.recv().await),
                Found::Nothing(flight) => {
                    let output = compute(key.ids.clone()).await?;
                    cache.keep(&key, &output);
                    drop(flight); // those who wait find what is kept
                    return Ok(CachedOutput { output, cached: false });
                }
            }
        }
    }
}
