//! How to run a model.

use std::fmt;

use bitnet_inference::InvalidConfig;
use bitnet_kernels::cpu::affinity;
use bitnet_kernels::cpu::packed::Packing;
use bitnet_kernels::cpu::placement::{PlacementConfig, PlacementError};
use bitnet_kernels::cpu::plan::{ThreadConfig, ThreadPlan};
use bitnet_kernels::cpu::pool::WaitPolicy;
use bitnet_kernels::cpu::topology::Topology;
use bitnet_kernels::device::Device;
use bitnet_kernels::head::HeadType;
use bitnet_kernels::kv::KvType;
use bitnet_model::config::HiddenAct;
use bitnet_model::decoder::{PackedCache, Place};
use bitnet_model::format::{I2sLayout, OpenOptions, PackedLayout};

use crate::kv_config::KVCacheConfig;

/// How to load and run a model. All fields have a default, so a literal names what differs.
///
/// Products of ternary weights are exact with any settings. By default the output head is int8 and keys and values are f16, which
/// changes logits by about a hundredth of their spread; with these they are the reference's within 1e-4:
///
/// ```
/// use bitnet::{HeadType, KvType, ModelConfig};
///
/// let reference = ModelConfig { head: HeadType::File, kv_dtype: KvType::F32, ..Default::default() };
/// ```
///
/// ```
/// use bitnet::{BitNetModel, ModelConfig};
///
/// let config = ModelConfig {
///     // Set based on your typical input length
///     max_seq_len: 2048, // Don't over-allocate
///     ..Default::default()
/// };
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Where to compute. A device that is not there is an error, never another device.
    ///
    /// ```
    /// use bitnet::{BitNetModel, ModelConfig, Device};
    ///
    /// let config = ModelConfig {
    ///     device: Device::Cuda(0),
    ///     ..Default::default()
    /// };
    /// let error = BitNetModel::from_pretrained("model.gguf").with_config(config).load().unwrap_err();
    /// assert_eq!(error.to_string(), "cuda:0 is not available: this program has the CPU backend only");
    /// ```
    pub device: Device,
    /// Compute threads for generating, where a step has few tokens. 0: [`automatic_threads`] at most; with more than four,
    /// the first steps show how many are enough. Results are the same with any number.
    pub threads: usize,
    /// Compute threads for prompts, where a step has many tokens. 0: as `threads`.
    pub threads_batch: usize,
    /// Which processors compute threads run on. Not possible on every system.
    ///
    /// ```
    /// use bitnet::{ModelConfig, PlacementConfig};
    ///
    /// let config = ModelConfig {
    ///     placement: PlacementConfig { cpus: vec![0, 1, 2, 3], ..Default::default() },
    ///     ..Default::default()
    /// };
    /// ```
    pub placement: PlacementConfig,
    /// What compute threads do while they have no work.
    pub wait_policy: WaitPolicy,
    /// Vector instructions by the name of their level (`avx2`). None: the fastest level that gave the right results when the
    /// program started. A level that this CPU does not have is an error. Results are the same with all.
    pub simd_level: Option<String>,
    /// How many ternary weights share a byte. None: what a short timing while loading finds faster. Results are the same.
    pub packing: Option<Packing>,
    /// Map files into memory. Without it they are read into the process's own memory, which survives a file that
    /// changes or a network drive that goes away.
    ///
    /// ```
    /// use bitnet::{BitNetModel, ModelConfig, InferenceConfig};
    ///
    /// let config = ModelConfig {
    ///     // Use memory mapping for large models
    ///     use_mmap: true,
    ///     ..Default::default()
    /// };
    /// ```
    pub use_mmap: bool,
    /// Where weights are while the model runs.
    pub loading_strategy: LoadingStrategy,
    /// Layers whose weights are in memory at a time at most, with [`LoadingStrategy::Lazy`].
    pub max_layers_in_memory: usize,
    /// Keep weights and caches from being paged out, where the system allows it; [`ModelInfo`](crate::ModelInfo) tells
    /// whether it does. On Linux only.
    pub lock_memory: bool,
    /// Where packed weights are kept between loads, which then take a tenth of the time. None: weights are packed at each load.
    ///
    /// ```no_run
    /// use bitnet::{BitNetModel, ModelConfig, PackedCache};
    ///
    /// let config = ModelConfig {
    ///     packed_cache: Some(PackedCache::new("/var/cache/bitnet")),
    ///     ..Default::default()
    /// };
    /// let model = BitNetModel::from_pretrained("model.gguf").with_config(config).load()?;
    /// println!("{:?} in {:?}", model.info().packed_cache, model.info().load_time);
    /// # Ok::<(), bitnet::Error>(())
    /// ```
    pub packed_cache: Option<PackedCache>,
    /// Longest sequence in tokens, prompt and answer together. 0: what the model was made for; more than that is an error.
    /// Bounds the memory for keys and values.
    pub max_seq_len: usize,
    /// How keys and values are stored. [`KvType::F32`] is the reference, and f16 takes half of its memory.
    pub kv_dtype: KvType,
    /// Tokens of a sequence whose keys and values are kept; an answer that needs more ends as at the end of the context.
    /// 0: as many as [`max_seq_len`](Self::max_seq_len) allows.
    ///
    /// ```
    /// # #[cfg(feature = "demo-model")] {
    /// use bitnet::{BitNetModel, ModelConfig};
    ///
    /// let config = ModelConfig {
    ///     // Optimize KV cache size
    ///     kv_cache_size: 2048, // Adjust based on sequence length needs
    ///
    ///     // Enable memory defragmentation
    ///     enable_memory_defrag: true,
    ///
    ///     ..Default::default()
    /// };
    /// # BitNetModel::demo().with_config(config).load()?;
    /// # }
    /// # Ok::<(), bitnet::Error>(())
    /// ```
    pub kv_cache_size: usize,
    /// What a cache of keys and values is to be like, in place of the fields for that. None: as they say.
    pub kv_cache: Option<KVCacheConfig>,
    /// Whether the cache takes memory as sequences grow. It does; all of it in advance cannot be had, and off is an error.
    ///
    /// ```
    /// # #[cfg(feature = "demo-model")] {
    /// use bitnet::{BitNetModel, ModelConfig};
    ///
    /// let config = ModelConfig {
    ///     // Enable dynamic sequence length
    ///     dynamic_seq_len: true,
    ///     ..Default::default()
    /// };
    /// # BitNetModel::demo().with_config(config.clone()).load()?;
    /// # let config = ModelConfig { dynamic_seq_len: false, ..config };
    /// # assert!(BitNetModel::demo().with_config(config).load().is_err());
    /// # }
    /// # Ok::<(), bitnet::Error>(())
    /// ```
    pub dynamic_seq_len: bool,
    /// Whether pieces of the cache that lie apart are to be joined. There is nothing to join, which is logged: the cache is
    /// made of pages of one size, and a sequence may have any of them.
    pub enable_memory_defrag: bool,
    /// How the output head is held. [`HeadType::Int8`] reads half of what f16 would and changes logits by about a hundredth
    /// of their spread (`docs/kernels.md` has figures); [`HeadType::File`] is the reference.
    /// [`HeadType::TwoStage`] chooses the same tokens as `Int8` and reads a quarter of it where that suffices: for greedy
    /// choice, top-k, and min-p without top-p.
    pub head: HeadType,
    /// Byte order of I2_S tensors, which GGUF files do not name.
    pub i2s_layout: I2sLayout,
    /// Byte order of packed uint8 tensors in safetensors files.
    pub packed_layout: PackedLayout,
    /// Overrides the activation function that the model's files name or imply.
    pub hidden_act: Option<HiddenAct>,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            device: Device::Auto,
            threads: 0,
            threads_batch: 0,
            placement: PlacementConfig::default(),
            wait_policy: WaitPolicy::default(),
            simd_level: None,
            packing: None,
            use_mmap: true,
            loading_strategy: LoadingStrategy::MemoryMap,
            max_layers_in_memory: 8,
            lock_memory: false,
            packed_cache: None,
            max_seq_len: 0,
            kv_dtype: KvType::F16,
            kv_cache_size: 0,
            kv_cache: None,
            dynamic_seq_len: true,
            enable_memory_defrag: false,
            head: HeadType::Int8,
            i2s_layout: I2sLayout::default(),
            packed_layout: PackedLayout::default(),
            hidden_act: None,
        }
    }
}

impl ModelConfig {
    /// How many compute threads this makes on the machine at hand, and where they run.
    ///
    /// # Errors
    /// If threads cannot be placed as asked.
    pub fn thread_plan(&self) -> Result<ThreadPlan, PlacementError> {
        let config = ThreadConfig {
            threads: self.threads,
            threads_batch: self.threads_batch,
            placement: self.placement.clone(),
            wait: self.wait_policy,
        };
        ThreadPlan::new(&config, &Topology::detect(), affinity::current_cpu())
    }

    /// Where packed weights out of a cache are to be.
    pub(crate) fn place(&self) -> Result<Place, InvalidConfig> {
        let invalid = |field, found: String, expected: &str| {
            Err(InvalidConfig { field, found, expected: expected.into() })
        };
        Ok(match self.loading_strategy {
            LoadingStrategy::MemoryMap if self.use_mmap => Place::File,
            LoadingStrategy::MemoryMap | LoadingStrategy::Preload => Place::Memory,
            LoadingStrategy::Lazy if self.max_layers_in_memory == 0 => {
                return invalid("max_layers_in_memory", "0".into(), "at least 1");
            }
            LoadingStrategy::Lazy if self.lock_memory => {
                return invalid(
                    "lock_memory",
                    "true".into(),
                    "false with lazy loading, which gives memory back",
                );
            }
            LoadingStrategy::Lazy if !self.use_mmap => {
                return invalid(
                    "use_mmap",
                    "false".into(),
                    "true with lazy loading, which reads mapped files",
                );
            }
            LoadingStrategy::Lazy => Place::Layers(self.max_layers_in_memory),
        })
    }

    pub(crate) fn open_options(&self) -> OpenOptions {
        OpenOptions {
            mmap: self.use_mmap,
            i2s_layout: self.i2s_layout,
            packed_layout: self.packed_layout,
            hidden_act: self.hidden_act,
        }
    }
}

/// Where weights are while a model runs.
///
/// ```
/// use bitnet::{BitNetModel, ModelConfig, LoadingStrategy};
///
/// // Memory mapping (lowest memory usage)
/// let mmap_config = ModelConfig {
///     loading_strategy: LoadingStrategy::MemoryMap,
///     ..Default::default()
/// };
///
/// // Lazy loading (load layers on demand)
/// let lazy_config = ModelConfig {
///     loading_strategy: LoadingStrategy::Lazy,
///     max_layers_in_memory: 8,
///     ..Default::default()
/// };
///
/// // Preloading (fastest inference)
/// let preload_config = ModelConfig {
///     loading_strategy: LoadingStrategy::Preload,
///     ..Default::default()
/// };
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LoadingStrategy {
    /// In mapped files, as far as possible. Packed weights stay in the file of [`ModelConfig::packed_cache`], shared with all
    /// processes that run this model; without a cache they are in memory. The embedding, and the head with
    /// [`HeadType::File`], stay in the model's file and are read from disk when they are first used.
    #[default]
    MemoryMap,
    /// As with `MemoryMap`, but no more than [`ModelConfig::max_layers_in_memory`] layers are in memory at a time, while the next
    /// one is fetched from the disk: for models larger than memory. Needs [`ModelConfig::packed_cache`], and a model in a file.
    Lazy,
    /// All in memory of the process's own, in large pages where the system has them, and read before the first token: packed
    /// weights also if they come out of a cache, and the embedding if [`ModelConfig::use_mmap`] is off; mapped, its
    /// pages are brought in.
    Preload,
}

impl LoadingStrategy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::MemoryMap, Self::Lazy, Self::Preload];
}

impl fmt::Display for LoadingStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MemoryMap => "mmap",
            Self::Lazy => "lazy",
            Self::Preload => "preload",
        })
    }
}

/// Compute threads if nobody says how many: one for each physical core that this process may use.
pub fn automatic_threads() -> usize {
    Topology::detect().recommended_threads().threads
}
