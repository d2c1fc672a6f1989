//! From files to a model that runs.

use std::future::{Future, IntoFuture};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitnet_inference::config::Limits;
use bitnet_inference::{InferenceConfig, spawn_observed};
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::packed::Packing;
use bitnet_kernels::cpu::packing::{PackingChoice, PackingReason};
use bitnet_kernels::cpu::plan::ThreadPlan;
use bitnet_kernels::cpu::topology::Topology;
use bitnet_kernels::cpu::{CpuBackend, affinity};
use bitnet_kernels::device::Device;
use bitnet_kernels::head::HeadType;
use bitnet_kernels::kv::{KvType, PAGE};
use bitnet_model::decoder::{CacheUse, LoadOptions, LoadProgress, Model, Place};
use bitnet_model::format::{Checkpoint, TokenizerSource};
#[cfg(feature = "hub")]
use bitnet_model::hub::{Hub, HubConfig, HubError, HubId};
use bitnet_model::kv::page_bytes;
use bitnet_model::tokenizer::Tokenizer;

use crate::bench::bytes::ternary_weights;
use crate::config::{LoadingStrategy, ModelConfig};
use crate::error::Error;
use crate::info::{self, ModelInfo};
use crate::lock::{self, MemoryLock};
use crate::memory;
use crate::metrics::MetricsCollector;
use crate::model::{BitNetModel, Observed, Weights};

type Progress = Box<dyn Fn(LoadProgress) + Send + Sync>;

/// A model to be loaded: [`load`](Self::load) blocks, `.await` loads on a thread of its own, with any async runtime.
#[must_use = "nothing is loaded before `load` or `.await`"]
pub struct ModelBuilder {
    source: Source,
    config: ModelConfig,
    inference: InferenceConfig,
    progress: Progress,
    fused: bool,
    metrics: Option<MetricsCollector>,
    #[cfg(feature = "hub")]
    hub: Option<HubConfig>,
}

enum Source {
    Path(PathBuf),
    #[cfg(feature = "demo-model")]
    Demo,
}

/// A loaded model's weights, for another engine that wants them as they lie in memory.
pub(crate) struct Kept {
    lies: Lies,
    model: Arc<Model<CpuBackend>>,
    packed_cache: CacheUse,
    /// How long it took to load them, with all else.
    pub load_time: Duration,
}

/// How weights lie in memory.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Lies {
    packing: Packing,
    head: HeadType,
    place: Place,
}

/// What turned out while loading.
struct Found {
    device: Device,
    packed_cache: CacheUse,
    memory_lock: MemoryLock,
    limits: Limits,
    kv_dtype: KvType,
    ternary_bytes: u64,
}

/// The demo model's file, which `demo/README.md` describes.
#[cfg(feature = "demo-model")]
pub(crate) static DEMO: &[u8] = include_bytes!("../demo/demo-tq1_0.gguf");

impl Source {
    fn open(&self, config: &ModelConfig) -> Result<Checkpoint, Error> {
        let options = config.open_options();
        Ok(match self {
            Self::Path(path) => Checkpoint::open(path, &options)?,
            #[cfg(feature = "demo-model")]
            Self::Demo => {
                let data = bytes::Bytes::from_static(DEMO);
                Checkpoint::from_gguf(Path::new("the built-in demo model"), data, &options)?
            }
        })
    }

    fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            #[cfg(feature = "demo-model")]
            Self::Demo => None,
        }
    }

    /// The name that the file gives its model, or the file's own.
    fn name(&self, checkpoint: &Checkpoint) -> String {
        let own = checkpoint.metadata().string("general.name").map(str::to_owned);
        let file = || {
            let path = std::path::absolute(self.path()?).ok()?;
            Some(path.file_stem()?.to_string_lossy().into_owned())
        };
        own.or_else(file).unwrap_or_else(|| "demo".to_owned())
    }
}

impl ModelBuilder {
    pub(crate) fn from_path(path: &Path) -> Self {
        Self::new(Source::Path(path.to_owned()))
    }

    #[cfg(feature = "demo-model")]
    pub(crate) fn demo() -> Self {
        Self::new(Source::Demo)
    }

    fn new(source: Source) -> Self {
        Self {
            source,
            config: ModelConfig::default(),
            inference: InferenceConfig::default(),
            progress: Box::new(|_| {}),
            fused: true,
            metrics: None,
            #[cfg(feature = "hub")]
            hub: None,
        }
    }

    /// How to load and run it.
    pub fn with_config(self, config: ModelConfig) -> Self {
        Self { config, ..self }
    }

    /// How requests share it.
    ///
    /// ```
    /// use bitnet::{BitNetModel, InferenceConfig};
    ///
    /// // Start with conservative batch size
    /// let mut config = InferenceConfig {
    ///     max_batch_size: 8,
    ///     ..Default::default()
    /// };
    /// let builder = BitNetModel::from_pretrained("model.gguf").with_inference_config(config);
    /// ```
    pub fn with_inference_config(self, inference: InferenceConfig) -> Self {
        Self { inference, ..self }
    }

    /// Called after each matrix, from any of the loading threads.
    pub fn with_progress(self, progress: impl Fn(LoadProgress) + Send + Sync + 'static) -> Self {
        Self { progress: Box::new(progress), ..self }
    }

    /// Has a collector count what the model does.
    pub fn with_metrics(self, collector: MetricsCollector) -> Self {
        Self { metrics: Some(collector), ..self }
    }

    /// Where models named `hf:OWNER/NAME` come from and are kept. Without it such a name is an error.
    ///
    /// ```no_run
    /// use bitnet::{BitNetModel, hub::HubConfig};
    ///
    /// let hub = HubConfig::new("/var/cache/models");
    /// let model = BitNetModel::from_pretrained("hf:microsoft/bitnet-b1.58-2B-4T-gguf").with_hub(hub).load()?;
    /// # Ok::<(), bitnet::Error>(())
    /// ```
    #[cfg(feature = "hub")]
    pub fn with_hub(self, hub: HubConfig) -> Self {
        Self { hub: Some(hub), ..self }
    }

    /// Computes in passes that the engine does not take otherwise; see [`CpuBackend::unfused`].
    pub(crate) fn unfused(self) -> Self {
        Self { fused: false, ..self }
    }

    /// What is in the model's files, without loading it.
    pub(crate) fn checkpoint(&self) -> Result<Checkpoint, Error> {
        self.source.open(&self.config)
    }

    /// Turns the name of a model on the hub into the path of its files.
    #[cfg(feature = "hub")]
    fn resolve(&mut self) -> Result<(), Error> {
        let Some(name) = self.source.path().and_then(Path::to_str) else { return Ok(()) };
        if !name.starts_with(HubId::PREFIX) {
            return Ok(());
        }
        let id: HubId = name.parse()?;
        let no_cache = || HubError::NoCache { id: Box::new(id.clone()) };
        let config = self.hub.clone().ok_or_else(no_cache)?;
        let found = Hub::new(config)?.resolve(&id, &mut |_| {})?;
        self.source = Source::Path(found.path);
        Ok(())
    }

    /// Loads the model, with as many threads as it will compute with.
    pub fn load(self) -> Result<BitNetModel, Error> {
        self.load_sharing(&mut None)
    }

    /// [`load`](Self::load) with the weights that are kept, if there are any and they lie as this model's would. If not, those that
    /// are loaded take their place. They must be of the same files.
    #[cfg_attr(not(feature = "hub"), expect(unused_mut, reason = "a name on the hub is replaced"))]
    pub(crate) fn load_sharing(mut self, kept: &mut Option<Kept>) -> Result<BitNetModel, Error> {
        let begin = Instant::now();
        #[cfg(feature = "hub")]
        self.resolve()?;
        let plan = self.config.thread_plan()?;
        let cpus = plan.placement.cpus();
        if cpus.is_empty() {
            return self.load_with(&plan, begin, kept);
        }
        // Threads start where the one is that starts them: so all work of loading is done on these processors, and memory
        // is taken from their nodes.
        let refused = |source| Error::Threads { threads: plan.threads(), source };
        std::thread::scope(|scope| {
            let load = || {
                affinity::bind(&cpus).map_err(refused)?;
                self.load_with(&plan, begin, kept)
            };
            let loading = std::thread::Builder::new().name("bitnet-load".into());
            let loading = loading.spawn_scoped(scope, load).map_err(refused)?;
            loading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn load_with(
        &self,
        plan: &ThreadPlan,
        begin: Instant,
        kept: &mut Option<Kept>,
    ) -> Result<BitNetModel, Error> {
        let device = self.config.device.resolve()?;
        let isa = self.config.simd_level.as_deref().map_or_else(|| Ok(Isa::best()), Isa::parse)?;
        let checkpoint = self.source.open(&self.config)?;
        let arch = checkpoint.config().clone();
        let tokenizer = tokenizer(&checkpoint)?;
        let engine = self.config.engine(&self.inference, arch.max_position_embeddings)?;
        let limits = engine.limits(&arch)?; // before the work of loading
        if kept.is_none() {
            memory::check_weights(self.weight_bytes(&checkpoint))?;
        }
        self.metrics.as_ref().map_or(Ok(()), MetricsCollector::open)?;
        let threads = plan.threads();
        let backend = CpuBackend::with_plan(isa, plan)
            .map_err(|source| Error::Threads { threads, source })?;
        let backend = if self.fused { backend } else { backend.unfused() };
        let backend = Arc::new(self.with_packing(backend, ternary_weights(&arch)));
        let (model, packed_cache) = self.weights(&checkpoint, &backend, threads, begin, kept)?;
        let ternary_bytes = model.ternary_bytes();
        let observed = Observed::new(self.metrics.clone());
        let handle = spawn_observed(Arc::clone(&model), &engine, observed.observer())?;
        let memory_lock = match self.config.lock_memory {
            true => lock::lock(),
            false => MemoryLock::NotAsked,
        };
        let kv_dtype = engine.kv_dtype;
        let found = Found { device, packed_cache, memory_lock, limits, kv_dtype, ternary_bytes };
        let info = self.info(&checkpoint, &backend, threads, found, begin);
        drop(checkpoint);
        tracing::info!(
            name = info.name,
            device = info.device,
            simd = info.simd_level,
            threads,
            seconds = info.load_time.as_secs_f64(),
            "model loaded"
        );
        let weights = Weights { model, asked: self.config.clone() };
        Ok(BitNetModel::new(weights, handle, Arc::new(tokenizer), info, observed))
    }

    /// Bytes of memory that the weights will take, about: of an embedding in a mapped file only what is used is read.
    fn weight_bytes(&self, checkpoint: &Checkpoint) -> u64 {
        let arch = checkpoint.config();
        let values = (arch.vocab_size * arch.hidden_size) as u64;
        let (_, stored) = info::tensors(checkpoint);
        let head = match self.config.head {
            HeadType::Int8 => values,
            HeadType::TwoStage => values + values / 4,
            HeadType::File if stored.head > 0 => stored.head,
            HeadType::File => stored.embedding,
        };
        let is_read = !self.config.use_mmap;
        let packed = if self.config.packing == Some(Packing::FiveTrits) { 5 } else { 4 };
        let table = if is_read { stored.embedding } else { 0 };
        ternary_weights(arch) / packed + head + table + stored.other
    }

    /// The model on this backend, with the weights that are kept or with others, which are kept from now on.
    fn weights(
        &self,
        checkpoint: &Checkpoint,
        backend: &Arc<CpuBackend>,
        threads: usize,
        begin: Instant,
        kept: &mut Option<Kept>,
    ) -> Result<(Arc<Model<CpuBackend>>, CacheUse), Error> {
        let (head, place) = (self.config.head, self.config.place()?);
        let lies = Lies { packing: backend.packing().packing, head, place };
        if let Some(kept) = kept.as_mut().filter(|kept| kept.lies == lies) {
            kept.model = Arc::new(kept.model.with_backend(Arc::clone(backend)));
            return Ok((Arc::clone(&kept.model), kept.packed_cache.clone()));
        }
        *kept = None; // not both in memory at the same time
        let cache = self.config.packed_cache.as_ref();
        let options = LoadOptions { head, threads, cache, place };
        let (model, packed_cache) =
            Model::load_with(checkpoint, Arc::clone(backend), &options, &self.progress)?;
        if self.config.loading_strategy == LoadingStrategy::Preload {
            checkpoint.bring_in("model.embed_tokens", threads);
        }
        let (model, load_time) = (Arc::new(model), begin.elapsed());
        let packed = packed_cache.clone();
        *kept = Some(Kept { lies, model: Arc::clone(&model), packed_cache, load_time });
        Ok((model, packed))
    }

    /// Packs weights as the configuration says, or in the way that is found to be faster here; a cache remembers which that was.
    fn with_packing(&self, backend: CpuBackend, weights: u64) -> CpuBackend {
        if let Some(packing) = self.config.packing {
            return backend.with_packing(PackingChoice::Fixed(packing));
        }
        let (isa, threads) = (backend.isa().name(), backend.threads());
        let processor = Topology::detect().model_name.unwrap_or_default();
        let what = format!("packing of {weights} weights, {isa}, {threads} threads, {processor}");
        let cache = self.config.packed_cache.as_ref();
        let remembered = cache.and_then(|cache| cache.remembered(&what)?.parse().ok());
        let backend = backend.with_packing(match remembered {
            Some(packing) => PackingChoice::Remembered(packing),
            None => PackingChoice::Fastest { weights },
        });
        if let (Some(cache), PackingReason::Timed { .. }) = (cache, backend.packing().reason) {
            cache.remember(&what, backend.packing().packing.name());
        }
        backend
    }

    fn info(
        &self,
        checkpoint: &Checkpoint,
        backend: &CpuBackend,
        threads: usize,
        Found { device, packed_cache, memory_lock, limits, kv_dtype, ternary_bytes }: Found,
        begin: Instant,
    ) -> ModelInfo {
        let (encodings, bytes) = info::tensors(checkpoint);
        let kv_page = page_bytes(checkpoint.config(), kv_dtype);
        ModelInfo {
            name: self.source.name(checkpoint),
            path: self.source.path().map(Path::to_owned),
            architecture: checkpoint.config().architecture.clone(),
            encodings,
            bytes,
            device: device.to_string(),
            simd_level: backend.isa().name(),
            packing: *backend.packing(),
            ternary_bytes,
            threads,
            context_length: limits.max_seq_len,
            kv_dtype,
            head: self.config.head,
            kv_cache_bytes: limits.pages * kv_page,
            kv_bytes_per_token: kv_page / PAGE,
            packed_cache,
            memory_lock,
            load_time: begin.elapsed(),
        }
    }
}

/// The checkpoint's tokenizer, whose tokens the model must all have; more rows than tokens are padding, which many models have.
fn tokenizer(checkpoint: &Checkpoint) -> Result<Tokenizer, Error> {
    let tokenizer = Tokenizer::from_source(&checkpoint.tokenizer_source())?;
    let (tokens, rows) = (tokenizer.vocab_size(), checkpoint.config().vocab_size);
    match tokens > rows {
        true => Err(Error::Vocabulary {
            tokenizer_file: match checkpoint.tokenizer_source() {
                TokenizerSource::Gguf(file, _) => file.into(),
                TokenizerSource::Directory(directory) => directory.join("tokenizer.json"),
            },
            weights: embedding_file(checkpoint),
            tokenizer: tokens,
            model: rows,
        }),
        false => Ok(tokenizer),
    }
}

fn embedding_file(checkpoint: &Checkpoint) -> PathBuf {
    let embedding = checkpoint.tensors().find(|tensor| tensor.name == "model.embed_tokens.weight");
    let embedding = embedding.expect("a checkpoint without one does not open");
    checkpoint.files()[embedding.file].clone()
}

impl IntoFuture for ModelBuilder {
    type Output = Result<BitNetModel, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// Loads on a thread named `bitnet-load`.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (sender, receiver) = async_channel::bounded(1);
            let load = move || drop(sender.send_blocking(self.load())); // nobody may wait any more
            std::thread::Builder::new()
                .name("bitnet-load".into())
                .spawn(load)
                .map_err(|source| Error::Threads { threads: 1, source })?;
            receiver.recv().await.map_err(|_| Error::LoadingPanicked)?
        })
    }
}

#[cfg(all(test, feature = "demo-model"))]
mod tests {
    use super::*;

    #[test]
    fn weights_are_packed_again_only_where_they_have_to_lie_otherwise() {
        let base = ModelConfig {
            threads: 1,
            packing: Some(Packing::TwoBits),
            head: HeadType::File,
            ..ModelConfig::default()
        };
        let mut kept = None;
        let mut packed = |config: ModelConfig| {
            let threads = config.threads;
            let model = BitNetModel::demo().with_config(config).load_sharing(&mut kept).unwrap();
            let backend = Arc::clone(kept.as_ref().unwrap().model.backend());
            assert_eq!(backend.threads(), threads);
            (backend.matrices_packed() > 0, model.logits(&[1, 2, 3]).unwrap().data)
        };
        let (first, expected) = packed(base.clone());
        assert!(first);
        let scalar = Some("scalar".to_owned());
        let again = packed(ModelConfig { threads: 2, simd_level: scalar, ..base.clone() });
        assert!(again == (false, expected.clone()));
        assert!(!packed(ModelConfig { kv_dtype: KvType::Int8, ..base.clone() }).0);
        let five = packed(ModelConfig { packing: Some(Packing::FiveTrits), ..base.clone() });
        assert!(five == (true, expected));
        assert!(packed(ModelConfig { head: HeadType::Int8, ..base }).0);
    }
}
