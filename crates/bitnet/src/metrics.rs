//! What models do, counted all the time, for Prometheus and for a log.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::Duration;

use crate::error::Error;
use crate::model::{BitNetModel, Inner};

mod endpoint;
mod histogram;
pub(crate) mod recorder;
mod text;

use endpoint::Endpoint;
use recorder::Recorder;

/// How long from one line in the log to the next.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Counts what models do, and hands the figures out: as a text for Prometheus, by [`render`](Self::render) or over HTTP, and as
/// lines in the log. Clones are the same collector; several models may have it, and are told apart by the label `model_name`.
///
/// ```no_run
/// # futures_lite::future::block_on(async {
/// use bitnet::{BitNetModel, MetricsCollector};
///
/// let collector = MetricsCollector::new()
///     .with_prometheus_endpoint("0.0.0.0:9090")
///     .with_logging(true);
///
/// // Metrics are automatically collected and exported
/// let model = BitNetModel::from_pretrained("model")
///     .with_metrics(collector)
///     .await?;
/// # Ok::<(), bitnet::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct MetricsCollector {
    address: Option<String>,
    log_interval: Option<Duration>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    models: Mutex<Vec<Watched>>,
    endpoint: Mutex<Option<Endpoint>>,
    /// Dropped to end the thread that writes into the log.
    logging: Mutex<Option<mpsc::Sender<()>>>,
}

/// A model as long as it lives, and what was counted for it.
#[derive(Clone, Debug)]
struct Watched {
    model: Weak<Inner>,
    recorder: Arc<Recorder>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for MetricsCollector {
    fn default() -> Self {
        Self::new()
    }
}

impl MetricsCollector {
    /// A collector that hands its figures out by [`render`](Self::render) only.
    pub fn new() -> Self {
        Self { address: None, log_interval: None, shared: Arc::default() }
    }

    /// Serves the figures at `http://ADDRESS/metrics` from the loading of the first model on, until collector and models are
    /// gone. Port 0 takes any that is free. An address that cannot be had is an error of loading. There is no
    /// protection of any kind: `127.0.0.1` can be reached from this machine only, `0.0.0.0` from all.
    pub fn with_prometheus_endpoint(self, address: &str) -> Self {
        Self { address: Some(address.to_owned()), ..self }
    }

    /// Writes a line for each model into the log (`tracing`, level `info`, target `bitnet::metrics`) every ten seconds.
    pub fn with_logging(self, logging: bool) -> Self {
        Self { log_interval: logging.then_some(LOG_INTERVAL), ..self }
    }

    /// As [`with_logging`](Self::with_logging), with another interval.
    pub fn with_log_interval(self, interval: Duration) -> Self {
        Self { log_interval: Some(interval), ..self }
    }

    /// Where figures are served, once a model has been loaded.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        lock(&self.shared.endpoint).as_ref().map(Endpoint::address)
    }

    /// All figures in Prometheus's text format (version 0.0.4), whose media type is [`MEDIA_TYPE`](Self::MEDIA_TYPE): for a
    /// server that has a path for them.
    pub fn render(&self) -> String {
        self.shared.render()
    }

    /// The media type of [`render`](Self::render)'s text.
    pub const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

    /// Opens what was asked for.
    pub(crate) fn open(&self) -> Result<(), Error> {
        let mut endpoint = lock(&self.shared.endpoint);
        if let (Some(address), None) = (&self.address, &*endpoint) {
            let shared = Arc::downgrade(&self.shared);
            let text = move || shared.upgrade().map(|shared| shared.render()).unwrap_or_default();
            let refused = |source: io::Error| Error::Metrics { address: address.clone(), source };
            *endpoint = Some(Endpoint::open(address, text).map_err(refused)?);
        }
        drop(endpoint);
        let mut logging = lock(&self.shared.logging);
        if let (Some(interval), None) = (self.log_interval, &*logging) {
            let (sender, end) = mpsc::channel::<()>();
            let shared = Arc::downgrade(&self.shared);
            let work = move || {
                while end.recv_timeout(interval) == Err(mpsc::RecvTimeoutError::Timeout) {
                    let Some(shared) = shared.upgrade() else { return };
                    shared.log();
                }
            };
            std::thread::Builder::new()
                .name("bitnet-metrics".into())
                .spawn(work)
                .map_err(|source| Error::Threads { threads: 1, source })?;
            *logging = Some(sender);
        }
        Ok(())
    }

    /// Hands out a model's figures from now on.
    pub(crate) fn watch(&self, model: Weak<Inner>, recorder: Arc<Recorder>) {
        let mut models = lock(&self.shared.models);
        models.retain(|watched| watched.model.strong_count() > 0);
        models.push(Watched { model, recorder });
    }
}

impl Shared {
    fn models(&self) -> Vec<(BitNetModel, Arc<Recorder>)> {
        let models = lock(&self.models).clone(); // a model that goes now may be the last to hold this
        let alive = |Watched { model, recorder }| Some((BitNetModel::upgrade(&model)?, recorder));
        models.into_iter().filter_map(alive).collect()
    }

    fn render(&self) -> String {
        text::render(&self.models())
    }

    fn log(&self) {
        for (model, recorder) in self.models() {
            let stats = model.stats();
            tracing::info!(
                target: "bitnet::metrics",
                model = model.info().name,
                running = stats.running,
                waiting = stats.waiting,
                kv_usage = text::kv_usage(&stats),
                requests = recorder.requests(),
                prompt_tokens = stats.prompt_tokens,
                generated_tokens = stats.generated_tokens,
                mean_ttft_ms = recorder.time_to_first_token.mean() * 1e3,
                mean_token_ms = recorder.inter_token.mean() * 1e3,
                "metrics"
            );
        }
    }
}
