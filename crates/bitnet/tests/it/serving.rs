//! Many requests at once: queues, batches, portions, and the cache that they share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bitnet::{
    BatchConfig, BitNetModel, DynamicBatchConfig, DynamicBatcher, Error, FinishReason,
    GenerationConfig, GenerationStream, InferenceConfig, InferenceRequest, KVCacheConfig,
    ModelConfig, PaddingStrategy, RequestScheduler, SchedulingStrategy, StreamingConfig,
};
use futures_lite::future::{self, block_on};

use crate::support::{demo, testdata};

const MODEL: &str = "demo-model/gguf/demo-tq2_0.gguf";

fn greedy(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig { max_new_tokens, ignore_eos: true, ..Default::default() }
}

fn load(config: ModelConfig, inference: InferenceConfig) -> BitNetModel {
    let builder = BitNetModel::from_pretrained(testdata(MODEL));
    builder.with_config(config).with_inference_config(inference).load().unwrap()
}

/// A model that works on one request at a time.
fn single() -> BitNetModel {
    let inference = InferenceConfig { max_batch_size: 1, ..Default::default() };
    load(ModelConfig::default(), inference)
}

/// The order in which requests begin that come while another one runs: by their places in the list.
fn order(scheduler: &RequestScheduler, requests: Vec<InferenceRequest>) -> Vec<usize> {
    let sent: Vec<(Instant, GenerationStream)> = requests
        .into_iter()
        .map(|request| (Instant::now(), block_on(scheduler.stream(request)).unwrap()))
        .collect();
    let begin = |(at, stream): (Instant, GenerationStream)| {
        at + block_on(stream.finish()).unwrap().timings.queue_time
    };
    let begun: Vec<Instant> = sent.into_iter().map(begin).collect();
    let mut order: Vec<usize> = (0..begun.len()).collect();
    order.sort_by_key(|&index| begun[index]);
    order
}

/// Answers of these lengths, one of them long enough for all to have come before it ends.
#[track_caller]
fn check_order(strategy: SchedulingStrategy, queues: [Option<&str>; 4], expected: [usize; 4]) {
    let model = single();
    let scheduler = RequestScheduler::new(strategy).with_model(&model);
    scheduler.add_queue("low", 0.1);
    scheduler.add_queue("high", 0.6);
    scheduler.add_queue("middle", 0.3);
    let first = model.generate_stream("Once upon a time", &greedy(300)).unwrap();
    let requests = queues.into_iter().zip([90, 20, 40, 60]).map(|(queue, tokens)| {
        let request = InferenceRequest::new("Tom had a", greedy(tokens));
        match queue {
            Some(queue) => request.with_priority(queue),
            None => request,
        }
    });
    assert_eq!(order(&scheduler, requests.collect()), expected, "{strategy:?}");
    assert_eq!(block_on(first.finish()).unwrap().ids.len(), 300);
}

#[test]
fn strategies_decide_who_goes_first() {
    check_order(SchedulingStrategy::Fifo, [None; 4], [0, 1, 2, 3]);
    check_order(SchedulingStrategy::ShortestFirst, [None; 4], [1, 2, 3, 0]);
    let queues = ["low", "middle", "high", "high"].map(Some);
    check_order(SchedulingStrategy::Priority, queues, [2, 3, 1, 0]);
}

#[test]
fn queues_get_shares_by_their_weights() {
    let model = single();
    let scheduler = RequestScheduler::new(SchedulingStrategy::FairShare).with_model(&model);
    scheduler.add_queue("light", 1.0);
    scheduler.add_queue("heavy", 3.0);
    let first = model.generate_stream("Once upon a time", &greedy(200)).unwrap();
    let request = |queue| InferenceRequest::new("Tom had a", greedy(12)).with_priority(queue);
    let light = (0..20).map(|_| request("light"));
    let order = order(&scheduler, light.chain((0..20).map(|_| request("heavy"))).collect());
    let heavy = order[..20].iter().filter(|&&index| index >= 20).count();
    assert!((14..=16).contains(&heavy), "{heavy} of the first 20");
    drop(first);
}

#[test]
fn a_queue_that_is_not_there_is_an_error() {
    let scheduler = RequestScheduler::new(SchedulingStrategy::FairShare).with_model(demo());
    let request = InferenceRequest::new("Hello", greedy(2)).with_priority("high");
    let error = block_on(scheduler.submit(request.clone())).unwrap_err();
    assert_eq!(error.to_string(), "there is no queue `high`; there are none");
    assert!(error.help().unwrap().contains("add_queue"));
    assert!(matches!(demo().submit(request), Err(Error::UnknownQueue { .. })));
}

/// Waits until the engine has nothing to do.
#[track_caller]
fn wait_idle(model: &BitNetModel) {
    let begin = Instant::now();
    while model.stats().running + model.stats().waiting > 0 {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", model.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn dropping_the_future_ends_the_work() {
    let model = single();
    let scheduler = RequestScheduler::new(SchedulingStrategy::Fifo).with_model(&model);
    let mut future = Box::pin(scheduler.submit(InferenceRequest::new("Hello", greedy(500))));
    assert!(block_on(future::poll_once(&mut future)).is_none());
    drop(future);
    wait_idle(&model);
    assert!(model.stats().generated_tokens < 400, "{:?}", model.stats());
}

const PROMPTS: [&str; 5] = [
    "Tom",
    "Once upon a time there was a dog who",
    "The cat",
    "Lily and her mother went to the park. They",
    "One day",
];

#[test]
fn answers_of_a_batch_are_those_of_each_prompt_alone() {
    let config = greedy(12);
    let alone = PROMPTS.map(|prompt| demo().generate_blocking(prompt, &config).unwrap().text);
    let texts = |outputs: Vec<bitnet::Output>| -> Vec<String> {
        outputs.into_iter().map(|output| output.text).collect()
    };
    assert_eq!(texts(block_on(demo().generate_batch(&PROMPTS, &config)).unwrap()), alone);
    for padding_strategy in
        [PaddingStrategy::None, PaddingStrategy::Longest, PaddingStrategy::MaxLength(64)]
    {
        let batch = BatchConfig { max_batch_size: 2, padding_strategy, sort_by_length: true };
        let found = block_on(demo().generate_batch_with(&PROMPTS, &config, &batch)).unwrap();
        assert_eq!(texts(found.outputs.into_iter().map(Result::unwrap).collect()), alone);
    }
}

#[test]
fn sorting_by_length_leaves_less_padding() {
    let padding = |sort_by_length| {
        let batch = BatchConfig {
            max_batch_size: 2,
            padding_strategy: PaddingStrategy::Longest,
            sort_by_length,
        };
        block_on(demo().generate_batch_with(&PROMPTS, &greedy(1), &batch)).unwrap().padding_tokens
    };
    assert!(padding(true) < padding(false), "{} {}", padding(true), padding(false));
}

#[test]
fn a_prompt_that_fails_does_not_fail_the_others() {
    let batch =
        BatchConfig { padding_strategy: PaddingStrategy::MaxLength(5), ..Default::default() };
    let found = block_on(demo().generate_batch_with(&PROMPTS, &greedy(3), &batch)).unwrap();
    let failed: Vec<bool> = found.outputs.iter().map(Result::is_err).collect();
    assert_eq!(failed, [false, true, false, true, false]);
    let error = found.outputs[1].as_ref().unwrap_err().to_string();
    assert!(
        error.starts_with("`padding_strategy` is MaxLength(5); it should be at least"),
        "{error}"
    );
}

#[test]
fn no_more_prompts_of_a_batch_than_allowed_are_in_work() {
    let model = load(ModelConfig::default(), InferenceConfig::default());
    let done = AtomicBool::new(false);
    let prompts = [PROMPTS; 3].concat();
    let most = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                let stats = model.stats();
                most = most.max(stats.running).max(stats.waiting); // their sum may be of two moments
            }
            most
        });
        let batch = BatchConfig { max_batch_size: 3, ..Default::default() };
        let found = block_on(model.generate_batch_with(&prompts, &greedy(20), &batch)).unwrap();
        done.store(true, Ordering::Relaxed);
        assert_eq!(found.outputs.iter().filter(|output| output.is_ok()).count(), 15);
        watching.join().unwrap()
    });
    assert!(most <= 3, "{most}");
}

#[test]
fn a_batch_may_be_longer_than_the_queue() {
    let inference = InferenceConfig { max_batch_size: 1, max_waiting: 1, ..Default::default() };
    let model = load(ModelConfig::default(), inference);
    assert_eq!(block_on(model.generate_batch(&PROMPTS, &greedy(4))).unwrap().len(), 5);
}

#[test]
fn requests_that_gather_begin_together() {
    let model = load(ModelConfig::default(), InferenceConfig::default());
    let config = DynamicBatchConfig {
        max_wait_time: Duration::from_secs(600),
        target_batch_size: 3,
        continuous_batching: false,
        ..Default::default()
    };
    let batcher = DynamicBatcher::new(&model, config).unwrap();
    let ask = |prompt: &str| batcher.generate(prompt.to_owned(), &NONE);
    let pair = future::zip(ask("Tom"), ask("The cat"));
    let mut pair = Box::pin(pair);
    assert!(block_on(future::poll_once(&mut pair)).is_none());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(model.stats().steps, 0, "two wait for a third");
    let ((first, second), third) = block_on(future::zip(pair, ask("One day")));
    for output in [first, second, third] {
        assert!(!output.unwrap().ids.is_empty());
    }
}

/// A constant, so that futures can borrow it.
static NONE: std::sync::LazyLock<GenerationConfig> = std::sync::LazyLock::new(|| greedy(4));

#[test]
fn a_stream_that_cannot_be_cancelled_goes_on_unheard() {
    for (cancellable, all) in [(true, false), (false, true)] {
        let model = single();
        let streaming = StreamingConfig { cancellable, ..Default::default() };
        let stream = model.generate_streaming("Once upon a time", &greedy(400), streaming).unwrap();
        drop(stream);
        std::thread::sleep(Duration::from_millis(5));
        wait_idle(&model);
        assert_eq!(model.stats().generated_tokens == 400, all, "{:?}", model.stats());
    }
}

#[test]
fn a_token_that_takes_too_long_ends_the_work() {
    let inference = InferenceConfig { step_target_ms: 0, ..Default::default() };
    let model = load(ModelConfig::default(), inference);
    let streaming = StreamingConfig { token_timeout_ms: 2, ..Default::default() };
    let mut stream =
        model.generate_streaming("Once upon a time", &greedy(500), streaming).unwrap().blocking();
    stream.next().unwrap().unwrap();
    // Its prompt is computed in one step with a token of the first.
    let other = model.generate_stream("Tom had a red ball. ".repeat(60), &greedy(1)).unwrap();
    let error = stream.find_map(Result::err).expect("the other one takes longer");
    assert_eq!(error.to_string(), "the next token did not come within 2 ms");
    assert!(error.help().unwrap().contains("token_timeout_ms"));
    block_on(other.finish()).unwrap();
    wait_idle(&model);
    assert!(model.stats().generated_tokens < 400, "{:?}", model.stats());
}

#[test]
fn a_bounded_cache_ends_the_answer_as_the_context_does() {
    let kv = KVCacheConfig { max_size: 24, ..Default::default() };
    for config in [
        ModelConfig { kv_cache_size: 24, ..Default::default() },
        ModelConfig { kv_cache_size: 30, kv_cache: Some(kv), ..Default::default() },
    ] {
        let output = load(config, InferenceConfig::default())
            .generate_blocking("Once upon a time", &greedy(100))
            .unwrap();
        assert_eq!(output.finish_reason, FinishReason::Context);
        assert_eq!(output.prompt_ids.len() + output.ids.len(), 24);
    }
}

#[test]
fn compression_takes_about_half_of_the_memory() {
    let bytes = |compression| {
        let kv = KVCacheConfig { compression, ..Default::default() };
        let config = ModelConfig { kv_cache: Some(kv), ..Default::default() };
        load(config, InferenceConfig::default()).info().kv_bytes_per_token
    };
    assert!(bytes(true) * 100 <= bytes(false) * 54, "{} {}", bytes(true), bytes(false));
}

#[test]
fn a_sequence_may_have_any_pages_that_are_free() {
    let page =
        64 * load(ModelConfig::default(), InferenceConfig::default()).info().kv_bytes_per_token;
    let inference =
        InferenceConfig { kv_cache_bytes: 8 * page, prefix_cache: false, ..Default::default() };
    let config = ModelConfig { enable_memory_defrag: true, ..Default::default() };
    let model = load(config, inference);
    assert_eq!(model.stats().kv_pages, 8);
    let start = |index: usize| {
        let mut stream = model.generate_stream(PROMPTS[index % 5], &greedy(40)).unwrap().blocking();
        stream.next().unwrap().unwrap();
        stream
    };
    let mut streams: Vec<_> = (0..8).map(start).map(Some).collect();
    streams.iter_mut().step_by(2).for_each(|stream| *stream = None);
    let long = "Tom had a red ball. ".repeat(40);
    let found = model.generate_blocking(&long, &greedy(10)).unwrap();
    assert!(found.prompt_ids.len() > 3 * 64, "{}", found.prompt_ids.len());
    assert_eq!(found.ids, demo().generate_blocking(&long, &greedy(10)).unwrap().ids);
    for (index, stream) in streams.into_iter().enumerate().skip(1).step_by(2) {
        let mut stream = stream.unwrap();
        stream.by_ref().for_each(|piece| drop(piece.unwrap()));
        let alone = demo().generate_blocking(PROMPTS[index % 5], &greedy(40)).unwrap();
        assert_eq!(stream.output().unwrap().ids, alone.ids);
    }
    wait_idle(&model);
    assert_eq!(model.stats().kv_pages_used, 0);
}

/// Alone in its process, because memory of other tests would count.
#[cfg(target_os = "linux")]
#[test]
fn the_cache_takes_memory_as_sequences_grow() {
    if std::env::var_os("BITNET_TEST_MEMORY").is_none() {
        let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
        alone.args(["serving::the_cache_takes_memory_as_sequences_grow", "--exact"]);
        let output = alone.env("BITNET_TEST_MEMORY", "1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let resident = || -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() << 10
    };
    let inference =
        InferenceConfig { max_batch_size: 64, kv_cache_bytes: 1 << 30, ..Default::default() };
    let config = ModelConfig { kv_dtype: bitnet::KvType::F32, ..Default::default() };
    let model = load(config, inference);
    let cache = model.info().kv_cache_bytes;
    block_on(model.generate_batch(&PROMPTS, &greedy(8))).unwrap();
    let before = resident();
    let batch = BatchConfig { max_batch_size: 32, ..Default::default() };
    let prompts: Vec<String> = (0..32).map(|index| format!("{index} dogs")).collect();
    block_on(model.generate_batch_with(&prompts, &greedy(400), &batch)).unwrap();
    wait_idle(&model); // so that all pages have been given back
    let (after, stats) = (resident(), model.stats());
    let filled = cache / stats.kv_pages * stats.kv_pages_kept;
    let grown = after - before;
    assert!(filled * 8 / 10 <= grown && grown <= filled * 13 / 10, "{grown} {filled} {cache}");
    assert!(before < cache, "{before} {cache}");
}
