//! What is counted, and how it is handed out.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bitnet::{
    BitNetModel, CacheStrategy, DraftStrategy, Error, GenerationConfig, MetricsCollector,
    PerformanceMonitor, ResponseCache,
};
use futures_lite::future::block_on;

use crate::support::{Lines, testdata};

fn greedy(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig { max_new_tokens, ignore_eos: true, ..Default::default() }
}

fn load(collector: &MetricsCollector) -> BitNetModel {
    let builder = BitNetModel::from_pretrained(testdata("demo-model/gguf/demo-tq2_0.gguf"));
    block_on(async { builder.with_metrics(collector.clone()).await }).unwrap()
}

/// Samples by name and labels, after checking all that the format asks for.
#[track_caller]
fn parse(text: &str) -> BTreeMap<String, f64> {
    let (mut samples, mut kinds) = (BTreeMap::new(), BTreeMap::new());
    let (mut family, mut closed) = (String::new(), BTreeSet::new());
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["gauge", "counter", "histogram"].contains(&kind), "{line}");
            assert!(kind != "counter" || name.ends_with("_total"), "{line}");
            assert_eq!(name, family, "HELP and TYPE belong together");
            kinds.insert(name.to_owned(), kind.to_owned());
        } else if let Some(rest) = line.strip_prefix("# HELP ") {
            closed.insert(std::mem::replace(&mut family, rest.split(' ').next().unwrap().into()));
            assert!(!closed.contains(&family), "{family} comes twice");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let part = name.strip_prefix(family.as_str()).expect("a sample follows its TYPE");
            match kinds[&family].as_str() {
                "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&part), "{line}"),
                _ => assert_eq!(part, "", "{line}"),
            }
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':'));
            assert_eq!(samples.insert(series.to_owned(), value.parse().unwrap()), None, "{line}");
        }
    }
    samples
}

/// A sample of the only model.
#[track_caller]
fn value(samples: &BTreeMap<String, f64>, name: &str, labels: &str) -> f64 {
    let model = samples.keys().next().unwrap().split(['{', '}']).nth(1).unwrap();
    let model = model.split(",").take(2).collect::<Vec<_>>().join(",");
    let key = format!("{name}{{{model}{labels}}}");
    *samples.get(&key).unwrap_or_else(|| panic!("{key} of {samples:#?}"))
}

#[test]
fn three_generations_are_counted() {
    let collector = MetricsCollector::new();
    let model = load(&collector);
    let output = model.generate_blocking("Once upon a time", &greedy(5)).unwrap();
    model.generate_blocking("Once upon a time", &greedy(7)).unwrap();
    model
        .generate_blocking("Tom", &GenerationConfig { stop: vec!["a".into()], ..greedy(100) })
        .unwrap();
    let begin = Instant::now();
    let ended = |text: &str| text.contains("reason=\"cancelled\"} 1\n"); // it ends one step after the stop text
    while !ended(&collector.render()) {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", collector.render());
    }
    let samples = parse(&collector.render());
    let is = |name, labels, expected: f64| assert_eq!(value(&samples, name, labels), expected);
    is("bitnet_requests_total", ",reason=\"length\"", 2.0);
    is("vllm:request_success_total", ",finished_reason=\"length\"", 2.0);
    let prompts = model.stats().prompt_tokens as f64;
    assert!(prompts > 2.0 * output.prompt_ids.len() as f64);
    is("bitnet_prompt_tokens_total", "", prompts);
    is("vllm:prompt_tokens_total", "", prompts);
    let tokens = model.stats().generated_tokens as f64;
    is("bitnet_generation_tokens_total", "", tokens);
    is("bitnet_time_to_first_token_seconds_count", "", 3.0);
    is("vllm:time_to_first_token_seconds_count", "", 3.0);
    is("bitnet_inter_token_latency_seconds_count", "", tokens - 3.0);
    is("bitnet_request_queue_time_seconds_count", "", 3.0);
    is("bitnet_e2e_request_latency_seconds_count", "", 3.0);
    is("bitnet_request_prefill_time_seconds_count", "", 3.0);
    is("vllm:request_decode_time_seconds_count", "", 3.0);
    let (prefill, decode, tokens) = [
        "bitnet_request_prefill_time_seconds_sum",
        "bitnet_request_decode_time_seconds_sum",
        "bitnet_inter_token_latency_seconds_sum",
    ]
    .map(|name| value(&samples, name, ""))
    .into();
    // Each time is cut to microseconds.
    assert!(prefill > 0.0 && (decode / tokens - 1.0).abs() < 0.01, "{decode} {tokens}");
    is("bitnet_kv_cache_bytes", "", model.stats().kv_bytes as f64);
    is("bitnet_scratch_bytes", "", model.stats().scratch_bytes as f64);
    is("bitnet_spec_proposed_tokens_total", "", 0.0);
    is("bitnet_e2e_request_latency_seconds_bucket", ",le=\"+Inf\"", 3.0);
    is("bitnet_step_requests_count", "", model.stats().steps as f64);
    is("bitnet_requests_running", "", 0.0);
    is("vllm:num_requests_waiting", "", 0.0);
    is("bitnet_kv_cache_usage_ratio", "", 0.0);
    let blocks = format!(",block_size=\"64\",num_blocks=\"{}\"", model.stats().kv_pages);
    is("bitnet_kv_cache_info", &blocks, 1.0);
    assert!(value(&samples, "bitnet_inter_token_latency_seconds_sum", "") > 0.0);
    if cfg!(target_os = "linux") {
        let resident = samples["process_resident_memory_bytes"];
        let kinds = samples.iter().filter(|(name, _)| name.starts_with("bitnet_memory_bytes{"));
        assert!(resident > 1e6 && kinds.map(|(_, bytes)| bytes).sum::<f64>() == resident);
        assert!(samples["bitnet_memory_bytes{kind=\"weights_owned\"}"] > 1e6);
    }
}

#[test]
fn drafts_and_cached_answers_are_counted() {
    let collector = MetricsCollector::new();
    let model = load(&collector);
    let samples = || parse(&collector.render());
    let before = samples();
    let config = GenerationConfig { draft: DraftStrategy::Ngram, ..greedy(200) };
    let cache = ResponseCache::new(CacheStrategy::LRU);
    for _ in 0..2 {
        let prompt = "Tom ran and ran and ran and ran and";
        block_on(model.generate_with_cache(prompt, &config, &cache)).unwrap();
    }
    let after = samples();
    let stats = model.stats();
    let count = |name| value(&after, name, "") as u64;
    assert_eq!(count("bitnet_spec_proposed_tokens_total"), stats.drafted_tokens);
    assert_eq!(count("vllm:spec_decode_num_accepted_tokens_total"), stats.accepted_tokens);
    assert!(stats.drafted_tokens > stats.accepted_tokens && stats.accepted_tokens > 0, "{stats:?}");
    // A token more than those of drafts is drawn in each step.
    assert_eq!(stats.generated_tokens, stats.steps + stats.accepted_tokens);
    // Other tests have caches too.
    let grown = |name| after[name] - before[name];
    assert!(grown("bitnet_response_cache_hits_total") >= 1.0);
    assert!(grown("bitnet_response_cache_misses_total") >= 1.0);
    let (bytes, entries) = ("bitnet_response_cache_bytes", "bitnet_response_cache_entries");
    assert!(after[entries] >= 1.0 && after[bytes] >= cache.stats().bytes as f64);
    drop(cache);
    let gone = samples();
    let hits = "bitnet_response_cache_hits_total";
    assert!(gone[hits] >= after[hits], "counters do not fall");
}

#[test]
fn a_running_request_shows() {
    let collector = MetricsCollector::new();
    let model = load(&collector);
    let mut stream = model.generate_stream("Once upon a time", &greedy(400)).unwrap().blocking();
    stream.next().unwrap().unwrap();
    stream.next().unwrap().unwrap();
    let samples = parse(&collector.render());
    assert_eq!(value(&samples, "bitnet_requests_running", ""), 1.0);
    assert!(value(&samples, "vllm:kv_cache_usage_perc", "") > 0.0);
}

#[track_caller]
fn ask(address: SocketAddr, request: &str) -> String {
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn figures_are_served_over_http_until_the_model_is_gone() {
    let collector = MetricsCollector::new().with_prometheus_endpoint("127.0.0.1:0");
    assert_eq!(collector.endpoint(), None);
    let model = load(&collector);
    let address = collector.endpoint().unwrap();
    model.generate_blocking("Tom", &greedy(2)).unwrap();
    let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    assert_eq!(value(&parse(body), "bitnet_generation_tokens_total", ""), 2.0);
    assert!(ask(address, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
    assert!(ask(address, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
    assert!(ask(address, "HEAD /metrics HTTP/1.1\r\n\r\n").ends_with("\r\n\r\n"));
    drop(collector);
    assert!(ask(address, "GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
    drop(model);
    TcpListener::bind(address).expect("the address is free again");
}

#[test]
fn an_address_in_use_is_an_error_of_loading() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for address in [address.as_str(), "no address"] {
        let collector = MetricsCollector::new().with_prometheus_endpoint(address);
        let builder = BitNetModel::from_pretrained(testdata("demo-model/gguf/demo-tq2_0.gguf"));
        let error = builder.with_metrics(collector).load().unwrap_err();
        assert_eq!(error.to_string(), format!("metrics cannot be served at `{address}`"));
        assert!(matches!(&error, Error::Metrics { .. }) && error.help().is_some());
    }
}

#[test]
fn two_models_are_told_apart() {
    let collector = MetricsCollector::new();
    let models = [load(&collector), load(&collector)];
    models[1].generate_blocking("Tom", &greedy(2)).unwrap();
    let samples = parse(&collector.render());
    let steps = samples.iter().filter(|(name, _)| name.starts_with("bitnet_generation_tokens"));
    assert_eq!(steps.map(|(_, value)| *value).collect::<Vec<_>>(), [0.0, 2.0]);
}

#[test]
fn the_log_gets_a_line_now_and_then() {
    let lines = Lines::of("bitnet::metrics");
    let collector = MetricsCollector::new().with_log_interval(Duration::from_millis(5));
    let model = load(&collector);
    model.generate_blocking("Tom", &greedy(3)).unwrap();
    let begin = Instant::now();
    let found = |lines: &Lines| {
        lines.lines.lock().unwrap().iter().any(|line| line.contains("generated_tokens=3 "))
    };
    while !found(&lines) {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", lines.lines.lock().unwrap());
    }
}

#[test]
fn a_monitor_measures_what_the_answer_says() {
    let model = load(&MetricsCollector::new());
    let (monitor, all) = (PerformanceMonitor::of(&model), PerformanceMonitor::new());
    all.start();
    monitor.start();
    model.generate_blocking("Once upon a time", &greedy(40)).unwrap();
    monitor.start(); // within the other
    let output = model.generate_blocking("Tom and Lily", &greedy(100)).unwrap();
    let inner = monitor.stop();
    let outer = monitor.stop();
    assert_eq!((inner.generated_tokens, outer.generated_tokens), (100, 140));
    assert!(all.stop().generated_tokens >= 140);
    let rate = output.timings.decode_tokens_per_second().unwrap();
    assert!((inner.tokens_per_second / rate - 1.0).abs() < 0.2, "{inner:?} {rate}");
    assert!((inner.avg_latency_ms * rate / 1e3 - 1.0).abs() < 0.05, "{inner:?} {rate}");
    assert!(inner.p50_ms <= inner.p95_ms && inner.p95_ms <= inner.p99_ms && inner.p50_ms > 0.0);
    let first = output.timings.time_to_first_token().as_secs_f64() * 1e3;
    assert!((inner.ttft_ms - first).abs() < 0.2 * first + 0.5, "{inner:?} {first}");
    if cfg!(target_os = "linux") {
        assert!(inner.peak_memory_gb > 0.001 && inner.peak_memory_gb < 64.0, "{inner:?}");
    }
}
