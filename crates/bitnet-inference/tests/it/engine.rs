//! Engines under way: many requests, cancelled ones, failing ones, and their end.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bitnet_inference::engine::Event;
use bitnet_inference::{
    DraftStrategy, EngineConfig, EngineError, EngineHandle, FinishReason, GenerationConfig,
    InferenceConfig, InvalidConfig, Request, SamplingStrategy, Work, spawn,
};
use bitnet_kernels::cpu::CpuBackend;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::pool::{PoolOptions, ThreadPool};
use bitnet_model::decoder::Model;
use bitnet_model::kv::page_bytes;

use crate::faulty::Faulty;
use crate::support::{exact, generate, load, tokens};

const TINY: &str = "golden/bitnet-tiny";
const PROMPT: [u32; 3] = [376, 39, 68];

fn cpu() -> CpuBackend {
    CpuBackend::new(Isa::best(), 1).unwrap()
}

fn faulty(config: &EngineConfig) -> (Arc<Model<Faulty>>, EngineHandle) {
    let model = load(TINY, Faulty::new());
    let engine = spawn(Arc::clone(&model), config).unwrap();
    (model, engine)
}

/// Waits until `condition` holds.
#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what}: not after 20 seconds");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn no_weight_is_packed_again_while_generating() {
    let model = load(TINY, cpu());
    let engine = spawn(Arc::clone(&model), &exact()).unwrap();
    assert_eq!(tokens(&engine.submit(generate(&PROMPT, 100)).unwrap()).0.len(), 100);
    let ternary_tensors = model.config().num_hidden_layers * 7;
    assert_eq!(model.backend().matrices_packed(), ternary_tensors);
}

#[test]
fn an_engine_that_cannot_take_its_place_does_not_start() {
    let places = vec![vec![1 << 20]]; // no system has such a processor
    let pool = ThreadPool::with_options(1, PoolOptions { places, ..PoolOptions::default() });
    let model = load(TINY, CpuBackend::with_pool(Isa::best(), pool.unwrap()));
    let error = spawn(model, &exact()).unwrap_err().to_string();
    assert!(error.contains("cannot run on CPUs 1048576"), "{error}");
}

#[test]
fn many_threads_get_what_they_would_get_alone() {
    let engine = spawn(load(TINY, cpu()), &exact()).unwrap();
    let prompts: Vec<Vec<u32>> = (0..12).map(|i| vec![376, 10 + i, 200 + 7 * i]).collect();
    let alone: Vec<_> = prompts
        .iter()
        .map(|prompt| tokens(&engine.submit(generate(prompt, 40)).unwrap()))
        .collect();
    std::thread::scope(|scope| {
        for (prompt, alone) in prompts.iter().zip(&alone) {
            let engine = &engine;
            scope.spawn(move || {
                for _ in 0..2 {
                    assert_eq!(tokens(&engine.submit(generate(prompt, 40)).unwrap()), *alone);
                }
            });
        }
    });
}

#[test]
fn a_sequence_that_had_to_make_room_gives_the_same_tokens() {
    let model = load(TINY, cpu());
    let roomy = spawn(Arc::clone(&model), &exact()).unwrap();
    let prompts = [vec![376; 33], (100..150).collect(), vec![7; 20]];
    let expected =
        prompts.each_ref().map(|prompt| tokens(&roomy.submit(generate(prompt, 70)).unwrap()));
    let page = page_bytes(model.config(), exact().kv_dtype);
    let inference = InferenceConfig { kv_cache_bytes: 3 * page, ..Default::default() };
    let narrow = EngineConfig { max_seq_len: 128, inference, ..exact() };
    let narrow = spawn(model, &narrow).unwrap();
    let running = prompts.each_ref().map(|prompt| narrow.submit(generate(prompt, 70)).unwrap());
    assert_eq!(running.each_ref().map(tokens), expected);
}

#[test]
fn a_beginning_that_another_request_had_is_shared_and_changes_no_answer() {
    let model = load(TINY, cpu());
    let alone = EngineConfig {
        inference: InferenceConfig { prefix_cache: false, ..Default::default() },
        ..exact()
    };
    let (alone, sharing) =
        (spawn(Arc::clone(&model), &alone).unwrap(), spawn(model, &exact()).unwrap());
    let long: Vec<u32> = (0..150).map(|i| 100 + i * 7 % 250).collect();
    let other = [&long[..100], &[7, 8, 9]].concat();
    // The same once more, a part of it, and what the answer makes of it.
    let (answer, _) = tokens(&alone.submit(generate(&long, 70)).unwrap());
    let turn = [&long[..], &answer, &[5]].concat();
    for (prompt, expected) in [(&long, 0), (&long, 128), (&other, 64), (&turn, 128), (&turn, 192)] {
        let events = sharing.submit(generate(prompt, 30)).unwrap();
        let event = events.recv_blocking();
        let Ok(Event::Started { cached, .. }) = event else { panic!("{event:?}") };
        assert_eq!(cached, expected);
        assert_eq!(tokens(&events), tokens(&alone.submit(generate(prompt, 30)).unwrap()));
    }
    for from in [0, 64, 149] {
        let rows = |engine: &EngineHandle| engine.logits(long.clone(), from).unwrap();
        assert_eq!(rows(&sharing), rows(&alone));
    }
}

#[test]
fn drafts_change_the_number_of_steps_and_not_the_answer() {
    let (model, engine) = faulty(&exact());
    let sampled = GenerationConfig {
        sampling_strategy: SamplingStrategy::TopK,
        temperature: 0.4,
        top_k: 5,
        repetition_penalty: 1.1,
        frequency_penalty: 0.1,
        seed: Some(7),
        ..Default::default()
    };
    for config in [GenerationConfig::default(), sampled] {
        let answers = [DraftStrategy::Off, DraftStrategy::Ngram].map(|draft| {
            let sampling = GenerationConfig { draft, ..config.clone() }.sampling().unwrap();
            let work = Work::Generate { sampling, max_new_tokens: 150, stop_ids: vec![] };
            let request = Request::new([5, 6, 7, 8].repeat(8), work);
            let answer = tokens(&engine.submit(request).unwrap());
            (answer, std::mem::take(&mut *model.backend().steps.lock().unwrap()))
        });
        assert_eq!(answers[0].0, answers[1].0);
        // Greedy, this model repeats itself, and what it says can be foreseen.
        let steps = answers.map(|(_, steps)| steps.len());
        assert!(config.temperature > 0.0 || steps[1] < steps[0], "{steps:?}");
    }
}

#[test]
fn drafts_of_several_answers_at_once_change_none_of_them() {
    let engine = spawn(load(TINY, cpu()), &exact()).unwrap();
    let request = |index: u32| {
        let (sampling_strategy, seed) = (SamplingStrategy::Temperature, Some(index.into()));
        let draft = DraftStrategy::Ngram;
        let config = GenerationConfig {
            sampling_strategy,
            temperature: 0.5,
            seed,
            draft,
            ..Default::default()
        };
        let sampling = config.sampling().unwrap();
        let work = Work::Generate { sampling, max_new_tokens: 60, stop_ids: vec![] };
        Request::new([5, 6, 7, index].repeat(8), work)
    };
    let alone: Vec<_> = (0..6).map(|i| tokens(&engine.submit(request(i)).unwrap())).collect();
    let running: Vec<_> = (0..6).map(|i| engine.submit(request(i)).unwrap()).collect();
    assert_eq!(running.iter().map(tokens).collect::<Vec<_>>(), alone);
}

#[test]
fn the_last_clone_of_the_handle_ends_the_engine_after_its_work() {
    let model = load(TINY, cpu());
    let weak: Weak<_> = Arc::downgrade(&model);
    let engine = spawn(model, &exact()).unwrap();
    let running = engine.clone().submit(generate(&PROMPT, 200)).unwrap();
    drop(engine);
    assert_eq!(tokens(&running).0.len(), 200);
    eventually("the model is freed", || weak.strong_count() == 0);
}

#[test]
fn dropping_a_generation_stops_it_within_a_token_and_frees_its_pages() {
    let model = load(TINY, Faulty::new());
    // One sequence fills the cache, so the second begins only when the first has given its pages back.
    let page = page_bytes(model.config(), exact().kv_dtype);
    let inference = InferenceConfig { kv_cache_bytes: 2 * page, ..Default::default() };
    let config = EngineConfig { max_seq_len: 128, inference, ..exact() };
    let engine = spawn(Arc::clone(&model), &config).unwrap();
    let first = engine.submit(generate(&[5; 70], 58)).unwrap();
    while !matches!(first.recv_blocking().unwrap(), Event::Token { .. }) {}
    let steps_before = {
        let _gate = model.backend().gate.lock().unwrap();
        drop(first);
        model.backend().steps.lock().unwrap().len()
    };
    let second = engine.submit(generate(&[6; 71], 2)).unwrap();
    assert_eq!(tokens(&second).1, Ok(FinishReason::Length));
    let steps = model.backend().steps.lock().unwrap()[steps_before..].to_vec();
    assert!(steps == [71, 1] || steps == [1, 71, 1], "{steps:?}");
}

#[test]
fn a_panic_ends_what_runs_with_an_error_and_the_engine_lives_on() {
    let inference = InferenceConfig { max_batch_size: 2, ..Default::default() };
    let (model, engine) = faulty(&EngineConfig { inference, ..exact() });
    let expected = tokens(&engine.submit(generate(&PROMPT, 9)).unwrap());
    let gate = model.backend().gate.lock().unwrap();
    let running = [(); 3].map(|()| engine.submit(generate(&PROMPT, 9)).unwrap());
    model.backend().panic.store(true, Ordering::Relaxed);
    drop(gate);
    let ends = running.each_ref().map(tokens);
    let failed =
        ends.iter().filter(|end| matches!(end.1, Err(EngineError::Panicked { .. }))).count();
    assert!((1..=2).contains(&failed), "{ends:?}");
    assert_eq!(ends[2], expected); // it waited
    assert_eq!(tokens(&engine.submit(generate(&PROMPT, 9)).unwrap()), expected);
    let message = ends[0].1.clone().unwrap_err().to_string();
    assert_eq!(message, "a bug in the engine ended this request: asked to panic by a test");
}

#[test]
fn logits_that_are_no_numbers_fail_the_request_alone() {
    let (model, engine) = faulty(&exact());
    let expected = tokens(&engine.submit(generate(&PROMPT, 9)).unwrap());
    model.backend().nan.store(true, Ordering::Relaxed);
    let (ids, end) = tokens(&engine.submit(generate(&PROMPT, 9)).unwrap());
    assert!(ids.is_empty());
    let error = end.unwrap_err();
    assert_eq!(error.to_string(), "no token can be drawn after 3 tokens");
    let source = std::error::Error::source(&error).unwrap();
    assert_eq!(source.to_string(), "the model's logit of token 0 is NaN");
    model.backend().nan.store(false, Ordering::Relaxed);
    assert_eq!(tokens(&engine.submit(generate(&PROMPT, 9)).unwrap()), expected);
}

#[test]
fn a_full_queue_is_an_error_and_not_a_wait() {
    let inference = InferenceConfig { max_batch_size: 1, max_waiting: 2, ..Default::default() };
    let (model, engine) = faulty(&EngineConfig { inference, ..exact() });
    let gate = model.backend().gate.lock().unwrap();
    let submit = || engine.submit(generate(&PROMPT, 3));
    let first = submit().unwrap();
    assert!(matches!(first.recv_blocking(), Ok(Event::Started { .. }))); // it does not wait any more
    let waiting = [submit().unwrap(), submit().unwrap()];
    assert_eq!(submit().unwrap_err(), EngineError::QueueFull { waiting: 2 });
    drop(gate);
    let [second, third] = waiting.map(|events| tokens(&events));
    assert_eq!(second, third);
    assert_eq!(engine.waiting(), 0);
    assert_eq!(tokens(&submit().unwrap()), second);
}

#[test]
fn requests_that_do_not_fit_the_model_are_refused() {
    let engine = spawn(load(TINY, cpu()), &EngineConfig { max_seq_len: 5, ..exact() }).unwrap();
    let error = |request| engine.submit(request).unwrap_err();
    assert_eq!(error(generate(&[], 1)), EngineError::EmptyPrompt);
    let too_long = EngineError::PromptTooLong { tokens: 6, context: 5 };
    assert_eq!(error(generate(&[1; 6], 1)), too_long);
    let unknown = EngineError::UnknownToken { id: 384, position: 1, vocab_size: 384 };
    assert_eq!(error(generate(&[1, 384], 1)), unknown);
    for (work, least) in
        [(Work::Score { from: 0 }, 1), (Work::Score { from: 2 }, 1), (Work::Logits { from: 2 }, 0)]
    {
        let (Work::Score { from } | Work::Logits { from }) = work else { unreachable!() };
        let expected = format!("at least {least} and below the number of tokens, 2");
        let invalid = InvalidConfig { field: "from", found: from.to_string(), expected };
        assert_eq!(error(Request::new(vec![1, 2], work)), EngineError::Config(invalid));
    }
}

#[test]
fn a_full_context_ends_a_generation_with_its_own_reason() {
    let engine = spawn(load(TINY, cpu()), &EngineConfig { max_seq_len: 40, ..exact() }).unwrap();
    for (prompt_len, room) in [(33, 7), (39, 1), (40, 0)] {
        let (ids, end) = tokens(&engine.submit(generate(&vec![3; prompt_len], 100)).unwrap());
        assert_eq!((ids.len(), end), (room, Ok(FinishReason::Context)));
    }
}

#[test]
fn scores_are_those_of_the_logits() {
    let engine = spawn(load(TINY, cpu()), &exact()).unwrap();
    let ids: Vec<u32> = (0..150).map(|i| i * 37 % 384).collect();
    let logits = engine.logits(ids.clone(), 0).unwrap();
    assert_eq!(logits.len(), 150 * 384);
    assert_eq!(engine.logits(ids.clone(), 149).unwrap(), logits[149 * 384..]);
    let events = engine.submit(Request::new(ids.clone(), Work::Score { from: 100 })).unwrap();
    let scores = bitnet_inference::handle::collect_rows(&events).unwrap();
    assert_eq!(scores.len(), 50);
    for (score, index) in scores.iter().zip(100..) {
        let row = &logits[(index - 1) * 384..][..384];
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        let expected = sum.ln() - f64::from(row[ids[index] as usize]);
        assert!((f64::from(*score) - expected).abs() < 1e-4, "{score} {expected}");
    }
}

#[test]
fn a_token_outside_the_vocabulary_has_no_bias() {
    let engine = spawn(load(TINY, cpu()), &exact()).unwrap();
    let config = GenerationConfig { logit_bias: [(384, 1.0)].into(), ..Default::default() };
    let sampling = config.sampling().unwrap();
    let work = Work::Generate { sampling, max_new_tokens: 1, stop_ids: vec![] };
    let error = engine.submit(Request::new(vec![1], work)).unwrap_err();
    let expected = "`logit_bias` is for token 384; it should be of tokens below 384, the size of the vocabulary";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn no_more_alternatives_than_twenty_are_told() {
    let engine = spawn(load(TINY, cpu()), &exact()).unwrap();
    let request = Request::new(vec![1, 2], Work::Logprobs { from: 1, top: 21 });
    let error = engine.submit(request).unwrap_err();
    assert_eq!(error.to_string(), "`top` is 21; it should be from 0 to 20");
}

#[cfg(target_os = "linux")]
#[test]
fn the_engine_has_one_thread_with_its_name() {
    let engine = spawn(load(TINY, cpu()), &exact()).unwrap();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names =
        tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    assert!(names.into_iter().any(|name| name.trim() == "bitnet-engine"));
    drop(engine);
}

#[cfg(target_os = "linux")]
#[test]
fn the_cache_takes_memory_as_it_fills() {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let model = load(TINY, cpu());
    for kv_dtype in [bitnet_kernels::kv::KvType::F16, bitnet_kernels::kv::KvType::F32] {
        let bytes = 1 << 30;
        let inference = InferenceConfig {
            max_batch_size: 1 << 14,
            max_batch_tokens: 1 << 14,
            kv_cache_bytes: bytes,
            ..Default::default()
        };
        let before = resident();
        let engine =
            spawn(Arc::clone(&model), &EngineConfig { kv_dtype, inference, max_seq_len: 0 });
        let engine = engine.unwrap();
        assert!(engine.limits().pages * page_bytes(model.config(), kv_dtype) > bytes / 2);
        assert_eq!(tokens(&engine.submit(generate(&PROMPT, 20)).unwrap()).0.len(), 20);
        let grown = resident().saturating_sub(before);
        assert!(grown < bytes / 8, "{grown} bytes of {kv_dtype:?}"); // other tests run in this process
    }
}

#[test]
fn an_engine_stands_still_but_for_the_steps_it_is_told_to_compute() {
    let engine = spawn(load(TINY, cpu()), &exact()).unwrap();
    let alone = tokens(&engine.submit(generate(&PROMPT, 6)).unwrap());
    let stepwise = engine.stepwise().unwrap();
    let running = [(); 2].map(|()| engine.submit(generate(&PROMPT, 6)).unwrap());
    let counts = || running.each_ref().map(|events| events.len());
    assert_eq!(counts(), [0, 0]);
    for step in 1..=3 {
        stepwise.run(1).unwrap();
        assert_eq!(counts(), [1 + step; 2], "each has begun, and a token for each step");
    }
    drop(stepwise);
    for events in &running {
        assert_eq!(tokens(events), alone);
    }
}
