//! Everything that can go wrong, by what the caller can do about it.

use std::path::PathBuf;

use bitnet_inference::{EngineError, InvalidConfig};
use bitnet_kernels::cpu::isa::IsaError;
use bitnet_kernels::cpu::placement::PlacementError;
use bitnet_kernels::device::DeviceError;
use bitnet_model::error::LoadError;
use bitnet_model::tokenizer::{ChatError, TokenizerError};

use crate::lock::LockRefused;

/// Why there is no model, or no answer; [`help`](Self::help) says what to try.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model's files cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model cannot be had from the hub.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] bitnet_model::hub::HubError),
    /// The tokenizer cannot be used, or a text not be tokenized.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A conversation cannot be written as the model wants it.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The tokenizer makes tokens that the model does not have.
    #[error(
        "{}: the tokenizer has {tokenizer} tokens, but the embedding in {} only {model} rows: they do not belong together",
        .tokenizer_file.display(),
        .weights.display()
    )]
    Vocabulary {
        /// Where the tokenizer is described.
        tokenizer_file: PathBuf,
        /// The file with the embedding.
        weights: PathBuf,
        /// Tokens of the tokenizer.
        tokenizer: usize,
        /// Rows of the model's embedding.
        model: usize,
    },
    /// The device is not there.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The SIMD level is not there.
    #[error(transparent)]
    Simd(#[from] IsaError),
    /// A setting has a value that it cannot have.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// A request was refused or broke off.
    #[error(transparent)]
    Engine(EngineError),
    /// The system refused a thread.
    #[error("{threads} threads cannot be started")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// Compute threads cannot be placed as asked.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Memory cannot be locked, where that is no matter of choice.
    #[error(transparent)]
    Lock(#[from] LockRefused),
    /// A request names a queue that is not there.
    #[error("there is no queue `{name}`; there are {}", if .known.is_empty() { "none".to_owned() } else { .known.join(", ") })]
    UnknownQueue {
        /// The name.
        name: String,
        /// The queues that are there.
        known: Vec<String>,
    },
    /// A request or a model needs more memory than [`MemoryMonitor::set_limit`](crate::MemoryMonitor::set_limit) allows now.
    #[error("{needed} bytes of memory are needed, and {in_use} of {limit} are in use")]
    MemoryLimit {
        /// Bytes that it would take, at most.
        needed: u64,
        /// Bytes that the process has in memory.
        in_use: u64,
        /// Bytes that it may have.
        limit: u64,
    },
    /// Nobody said which model to take.
    #[error("there is no default model: BITNET_MODEL is not set, and no demo model is built in")]
    NoModel,
    /// Metrics cannot be served where they should be.
    #[error("metrics cannot be served at `{address}`")]
    Metrics {
        /// The address that was asked for.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Loading broke off.
    #[error("a bug ended the loading; its message is on stderr")]
    LoadingPanicked,
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Config(error) => Self::Config(error),
            error => Self::Engine(error),
        }
    }
}

impl Error {
    /// What to try next.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::Load(error) => Some(error.help().to_owned()),
            #[cfg(feature = "hub")]
            Self::Hub(error) => Some(error.help()),
            Self::Tokenizer(error) => error.help().map(str::to_owned),
            Self::Chat(error) => error.help().map(str::to_owned),
            Self::Vocabulary { .. } => {
                Some("take tokenizer.json from the same repository as the weights".into())
            }
            Self::Device(_) => Some("use `auto` or `cpu`".into()),
            Self::Simd(error) => Some(error.help()),
            Self::Engine(error) => error.help(),
            Self::Threads { .. } => {
                Some("ask for fewer threads, or let the system place them".into())
            }
            Self::Placement(error) => Some(error.help().into()),
            Self::Lock(error) => Some(error.help().into()),
            Self::UnknownQueue { .. } => Some(
                "add it with RequestScheduler::add_queue, and send the request through that".into(),
            ),
            Self::MemoryLimit { .. } => Some(
                "try again when other requests have ended, ask for fewer tokens, or raise the limit"
                    .into(),
            ),
            Self::Metrics { .. } => Some(
                "give HOST:PORT with a port that nobody uses; port 0 takes any that is free".into(),
            ),
            Self::NoModel => Some(
                "hand a model over, call set_default_model, or set BITNET_MODEL to a path".into(),
            ),
            Self::Config(_) | Self::LoadingPanicked => None,
        }
    }
}

/// A setting with a value that it cannot have.
pub(crate) fn invalid(
    field: &'static str,
    found: impl ToString,
    expected: impl Into<String>,
) -> Error {
    Error::Config(InvalidConfig { field, found: found.to_string(), expected: expected.into() })
}
