//! Many requests on one model: sequences, paged key-value cache, scheduling, sampling, streaming.
//!
//! [`engine::Engine::step`] is the whole loop in one screen. [`handle::spawn`] puts an engine on a thread of its own;
//! [`handle::EngineHandle`] submits requests to it from anywhere, and [`stream::Generation`] turns what comes back into text.

pub mod block_pool;
pub mod config;
mod draft;
pub mod engine;
pub mod error;
mod growth;
pub mod handle;
pub mod options;
pub mod request;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod stats;
pub mod step_model;
pub mod stream;
pub mod streaming;
#[cfg(not(feature = "shuttle"))]
mod sync;
#[cfg(feature = "shuttle")]
pub mod sync;
mod wait_queue;

pub use block_pool::EvictionStrategy;
pub use config::{EngineConfig, InferenceConfig};
pub use error::{EngineError, InvalidConfig};
pub use handle::{EngineHandle, GivingBack, Stepwise, spawn, spawn_observed};
pub use options::{Queue, RequestOptions};
pub use request::{
    DraftStrategy, GenerationConfig, Request, SamplingParams, SamplingStrategy, Work,
};
pub use sequence::{FinishReason, Stop};
pub use stats::{End, EngineStats, Observer};
pub use stream::{Generation, Output, Piece, Timings};
pub use streaming::StreamingConfig;
