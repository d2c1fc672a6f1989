//! What is said of memory, and what a bound on it does.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bitnet::{
    BitNetModel, CacheStrategy, EngineError, Error, GenerationConfig, InferenceConfig, KvType,
    LoadingStrategy, MemoryMonitor, ModelConfig, PackedCache, ResponseCache,
};
use futures_lite::future::block_on;

use crate::support::{Lines, testdata};

/// Runs a test of this file in a process of its own, because limits hold for all of it. True in that process.
fn is_alone(name: &str) -> bool {
    if std::env::var_os("BITNET_TEST_MEMORY").is_some() {
        return true;
    }
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    alone.args([&format!("memory::{name}"), "--exact", "--nocapture"]);
    let output = alone.env("BITNET_TEST_MEMORY", "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
    false
}

/// A figure of the system's about this process, in bytes.
fn system(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

fn greedy(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig { max_new_tokens, ignore_eos: true, ..Default::default() }
}

/// A model whose keys and values take as much as they can.
fn load() -> BitNetModel {
    let config = ModelConfig { kv_dtype: KvType::F32, threads: 1, ..Default::default() };
    let inference = InferenceConfig { max_batch_size: 32, ..Default::default() };
    BitNetModel::from_pretrained(testdata("demo-model/packed"))
        .with_config(config)
        .with_inference_config(inference)
        .load()
        .unwrap()
}

/// Has so many answers generated at the same time, each after a prompt of its own.
fn generate(model: &BitNetModel, count: usize, tokens: usize) -> Vec<Result<Vec<u32>, Error>> {
    let start = |i| model.generate_stream(format!("Tom has {i} cats"), &greedy(tokens));
    let streams: Vec<_> = (0..count).map(start).collect();
    streams.into_iter().map(|stream| Ok(block_on(stream?.finish())?.ids)).collect()
}

fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b as f64
}

#[test]
fn figures_agree_with_what_the_system_says() {
    if !is_alone("figures_agree_with_what_the_system_says") {
        return;
    }
    let (monitor, model) = (MemoryMonitor::new(), load());
    let before = monitor.current_usage();
    let weights = before.weights_mapped + before.weights_owned;
    assert!((0.9..2.0).contains(&ratio(weights, model.info().ternary_bytes)), "{before:?}");
    generate(&model, 32, 400);
    let after = monitor.current_usage();
    assert!((0.95..1.05).contains(&ratio(after.total(), system("VmRSS:"))), "{after:?}");
    let grown = ratio(after.known() - before.known(), after.total() - before.total());
    assert!(
        (0.95..1.05).contains(&grown),
        "{grown} of what it grew is known: {before:?} {after:?}"
    );
    let positions = 32 * (400 + 6) * model.info().kv_bytes_per_token as u64;
    assert!((1.0..1.3).contains(&ratio(after.kv_cache, positions)), "{after:?}");
    assert!(after.activations > 100_000 && after.tokenizer > 100_000, "{after:?}");
    assert_eq!(after.total(), after.known() + after.other);
    let replica = model.replica(1, InferenceConfig::default()).unwrap();
    let both = monitor.current_usage();
    assert_eq!(both.weights_owned, after.weights_owned, "replicas share weights");
    assert_eq!((both.kv_cache, both.tokenizer), (after.kv_cache, after.tokenizer));
    drop((model, replica));
    let begin = Instant::now();
    while system("VmRSS:") > before.total() + (8 << 20) {
        assert!(begin.elapsed() < Duration::from_secs(60)); // the engines' threads end by themselves
    }
    assert_eq!(monitor.current_usage().known(), 0);
}

#[test]
fn what_is_only_kept_goes_back_to_the_system() {
    if !is_alone("what_is_only_kept_goes_back_to_the_system") {
        return;
    }
    let (monitor, model) = (MemoryMonitor::new(), load());
    let before = monitor.current_usage().total();
    let expected: Vec<_> = generate(&model, 32, 400).into_iter().map(Result::unwrap).collect();
    let full = monitor.current_usage();
    let mut stream = model.generate_stream("Lily", &greedy(500)).unwrap();
    block_on(futures_lite::StreamExt::next(&mut stream)).unwrap().unwrap();
    monitor.clean_up(); // while one runs
    let rest = block_on(stream.finish()).unwrap();
    monitor.clean_up();
    let (clean, stats) = (monitor.current_usage(), model.stats());
    assert_eq!(
        (clean.kv_cache, clean.activations, stats.kv_bytes, stats.kv_pages_kept),
        (0, 0, 0, 0)
    );
    let gone = full.total() - system("VmRSS:");
    assert!(ratio(gone, full.total() - before) > 0.9, "{before} {full:?} {clean:?}");
    assert_eq!(monitor.cleanups(), 2);
    assert_eq!(rest.ids, model.generate_blocking("Lily", &greedy(500)).unwrap().ids);
    let again: Vec<_> = generate(&model, 32, 400).into_iter().map(Result::unwrap).collect();
    assert_eq!(again, expected);
}

#[test]
fn near_the_limit_what_is_kept_goes_by_itself() {
    if !is_alone("near_the_limit_what_is_kept_goes_by_itself") {
        return;
    }
    let lines = Lines::of("bitnet::memory");
    let (monitor, model) = (MemoryMonitor::new(), load());
    let cache = ResponseCache::new(CacheStrategy::LRU);
    block_on(model.generate_with_cache("Tom", &greedy(3), &cache)).unwrap();
    generate(&model, 32, 400);
    let full = system("VmRSS:");
    monitor.set_limit(full * 100 / 75);
    monitor.enable_auto_cleanup(0.8);
    model.generate_blocking("Lily", &greedy(3)).unwrap();
    assert_eq!((monitor.cleanups(), cache.stats().entries), (0, 1), "three quarters are in use");
    std::thread::sleep(Duration::from_millis(20)); // nobody looks more often than every ten
    monitor.set_limit(full * 100 / 85);
    model.generate_blocking("Lily", &greedy(3)).unwrap();
    assert_eq!((monitor.cleanups(), cache.stats().entries), (1, 0));
    let begin = Instant::now();
    while system("VmRSS:") > full / 2 {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", monitor.current_usage());
    }
    model.generate_blocking("Lily", &greedy(30)).unwrap();
    assert_eq!(monitor.cleanups(), 1, "there is enough now");
    let lines = lines.lines.lock().unwrap();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("count=1 ") && lines[0].contains("the limit is near"), "{lines:?}");
}

#[test]
fn a_limit_holds_under_load() {
    if !is_alone("a_limit_holds_under_load") {
        return;
    }
    let (monitor, model) = (MemoryMonitor::new(), load());
    let expected: Vec<_> = generate(&model, 32, 400).into_iter().map(Result::unwrap).collect();
    monitor.clean_up();
    let limit = system("VmRSS:") + (40 << 20); // less than half of what they took
    monitor.set_limit(limit);
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let found = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(system("VmRSS:"), Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let found = generate(&model, 32, 400);
        done.store(true, Ordering::Relaxed);
        found
    });
    let most = most.into_inner();
    assert!(most <= limit && most > limit - (30 << 20), "{most} of {limit}");
    let mut finished = 0;
    for (found, expected) in found.into_iter().zip(&expected) {
        match found {
            Ok(ids) => {
                assert_eq!(ids, *expected);
                finished += 1;
            }
            Err(Error::MemoryLimit { .. } | Error::Engine(EngineError::OutOfMemory { .. })) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(finished >= 8, "{finished} of 32");
    assert!(model.stats().preemptions > 0, "they made room for one another");
}

#[test]
fn what_does_not_fit_into_the_limit_is_refused_and_what_runs_goes_on() {
    if !is_alone("what_does_not_fit_into_the_limit_is_refused_and_what_runs_goes_on") {
        return;
    }
    let (monitor, model) = (MemoryMonitor::new(), load());
    let expected = model.generate_blocking("Tom", &greedy(300)).unwrap().ids;
    let mut stream = model.generate_stream("Tom", &greedy(300)).unwrap();
    block_on(futures_lite::StreamExt::next(&mut stream)).unwrap().unwrap();
    let limit = system("VmRSS:") - (1 << 20);
    monitor.set_limit(limit);
    let is_refused = |error: Error| match error {
        Error::MemoryLimit { limit: found, in_use, .. } => {
            assert!(found == limit && in_use > limit && error.help().is_some());
            assert!(error.to_string().ends_with(&format!("{in_use} of {limit} are in use")));
        }
        error => panic!("{error}"),
    };
    is_refused(model.generate_blocking("Lily", &greedy(300)).unwrap_err());
    is_refused(model.logits(&[1, 2]).unwrap_err());
    let other = BitNetModel::from_pretrained(testdata("demo-model/packed"));
    is_refused(other.load().unwrap_err());
    assert_eq!(monitor.refused(), 3);
    assert_eq!(block_on(stream.finish()).unwrap().ids, expected);
    monitor.remove_limit();
    model.generate_blocking("Lily", &greedy(300)).unwrap();
}

#[test]
fn lazily_loaded_layers_go_too_and_are_read_again() {
    if !is_alone("lazily_loaded_layers_go_too_and_are_read_again") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let config = ModelConfig {
        packed_cache: Some(PackedCache::new(folder.path())),
        loading_strategy: LoadingStrategy::Lazy,
        ..Default::default()
    };
    let model = BitNetModel::from_pretrained(testdata("demo-model/packed"));
    let model = model.with_config(config).load().unwrap();
    let expected = model.generate_blocking("Tom", &greedy(20)).unwrap().ids;
    let monitor = MemoryMonitor::new();
    let before = monitor.current_usage();
    monitor.clean_up();
    let after = monitor.current_usage();
    let gone = before.weights_mapped - after.weights_mapped;
    assert!(ratio(gone, model.info().ternary_bytes) > 0.8, "{before:?} {after:?}");
    assert_eq!(model.generate_blocking("Tom", &greedy(20)).unwrap().ids, expected);
    assert!(monitor.current_usage().weights_mapped > after.weights_mapped);
}
