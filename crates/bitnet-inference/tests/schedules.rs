//! What happens between an engine and those who use it, under many schedules of all threads (shuttle: randomized, and with few
//! preemptions at the places where they hurt, Burckhardt et al. 2010).

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use bitnet_inference::engine::Event;
use bitnet_inference::{
    EngineConfig, EngineError, EngineHandle, FinishReason, GenerationConfig, InferenceConfig,
    Observer, Request, Work, spawn_observed,
};
use bitnet_kernels::cpu::CpuBackend;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::head::HeadType;
use bitnet_kernels::kv::KvType;
use bitnet_model::decoder::Model;
use bitnet_model::format::{Checkpoint, OpenOptions};
use bitnet_model::kv::page_bytes;
use shuttle::rand::Rng;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};

static MODEL: LazyLock<Arc<Model<CpuBackend>>> = LazyLock::new(|| {
    let path =
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/golden/bitnet-tiny"));
    let checkpoint = Checkpoint::open(&path, &OpenOptions::default()).unwrap();
    let backend = Arc::new(CpuBackend::new(Isa::best(), 1).unwrap());
    Arc::new(Model::load(&checkpoint, backend, HeadType::File, 1, &|_| {}).unwrap())
});

const NEW_TOKENS: usize = 3;

fn request(first: u32) -> Request {
    let sampling = GenerationConfig::default().sampling().unwrap();
    let work = Work::Generate { sampling, max_new_tokens: NEW_TOKENS, stop_ids: Vec::new() };
    Request::new(vec![first, 39, 68], work)
}

/// An engine with room for two short sequences.
fn engine(max_waiting: usize) -> EngineHandle {
    observed(max_waiting, Arc::new(()))
}

fn observed(max_waiting: usize, observer: Arc<dyn Observer>) -> EngineHandle {
    let page = page_bytes(MODEL.config(), KvType::F32);
    let inference = InferenceConfig {
        max_batch_size: 2,
        max_waiting,
        kv_cache_bytes: 2 * page,
        ..Default::default()
    };
    let config = EngineConfig { max_seq_len: 64, kv_dtype: KvType::F32, inference };
    spawn_observed(Arc::clone(&MODEL), &config, observer).unwrap()
}

type Tokens = Vec<u32>;

/// All tokens of an answer and why it ended.
fn answer(events: impl Fn() -> Option<Event>) -> (Tokens, FinishReason) {
    let mut ids = Vec::new();
    loop {
        match events() {
            Some(Event::Token { id, .. }) => ids.push(id),
            Some(Event::Finished(reason)) => return (ids, reason),
            Some(Event::Started { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// What each first token leads to.
static EXPECTED: LazyLock<Vec<Tokens>> = LazyLock::new(|| {
    let (sender, receiver) = std::sync::mpsc::channel();
    let alone = move || {
        let engine = engine(8);
        let tokens = |first| {
            let events = engine.submit(request(first)).unwrap();
            answer(|| events.recv_blocking().ok()).0
        };
        sender.send((0..6).map(tokens).collect()).unwrap();
    };
    explore_with(RandomScheduler::new_from_seed(0, 1), alone);
    receiver.recv().unwrap()
});

fn explore_with(
    scheduler: impl shuttle::scheduler::Scheduler + 'static,
    test: impl Fn() + Send + Sync + 'static,
) {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    Runner::new(scheduler, config).run(test);
}

fn explore(test: fn()) {
    LazyLock::force(&EXPECTED);
    explore_with(RandomScheduler::new(300), test);
    explore_with(PctScheduler::new(3, 300), test);
}

/// Waits until nothing is under way; all pages and places are free then.
fn check_nothing_is_held(engine: &EngineHandle) {
    loop {
        let stepwise = engine.stepwise().unwrap();
        let stats = engine.stats();
        if (stats.running, stats.waiting) == (0, 0) {
            assert_eq!((stats.kv_pages_used, stats.waiting_tokens), (0, 0));
            return;
        }
        drop(stepwise);
        thread::yield_now();
    }
}

#[test]
fn answers_are_whole_whoever_else_loses_interest() {
    explore(|| {
        let engine = engine(8);
        let clients: Vec<_> = (0..3u32)
            .map(|client| {
                let engine = engine.clone();
                thread::spawn(move || {
                    let patient = engine.submit(request(2 * client)).unwrap();
                    let fickle = engine.submit(request(2 * client + 1)).unwrap();
                    for _ in 0..shuttle::rand::thread_rng().gen_range(0..4) {
                        let _ = fickle.recv_blocking();
                    }
                    drop(fickle);
                    let found = answer(|| patient.recv_blocking().ok());
                    assert_eq!(
                        found,
                        (EXPECTED[2 * client as usize].clone(), FinishReason::Length)
                    );
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        check_nothing_is_held(&engine);
    });
}

#[test]
fn a_full_queue_refuses_and_never_loses_a_place() {
    explore(|| {
        let engine = engine(1);
        let clients: Vec<_> = (0..4u32)
            .map(|client| {
                let engine = engine.clone();
                thread::spawn(move || match engine.submit(request(client)) {
                    Ok(events) => {
                        let found = answer(|| events.recv_blocking().ok());
                        assert_eq!(found.0, EXPECTED[client as usize]);
                    }
                    Err(error) => assert_eq!(error, EngineError::QueueFull { waiting: 1 }),
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        check_nothing_is_held(&engine);
        let events = engine.submit(request(5)).unwrap();
        assert_eq!(answer(|| events.recv_blocking().ok()).0, EXPECTED[5]);
    });
}

#[test]
fn the_engine_ends_with_its_last_handle_and_after_its_last_answer() {
    explore(|| {
        let engine = engine(8);
        let events = engine.submit(request(0)).unwrap();
        let other = engine.clone();
        let submitter = thread::spawn(move || other.submit(request(1)).unwrap());
        drop(engine);
        let second = submitter.join().unwrap();
        assert_eq!(answer(|| events.recv_blocking().ok()).0, EXPECTED[0]);
        assert_eq!(answer(|| second.recv_blocking().ok()).0, EXPECTED[1]);
        assert!(second.recv_blocking().is_err(), "the engine's end of it is gone");
        // An engine that would wait for ever is a deadlock, which ends the test.
    });
}

/// The system as it has no memory in a third of all steps.
struct Refusing;

impl Observer for Refusing {
    fn memory_left(&self) -> Option<u64> {
        shuttle::rand::thread_rng().gen_bool(0.3).then_some(0)
    }
}

#[test]
fn memory_that_is_refused_or_given_back_changes_no_token() {
    explore(|| {
        let engine = observed(8, Arc::new(Refusing));
        let clients: Vec<_> = (0..3u32)
            .map(|client| {
                let engine = engine.clone();
                thread::spawn(move || {
                    let events = engine.submit(request(client)).unwrap();
                    let (expected, mut found) = (&EXPECTED[client as usize], Vec::new());
                    loop {
                        match events.recv_blocking().unwrap() {
                            Event::Token { id, .. } => found.push(id),
                            Event::Finished(_) => break assert_eq!(found, *expected),
                            Event::Failed(EngineError::OutOfMemory { tokens }) => {
                                assert!(expected.starts_with(&found) && tokens == 3 + found.len());
                                break;
                            }
                            Event::Started { .. } => {}
                            other => panic!("{other:?}"),
                        }
                    }
                })
            })
            .collect();
        for _ in 0..2 {
            engine.give_back().wait();
        }
        clients.into_iter().for_each(|client| client.join().unwrap());
        check_nothing_is_held(&engine);
        engine.give_back().wait();
        assert_eq!((engine.stats().kv_bytes, engine.stats().kv_pages_kept), (0, 0));
    });
}
