//! A server: engines behind HTTP.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bitnet::{BitNetModel, Error, GenerationConfig, InferenceConfig, Output, Prompt};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_service::Service;

use crate::config::ServerConfig;
use crate::connection;
use crate::routes;
use crate::state::App;

/// How often somebody looks whether the engines take steps.
const LOOK: Duration = Duration::from_secs(1);
/// How long connections get to take what has been written, once all requests are answered.
const CLOSING: Duration = Duration::from_secs(5);
/// How long to wait when the system has no more files for connections.
const NO_FILES: Duration = Duration::from_millis(50);

/// A model, or several engines on its weights, that answer requests. Clones are the same server.
///
/// ```
/// # #[cfg(feature = "cpu")] {
/// use bitnet::{BitNetModel, GenerationConfig};
/// use bitnet_server::BitNetServer;
///
/// # let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
/// # runtime.block_on(async {
/// let model = BitNetModel::demo().await?;
/// let server = BitNetServer::builder().max_workers(3).threads_per_worker(4).build(&model)?;
///
/// let config = GenerationConfig { max_new_tokens: 8, ..Default::default() };
/// let output = server.handle_request("Once upon a time", &config).await?;
/// assert_eq!(output.text, ", there was a little girl named Lily");
/// # Ok::<(), bitnet::Error>(()) })?;
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct BitNetServer {
    app: Arc<App>,
    router: Router,
}

/// A server to be.
#[derive(Clone, Debug, Default)]
pub struct BitNetServerBuilder {
    config: ServerConfig,
    inference: InferenceConfig,
    workers: usize,
    threads: usize,
}

impl BitNetServerBuilder {
    /// How it behaves.
    pub fn config(self, config: ServerConfig) -> Self {
        Self { config, ..self }
    }

    /// How requests share each further engine.
    pub fn inference(self, inference: InferenceConfig) -> Self {
        Self { inference, ..self }
    }

    /// Engines on one set of weights; 0, or nothing, is one. One engine that takes all requests together does more; several
    /// keep requests apart.
    pub fn max_workers(self, workers: usize) -> Self {
        Self { workers, ..self }
    }

    /// Compute threads of each engine; 0, or nothing: as many as the model has.
    pub fn threads_per_worker(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// The engines. The model itself is the first of them, if it has the threads that are asked for.
    ///
    /// # Errors
    /// If the system refuses threads.
    pub fn engines(&self, model: &BitNetModel) -> Result<Vec<BitNetModel>, Error> {
        let threads = if self.threads == 0 { model.info().threads } else { self.threads };
        let first = (model.info().threads == threads).then(|| model.clone());
        let others = self.workers.max(1) - usize::from(first.is_some());
        let others = (0..others).map(|_| model.replica(threads, self.inference.clone()));
        first.into_iter().map(Ok).chain(others).collect()
    }

    /// The server.
    ///
    /// # Errors
    /// As [`engines`](Self::engines).
    pub fn build(self, model: &BitNetModel) -> Result<BitNetServer, Error> {
        let engines = self.engines(model)?;
        let server = BitNetServer::waiting(self.config);
        server.ready(engines);
        Ok(server)
    }
}

impl BitNetServer {
    /// A server with default settings, to be changed.
    pub fn builder() -> BitNetServerBuilder {
        BitNetServerBuilder::default()
    }

    /// A server that answers 503 until it is [`ready`](Self::ready).
    pub fn waiting(config: ServerConfig) -> Self {
        let app = Arc::new(App::new(config));
        let router = routes::router(&app);
        Self { app, router }
    }

    /// From now on these engines, which have the same weights, answer. Only the first call counts.
    ///
    /// # Panics
    /// If there are none.
    pub fn ready(&self, models: Vec<BitNetModel>) {
        self.app.ready(models);
    }

    /// Continues a prompt on the engine with the least to do. Dropping the future ends the work.
    ///
    /// # Errors
    /// As [`BitNetModel::generate`], and [`Error::NoModel`] while there is none.
    pub async fn handle_request(
        &self,
        prompt: impl Into<Prompt>,
        config: &GenerationConfig,
    ) -> Result<Output, Error> {
        let engines = self.app.engines().map_err(|_| Error::NoModel)?;
        engines.free().generate(prompt, config).await
    }

    /// Answers an HTTP request that came by other ways than a connection.
    pub async fn respond(&self, request: Request<Body>) -> Response {
        let response = self.router.clone().call(request).await;
        response.unwrap_or_else(|never| match never {})
    }

    /// Requests under way.
    pub fn under_way(&self) -> usize {
        self.app.drain.under_way()
    }

    /// Answers requests until `shutdown` comes; then lets nothing new in, and returns when all that was let in is answered. It
    /// keeps listening until then, so that whoever asks is told to go elsewhere.
    ///
    /// # Errors
    /// None so far: a connection that fails is the client's affair.
    pub async fn serve(
        &self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let (graceful, config) = (GracefulShutdown::new(), Arc::new(self.app.config.clone()));
        let slots = Arc::new(Semaphore::new(config.max_connections));
        let mut shutdown = pin!(shutdown);
        let mut look = tokio::time::interval(LOOK);
        loop {
            let begun = self.app.drain.begun();
            tokio::select! {
                (stream, slot) = accept(&listener, &slots) => {
                    let (router, config) = (self.router.clone(), Arc::clone(&config));
                    let serving = connection::serve(stream, router, config, graceful.watcher());
                    tokio::spawn(async move {
                        serving.await;
                        drop(slot);
                    });
                }
                _ = look.tick() => {
                    if let Ok(engines) = self.app.engines() {
                        engines.look();
                    }
                }
                () = &mut shutdown, if !begun => self.app.drain.begin(),
                () = self.app.drain.done(), if begun => break,
            }
        }
        drop(listener);
        let _ = tokio::time::timeout(CLOSING, graceful.shutdown()).await; // whoever reads no more gets no more
        Ok(())
    }
}

/// The next connection, when there is a place for it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let slot = Arc::clone(slots).acquire_owned().await.expect("it is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, slot),
            Err(error) => {
                tracing::debug!(%error, "no connection");
                tokio::time::sleep(NO_FILES).await;
            }
        }
    }
}

/// Serves a model with the default settings until `shutdown` comes.
///
/// # Errors
/// As [`BitNetServer::serve`], and if the system refuses threads.
pub async fn serve(
    model: &BitNetModel,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let server = BitNetServer::builder().build(model).map_err(io::Error::other)?;
    server.serve(listener, shutdown).await
}
