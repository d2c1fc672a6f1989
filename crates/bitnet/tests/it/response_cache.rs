//! Answers that are given again.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bitnet::{
    BitNetModel, CacheStats, CacheStrategy, GenerationConfig, Message, Prompt, ResponseCache, Role,
    SamplingStrategy,
};
use futures_lite::future::{self, block_on};

use crate::support::{demo, testdata};

fn greedy(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig { max_new_tokens, ignore_eos: true, ..Default::default() }
}

/// Whether the answer was there.
fn ask(cache: &ResponseCache, prompt: &str, config: &GenerationConfig) -> bool {
    block_on(demo().generate_with_cache(prompt, config, cache)).unwrap().cached
}

#[test]
fn what_is_asked_again_is_there_at_once() {
    let cache = ResponseCache::new(CacheStrategy::LRU);
    let first = block_on(demo().generate_with_cache("Tom", &greedy(50), &cache)).unwrap();
    let fastest = (0..5).map(|_| {
        let begin = Instant::now();
        let again = block_on(demo().generate_with_cache("Tom", &greedy(50), &cache)).unwrap();
        assert!(again.cached && again.output == first.output);
        begin.elapsed()
    });
    assert!(fastest.min().unwrap() < Duration::from_millis(1));
    assert_eq!(first.to_string(), demo().generate_blocking("Tom", &greedy(50)).unwrap().text);
    let bytes = cache.stats().bytes;
    assert!((500..3000).contains(&bytes), "{bytes} for 50 tokens");
    let stats = CacheStats { entries: 1, bytes, hits: 5, misses: 1, evictions: 0 };
    assert_eq!(cache.stats(), stats);
    cache.clear();
    assert_eq!(cache.stats(), CacheStats { entries: 0, bytes: 0, ..stats });
    assert!(!ask(&cache, "Tom", &greedy(50)));
}

#[test]
fn whatever_is_asked_otherwise_is_something_else() {
    let cache = ResponseCache::new(CacheStrategy::LRU);
    assert!(!ask(&cache, "Tom", &greedy(3)));
    assert!(!ask(&cache, "Tom", &greedy(4)));
    assert!(!ask(&cache, "Tim", &greedy(3)));
    let penalty = GenerationConfig { repetition_penalty: 1.1, ..greedy(3) };
    assert!(!ask(&cache, "Tom", &penalty));
    let other = BitNetModel::from_pretrained(testdata("demo-model/gguf/demo-tq2_0.gguf"));
    let other = other.load().unwrap();
    assert!(!block_on(other.generate_with_cache("Tom", &greedy(3), &cache)).unwrap().cached);
    let chat = Prompt::from(vec![Message { role: Role::User, content: "Tom".into() }]);
    if let Ok(ids) = demo().encode(&chat) {
        let answer = |prompt| block_on(demo().generate_with_cache(prompt, &greedy(3), &cache));
        assert!(!answer(chat).unwrap().cached);
        assert!(!answer(Prompt::Ids(ids)).unwrap().cached, "its text begins otherwise");
    }
    assert!(ask(&cache, "Tom", &greedy(3)));
}

#[test]
fn only_what_would_come_again_is_kept() {
    let sampled = GenerationConfig {
        sampling_strategy: SamplingStrategy::Temperature,
        temperature: 1.0,
        ..greedy(3)
    };
    let cache = ResponseCache::new(CacheStrategy::LRU);
    assert_eq!([(); 2].map(|()| ask(&cache, "Tom", &sampled)), [false, false]);
    assert_eq!(cache.stats(), CacheStats::default());
    let seeded = GenerationConfig { seed: Some(1), ..sampled.clone() };
    assert_eq!([(); 2].map(|()| ask(&cache, "Tom", &seeded)), [false, true]);
    let cache = ResponseCache::new(CacheStrategy::LRU).cache_sampled(true);
    assert_eq!([(); 2].map(|()| ask(&cache, "Tom", &sampled)), [false, true]);
}

/// Asks in this order a cache for two, and says what was there.
#[track_caller]
fn check_order(strategy: CacheStrategy, prompts: &[&str], expected: &[bool]) {
    let cache = ResponseCache::new(strategy).max_size(2);
    let found: Vec<bool> = prompts.iter().map(|prompt| ask(&cache, prompt, &greedy(1))).collect();
    assert_eq!(found, expected, "{strategy:?}");
    assert_eq!(cache.stats().entries, 2);
}

#[test]
fn the_strategy_decides_what_goes() {
    let prompts = ["a", "b", "a", "c", "a", "b"];
    check_order(CacheStrategy::LRU, &prompts, &[false, false, true, false, true, false]);
    check_order(CacheStrategy::FIFO, &prompts, &[false, false, true, false, false, false]);
}

#[test]
fn an_answer_that_is_too_old_is_made_anew() {
    let now = Arc::new(Mutex::new(Instant::now()));
    let clock = Arc::clone(&now);
    let cache = ResponseCache::new(CacheStrategy::LRU)
        .ttl(Duration::from_secs(3600))
        .with_clock(move || *clock.lock().unwrap());
    assert!(!ask(&cache, "Tom", &greedy(1)));
    *now.lock().unwrap() += Duration::from_secs(3599);
    assert!(ask(&cache, "Tom", &greedy(1)));
    *now.lock().unwrap() += Duration::from_secs(1);
    assert!(!ask(&cache, "Tom", &greedy(1)));
    assert!(ask(&cache, "Tom", &greedy(1)));
}

#[test]
fn what_is_asked_several_times_at_once_is_computed_once() {
    let cache = ResponseCache::new(CacheStrategy::LRU);
    let model = BitNetModel::from_pretrained(testdata("demo-model/gguf/demo-tq2_0.gguf"));
    let model = model.load().unwrap();
    let config = greedy(100);
    let cached: Vec<bool> = std::thread::scope(|scope| {
        let ask = || block_on(model.generate_with_cache("Tom", &config, &cache)).unwrap().cached;
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(cached.iter().filter(|&&cached| !cached).count(), 1);
    assert_eq!(model.stats().generated_tokens, 100);
}

#[test]
fn if_the_first_who_asked_gives_up_another_one_goes_on() {
    let cache = ResponseCache::new(CacheStrategy::LRU);
    let config = greedy(200);
    let ask = || Box::pin(demo().generate_with_cache("Lily", &config, &cache));
    let (mut first, mut second) = (ask(), ask());
    assert!(block_on(future::poll_once(&mut first)).is_none());
    assert!(block_on(future::poll_once(&mut second)).is_none());
    assert_eq!(cache.stats().misses, 1);
    drop(first);
    assert_eq!(block_on(second).unwrap().ids.len(), 200);
    assert_eq!(cache.stats().misses, 2);
}
