//! A model that answers.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use bitnet_inference::{
    EngineHandle, EngineStats, Generation, GenerationConfig, Output, Request, RequestOptions,
    StreamingConfig, Work,
};
use bitnet_kernels::head::{HeadCounts, HeadRecord};
use bitnet_model::config::ArchConfig;
use bitnet_model::tokenizer::Tokenizer;

use crate::builder::ModelBuilder;
use crate::error::Error;
use crate::info::ModelInfo;
use crate::metrics::MetricsCollector;
use crate::metrics::recorder::{Fan, Windows};
use crate::perplexity::{self, Perplexity, PerplexityInput, PerplexityMethod, PerplexityProgress};
use crate::prompt::Prompt;
use crate::stream::GenerationStream;

/// A loaded model. Clones share it, and all of them may be used at the same time from any thread; requests that run at the
/// same time are computed together, with the same results as alone. The memory is freed when the last clone and the last
/// stream are gone.
///
/// ```
/// # #[cfg(feature = "demo-model")] futures_lite::future::block_on(async {
/// use bitnet::{BitNetModel, GenerationConfig};
///
/// let model = BitNetModel::demo().await?;
/// let config = GenerationConfig { max_new_tokens: 8, ..Default::default() };
/// let output = model.generate("Once upon a time", &config).await?;
/// println!("{output}");
/// assert_eq!(output.text, ", there was a little girl named Lily");
/// # Ok::<(), bitnet::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct BitNetModel(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    id: u64,
    engine: EngineHandle,
    tokenizer: Tokenizer,
    config: ArchConfig,
    info: ModelInfo,
    stop_ids: Vec<u32>,
    head: Option<Arc<HeadRecord>>,
    observer: Arc<Fan>,
    /// Held so that figures are served as long as there is the model.
    #[expect(dead_code, reason = "it is there to be held")]
    metrics: Option<MetricsCollector>,
}

/// What a model gives after each token, before any sampling.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// Rows.
    pub tokens: usize,
    /// Columns.
    pub vocab: usize,
    /// `[tokens, vocab]`, row-major.
    pub data: Vec<f32>,
}

impl Logits {
    /// The logits after token `index`.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.vocab..][..self.vocab]
    }
}

impl BitNetModel {
    /// The model in a GGUF file or in a Hugging Face directory (`config.json`, safetensors, `tokenizer.json`).
    pub fn from_pretrained(path: impl AsRef<Path>) -> ModelBuilder {
        ModelBuilder::from_path(path.as_ref())
    }

    /// A small model that writes simple children's stories. It is part of this library, so that a program runs without a file.
    #[cfg(feature = "demo-model")]
    pub fn demo() -> ModelBuilder {
        ModelBuilder::demo()
    }

    pub(crate) fn new(
        engine: EngineHandle,
        tokenizer: Tokenizer,
        config: ArchConfig,
        info: ModelInfo,
        head: Option<Arc<HeadRecord>>,
        observer: Arc<Fan>,
        metrics: Option<MetricsCollector>,
    ) -> Self {
        let mut stop_ids = [tokenizer.eos_ids(), &config.eos_token_ids].concat();
        stop_ids.sort_unstable();
        stop_ids.dedup();
        static LOADED: AtomicU64 = AtomicU64::new(0);
        let id = LOADED.fetch_add(1, Ordering::Relaxed);
        let inner =
            Inner { id, engine, tokenizer, config, info, stop_ids, head, observer, metrics };
        Self(Arc::new(inner))
    }

    pub(crate) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.0)
    }

    pub(crate) fn upgrade(model: &Weak<Inner>) -> Option<Self> {
        model.upgrade().map(Self)
    }

    /// A number that no other loaded model of the process ever has.
    pub(crate) fn id(&self) -> u64 {
        self.0.id
    }

    /// Those who look at a stretch of time of this model.
    pub(crate) fn windows(&self) -> &Windows {
        &self.0.observer.windows
    }

    /// Continues a text, tokens or a conversation. Works on any async runtime; dropping the future ends the work.
    ///
    /// The guide's settings:
    ///
    /// ```
    /// # #[cfg(feature = "demo-model")] futures_lite::future::block_on(async {
    /// # let model = bitnet::BitNetModel::demo().await?;
    /// use bitnet::{GenerationConfig, SamplingStrategy};
    ///
    /// // For speed (deterministic)
    /// let fast_config = GenerationConfig {
    ///     sampling_strategy: SamplingStrategy::Greedy,
    ///     temperature: 0.0,
    ///     ..Default::default()
    /// };
    ///
    /// // For quality (balanced)
    /// let balanced_config = GenerationConfig {
    ///     sampling_strategy: SamplingStrategy::TopP,
    ///     temperature: 0.7,
    ///     top_p: 0.9,
    ///     top_k: 50,
    ///     ..Default::default()
    /// };
    ///
    /// // For creativity (slower)
    /// let creative_config = GenerationConfig {
    ///     sampling_strategy: SamplingStrategy::Temperature,
    ///     temperature: 1.0,
    ///     repetition_penalty: 1.1,
    ///     ..Default::default()
    /// };
    /// # for config in [fast_config, balanced_config, creative_config] {
    /// # let config = GenerationConfig { max_new_tokens: 4, ..config };
    /// let output = model.generate("Hello", &config).await?;
    /// # assert!(!output.ids.is_empty());
    /// # }
    /// # Ok::<(), bitnet::Error>(()) }).unwrap();
    /// ```
    pub async fn generate(
        &self,
        prompt: impl Into<Prompt>,
        config: &GenerationConfig,
    ) -> Result<Output, Error> {
        self.generate_stream(prompt, config)?.finish().await
    }

    /// [`generate`](Self::generate) for plain threads.
    pub fn generate_blocking(
        &self,
        prompt: impl Into<Prompt>,
        config: &GenerationConfig,
    ) -> Result<Output, Error> {
        self.generate_stream(prompt, config)?.finish_blocking()
    }

    /// Continues a text, tokens or a conversation piece by piece.
    pub fn generate_stream(
        &self,
        prompt: impl Into<Prompt>,
        config: &GenerationConfig,
    ) -> Result<GenerationStream, Error> {
        let prompt = prompt.into();
        let ids = self.encode(&prompt)?;
        self.start(&prompt, ids, config, RequestOptions::default(), None)
    }

    /// [`generate_stream`](Self::generate_stream) with pieces in the portions, and within the times, that are wanted.
    ///
    /// ```
    /// # #[cfg(feature = "demo-model")] futures_lite::future::block_on(async {
    /// # let model = bitnet::BitNetModel::demo().await?;
    /// # let config = bitnet::GenerationConfig { max_new_tokens: 10, ..Default::default() };
    /// use bitnet_inference::StreamingConfig;
    /// use futures_lite::StreamExt;
    ///
    /// let streaming_config = StreamingConfig {
    ///     // Buffer size affects latency vs throughput
    ///     buffer_size: 4, // Smaller = lower latency
    ///     flush_interval_ms: 25, // Faster flushing for low latency
    ///     max_retries: 1, // Fewer retries for speed
    ///     token_timeout_ms: 1000, // 1 second timeout
    ///     cancellable: true, // Enable cancellation for responsiveness
    /// };
    /// # let streaming_config = StreamingConfig { flush_interval_ms: 600_000, token_timeout_ms: 600_000, ..streaming_config };
    /// let mut stream = model.generate_stream_with("Once upon a time", &config, streaming_config)?;
    /// # let mut portions = Vec::new();
    /// while let Some(piece) = stream.next().await {
    ///     # let piece = piece.map(|piece| { portions.push(piece.ids.len()); piece });
    ///     print!("{}", piece?.text);
    /// }
    /// # assert_eq!(portions, [4, 4, 2]);
    /// # Ok::<(), bitnet::Error>(()) }).unwrap();
    /// ```
    pub fn generate_stream_with(
        &self,
        prompt: impl Into<Prompt>,
        config: &GenerationConfig,
        streaming: StreamingConfig,
    ) -> Result<GenerationStream, Error> {
        let prompt = prompt.into();
        let ids = self.encode(&prompt)?;
        self.start(&prompt, ids, config, RequestOptions::default(), Some(streaming))
    }

    /// Sends a prompt, whose tokens are `ids`, to the engine.
    pub(crate) fn start(
        &self,
        prompt: &Prompt,
        ids: Vec<u32>,
        config: &GenerationConfig,
        options: RequestOptions,
        streaming: Option<StreamingConfig>,
    ) -> Result<GenerationStream, Error> {
        let submitted = Instant::now();
        let sampling = config.sampling()?;
        let options = match &streaming {
            Some(streaming) => {
                streaming.check()?;
                streaming.apply(options)
            }
            None => options,
        };
        let stop_ids = match config.ignore_eos {
            true => Vec::new(),
            false => self.0.stop_ids.clone(),
        };
        let max_new_tokens = config.max_new_tokens;
        let work = Work::Generate { sampling, max_new_tokens, stop_ids };
        let events = self.0.engine.submit(Request { ids: ids.clone(), work, options })?;
        let decoder = prompt.decoder(&self.0.tokenizer);
        let stop = config.stop.clone();
        GenerationStream::new(Generation::new(events, decoder, stop, ids, submitted), streaming)
    }

    /// The tokens of a prompt, as [`generate`](Self::generate) would continue them.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, Error> {
        prompt.encode(&self.0.tokenizer)
    }

    /// The logits after each of the tokens. Blocks.
    pub fn logits(&self, ids: &[u32]) -> Result<Logits, Error> {
        let data = self.0.engine.logits(ids.to_vec(), 0)?;
        Ok(Logits { tokens: ids.len(), vocab: self.0.config.vocab_size, data })
    }

    /// How well the model predicts a text, in windows of `window` tokens. Blocks; `progress` is told of each window.
    pub fn perplexity(
        &self,
        input: impl Into<PerplexityInput>,
        window: usize,
        method: PerplexityMethod,
        progress: impl FnMut(PerplexityProgress),
    ) -> Result<Perplexity, Error> {
        perplexity::measure(self, &input.into(), window, method, progress)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.0.tokenizer
    }

    /// The hyperparameters.
    pub fn config(&self) -> &ArchConfig {
        &self.0.config
    }

    /// What was loaded, and what was chosen for it.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// What a [`HeadType::TwoStage`](crate::HeadType::TwoStage) head has done so far; nothing for any other.
    pub fn head_counts(&self) -> Option<HeadCounts> {
        self.0.head.as_ref().map(|head| head.counts())
    }

    /// What its engine does, and has done.
    pub fn stats(&self) -> EngineStats {
        self.0.engine.stats()
    }

    /// The tokens that end a generation.
    pub fn stop_ids(&self) -> &[u32] {
        &self.0.stop_ids
    }

    pub(crate) fn engine(&self) -> &EngineHandle {
        &self.0.engine
    }
}
