//! Many requests at once, of all kinds and with all that can happen to them: what comes of each is what it would get alone.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitnet_inference::{
    DraftStrategy, EngineConfig, EngineError, EngineHandle, EvictionStrategy, FinishReason,
    GenerationConfig, InferenceConfig, Observer, Queue, Request, RequestOptions, SamplingStrategy,
    Work, spawn_observed,
};
use bitnet_model::decoder::Model;
use bitnet_model::kv::page_bytes;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::faulty::Faulty;
use crate::support::{exact, load, tokens};

const VOCAB: u64 = 384;

struct Random(ChaCha8Rng);

impl Random {
    fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0.next_u64() % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A generation of any length, priority, queue and sampling; one in three begins as others do.
    fn request(&mut self) -> Request {
        let common = if self.one_in(3) { 80 + self.below(60) } else { 0 };
        let own = 1 + self.below(60);
        let begin = (0..common).map(|i| (i * 11 % VOCAB) as u32);
        let own: Vec<u32> = (0..own).map(|_| self.below(VOCAB) as u32).collect();
        let ids = begin.chain(own).collect();
        let config = GenerationConfig {
            draft: if self.one_in(3) { DraftStrategy::Ngram } else { DraftStrategy::Off },
            ..self.sampling()
        };
        let work = Work::Generate {
            sampling: config.sampling().unwrap(),
            max_new_tokens: 1 + self.below(40) as usize,
            stop_ids: vec![17, 99],
        };
        let queue = [Queue::default(), Queue::new("a", 3.0), Queue::new("b", 0.5)];
        let options = RequestOptions {
            queue: queue[self.below(3) as usize].clone(),
            priority: self.below(30) as i32 - 15,
            cache_salt: self.one_in(4).then(|| "mine".into()),
            max_retries: 1000,
            ..Default::default()
        };
        Request { ids, work, options }
    }

    fn sampling(&mut self) -> GenerationConfig {
        let default = GenerationConfig::default();
        if self.one_in(3) {
            return default;
        }
        GenerationConfig {
            sampling_strategy: SamplingStrategy::TopK,
            temperature: 0.9,
            top_k: 20,
            repetition_penalty: if self.one_in(2) { 1.2 } else { 1.0 },
            seed: Some(self.below(1000)),
            ..default
        }
    }
}

fn engine(model: &Arc<Model<Faulty>>, pages: usize, inference: InferenceConfig) -> EngineHandle {
    observed(model, pages, inference, Arc::new(()))
}

fn observed(
    model: &Arc<Model<Faulty>>,
    pages: usize,
    inference: InferenceConfig,
    observer: Arc<dyn Observer>,
) -> EngineHandle {
    let kv_cache_bytes = pages * page_bytes(model.config(), exact().kv_dtype);
    let inference = InferenceConfig { kv_cache_bytes, ..inference };
    let config = EngineConfig { max_seq_len: 256, inference, ..exact() };
    spawn_observed(Arc::clone(model), &config, observer).unwrap()
}

/// The system as it refuses memory now and then, sometimes for many steps, and sometimes has little left.
struct Refusing(Mutex<(Random, u64, Option<u64>)>);

impl Observer for Refusing {
    fn memory_left(&self) -> Option<u64> {
        let (random, steps, left) = &mut *self.0.lock().unwrap();
        if *steps == 0 {
            // Working memory takes up to 4 MiB of what is left, and pages half a MiB or so.
            let little = (4 << 20) + random.below(2 << 20);
            *left = [None, None, Some(0), Some(little)][random.below(4) as usize];
            *steps = 1 + random.below(20);
        }
        *steps -= 1;
        *left
    }
}

/// Waits until nothing is under way, and then all pages must be free.
#[track_caller]
fn check_nothing_is_held(engine: &EngineHandle) {
    for _ in 0..20_000 {
        let standing = engine.stepwise().unwrap();
        let stats = engine.stats();
        if (stats.running, stats.waiting) == (0, 0) {
            assert_eq!((stats.kv_pages_used, stats.waiting_tokens), (0, 0), "{stats:?}");
            return;
        }
        drop(standing);
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("not idle after 20 seconds: {:?}", engine.stats());
}

/// Sends requests from several threads, some of which lose interest, and compares what they get with what they get alone. Those
/// without memory get the beginning of it. Returns how many these were.
fn check(
    model: &Arc<Model<Faulty>>,
    engine: &EngineHandle,
    requests: usize,
    seed: u64,
    break_steps: bool,
) -> usize {
    let quiet = InferenceConfig { max_batch_size: 1, prefix_cache: false, ..Default::default() };
    let alone = self::engine(model, 4, quiet);
    let mut random = Random::new(seed);
    let requests: Vec<Request> = (0..requests).map(|_| random.request()).collect();
    let solo = |request: &Request| {
        let plain = Request::new(request.ids.clone(), request.work.clone());
        tokens(&alone.submit(plain).unwrap())
    };
    let expected: Vec<_> = requests.iter().map(solo).collect();
    let without_memory = AtomicUsize::new(0);
    type Answer = (Vec<u32>, Result<FinishReason, EngineError>);
    let compare = |(ids, end): Answer, expected: &Answer| match end {
        Err(EngineError::OutOfMemory { tokens }) => {
            without_memory.fetch_add(1, Ordering::Relaxed);
            assert!(tokens > ids.len() && expected.0.starts_with(&ids), "seed {seed}");
        }
        end => assert_eq!((ids, end), *expected, "seed {seed}"),
    };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (requests, expected, compare) = (&requests, &expected, &compare);
            scope.spawn(move || {
                let mut random = Random::new(seed * 100 + thread as u64);
                let mine = || requests.iter().zip(expected).skip(thread).step_by(8);
                let mut running = Vec::new();
                for (request, expected) in mine() {
                    std::thread::sleep(Duration::from_micros(random.below(500)));
                    if break_steps && random.one_in(10) {
                        model.backend().panic.store(true, Ordering::Relaxed);
                    }
                    let events = engine.submit(request.clone()).unwrap();
                    if random.one_in(5) {
                        // Dropped at once, or when something has come.
                        let _ = if random.one_in(2) { events.recv_blocking().ok() } else { None };
                    } else {
                        running.push((events, expected));
                    }
                    if random.one_in(3) {
                        for (events, expected) in running.drain(..) {
                            compare(tokens(&events), expected);
                        }
                    }
                }
                for (events, expected) in running {
                    compare(tokens(&events), expected);
                }
            });
        }
    });
    check_nothing_is_held(engine);
    without_memory.into_inner()
}

#[test]
fn every_answer_is_what_it_would_be_alone() {
    let model = load("golden/bitnet-tiny", Faulty::new());
    for seed in 0..4 {
        let inference = InferenceConfig {
            max_batch_size: 3 + 4 * seed as usize,
            max_batch_tokens: [512, 40, 100, 64][seed as usize],
            step_target_ms: seed % 2,
            ..Default::default()
        };
        assert_eq!(check(&model, &engine(&model, 100, inference), 64, seed, false), 0);
    }
}

#[test]
fn also_where_the_cache_is_far_too_small() {
    let model = load("golden/bitnet-tiny", Faulty::new());
    let mut preemptions = 0;
    for (seed, eviction_strategy) in
        [EvictionStrategy::Lru, EvictionStrategy::Lfu, EvictionStrategy::Fifo]
            .into_iter()
            .enumerate()
    {
        let inference = InferenceConfig { eviction_strategy, ..Default::default() };
        let engine = engine(&model, 5, inference);
        check(&model, &engine, 64, 10 + seed as u64, false);
        preemptions += engine.stats().preemptions;
    }
    assert!(preemptions > 0);
}

#[test]
fn also_where_steps_break_off() {
    let model = load("golden/bitnet-tiny", Faulty::new());
    let engine = engine(&model, 8, InferenceConfig::default());
    check(&model, &engine, 64, 20, true);
    assert!(engine.stats().failed_steps > 0);
}

#[test]
fn also_where_the_system_refuses_memory() {
    let model = load("golden/bitnet-tiny", Faulty::new());
    let (mut failed, mut preemptions) = (0, 0);
    for seed in 40..44 {
        let refusing = Refusing(Mutex::new((Random::new(seed), 0, None)));
        let config = InferenceConfig::default();
        let engine = observed(&model, 30, config, Arc::new(refusing));
        failed += check(&model, &engine, 64, seed, seed % 2 == 1);
        preemptions += engine.stats().preemptions;
        let stats = engine.stats();
        engine.give_back().wait();
        let given_back = engine.stats();
        assert!(stats.kv_bytes > 0 && given_back.kv_bytes == 0, "{stats:?} {given_back:?}");
        assert_eq!((given_back.kv_pages_kept, given_back.scratch_bytes > 4096), (0, false));
    }
    assert!(preemptions > 0, "sequences made room for one another");
    assert!((1..100).contains(&failed), "{failed} of 256");
}

#[test]
fn ten_thousand_requests_leave_nothing_behind() {
    let model = load("golden/bitnet-tiny", Faulty::new());
    let engine = engine(&model, 12, InferenceConfig::default());
    let mut random = Random::new(30);
    let mut running = std::collections::VecDeque::new();
    for _ in 0..10_000 {
        let mut request = random.request();
        request.ids.truncate(1 + random.below(20) as usize);
        let Work::Generate { max_new_tokens, .. } = &mut request.work else { unreachable!() };
        *max_new_tokens = 1 + random.below(3) as usize;
        running.push_back(engine.submit(request).unwrap());
        if running.len() == 100 {
            let (index, cancelled) = (random.below(100) as usize, random.one_in(4));
            let events = running.swap_remove_back(index).unwrap();
            let ended =
                || matches!(tokens(&events).1, Ok(FinishReason::Stop(_) | FinishReason::Length));
            assert!(cancelled || ended());
        }
    }
    drop(running);
    check_nothing_is_held(&engine);
}
