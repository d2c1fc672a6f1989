//! A model that answers.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use async_channel::Receiver;
use bitnet_inference::config::Limits;
use bitnet_inference::engine::Event;
use bitnet_inference::handle::{check_ids, collect_rows};
use bitnet_inference::{
    EngineError, EngineHandle, EngineStats, Generation, GenerationConfig, InferenceConfig,
    Observer, Output, Request, RequestOptions, ResponseFormat, StreamingConfig, TokenLogprobs,
    Work, spawn_observed,
};
use bitnet_kernels::cpu::CpuBackend;
use bitnet_kernels::cpu::packing::PackingChoice;
use bitnet_kernels::head::{HeadCounts, HeadRecord};
use bitnet_kernels::kv::PAGE;
use bitnet_model::config::ArchConfig;
use bitnet_model::decoder::Model;
use bitnet_model::tokenizer::Tokenizer;

use crate::builder::ModelBuilder;
use crate::config::ModelConfig;
use crate::error::Error;
use crate::grammars::Grammars;
use crate::info::ModelInfo;
use crate::memory;
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
    weights: Weights,
    engine: EngineHandle,
    tokenizer: Arc<Tokenizer>,
    info: ModelInfo,
    stop_ids: Vec<u32>,
    grammars: Arc<Grammars>,
    head: Option<Arc<HeadRecord>>,
    /// Held also so that figures are served as long as there is the model.
    observed: Observed,
}

/// Who is told what an engine does.
#[derive(Debug)]
pub(crate) struct Observed {
    fan: Arc<Fan>,
    metrics: Option<MetricsCollector>,
}

impl Observed {
    /// A collector, if there is one, and those who look at a stretch of time.
    pub fn new(metrics: Option<MetricsCollector>) -> Self {
        let recorder = metrics.as_ref().map(|_| Arc::default());
        Self { fan: Arc::new(Fan { recorder, ..Default::default() }), metrics }
    }

    /// All of them, for the engine.
    pub fn observer(&self) -> Arc<dyn Observer> {
        Arc::clone(&self.fan) as _
    }
}

/// A model in memory, and how it was asked for.
pub(crate) struct Weights {
    pub model: Arc<Model<CpuBackend>>,
    pub asked: ModelConfig,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights").field("asked", &self.asked).finish_non_exhaustive()
    }
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
        weights: Weights,
        engine: EngineHandle,
        tokenizer: Arc<Tokenizer>,
        grammars: Arc<Grammars>,
        info: ModelInfo,
        observed: Observed,
    ) -> Self {
        let model = &weights.model;
        let mut stop_ids = [tokenizer.eos_ids(), &model.config().eos_token_ids].concat();
        stop_ids.sort_unstable();
        stop_ids.dedup();
        let head = model.head_record();
        static LOADED: AtomicU64 = AtomicU64::new(0);
        let id = LOADED.fetch_add(1, Ordering::Relaxed);
        let Observed { fan, metrics } = &observed;
        let watched = metrics.clone().zip(fan.recorder.clone());
        let inner =
            Inner { id, weights, engine, tokenizer, grammars, info, stop_ids, head, observed };
        let model = Self(Arc::new(inner));
        memory::watch(Arc::downgrade(&model.0));
        if let Some((metrics, recorder)) = watched {
            metrics.watch(Arc::downgrade(&model.0), recorder);
        }
        model
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
        &self.0.observed.fan.windows
    }

    /// Another engine on the same weights, with compute threads and a cache for keys and values of its own: `threads` of them, with
    /// 0 as in [`ModelConfig::threads`].
    ///
    /// One engine that takes all requests together does more, as it reads the weights once for all of them; several keep groups
    /// of requests apart, each on processors of its own.
    ///
    /// ```
    /// # #[cfg(feature = "demo-model")] {
    /// use bitnet::{BitNetModel, GenerationConfig, InferenceConfig};
    ///
    /// let model = BitNetModel::demo().load()?;
    /// let other = model.replica(1, InferenceConfig::default())?;
    /// # let config = GenerationConfig { max_new_tokens: 4, ..Default::default() };
    /// # assert_eq!(model.generate_blocking("Once", &config)?.ids, other.generate_blocking("Once", &config)?.ids);
    /// # }
    /// # Ok::<(), bitnet::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the system refuses threads, or the limits do not suit the model.
    pub fn replica(&self, threads: usize, inference: InferenceConfig) -> Result<Self, Error> {
        let begin = Instant::now();
        let Inner { weights: Weights { model, asked }, tokenizer, grammars, info, .. } = &*self.0;
        let asked = ModelConfig { threads, threads_batch: 0, ..asked.clone() };
        let plan = asked.thread_plan()?;
        let threads = plan.threads();
        let backend = CpuBackend::with_plan(model.backend().isa(), &plan)
            .map_err(|source| Error::Threads { threads, source })?;
        let packing = PackingChoice::Fixed(model.backend().packing().packing);
        let model = Arc::new(model.with_backend(Arc::new(backend.with_packing(packing))));
        let context = model.config().max_position_embeddings;
        let config = asked.engine(&inference, context)?;
        let observed = Observed::new(self.0.observed.metrics.clone());
        let engine = spawn_observed(Arc::clone(&model), &config, observed.observer())?;
        let info = ModelInfo {
            threads,
            kv_cache_bytes: engine.limits().pages * PAGE * info.kv_bytes_per_token,
            load_time: begin.elapsed(),
            ..info.clone()
        };
        let (weights, tokenizer) = (Weights { model, asked }, Arc::clone(tokenizer));
        Ok(Self::new(weights, engine, tokenizer, Arc::clone(grammars), info, observed))
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
        self.generate_stream_with(prompt, config, RequestOptions::default())
    }

    /// [`generate_stream`](Self::generate_stream), served beside others as the options say.
    pub fn generate_stream_with(
        &self,
        prompt: impl Into<Prompt>,
        config: &GenerationConfig,
        options: RequestOptions,
    ) -> Result<GenerationStream, Error> {
        let prompt = prompt.into();
        let ids = self.encode(&prompt)?;
        self.start(&prompt, ids, config, options, None, &ResponseFormat::Text)
    }

    /// [`generate_stream_with`](Self::generate_stream_with) of a prompt whose tokens are known already, from
    /// [`encode`](Self::encode): for one who has to look at them first, or wants several answers.
    ///
    /// ```
    /// # #[cfg(feature = "demo-model")] futures_lite::future::block_on(async {
    /// # let model = bitnet::BitNetModel::demo().await?;
    /// use bitnet::{GenerationConfig, Prompt, RequestOptions, ResponseFormat};
    ///
    /// let (prompt, options) = (Prompt::from("Once upon a time"), RequestOptions::default());
    /// let ids = model.encode(&prompt)?;
    /// let max_new_tokens = (model.info().context_length - ids.len()).min(8);
    /// let config = GenerationConfig { max_new_tokens, ..Default::default() };
    /// let answer = model.generate_stream_encoded(&prompt, ids, &config, options, &ResponseFormat::Text)?;
    /// assert_eq!(answer.finish().await?.text, ", there was a little girl named Lily");
    /// # Ok::<(), bitnet::Error>(()) }).unwrap();
    /// ```
    pub fn generate_stream_encoded(
        &self,
        prompt: &Prompt,
        ids: Vec<u32>,
        config: &GenerationConfig,
        options: RequestOptions,
        format: &ResponseFormat,
    ) -> Result<GenerationStream, Error> {
        self.start(prompt, ids, config, options, None, format)
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
    /// let mut stream = model.generate_streaming("Once upon a time", &config, streaming_config)?;
    /// # let mut portions = Vec::new();
    /// while let Some(piece) = stream.next().await {
    ///     # let piece = piece.map(|piece| { portions.push(piece.ids.len()); piece });
    ///     print!("{}", piece?.text);
    /// }
    /// # assert_eq!(portions, [4, 4, 2]);
    /// # Ok::<(), bitnet::Error>(()) }).unwrap();
    /// ```
    pub fn generate_streaming(
        &self,
        prompt: impl Into<Prompt>,
        config: &GenerationConfig,
        streaming: StreamingConfig,
    ) -> Result<GenerationStream, Error> {
        let prompt = prompt.into();
        let ids = self.encode(&prompt)?;
        let options = RequestOptions::default();
        self.start(&prompt, ids, config, options, Some(streaming), &ResponseFormat::Text)
    }

    /// Sends a prompt, whose tokens are `ids`, to the engine.
    pub(crate) fn start(
        &self,
        prompt: &Prompt,
        ids: Vec<u32>,
        config: &GenerationConfig,
        options: RequestOptions,
        streaming: Option<StreamingConfig>,
        format: &ResponseFormat,
    ) -> Result<GenerationStream, Error> {
        let submitted = Instant::now();
        let mut sampling = config.sampling()?;
        let options = match &streaming {
            Some(streaming) => {
                streaming.check()?;
                streaming.apply(options)
            }
            None => options,
        };
        let own_stops = config.stop_token_ids.iter().copied();
        check_ids("stop_token_ids", own_stops, self.config().vocab_size)?;
        let mut stop_ids = config.stop_token_ids.clone();
        if !config.ignore_eos {
            stop_ids.extend(&self.0.stop_ids);
        }
        stop_ids.sort_unstable();
        stop_ids.dedup();
        let mut decoder = prompt.decoder(&self.0.tokenizer);
        if let Some(constraint) = self.0.grammars.read(format, &self.0.tokenizer)? {
            sampling = sampling.constrained(constraint);
            decoder = decoder.continuing(); // what is allowed is all of the text
        }
        let max_new_tokens = config.max_new_tokens;
        let work = Work::Generate { sampling, max_new_tokens, stop_ids: stop_ids.clone() };
        let events = self.order(Request { ids: ids.clone(), work, options })?;
        let generation = Generation::new(events, decoder, config.stop.clone(), ids, submitted);
        GenerationStream::new(generation.with_stop_ids(stop_ids), streaming)
    }

    /// How likely each of the tokens was after those before it, from the second one on, by the model itself, with the `top` most
    /// likely ones beside it, 20 at most. Dropping the future ends the work.
    ///
    /// ```
    /// # #[cfg(feature = "demo-model")] futures_lite::future::block_on(async {
    /// # let model = bitnet::BitNetModel::demo().await?;
    /// let ids = model.encode(&"Once upon a time".into())?;
    /// let logprobs = model.prompt_logprobs(&ids, 1, Default::default()).await?;
    /// assert_eq!(logprobs.len(), ids.len() - 1);
    /// assert_eq!((logprobs[2].id, logprobs[2].top[0].0), (ids[3], ids[3])); // whatever comes after `Once upon`
    /// # Ok::<(), bitnet::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// If there is no token, one that the model does not have, or more than its context has room for; if too many requests wait.
    pub async fn prompt_logprobs(
        &self,
        ids: &[u32],
        top: usize,
        options: RequestOptions,
    ) -> Result<Vec<TokenLogprobs>, Error> {
        if ids.len() == 1 {
            check_ids("ids", ids.iter().copied(), self.config().vocab_size)?;
            return Ok(Vec::new()); // there is no second one
        }
        let request = Request { ids: ids.to_vec(), work: Work::Logprobs { from: 1, top }, options };
        let events = self.order(request)?;
        let mut all = Vec::new();
        loop {
            match events.recv().await {
                Ok(Event::Logprobs(some)) => all.extend(some),
                Ok(Event::AllRows) => return Ok(all),
                Ok(Event::Failed(error)) => return Err(error.into()),
                Ok(_) => {}
                Err(_) => return Err(EngineError::Stopped.into()),
            }
        }
    }

    /// Sends a request to the engine, if there is memory for it.
    pub(crate) fn order(&self, request: Request) -> Result<Receiver<Event>, Error> {
        memory::check(self, request.ids.len(), &request.work)?;
        Ok(self.0.engine.submit(request)?)
    }

    /// The tokens of a prompt, as [`generate`](Self::generate) would continue them.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>, Error> {
        prompt.encode(&self.0.tokenizer)
    }

    /// The logits after each of the tokens. Blocks.
    pub fn logits(&self, ids: &[u32]) -> Result<Logits, Error> {
        let events = self.order(Request::new(ids.to_vec(), Work::Logits { from: 0 }))?;
        let data = collect_rows(&events)?;
        Ok(Logits { tokens: ids.len(), vocab: self.config().vocab_size, data })
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
        self.0.weights.model.config()
    }

    /// What the engine does at this moment, and what it has done.
    pub fn stats(&self) -> EngineStats {
        self.0.engine.stats()
    }

    /// What the engine takes at most: places in a step, requests and tokens that wait, pages of its cache.
    pub fn limits(&self) -> Limits {
        self.0.engine.limits()
    }

    /// The collector that the model was loaded with.
    pub fn metrics(&self) -> Option<&MetricsCollector> {
        self.0.observed.metrics.as_ref()
    }

    /// What was loaded, and what was chosen for it.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// What a [`HeadType::TwoStage`](crate::HeadType::TwoStage) head has done so far; nothing for any other.
    pub fn head_counts(&self) -> Option<HeadCounts> {
        self.0.head.as_ref().map(|head| head.counts())
    }

    /// The tokens that end a generation.
    pub fn stop_ids(&self) -> &[u32] {
        &self.0.stop_ids
    }

    pub(crate) fn engine(&self) -> &EngineHandle {
        &self.0.engine
    }

    pub(crate) fn weights(&self) -> &Model<CpuBackend> {
        &self.0.weights.model
    }

    /// Bytes of working memory that its engine comes to have.
    pub(crate) fn scratch_bytes_at_most(&self) -> usize {
        let limits = self.0.engine.limits();
        self.weights().scratch_bytes_at_most(limits.max_batch_tokens, limits.max_batch_size)
    }
}
