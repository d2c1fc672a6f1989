//! Runs ternary language models: BitNet b1.58 and its relatives.
//!
//! Load a model, give it a prompt:
//!
//! ```
//! # #[cfg(feature = "demo-model")] {
//! use bitnet::{BitNetModel, GenerationConfig};
//!
//! // Or `BitNetModel::from_pretrained("model.gguf")`.
//! let model = BitNetModel::demo().load()?;
//! let config = GenerationConfig { max_new_tokens: 20, ..Default::default() };
//! for piece in model.generate_stream("Once upon a time", &config)?.blocking() {
//!     print!("{}", piece?.text);
//! }
//! # }
//! # Ok::<(), bitnet::Error>(())
//! ```
//!
//! [`BitNetModel`] is where to start; [`ModelConfig`] says how to run it, [`GenerationConfig`] what to generate. The crates
//! below it are for those who build something else: `bitnet_inference` (scheduling), `bitnet_model` (files, layers) and
//! `bitnet_kernels` (arithmetic).

mod batch;
pub mod bench;
mod builder;
mod config;
mod default_model;
mod dynamic_batch;
mod error;
mod fingerprint;
mod grammars;
mod info;
mod kv_config;
mod lock;
mod memory;
mod metrics;
mod model;
mod monitor;
mod perplexity;
mod process;
mod prompt;
mod quantization;
mod response_cache;
mod scheduler;
mod stream;

pub use batch::{BatchConfig, BatchOutput, PaddingStrategy};
pub use bitnet_inference::config::Limits;
pub use bitnet_inference::{
    DraftStrategy, EngineError, EngineStats, EvictionStrategy, FinishReason, FormatError,
    GenerationConfig, InferenceConfig, InvalidConfig, Output, Piece, Queue, RequestOptions,
    ResponseFormat, SamplingStrategy, Stop, StreamingConfig, Timings, TokenLogprobs,
};
pub use bitnet_kernels::cpu::isa::{Isa, IsaError};
pub use bitnet_kernels::cpu::level::{CpuFeatures, SimdLevel};
pub use bitnet_kernels::cpu::packed::{Packing, UnknownPacking};
pub use bitnet_kernels::cpu::packing::{ChosenPacking, PackingChoice, PackingReason};
pub use bitnet_kernels::cpu::placement::{
    Numa, Order, Pinning, PlacementConfig, PlacementError, Places,
};
pub use bitnet_kernels::cpu::plan::ThreadPlan;
pub use bitnet_kernels::cpu::pool::WaitPolicy;
pub use bitnet_kernels::device::{Device, DeviceError};
pub use bitnet_kernels::head::{HeadCounts, HeadType, UnknownHead};
pub use bitnet_kernels::kv::{KvType, PAGE as PAGE_TOKENS};
pub use bitnet_model::config::{ArchConfig, HiddenAct};
pub use bitnet_model::decoder::{
    CacheUse, CachedFile, CachedKind, CachedOrigin, LoadProgress, PackedCache,
};
pub use bitnet_model::error::LoadError;
pub use bitnet_model::format::{Checkpoint, I2sLayout, OpenOptions, PackedLayout, TensorInfo};
#[cfg(feature = "hub")]
pub use bitnet_model::hub;
pub use bitnet_model::tokenizer::{ChatError, Message, Role, Special, Tokenizer, TokenizerError};
pub use builder::ModelBuilder;
pub use config::{LoadingStrategy, ModelConfig, automatic_threads};
pub use default_model::set_default_model;
pub use dynamic_batch::{DynamicBatchConfig, DynamicBatcher};
pub use error::Error;
pub use info::{EncodingInfo, ModelInfo, PartBytes};
pub use kv_config::KVCacheConfig;
pub use lock::{LockRefused, MemoryLock};
pub use memory::{MemoryMonitor, MemoryUsage};
pub use metrics::MetricsCollector;
pub use model::{BitNetModel, Logits};
pub use monitor::{PerformanceMetrics, PerformanceMonitor};
pub use perplexity::{Perplexity, PerplexityInput, PerplexityMethod, PerplexityProgress};
pub use prompt::Prompt;
pub use quantization::{QuantizationConfig, QuantizationType, UnknownQuantization};
pub use response_cache::{CacheStats, CacheStrategy, CachedOutput, ResponseCache};
pub use scheduler::{InferenceRequest, RequestScheduler, SchedulingStrategy};
pub use stream::{BlockingGeneration, GenerationStream};

/// The README's program.
#[cfg(all(doctest, feature = "demo-model"))]
#[doc = include_str!("../../../README.md")]
struct Readme;
