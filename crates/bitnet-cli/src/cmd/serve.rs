//! `serve`: a model behind HTTP.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use bitnet::{BitNetModel, InferenceConfig, MetricsCollector, Queue};
use bitnet_server::{ApiKey, BitNetServer, BitNetServerBuilder, ServerConfig};
use tokio::net::TcpListener;

use crate::args::ModelArgs;
use crate::console::Console;
use crate::failure::{Failure, INTERRUPTED};
use crate::{load, numbers};

use super::parallel::compare;
use super::parallel::strategy::{self, Strategy};

/// Answer requests over HTTP, as OpenAI's API has them
///
/// Listens before the model is there, and answers 503 until then. Ctrl-C or SIGTERM lets nothing new in and ends the program
/// when all that was let in is answered; a second one ends it at once. Each flag that takes a value may also be given by a
/// variable: --max-waiting is BITNET_MAX_WAITING.
#[derive(clap::Args)]
pub struct ServeArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    address: AddressArgs,
    #[command(flatten)]
    sharing: SharingArgs,
    #[command(flatten)]
    limits: LimitArgs,
}

const SERVER: &str = "Server";
const SHARING: &str = "Sharing the model";
const LIMITS: &str = "Limits";

/// Where, and for whom
#[derive(clap::Args)]
struct AddressArgs {
    /// Address to listen at; 0.0.0.0 can be reached from other machines
    #[arg(long, env = "BITNET_HOST", default_value = "127.0.0.1", help_heading = SERVER)]
    host: String,
    /// Port to listen at; 0 takes any that is free
    #[arg(long, env = "BITNET_PORT", default_value_t = 8080, help_heading = SERVER)]
    port: u16,
    /// Name of the model in requests and answers; several may be given, and answers have the first [default: the model's own]
    #[arg(long, env = "BITNET_SERVED_MODEL_NAME", value_name = "NAME", value_delimiter = ',', help_heading = SERVER)]
    served_model_name: Vec<String>,
    /// A key that requests must have, at all paths but /health and /ready; several may be given
    #[arg(long, env = "BITNET_API_KEY", hide_env_values = true, value_name = "KEY", value_delimiter = ',', help_heading = SERVER)]
    api_key: Vec<String>,
    /// A file with a key in each line, after which the name of a --queue may follow; # begins a comment
    #[arg(long, env = "BITNET_API_KEY_FILE", value_name = "FILE", help_heading = SERVER)]
    api_key_file: Option<PathBuf>,
    /// Origin of web pages that may read answers, such as <https://example.org>, or * for all; several may be given
    #[arg(long, env = "BITNET_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', help_heading = SERVER)]
    cors_origin: Vec<String>,
}

/// How requests share the processors
#[derive(clap::Args)]
struct SharingArgs {
    /// As --strategy of `parallel`: batched, where one engine takes all requests together, or engines side by side
    #[arg(long, env = "BITNET_THREADING_STRATEGY", value_name = "NAME|WxM", default_value = "batched", help_heading = SHARING)]
    #[arg(value_parser = Strategy::parse)]
    threading_strategy: Strategy,
    /// Engines side by side, on one set of weights
    #[arg(long, env = "BITNET_WORKERS", value_name = "W", allow_hyphen_values = true, help_heading = SHARING)]
    #[arg(value_parser = numbers::whole(1..=strategy::MOST), conflicts_with = "threading_strategy")]
    workers: Option<usize>,
    /// Compute threads of each of them [default: a share of the processors]
    #[arg(long, env = "BITNET_THREADS_PER_WORKER", value_name = "M", allow_hyphen_values = true, help_heading = SHARING)]
    #[arg(value_parser = numbers::whole(1..=strategy::MOST), requires = "workers")]
    threads_per_worker: Option<usize>,
    /// Requests that an engine computes together; others wait [default: 16]
    #[arg(long, env = "BITNET_MAX_BATCH_SIZE", value_name = "N", allow_hyphen_values = true, help_heading = SHARING)]
    #[arg(value_parser = numbers::whole(1..=4096_usize))]
    max_batch_size: Option<usize>,
    /// Milliseconds that a step may take while answers are under way; 0: prompts go first [default: 100]
    #[arg(long, env = "BITNET_STEP_TARGET_MS", value_name = "MS", allow_hyphen_values = true, help_heading = SHARING)]
    #[arg(value_parser = numbers::whole(0..=86_400_000_u64))]
    step_target_ms: Option<u64>,
    /// Most MiB for the keys and values of all requests of an engine [default: 1024]
    #[arg(long, env = "BITNET_KV_CACHE_MB", value_name = "MIB", allow_hyphen_values = true, help_heading = SHARING)]
    #[arg(value_parser = numbers::whole(1..=1_usize << 24))]
    kv_cache_mb: Option<usize>,
    /// A queue that keys and the header X-Priority may name, and its share of the tokens; several may be given
    #[arg(long, env = "BITNET_QUEUE", value_name = "NAME=WEIGHT", value_delimiter = ',', help_heading = SHARING)]
    #[arg(value_parser = queue)]
    queue: Vec<Queue>,
}

/// What a client can make the server do
#[derive(clap::Args)]
struct LimitArgs {
    /// Requests that may wait for their turn; more are answered with 429 [default: 256]
    #[arg(long, env = "BITNET_MAX_WAITING", value_name = "N", allow_hyphen_values = true, help_heading = LIMITS)]
    #[arg(value_parser = numbers::whole(1..=usize::MAX))]
    max_waiting: Option<usize>,
    /// Tokens that their prompts may have together [default: 262144]
    #[arg(long, env = "BITNET_MAX_WAITING_TOKENS", value_name = "N", allow_hyphen_values = true, help_heading = LIMITS)]
    #[arg(value_parser = numbers::whole(1..=usize::MAX))]
    max_waiting_tokens: Option<usize>,
    /// Bytes of a request [default: 2097152]
    #[arg(long, env = "BITNET_MAX_BODY_BYTES", value_name = "BYTES", allow_hyphen_values = true, help_heading = LIMITS)]
    #[arg(value_parser = numbers::whole(1..=1_usize << 30))]
    max_body_bytes: Option<usize>,
    /// Connections at a time [default: 1024]
    #[arg(long, env = "BITNET_MAX_CONNECTIONS", value_name = "N", allow_hyphen_values = true, help_heading = LIMITS)]
    #[arg(value_parser = numbers::whole(1..=1_usize << 20))]
    max_connections: Option<usize>,
    /// Seconds that an answer may take; requests may ask for less with the header X-Request-Timeout [default: no limit]
    #[arg(long, env = "BITNET_REQUEST_TIMEOUT", value_name = "SECONDS", allow_hyphen_values = true, help_heading = LIMITS)]
    #[arg(value_parser = numbers::whole(1..=86_400_u64))]
    request_timeout: Option<u64>,
}

/// Reads NAME=WEIGHT.
fn queue(text: &str) -> Result<Queue, String> {
    let parts = text.split_once('=').map(|(name, weight)| (name.trim(), weight.trim().parse()));
    match parts {
        Some((name, Ok(weight))) if !name.is_empty() && (1e-6..=1e6).contains(&weight) => {
            Ok(Queue::new(name, weight))
        }
        _ => Err("expected a name and a weight from 0.000001 to 1000000, such as batch=0.3".into()),
    }
}

pub fn run(mut args: ServeArgs, console: &Console) -> Result<()> {
    let config = args.config()?;
    let builder = args.sharing.builder(&mut args.model, console).inference(args.inference());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2) // the processors are the engine's
        .thread_name("bitnet-http")
        .enable_all()
        .build()
        .context("the threads for connections cannot be started")?;
    let result = runtime.block_on(serve(args, config, builder, *console));
    runtime.shutdown_background(); // a model that is still being loaded is not waited for
    result
}

/// Listens, loads, and answers until a signal comes.
async fn serve(
    args: ServeArgs,
    config: ServerConfig,
    builder: BitNetServerBuilder,
    console: Console,
) -> Result<()> {
    let AddressArgs { host, port, .. } = &args.address;
    let listener = TcpListener::bind((host.as_str(), *port)).await.map_err(|error| {
        Failure::input(format!("{host}:{port}: cannot listen there: {error}"))
            .hint("another program may have the port; --port 0 takes any that is free")
    })?;
    let address = listener.local_addr().context("the address is not known")?;
    let server = BitNetServer::waiting(config);
    let shutdown = signals(console)?;
    let mut serving = std::pin::pin!(server.serve(listener, shutdown));
    let loading = tokio::task::spawn_blocking(move || {
        let model = args.load(&console)?;
        Ok::<_, anyhow::Error>((model.info().name.clone(), builder.engines(&model)?))
    });
    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        loaded = loading => {
            let (name, engines) = loaded.context("loading broke off")??;
            server.ready(engines);
            console.note(&format!("{name} answers at http://{address}/v1; Ctrl-C ends"));
        }
    }
    Ok(serving.await?)
}

/// Comes when the program is asked to end. Asked again, it ends at once.
fn signals(console: Console) -> Result<impl Future<Output = ()>> {
    let mut asked = Signals::new().context("cannot watch for signals")?;
    Ok(async move {
        asked.next().await;
        console.note("finishing what has begun; once more ends at once");
        tokio::spawn(async move {
            asked.next().await;
            let _ = std::io::stderr().flush();
            std::process::exit(i32::from(INTERRUPTED));
        });
    })
}

/// Ctrl-C, and SIGTERM where there is one.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        let _ = tokio::signal::ctrl_c().await; // without it, nothing asks to end
    }
}

impl ServeArgs {
    fn config(&self) -> Result<ServerConfig> {
        let (default, AddressArgs { served_model_name, api_key, cors_origin, .. }) =
            (ServerConfig::default(), &self.address);
        let LimitArgs { max_body_bytes, max_connections, request_timeout, .. } = self.limits;
        let mut api_keys: Vec<ApiKey> = api_key.iter().map(|key| ApiKey::new(key)).collect();
        if let Some(file) = &self.address.api_key_file {
            api_keys.extend(read_keys(file, &self.sharing.queue)?);
        }
        if api_key.iter().any(|key| key.trim().is_empty()) {
            return Err(Failure::input("--api-key: an empty key, which anybody has").into());
        }
        Ok(ServerConfig {
            model_names: served_model_name.clone(),
            api_keys,
            queues: self.sharing.queue.clone(),
            cors_origins: cors_origin.clone(),
            max_body_bytes: max_body_bytes.unwrap_or(default.max_body_bytes),
            max_connections: max_connections.unwrap_or(default.max_connections),
            request_timeout: request_timeout.map(Duration::from_secs),
            ..default
        })
    }

    fn inference(&self) -> InferenceConfig {
        let (default, sharing, limits) = (InferenceConfig::default(), &self.sharing, &self.limits);
        let max_batch_size = match sharing.threading_strategy {
            Strategy::Sequential => 1,
            _ => sharing.max_batch_size.unwrap_or(default.max_batch_size),
        };
        InferenceConfig {
            max_batch_size,
            max_batch_tokens: default.max_batch_tokens.max(max_batch_size),
            step_target_ms: sharing.step_target_ms.unwrap_or(default.step_target_ms),
            kv_cache_bytes: sharing.kv_cache_mb.map_or(default.kv_cache_bytes, |mb| mb << 20),
            max_waiting: limits.max_waiting.unwrap_or(default.max_waiting),
            max_waiting_tokens: limits.max_waiting_tokens.unwrap_or(default.max_waiting_tokens),
            ..default
        }
    }

    fn load(&self, console: &Console) -> Result<BitNetModel> {
        let loaded = load::load_with(&self.model, console, |builder| {
            builder.with_inference_config(self.inference()).with_metrics(MetricsCollector::new())
        })?;
        Ok(loaded.model)
    }
}

/// Keys, a line each.
fn read_keys(file: &Path, queues: &[Queue]) -> Result<Vec<ApiKey>, Failure> {
    let place = file.display();
    let text = fs::read_to_string(file)
        .map_err(|error| Failure::input(format!("{place}: cannot be read: {error}")))?;
    let mut keys = Vec::new();
    for (index, line) in text.lines().enumerate() {
        keys.extend(read_key(line, queues, &format!("{place}, line {}", index + 1))?);
    }
    match keys.is_empty() {
        true => Err(Failure::input(format!("{place}: there is no key in it"))),
        false => Ok(keys),
    }
}

/// The key in a line, if there is one.
fn read_key(line: &str, queues: &[Queue], place: &str) -> Result<Option<ApiKey>, Failure> {
    let words: Vec<&str> =
        line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
    match words[..] {
        [] => Ok(None),
        [key] => Ok(Some(ApiKey::new(key))),
        [key, name] if queues.iter().any(|queue| &*queue.name == name) => {
            Ok(Some(ApiKey::new(key).with_queue(name)))
        }
        [_, name] => Err(Failure::input(format!("{place}: there is no queue `{name}`"))
            .hint(format!("add it with --queue {name}=WEIGHT"))),
        _ => Err(Failure::input(format!("{place}: expected KEY or KEY QUEUE"))),
    }
}

impl SharingArgs {
    /// Engines side by side, if that is wanted.
    fn builder(&self, model: &mut ModelArgs, console: &Console) -> BitNetServerBuilder {
        let (workers, threads) = match (self.workers, self.threading_strategy) {
            (Some(workers), _) => {
                let share = || (compare::processors() / workers).max(1);
                (workers, self.threads_per_worker.unwrap_or_else(share))
            }
            (None, Strategy::Workers { workers, threads }) => (workers, threads),
            (None, Strategy::Batched | Strategy::Sequential) => return BitNetServer::builder(),
        };
        model.threads.threads = threads; // so the model itself is the first of them
        compare::warn_if_too_many(workers * threads, console);
        BitNetServer::builder().max_workers(workers)
    }
}
