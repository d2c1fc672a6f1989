//! Loading: what was chosen is told, and what cannot be done is an error.

use std::fs;
use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bitnet::{
    BitNetModel, CacheUse, Device, Error, GenerationConfig, InferenceConfig, KvType, LoadError,
    LoadingStrategy, MemoryLock, ModelConfig, PackedCache, automatic_threads,
};
use futures_lite::future::block_on;

use crate::support::{demo, load, testdata};

const TINY: &str = "golden/bitnet-tiny";

#[track_caller]
fn check_error(config: ModelConfig, expected: &str, help: Option<&str>) {
    let error =
        BitNetModel::from_pretrained(testdata(TINY)).with_config(config).load().unwrap_err();
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.help().as_deref(), help);
}

#[test]
fn info_tells_what_was_loaded_and_chosen() {
    let config = ModelConfig {
        threads: 2,
        simd_level: Some("scalar".into()),
        max_seq_len: 100,
        kv_dtype: KvType::F32,
        ..Default::default()
    };
    let inference = InferenceConfig { max_batch_size: 3, ..Default::default() };
    let builder = BitNetModel::from_pretrained(testdata("demo-model/gguf/demo-tq2_0.gguf"));
    let model = builder.with_config(config).with_inference_config(inference).load().unwrap();
    let info = model.info();
    assert_eq!(info.architecture, "bitnet-b1.58");
    assert_eq!((info.device.as_str(), info.simd_level, info.threads), ("cpu", "scalar", 2));
    assert_eq!((info.context_length, info.kv_dtype), (100, KvType::F32));
    // 6 layers, keys and values of 2 heads of 64, 4 bytes each; 2 pages of 64 positions for each of 3 sequences.
    assert_eq!(info.kv_bytes_per_token, 6 * 2 * 2 * 64 * 4);
    assert_eq!(info.kv_cache_bytes, 3 * 128 * info.kv_bytes_per_token);
    // Six layers of seven matrices.
    assert_eq!(info.encodings["TQ2_0"].tensors, 42);
    assert_eq!(info.encodings["TQ2_0"].bytes, info.bytes.ternary);
    assert_eq!(info.bytes.ternary, 4_718_592 / 256 * 66);
    assert_eq!(info.bytes.embedding, 4096 * 256 / 32 * 34);
    assert_eq!(info.bytes.head, 0);
}

#[test]
fn threads_are_automatic_unless_given() {
    assert_eq!(demo().info().threads, automatic_threads());
}

#[test]
fn a_device_that_is_not_there_is_an_error_and_not_the_cpu() {
    check_error(
        ModelConfig { device: Device::Cuda(1), ..Default::default() },
        "cuda:1 is not available: this program has the CPU backend only",
        Some("use `auto` or `cpu`"),
    );
}

#[test]
fn a_longer_context_than_the_models_is_an_error() {
    check_error(
        ModelConfig { max_seq_len: 100_000, ..Default::default() },
        "`max_seq_len` is 100000; it should be at most 512, the context this model was made for",
        None,
    );
}

#[test]
fn a_simd_level_that_does_not_exist_is_an_error() {
    let config = ModelConfig { simd_level: Some("mmx".into()), ..Default::default() };
    let builder = BitNetModel::from_pretrained(testdata(TINY)).with_config(config);
    let error = builder.load().unwrap_err();
    assert!(matches!(error, Error::Simd(_)), "{error}");
    assert!(error.help().unwrap().starts_with("available here: auto, scalar"));
}

#[test]
fn a_missing_file_is_named() {
    let error = BitNetModel::from_pretrained("no/such/model.gguf").load().unwrap_err();
    assert_eq!(error.to_string(), "no/such/model.gguf: cannot be read");
    assert!(error.help().is_some());
}

#[test]
fn a_tokenizer_larger_than_the_model_is_refused() {
    // The demo model's tokenizer has 4096 tokens, the tiny model 384.
    let dir = std::env::temp_dir().join(format!("bitnet-vocabulary-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    for (from, file) in [
        (TINY, "config.json"),
        (TINY, "model.safetensors"),
        ("demo-model/packed", "tokenizer.json"),
        ("demo-model/packed", "tokenizer_config.json"),
    ] {
        fs::copy(testdata(from).join(file), dir.join(file)).unwrap();
    }
    let error = BitNetModel::from_pretrained(&dir).load().unwrap_err();
    fs::remove_dir_all(&dir).unwrap();
    let expected = format!(
        "{}: the tokenizer has 4096 tokens, but the embedding in {} only 384 rows: they do not belong together",
        dir.join("tokenizer.json").display(),
        dir.join("model.safetensors").display(),
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn loading_tells_how_far_it_is_and_works_on_any_runtime() {
    let seen = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&seen);
    let builder = BitNetModel::from_pretrained(testdata(TINY)).with_progress(move |progress| {
        assert!(progress.done <= progress.total);
        count.fetch_add(1, Ordering::Relaxed);
    });
    block_on(builder.into_future()).unwrap();
    assert_eq!(seen.load(Ordering::Relaxed), 14);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { BitNetModel::from_pretrained(testdata(TINY)).await }).unwrap();
}

#[test]
fn without_mmap_the_answers_are_the_same() {
    let config = ModelConfig { use_mmap: false, ..Default::default() };
    let read = BitNetModel::from_pretrained(testdata(TINY)).with_config(config).load().unwrap();
    let ids: Vec<u32> = (0..40).collect();
    assert_eq!(read.logits(&ids).unwrap(), load(TINY).logits(&ids).unwrap());
}

#[cfg(feature = "demo-model")]
#[test]
fn the_built_in_model_is_the_one_whose_figures_are_known() {
    let [built_in, known] =
        ["../crates/bitnet/demo/demo-tq1_0.gguf", "demo-model/gguf/demo-tq1_0.gguf"]
            .map(|file| fs::read(testdata(file)).unwrap());
    assert!(built_in == known);
    let model = BitNetModel::demo().load().unwrap();
    assert_eq!(model.info().path, None);
}

/// A copy of the demo model, for large models are not at hand, and a cache that takes small ones.
fn cached(folder: &std::path::Path, strategy: LoadingStrategy) -> BitNetModel {
    let path = folder.join("model.gguf");
    if !path.exists() {
        fs::copy(testdata("demo-model/gguf/demo-tq2_0.gguf"), &path).unwrap();
    }
    let cache = PackedCache { min_bytes: 0, ..PackedCache::new(folder.join("cache")) };
    let config = ModelConfig {
        loading_strategy: strategy,
        max_layers_in_memory: 2,
        packed_cache: Some(cache),
        ..Default::default()
    };
    BitNetModel::from_pretrained(path).with_config(config).load().unwrap()
}

#[test]
fn every_strategy_gives_the_same_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let config = GenerationConfig { max_new_tokens: 40, ..Default::default() };
    let text = |model: &BitNetModel| {
        let stream = model.generate_stream("Once upon a time", &config).unwrap();
        stream.blocking().map(|piece| piece.unwrap().text).collect::<String>()
    };
    let plain = BitNetModel::from_pretrained(testdata("demo-model/gguf/demo-tq2_0.gguf"));
    let expected = text(&plain.load().unwrap());
    assert!(!expected.is_empty());
    for (first, strategy) in LoadingStrategy::ALL.into_iter().enumerate() {
        let model = cached(folder.path(), strategy);
        match &model.info().packed_cache {
            CacheUse::Written { .. } => assert_eq!(first, 0),
            CacheUse::Read(_) => assert!(first > 0),
            CacheUse::None => panic!("{strategy} did not use the cache"),
        }
        assert_eq!(text(&model), expected, "{strategy}");
    }
}

#[test]
fn lazy_loading_refuses_what_it_cannot_do() {
    let lazy = ModelConfig { loading_strategy: LoadingStrategy::Lazy, ..Default::default() };
    let none = ModelConfig { max_layers_in_memory: 0, ..lazy.clone() };
    check_error(none, "`max_layers_in_memory` is 0; it should be at least 1", None);
    let locked = ModelConfig { lock_memory: true, ..lazy.clone() };
    let expected =
        "`lock_memory` is true; it should be false with lazy loading, which gives memory back";
    check_error(locked, expected, None);
    let read = ModelConfig { use_mmap: false, ..lazy.clone() };
    let expected =
        "`use_mmap` is false; it should be true with lazy loading, which reads mapped files";
    check_error(read, expected, None);
    let error = BitNetModel::from_pretrained(testdata(TINY)).with_config(lazy).load().unwrap_err();
    assert!(matches!(error, Error::Load(LoadError::Unsupported { .. })), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn memory_is_locked_or_the_reason_is_told() {
    let config = ModelConfig { lock_memory: true, ..Default::default() };
    let model = BitNetModel::from_pretrained(testdata(TINY)).with_config(config).load().unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    match &model.info().memory_lock {
        MemoryLock::NotAsked => panic!("it was asked for"),
        MemoryLock::Locked => assert_ne!(locked.trim(), "0 kB"),
        MemoryLock::Refused(refused) => assert!(!refused.help().is_empty(), "{refused}"),
    }
    let plain = BitNetModel::from_pretrained(testdata(TINY)).load().unwrap();
    assert_eq!(plain.info().memory_lock, MemoryLock::NotAsked);
}
