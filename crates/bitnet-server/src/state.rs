//! What all requests share: the engines, once they are there, and who is under way.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bitnet::{BitNetModel, EngineStats};
use tokio::sync::{Notify, Semaphore};

use crate::config::ServerConfig;
use crate::counts::Counts;
use crate::error::ApiError;

/// Requests that are read, tokenized and checked at a time; each may take some hundred times the size of its body.
const PREPARED_AT_A_TIME: usize = 4;

/// What all requests share.
#[derive(Debug)]
pub struct App {
    /// As it was built.
    pub config: ServerConfig,
    engines: OnceLock<Arc<Engines>>,
    preparing: Semaphore,
    /// Who has been answered.
    pub counts: Counts,
    /// Who is under way.
    pub drain: Arc<Drain>,
}

/// Engines on one set of weights.
#[derive(Debug)]
pub struct Engines {
    models: Vec<(BitNetModel, Mutex<Pulse>)>,
    /// Names of the model; the first is the one that answers carry.
    pub names: Vec<String>,
    /// When the model was loaded, in seconds since 1970.
    pub created: u64,
    /// What answers depend on beside the request.
    pub fingerprint: String,
}

/// What an engine has done of late.
#[derive(Clone, Copy, Debug)]
struct Pulse {
    /// Steps, at the time when they were last seen to have become more, or not to be needed.
    steps: u64,
    alive: Instant,
    /// Tokens generated, when they were last looked at.
    tokens: u64,
    looked: Instant,
    tokens_per_second: f64,
}

impl App {
    /// Nobody is under way, and there is no engine yet.
    pub fn new(config: ServerConfig) -> Self {
        let preparing = Semaphore::new(PREPARED_AT_A_TIME);
        Self {
            config,
            engines: OnceLock::new(),
            preparing,
            counts: Counts::default(),
            drain: Arc::default(),
        }
    }

    /// From now on these engines answer. Only the first call counts.
    pub fn ready(&self, models: Vec<BitNetModel>) {
        let _ = self.engines.set(Arc::new(Engines::new(models, &self.config.model_names)));
    }

    /// The engines, if they are there.
    pub fn engines(&self) -> Result<Arc<Engines>, ApiError> {
        self.engines.get().cloned().ok_or_else(ApiError::loading)
    }

    /// Does work that takes a processor's time, beside the tasks that must not wait for it.
    pub async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let _permit = self.preparing.acquire().await.expect("it is never closed");
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(ApiError::bug()))
    }

    /// Whether requests are answered, and if not, why.
    pub fn health(&self) -> Result<(), ApiError> {
        let engines = self.engines()?;
        if self.drain.begun() {
            return Err(ApiError::draining());
        }
        engines.look();
        let limit = self.config.stall_timeout;
        match engines.still_for() > limit {
            true => Err(ApiError::stalled(limit.as_secs())),
            false => Ok(()),
        }
    }
}

impl Engines {
    fn new(models: Vec<BitNetModel>, names: &[String]) -> Self {
        let model = models.first().expect("a server has at least one engine");
        let info = model.info();
        let (version, head, kv) = (env!("CARGO_PKG_VERSION"), info.head, info.kv_dtype.name());
        let fingerprint = format!("bitnet-{version}-{head}-{kv}");
        let names = if names.is_empty() { vec![info.name.clone()] } else { names.to_vec() };
        let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let models = models.into_iter().map(|model| (model, Mutex::new(Pulse::new()))).collect();
        Self { models, names, created, fingerprint }
    }

    /// The name of the model.
    pub fn name(&self) -> &str {
        &self.names[0]
    }

    /// Any of them, for what they all have.
    pub fn model(&self) -> &BitNetModel {
        &self.models[0].0
    }

    /// All of them, with the tokens that each generated per second of late.
    pub fn all(&self) -> impl Iterator<Item = (&BitNetModel, f64)> {
        self.models.iter().map(|(model, pulse)| (model, lock(pulse).tokens_per_second))
    }

    /// The one with the least to do.
    pub fn free(&self) -> &BitNetModel {
        let load = |model: &BitNetModel| {
            let stats = model.stats();
            stats.running + stats.waiting
        };
        let models = self.models.iter().map(|(model, _)| model);
        models.min_by_key(|model| load(model)).expect("there is at least one")
    }

    /// Whether a request means this model; who names none does.
    pub fn check_name(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(name) if !self.names.iter().any(|known| known == name) => {
                Err(ApiError::no_model(name))
            }
            _ => Ok(()),
        }
    }

    /// Sees what the engines have done since the last time.
    pub fn look(&self) {
        for (model, pulse) in &self.models {
            lock(pulse).look(&model.stats(), Instant::now());
        }
    }

    /// How long the engine that has stood still for longest has something to do and does not do it.
    fn still_for(&self) -> Duration {
        let still = self.models.iter().map(|(_, pulse)| lock(pulse).alive.elapsed());
        still.max().unwrap_or_default()
    }
}

fn lock(pulse: &Mutex<Pulse>) -> std::sync::MutexGuard<'_, Pulse> {
    pulse.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pulse {
    /// The shortest stretch of time that speed is measured over.
    const STRETCH: Duration = Duration::from_millis(500);

    fn new() -> Self {
        let now = Instant::now();
        Self { steps: 0, alive: now, tokens: 0, looked: now, tokens_per_second: 0.0 }
    }

    fn look(&mut self, stats: &EngineStats, now: Instant) {
        if stats.steps != self.steps || stats.running + stats.waiting == 0 {
            (self.steps, self.alive) = (stats.steps, now);
        }
        let time = now.saturating_duration_since(self.looked);
        if time >= Self::STRETCH {
            let tokens = stats.generated_tokens.saturating_sub(self.tokens);
            self.tokens_per_second = tokens as f64 / time.as_secs_f64();
            (self.tokens, self.looked) = (stats.generated_tokens, now);
        }
    }
}

/// Counts the requests under way, and lets no more in once it has begun.
#[derive(Debug, Default)]
pub struct Drain {
    begun: AtomicBool,
    under_way: AtomicUsize,
    changed: Notify,
}

/// A request under way, until this is dropped.
#[derive(Debug)]
pub struct UnderWay(Arc<Drain>);

impl Drain {
    /// Lets a request in, unless it is too late.
    pub fn enter(self: &Arc<Self>) -> Result<UnderWay, ApiError> {
        // Counted before the question, so that `done` misses nobody who was let in.
        self.under_way.fetch_add(1, Ordering::SeqCst);
        let entered = UnderWay(Arc::clone(self));
        if self.begun() { Err(ApiError::draining()) } else { Ok(entered) }
    }

    /// Lets nobody in any more.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    /// Whether it is too late for new requests.
    pub fn begun(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }

    /// Requests under way.
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::SeqCst)
    }

    /// Waits until nobody is under way.
    pub async fn done(&self) {
        loop {
            let changed = self.changed.notified(); // hears of what happens from here on
            if self.under_way() == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.0.under_way.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_waits_for_those_who_are_in_and_lets_nobody_else_in() {
        let drain = Arc::new(Drain::default());
        let first = drain.enter().unwrap();
        drain.begin();
        assert_eq!(drain.enter().unwrap_err(), ApiError::draining());
        assert_eq!(drain.under_way(), 1);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (done, leave) = (Arc::clone(&drain), async { drop(first) });
            tokio::join!(async { done.done().await }, leave);
        });
        assert_eq!(drain.under_way(), 0);
    }

    #[test]
    fn an_engine_stands_still_when_it_has_work_and_takes_no_step() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let stats = |steps, running| EngineStats { steps, running, ..Default::default() };
        let mut pulse = Pulse { alive: begin, looked: begin, ..Pulse::new() };
        pulse.look(&stats(5, 1), after(10));
        assert_eq!(pulse.alive, after(10));
        pulse.look(&stats(5, 1), after(20));
        assert_eq!(pulse.alive, after(10));
        pulse.look(&stats(5, 0), after(30)); // nothing to do
        assert_eq!(pulse.alive, after(30));
    }

    #[test]
    fn speed_is_that_of_the_last_stretch() {
        let begin = Instant::now();
        let mut pulse = Pulse { looked: begin, ..Pulse::new() };
        let stats = |generated_tokens| EngineStats { generated_tokens, ..Default::default() };
        pulse.look(&stats(100), begin + Duration::from_secs(2));
        assert_eq!(pulse.tokens_per_second, 50.0);
        pulse.look(&stats(101), begin + Duration::from_millis(2100)); // too short to tell
        assert_eq!(pulse.tokens_per_second, 50.0);
    }
}
