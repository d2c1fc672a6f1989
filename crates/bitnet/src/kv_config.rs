//! The cache of keys and values, as the tuning guide describes it.

use bitnet_inference::{EngineConfig, EvictionStrategy, InferenceConfig};
use bitnet_kernels::kv::KvType;

use crate::config::ModelConfig;
use crate::error::{Error, invalid};

/// What the cache of keys and values is to be like. [`ModelConfig::kv_cache`] takes it, and then it comes before
/// [`ModelConfig::kv_cache_size`], [`ModelConfig::kv_dtype`] and [`InferenceConfig::eviction_strategy`].
///
/// ```
/// # #[cfg(feature = "demo-model")] {
/// use bitnet::{BitNetModel, EvictionStrategy, KVCacheConfig, ModelConfig};
///
/// let kv_config = KVCacheConfig {
///     // Size based on typical sequence lengths
///     max_size: 2048,
///
///     // Enable compression
///     compression: true,
///
///     // Use memory pooling
///     use_memory_pool: true,
///
///     // Eviction strategy
///     eviction_strategy: EvictionStrategy::LRU,
///
///     ..Default::default()
/// };
/// let config = ModelConfig { kv_cache: Some(kv_config), ..Default::default() };
/// let model = BitNetModel::demo().with_config(config).load()?;
/// assert_eq!(model.info().kv_dtype, bitnet::KvType::Int8);
/// # }
/// # Ok::<(), bitnet::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KVCacheConfig {
    /// Tokens of a sequence whose keys and values are kept; an answer that needs more ends as at the end of the context.
    /// 0: as many as [`ModelConfig::max_seq_len`] allows.
    pub max_size: usize,
    /// Whether keys and values take half of the memory or less, by `compressed_type`. Without it they are stored as
    /// [`ModelConfig::kv_dtype`] says.
    pub compression: bool,
    /// How they are stored with `compression`.
    pub compressed_type: KvType,
    /// Whether all sequences share one pool of pages. They do; memory of a sequence's own cannot be had, and off is an error.
    pub use_memory_pool: bool,
    /// What goes first of the beginnings of ended sequences that are kept for sequences to come. Those that run lose nothing.
    pub eviction_strategy: EvictionStrategy,
}

impl Default for KVCacheConfig {
    fn default() -> Self {
        Self {
            max_size: 0,
            compression: false,
            compressed_type: KvType::Int8,
            use_memory_pool: true,
            eviction_strategy: EvictionStrategy::LRU,
        }
    }
}

impl ModelConfig {
    /// What this means for the engine of a model that was made for `context` tokens.
    pub(crate) fn engine(
        &self,
        inference: &InferenceConfig,
        context: usize,
    ) -> Result<EngineConfig, Error> {
        let only = |expected: &str| format!("true: {expected}");
        if !self.dynamic_seq_len {
            let reason = "the cache takes memory as sequences grow, never all of it in advance";
            return Err(invalid("dynamic_seq_len", false, only(reason)));
        }
        if self.enable_memory_defrag {
            tracing::info!(
                "enable_memory_defrag: there is nothing to do, as the cache's pages are of one size and a sequence may have any"
            );
        }
        let (mut kv_dtype, mut size) = (self.kv_dtype, self.kv_cache_size);
        let mut inference = inference.clone();
        if let Some(kv) = &self.kv_cache {
            if !kv.use_memory_pool {
                let reason = "all sequences share one pool of pages";
                return Err(invalid("use_memory_pool", false, only(reason)));
            }
            if kv.compression && !matches!(kv.compressed_type, KvType::Int8 | KvType::Fp8E4m3) {
                let expected = "a type of one byte with compression: Int8 or Fp8E4m3";
                return Err(invalid(
                    "compressed_type",
                    format!("{:?}", kv.compressed_type),
                    expected,
                ));
            }
            if kv.compression {
                kv_dtype = kv.compressed_type;
            }
            size = kv.max_size;
            inference.eviction_strategy = kv.eviction_strategy;
        }
        let max_seq_len = match (self.max_seq_len, size) {
            (len, 0) => len,
            (0, size) => size.min(context),
            (len, size) => len.min(size),
        };
        Ok(EngineConfig { max_seq_len, kv_dtype, inference })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(config: ModelConfig) -> Result<EngineConfig, String> {
        let inference = InferenceConfig::default();
        config.engine(&inference, 512).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check_length(max_seq_len: usize, kv_cache_size: usize, kv: Option<usize>, expected: usize) {
        let kv_cache = kv.map(|max_size| KVCacheConfig { max_size, ..Default::default() });
        let config = ModelConfig { max_seq_len, kv_cache_size, kv_cache, ..Default::default() };
        assert_eq!(engine(config).unwrap().max_seq_len, expected);
    }

    #[test]
    fn the_smallest_bound_counts_and_the_kv_configuration_comes_first() {
        check_length(0, 0, None, 0);
        check_length(0, 100, None, 100);
        check_length(0, 2048, None, 512); // it only bounds
        check_length(200, 100, None, 100);
        check_length(50, 100, None, 50);
        check_length(0, 100, Some(300), 300);
        check_length(2048, 0, Some(0), 2048); // which the model cannot have, and that is an error elsewhere
    }

    #[test]
    fn the_kv_configuration_decides_on_type_and_eviction() {
        let kv = KVCacheConfig {
            compression: true,
            eviction_strategy: EvictionStrategy::LFU,
            ..Default::default()
        };
        let found = engine(ModelConfig { kv_cache: Some(kv), ..Default::default() }).unwrap();
        assert_eq!(found.kv_dtype, KvType::Int8);
        assert_eq!(found.inference.eviction_strategy, EvictionStrategy::Lfu);
        let plain = KVCacheConfig { compression: false, ..kv };
        let found = engine(ModelConfig { kv_cache: Some(plain), ..Default::default() }).unwrap();
        assert_eq!(found.kv_dtype, KvType::F16);
    }

    #[test]
    fn what_cannot_be_had_is_an_error_with_the_reason() {
        let kv = KVCacheConfig { use_memory_pool: false, ..Default::default() };
        assert_eq!(
            engine(ModelConfig { kv_cache: Some(kv), ..Default::default() }).unwrap_err(),
            "`use_memory_pool` is false; it should be true: all sequences share one pool of pages"
        );
        assert_eq!(
            engine(ModelConfig { dynamic_seq_len: false, ..Default::default() }).unwrap_err(),
            "`dynamic_seq_len` is false; it should be true: the cache takes memory as sequences grow, never all of it in advance"
        );
        let kv =
            KVCacheConfig { compression: true, compressed_type: KvType::F32, ..Default::default() };
        let error = engine(ModelConfig { kv_cache: Some(kv), ..Default::default() }).unwrap_err();
        assert!(error.starts_with("`compressed_type` is F32; it should be a type of one byte"));
    }
}
