//! Requests that come at their own times, as a server sees them: how long they wait for their first token, and how evenly the
//! next ones come, with steps that take as long as they may and with steps of unlimited length.
//!
//! First all requests come at once, which says how many the engine can answer in a second; then they come at random times
//! (exponential intervals, the same for all cases), so many in a second as a share of that.

use std::time::{Duration, Instant};

use async_channel::Receiver;
use bitnet_inference::engine::Event;
use bitnet_inference::{EngineError, GenerationConfig, InferenceConfig, Request, Work};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::Serialize;

use super::machine::Machine;
use super::plan::prompt_ids;
use super::source::Build;
use super::{BenchProgress, Steps, invalid};
use crate::builder::ModelBuilder;
use crate::config::ModelConfig;
use crate::error::Error;
use crate::model::BitNetModel;
use crate::monitor::percentile;

/// What comes, and how steps are cut.
#[derive(Clone, Debug, PartialEq)]
pub struct TrafficConfig {
    /// Compute threads.
    pub threads: usize,
    /// Requests of each case.
    pub requests: usize,
    /// Tokens of each prompt; no two prompts begin the same.
    pub prompt_tokens: usize,
    /// Tokens of each answer.
    pub generated_tokens: usize,
    /// Requests that come per second, as a share of those that can be answered.
    pub load: f64,
    /// Values of [`InferenceConfig::step_target_ms`], a case for each.
    pub step_targets_ms: Vec<u64>,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrafficReport {
    /// Which program ran.
    #[serde(flatten)]
    pub build: Build,
    /// Where it ran.
    pub machine: Machine,
    /// The model's name.
    pub model: String,
    /// Compute threads.
    pub threads: usize,
    /// Requests of each case.
    pub requests: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens of each answer.
    pub generated_tokens: usize,
    /// Requests per second, as a share of the greatest [`TrafficCase::capacity`].
    pub load: f64,
    /// In the order asked for.
    pub cases: Vec<TrafficCase>,
}

/// A way to cut steps.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrafficCase {
    /// Milliseconds that a step may take while there are answers; 0: any time.
    pub step_target_ms: u64,
    /// Requests answered per second when all come at once.
    pub capacity: f64,
    /// Generated tokens per second then.
    pub tokens_per_second: f64,
    /// When they come one by one: milliseconds from request to first token.
    pub first_token_ms: Percentiles,
    /// Milliseconds from one token of an answer to the next.
    pub inter_token_ms: Percentiles,
}

/// Of many times.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half are below.
    pub p50: f64,
    /// Of a hundred, ninety-five are.
    pub p95: f64,
    /// Of a hundred, ninety-nine are.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Percentiles {
    /// Of at least one value.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let sorted: Vec<_> = values.into_iter().map(|value| (value, 1)).collect();
        let at = |share| percentile(&sorted, share);
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99), max: at(1.0) }
    }
}

/// Measures all cases.
///
/// # Errors
/// If the settings make no sense, or the model does not load or run.
pub fn run(
    open: &dyn Fn() -> ModelBuilder,
    model: &ModelConfig,
    config: &TrafficConfig,
    progress: &mut dyn FnMut(BenchProgress),
) -> Result<TrafficReport, Error> {
    check(config)?;
    let mut steps = Steps::new(1 + 2 * config.step_targets_ms.len(), progress);
    steps.next("loading".into());
    let first = ModelConfig { threads: config.threads, ..model.clone() };
    let first = open().with_config(first).load()?;
    let engines = config.step_targets_ms.iter().map(|&step_target_ms| {
        let inference = InferenceConfig {
            step_target_ms,
            max_waiting: config.requests,
            max_waiting_tokens: config.requests.saturating_mul(config.prompt_tokens),
            ..InferenceConfig::default()
        };
        first.replica(config.threads, inference)
    });
    let engines = engines.collect::<Result<Vec<_>, _>>()?;
    let mut cases = Vec::new();
    for (engine, &step_target_ms) in engines.iter().zip(&config.step_targets_ms) {
        steps.next(format!("{}: all at once", name(step_target_ms)));
        serve(engine, config, 0, 1.0)?; // what the first step has to do is not counted
        let times = vec![Duration::ZERO; config.requests];
        let begin = Instant::now();
        let served = requests(engine, config, 1, &times)?;
        let last = served.iter().filter_map(|request| request.tokens.last().copied()).max();
        let seconds = last.map_or(0.0, |last| last.duration_since(begin).as_secs_f64());
        let tokens: usize = served.iter().map(|request| request.tokens.len()).sum();
        let nothing = Percentiles { p50: 0.0, p95: 0.0, p99: 0.0, max: 0.0 };
        cases.push(TrafficCase {
            step_target_ms,
            capacity: config.requests as f64 / seconds,
            tokens_per_second: tokens as f64 / seconds,
            first_token_ms: nothing,
            inter_token_ms: nothing,
        });
    }
    let capacity = cases.iter().map(|case| case.capacity).fold(0.0, f64::max);
    for (engine, case) in engines.iter().zip(&mut cases) {
        steps.next(format!("{}: one by one", name(case.step_target_ms)));
        let served = serve(engine, config, config.requests, config.load * capacity)?;
        let milliseconds = |time: Duration| 1e3 * time.as_secs_f64();
        let firsts = served.iter().filter_map(|request| {
            Some(milliseconds(request.tokens.first()?.duration_since(request.sent)))
        });
        case.first_token_ms = Percentiles::of(firsts.collect());
        let between = served.iter().flat_map(|request| request.tokens.windows(2));
        let between = between.map(|pair| milliseconds(pair[1].duration_since(pair[0])));
        case.inter_token_ms = Percentiles::of(between.collect());
    }
    Ok(TrafficReport {
        build: Build::current(),
        machine: Machine::detect(),
        model: first.info().name.clone(),
        threads: config.threads,
        requests: config.requests,
        prompt_tokens: config.prompt_tokens,
        generated_tokens: config.generated_tokens,
        load: config.load,
        cases,
    })
}

fn check(config: &TrafficConfig) -> Result<(), Error> {
    for (field, value, least) in [
        ("threads", config.threads, 1),
        ("requests", config.requests, 1),
        ("prompt_tokens", config.prompt_tokens, 1),
        ("generated_tokens", config.generated_tokens, 2),
    ] {
        if value < least {
            return Err(invalid(field, value, format!("at least {least}")));
        }
    }
    match config.load > 0.0 && config.load <= 10.0 {
        true => Ok(()),
        false => Err(invalid("load", config.load, "above 0 and up to 10")),
    }
}

fn name(step_target_ms: u64) -> String {
    match step_target_ms {
        0 => "any time".to_owned(),
        ms => format!("{ms} ms"),
    }
}

/// A request that has been answered.
struct Served {
    sent: Instant,
    /// When its tokens were drawn.
    tokens: Vec<Instant>,
}

/// Serves so many requests that come at random, so many per second on average; without any, one alone.
fn serve(
    model: &BitNetModel,
    config: &TrafficConfig,
    count: usize,
    per_second: f64,
) -> Result<Vec<Served>, Error> {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut at = 0.0;
    let mut next = |_| {
        let time = Duration::from_secs_f64(at);
        let uniform = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        at -= (1.0 - uniform).ln() / per_second;
        time
    };
    let times: Vec<_> = (0..count.max(1)).map(&mut next).collect();
    requests(model, config, 2 + usize::from(count == 0), &times)
}

/// Serves requests that come at these times; `run` makes prompts different from those of other runs.
fn requests(
    model: &BitNetModel,
    config: &TrafficConfig,
    run: usize,
    times: &[Duration],
) -> Result<Vec<Served>, Error> {
    let greedy = GenerationConfig::default().sampling()?;
    let begin = Instant::now();
    let mut sent: Vec<(Instant, Receiver<Event>)> = Vec::new();
    for (index, time) in times.iter().enumerate() {
        let ids = prompt_ids(model, run * config.requests + index, config.prompt_tokens);
        let work = Work::Generate {
            sampling: greedy.clone(),
            max_new_tokens: config.generated_tokens,
            stop_ids: Vec::new(),
        };
        std::thread::sleep(time.saturating_sub(begin.elapsed()));
        sent.push((Instant::now(), model.engine().submit(Request::new(ids, work))?));
    }
    sent.into_iter().map(|(sent, events)| receive(sent, &events)).collect()
}

fn receive(sent: Instant, events: &Receiver<Event>) -> Result<Served, Error> {
    let mut served = Served { sent, tokens: Vec::new() };
    loop {
        match events.recv_blocking() {
            Ok(Event::Token { at, .. }) => served.tokens.push(at),
            Ok(Event::Finished(_)) => return Ok(served),
            Ok(Event::Failed(error)) => return Err(error.into()),
            Ok(_) => {}
            Err(_) => return Err(EngineError::Stopped.into()),
        }
    }
}

#[cfg(all(test, feature = "demo-model"))]
mod tests {
    use super::*;

    fn config() -> TrafficConfig {
        TrafficConfig {
            threads: 1,
            requests: 6,
            prompt_tokens: 20,
            generated_tokens: 5,
            load: 0.8,
            step_targets_ms: vec![100, 0],
        }
    }

    fn measure(config: &TrafficConfig) -> Result<TrafficReport, Error> {
        run(&BitNetModel::demo, &ModelConfig::default(), config, &mut |_| ())
    }

    #[test]
    fn all_cases_are_measured() {
        let report = measure(&config()).unwrap();
        let targets: Vec<_> = report.cases.iter().map(|case| case.step_target_ms).collect();
        assert_eq!(targets, [100, 0]);
        for case in &report.cases {
            assert!((case.tokens_per_second / case.capacity - 5.0).abs() < 1e-9, "{case:?}");
            for found in [case.first_token_ms, case.inter_token_ms] {
                assert!(0.0 < found.p50 && found.p50 <= found.p99 && found.p99 <= found.max);
            }
        }
    }

    #[test]
    fn settings_without_sense_are_refused() {
        for (config, expected) in [
            (TrafficConfig { requests: 0, ..config() }, "`requests` is 0"),
            (TrafficConfig { generated_tokens: 1, ..config() }, "`generated_tokens` is 1"),
            (TrafficConfig { load: f64::NAN, ..config() }, "`load` is NaN"),
        ] {
            let error = measure(&config).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn percentiles_are_values_that_were_there() {
        let found = Percentiles::of((1..=200).rev().map(f64::from).collect());
        assert_eq!((found.p50, found.p95, found.p99, found.max), (100.0, 190.0, 198.0, 200.0));
        let one = Percentiles::of(vec![7.0]);
        assert_eq!((one.p50, one.max), (7.0, 7.0));
    }
}
