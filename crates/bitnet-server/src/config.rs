//! How a server behaves, and what it takes.

use std::time::Duration;

use bitnet::Queue;

use crate::auth::ApiKey;

/// How a server behaves, and what it takes. All sizes are limits on what one client can make it do.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Names that requests may give the model by; the first is the one that answers carry. None: the model's own.
    pub model_names: Vec<String>,
    /// Keys that requests must have one of, at all paths but `/health` and `/ready`; none: everybody may.
    pub api_keys: Vec<ApiKey>,
    /// Queues that keys and the header `X-Priority` may name, beside the one that all others share.
    pub queues: Vec<Queue>,
    /// Origins of web pages that may read answers, as `https://example.org`; `*`: all.
    pub cors_origins: Vec<String>,
    /// Bytes that the body of a request may have.
    pub max_body_bytes: usize,
    /// Answers that a request may ask for: prompts times `n`.
    pub max_choices: usize,
    /// Texts in `stop`.
    pub max_stop: usize,
    /// Bytes of each of them.
    pub max_stop_bytes: usize,
    /// Connections at a time; others wait until one is closed.
    pub max_connections: usize,
    /// How long an answer may take at most.
    pub request_timeout: Option<Duration>,
    /// How long a client may take for the head of a request, and for which a connection may be idle.
    pub header_timeout: Duration,
    /// How long a client may take for the body of a request.
    pub body_timeout: Duration,
    /// How long a client may read nothing of an answer.
    pub write_timeout: Duration,
    /// After how long without a token a comment keeps a stream of events alive.
    pub keep_alive: Duration,
    /// After how long without a step `/health` says that the engine stands still.
    pub stall_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            model_names: Vec::new(),
            api_keys: Vec::new(),
            queues: Vec::new(),
            cors_origins: Vec::new(),
            max_body_bytes: 2 << 20,
            max_choices: 128,
            max_stop: 64,
            max_stop_bytes: 1024,
            max_connections: 1024,
            request_timeout: None,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            keep_alive: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
        }
    }
}
