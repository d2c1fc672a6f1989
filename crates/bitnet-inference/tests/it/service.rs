//! How requests are served beside others, on a running engine.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_channel::Receiver;
use bitnet_inference::engine::Event;
use bitnet_inference::{
    End, EngineConfig, EngineError, EngineHandle, EngineStats, FinishReason, InferenceConfig,
    InvalidConfig, Observer, Queue, Request, RequestOptions, spawn, spawn_observed,
};
use bitnet_model::decoder::Model;

use crate::faulty::Faulty;
use crate::support::{exact, generate, load, tokens};

const TINY: &str = "golden/bitnet-tiny";
const PROMPT: [u32; 3] = [376, 39, 68];

fn engine(inference: InferenceConfig) -> (Arc<Model<Faulty>>, EngineHandle) {
    let model = load(TINY, Faulty::new());
    let engine = spawn(Arc::clone(&model), &EngineConfig { inference, ..exact() }).unwrap();
    (model, engine)
}

fn with(options: RequestOptions, request: Request) -> Request {
    Request { options, ..request }
}

/// Takes events up to the first token.
fn first_token(events: &Receiver<Event>) -> u32 {
    loop {
        if let Event::Token { id, .. } = events.recv_blocking().unwrap() {
            return id;
        }
    }
}

fn soon() -> RequestOptions {
    let deadline = Some(Instant::now() + Duration::from_millis(50));
    RequestOptions { deadline, ..Default::default() }
}

const AFTER: Duration = Duration::from_millis(80);

#[test]
fn a_request_that_has_not_begun_by_its_deadline_fails() {
    let (model, engine) = engine(InferenceConfig { max_batch_size: 1, ..Default::default() });
    let gate = model.backend().gate.lock().unwrap();
    let first = engine.submit(generate(&PROMPT, 200)).unwrap();
    let late = engine.submit(with(soon(), generate(&PROMPT, 5))).unwrap();
    std::thread::sleep(AFTER);
    drop(gate);
    assert_eq!(tokens(&late), (vec![], Err(EngineError::DeadlineExceeded)));
    assert_eq!(tokens(&first).0.len(), 200);
    assert_eq!(engine.waiting(), 0);
}

#[test]
fn an_answer_ends_at_its_deadline_with_what_there_is() {
    let (model, engine) = engine(InferenceConfig::default());
    let (whole, _) = tokens(&engine.submit(generate(&PROMPT, 200)).unwrap());
    let events = engine.submit(with(soon(), generate(&PROMPT, 200))).unwrap();
    let first = first_token(&events);
    let gate = model.backend().gate.lock().unwrap();
    std::thread::sleep(AFTER);
    drop(gate);
    let (rest, end) = tokens(&events);
    assert_eq!(end, Ok(FinishReason::Deadline));
    assert_eq!([&[first][..], &rest].concat(), whole[..1 + rest.len()]);
}

#[test]
fn prompts_that_wait_have_so_many_tokens_and_no_more() {
    let inference =
        InferenceConfig { max_batch_size: 1, max_waiting_tokens: 50, ..Default::default() };
    let (model, engine) = engine(inference);
    let gate = model.backend().gate.lock().unwrap();
    let first = engine.submit(generate(&PROMPT, 1)).unwrap();
    assert!(matches!(first.recv_blocking(), Ok(Event::Started { .. }))); // it does not wait any more
    // One alone may be longer.
    let long = engine.submit(generate(&[5; 60], 1)).unwrap();
    let full = EngineError::QueueTokens { waiting: 1, tokens: 60, limit: 50 };
    assert_eq!(engine.submit(generate(&PROMPT, 1)).unwrap_err(), full);
    drop(gate);
    assert!(tokens(&long).1.is_ok());
    let gate = model.backend().gate.lock().unwrap();
    let running = engine.submit(generate(&PROMPT, 1)).unwrap();
    assert!(matches!(running.recv_blocking(), Ok(Event::Started { .. })));
    let fitting = [30, 20].map(|len| engine.submit(generate(&vec![5; len], 1)).unwrap());
    assert_eq!(engine.stats().waiting_tokens, 50);
    assert!(engine.submit(generate(&[1], 1)).is_err());
    drop(gate);
    fitting.iter().for_each(|events| assert!(tokens(events).1.is_ok()));
    assert_eq!((engine.stats().waiting, engine.stats().waiting_tokens), (0, 0));
}

#[test]
fn a_step_that_broke_off_is_computed_anew_for_those_who_want_it() {
    let (model, engine) = engine(InferenceConfig::default());
    let expected = tokens(&engine.submit(generate(&PROMPT, 400)).unwrap());
    let retried = RequestOptions { max_retries: 2, ..Default::default() };
    let events = engine.submit(with(retried, generate(&PROMPT, 400))).unwrap();
    let mut found = vec![first_token(&events)];
    for failed in 1..=2 {
        model.backend().panic.store(true, Ordering::Relaxed);
        while engine.stats().failed_steps < failed {
            found.push(first_token(&events));
        }
    }
    let (rest, end) = tokens(&events);
    assert_eq!((([found, rest].concat()), end), expected);
    assert_eq!(engine.stats().failed_steps, 2);
}

#[test]
fn beginnings_are_shared_with_the_same_salt_only() {
    let (_, engine) = engine(InferenceConfig::default());
    let prompt = [7; 100];
    for (salt, expected) in [(None, 0), (Some("a"), 0), (Some("b"), 0), (Some("a"), 64), (None, 64)]
    {
        let options = RequestOptions { cache_salt: salt.map(Into::into), ..Default::default() };
        let events = engine.submit(with(options, generate(&prompt, 1))).unwrap();
        let event = events.recv_blocking();
        let Ok(Event::Started { cached, .. }) = event else { panic!("{event:?}") };
        assert_eq!(cached, expected, "{salt:?}");
        assert!(tokens(&events).1.is_ok());
    }
}

#[test]
fn the_rows_of_a_prompt_are_asked_for_when_it_comes() {
    let (model, engine) = engine(InferenceConfig { max_batch_size: 1, ..Default::default() });
    let stepwise = engine.stepwise().unwrap();
    let running = [[1, 2, 3], [4, 5, 6]].map(|ids| engine.submit(generate(&ids, 5)).unwrap());
    stepwise.run(1).unwrap(); // the second prompt has to wait
    assert_eq!(*model.backend().foreseen.lock().unwrap(), [1, 2, 3, 4, 5, 6]);
    drop((running, stepwise));
}

#[test]
fn a_detached_request_goes_on_without_a_receiver() {
    let (model, engine) = engine(InferenceConfig::default());
    for (detached, expected) in [(true, 50..51), (false, 0..2)] {
        let options = RequestOptions { detached, ..Default::default() };
        let before = engine.stats().generated_tokens;
        let gate = model.backend().gate.lock().unwrap();
        let events = engine.submit(with(options, generate(&PROMPT, 50))).unwrap();
        assert!(matches!(events.recv_blocking(), Ok(Event::Started { .. })));
        assert_eq!((engine.stats().running, engine.stats().waiting), (1, 0)); // in its first step
        drop((events, gate));
        let later = engine.submit(generate(&PROMPT, 200)).unwrap();
        assert!(tokens(&later).1.is_ok()); // by then it is over
        let generated = engine.stats().generated_tokens - before - 200;
        assert!(expected.contains(&generated), "{generated}");
    }
}

#[test]
fn a_weight_that_is_none_is_an_error() {
    let (_, engine) = engine(InferenceConfig::default());
    for (weight, found) in [(0.0, "0"), (-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let options = RequestOptions { queue: Queue::new("a", weight), ..Default::default() };
        let error = engine.submit(with(options, generate(&PROMPT, 1))).unwrap_err();
        let expected = "from 0.000001 to 1000000".into();
        let invalid = InvalidConfig { field: "weight", found: found.into(), expected };
        assert_eq!(error, EngineError::Config(invalid));
    }
}

/// Keeps all that it is told, without the times.
#[derive(Default)]
struct Diary(Mutex<Vec<String>>);

impl Diary {
    fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }
}

impl Observer for Diary {
    fn started(&self, _: Duration) {
        self.note("started".into());
    }
    fn first_token(&self, _: Duration) {
        self.note("first".into());
    }
    fn tokens(&self, count: usize, _: Duration) {
        self.note(format!("{count} more"));
    }
    fn ended(&self, end: End<'_>, _: Duration) {
        self.note(format!("{end:?}"));
    }
    fn step(&self, tokens: usize, requests: usize, _: Duration) {
        self.note(format!("step of {tokens} for {requests}"));
    }

    fn prefilled(&self, time: Duration) {
        assert!(time > Duration::ZERO);
        self.note("prefilled".into());
    }

    fn decoded(&self, time: Duration) {
        assert!(time < Duration::from_secs(60));
        self.note("decoded".into());
    }
}

#[test]
fn an_observer_is_told_each_moment_and_the_figures_add_up() {
    let model = load(TINY, Faulty::new());
    let diary = Arc::new(Diary::default());
    let engine = spawn_observed(model, &exact(), diary.clone()).unwrap();
    for count in [3, 1] {
        assert!(tokens(&engine.submit(generate(&[9; 70], count)).unwrap()).1.is_ok());
    }
    let told = std::mem::take(&mut *diary.0.lock().unwrap());
    let first = ["started", "step of 70 for 1", "first", "prefilled", "step of 1 for 1", "1 more"];
    let end = ["step of 1 for 1", "1 more", "decoded", "Generated(Length)"];
    let second =
        ["started", "step of 6 for 1", "first", "prefilled", "decoded", "Generated(Length)"];
    assert_eq!(told, [&first[..], &end, &second].concat());
    let stats = engine.stats();
    let expected = EngineStats {
        kv_pages: engine.limits().pages,
        kv_pages_kept: 1,
        steps: 4,
        prompt_tokens: 140,
        cached_tokens: 64,
        generated_tokens: 4,
        step_costs: stats.step_costs,
        kv_bytes: engine.limits().layout.bytes_of_pages(2),
        scratch_bytes: stats.scratch_bytes,
        ..Default::default()
    };
    assert_eq!(stats, expected);
    assert!((1000..4_000_000).contains(&stats.scratch_bytes), "{stats:?}");
    assert!(stats.step_costs[1] > 0.0, "{stats:?}");
}
