//! What an engine adds to the model: one answer alone beside a plain loop over the same weights, and a beginning that several
//! prompts share, which is computed once.
//!
//! Loop and engine take turns, with the same threads, and what is reported is the median of the ratios.

use std::time::Instant;

use bitnet_inference::engine::Event;
use bitnet_inference::{EngineError, GenerationConfig, Request, Work};
use bitnet_kernels::backend::Backend;
use bitnet_kernels::cpu::CpuBackend;
use bitnet_kernels::kv::PAGE;
use bitnet_model::batch::{Batch, Outputs};
use bitnet_model::decoder::Model;
use bitnet_model::kv::KvCache;
use serde::Serialize;

use super::line::Figure;
use super::machine::Machine;
use super::plan::prompt_ids;
use super::source::Build;
use super::{BenchProgress, Steps, drive, held, invalid};
use crate::builder::ModelBuilder;
use crate::config::ModelConfig;
use crate::error::Error;
use crate::model::BitNetModel;

/// Tokens of the prompt of a lone answer.
const PROMPT: usize = 16;
/// Tokens of a prompt after what it shares with others.
const OWN: usize = 16;

/// What to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct OverheadConfig {
    /// Compute threads.
    pub threads: usize,
    /// Tokens that prompts share; whole pages of 64 can be.
    pub shared_tokens: usize,
    /// Tokens of an answer.
    pub generated_tokens: usize,
    /// Answers by loop and by engine, and prompts after the first that begins as they do.
    pub iterations: usize,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OverheadReport {
    /// Which program ran.
    #[serde(flatten)]
    pub build: Build,
    /// Where it ran.
    pub machine: Machine,
    /// The model's name.
    pub model: String,
    /// Compute threads.
    pub threads: usize,
    /// Tokens of an answer.
    pub generated_tokens: usize,
    /// Tokens per second of the plain loop.
    pub plain: Figure,
    /// Tokens per second of one request alone.
    pub engine: Figure,
    /// The engine's speed as a share of the loop's.
    pub ratio: Figure,
    /// Whether both gave the same tokens.
    pub same_tokens: bool,
    /// Prompts that begin the same.
    pub shared: SharedPrefix,
}

/// Prompts that begin the same, one after another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SharedPrefix {
    /// Tokens with which all begin.
    pub shared_tokens: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Prompts.
    pub prompts: usize,
    /// Tokens of all prompts that were computed, by the engine's counters.
    pub computed_tokens: u64,
    /// Tokens that were found in the cache.
    pub cached_tokens: u64,
    /// Milliseconds from request to first token of the first prompt.
    pub first_ms: f64,
    /// The same of the others.
    pub next_ms: Figure,
}

impl SharedPrefix {
    /// Whether the beginning was computed for the first prompt alone.
    pub fn is_right(&self) -> bool {
        let others = (self.prompts - 1) * self.shared_tokens;
        self.cached_tokens == others as u64
            && self.computed_tokens == (self.prompts * self.prompt_tokens - others) as u64
    }
}

impl OverheadReport {
    /// Whether the engine gave what the loop did, and computed what is shared once.
    pub fn is_right(&self) -> bool {
        self.same_tokens && self.shared.is_right()
    }
}

/// Measures both.
///
/// # Errors
/// If the settings make no sense, or the model does not load or run.
pub fn run(
    open: &dyn Fn() -> ModelBuilder,
    model: &ModelConfig,
    config: &OverheadConfig,
    progress: &mut dyn FnMut(BenchProgress),
) -> Result<OverheadReport, Error> {
    for (field, value, least) in [
        ("threads", config.threads, 1),
        ("shared_tokens", config.shared_tokens, PAGE),
        ("generated_tokens", config.generated_tokens, 2),
        ("iterations", config.iterations, 1),
    ] {
        if value < least {
            return Err(invalid(field, value, format!("at least {least}")));
        }
    }
    let mut steps = Steps::new(3, progress);
    steps.next("loading".into());
    let settings = ModelConfig { threads: config.threads, ..model.clone() };
    let model = held(open().with_config(settings).load()?)?;
    let context = model.info().context_length;
    let longest = (PROMPT + config.generated_tokens).max(config.shared_tokens + OWN + 1);
    if longest > context {
        let expected = format!("so few that {longest} tokens fit the context of {context}");
        return Err(invalid("tokens", longest, expected));
    }
    steps.next("an answer alone, and a plain loop".into());
    let (plain, engine, same_tokens) = alone(&model, config)?;
    let ratios = engine.iter().zip(&plain).map(|(engine, plain)| engine / plain).collect();
    steps.next("prompts that begin the same".into());
    let shared = share(&model, config)?;
    let figure = |samples| Figure::new(samples).expect("measured at least once");
    Ok(OverheadReport {
        build: Build::current(),
        machine: Machine::detect(),
        model: model.info().name.clone(),
        threads: config.threads,
        generated_tokens: config.generated_tokens,
        plain: figure(plain),
        engine: figure(engine),
        ratio: figure(ratios),
        same_tokens,
        shared,
    })
}

/// Tokens per second of the loop and of the engine in turns, and whether all answers are the same. The first of each is not
/// counted.
fn alone(
    model: &BitNetModel,
    config: &OverheadConfig,
) -> Result<(Vec<f64>, Vec<f64>, bool), Error> {
    let prompt = prompt_ids(model, 0, PROMPT);
    let (mut plain, mut engine, mut same) = (Vec::new(), Vec::new(), true);
    let mut by_hand = Plain::new(model, PROMPT + config.generated_tokens);
    for iteration in 0..=config.iterations {
        let (rate, ids) = by_hand.generate(&prompt, config.generated_tokens)?;
        let answers =
            drive::generate(model.engine(), vec![prompt.clone()], config.generated_tokens)?;
        same &= answers[0].ids == ids;
        if iteration > 0 {
            plain.push(rate);
            engine.push(answers[0].rate().unwrap_or(0.0));
        }
    }
    Ok((plain, engine, same))
}

/// The loop that anybody would write: the model's layers, the greatest logit, and again.
struct Plain<'a> {
    model: &'a Model<CpuBackend>,
    kv: KvCache<CpuBackend>,
    pages: Vec<u32>,
}

impl<'a> Plain<'a> {
    fn new(model: &'a BitNetModel, tokens: usize) -> Self {
        let (dtype, model) = (model.info().kv_dtype, model.weights());
        let count = tokens.div_ceil(PAGE);
        let kv = KvCache::new(&**model.backend(), model.config(), dtype, count);
        Self { model, kv, pages: (0..count as u32).collect() }
    }

    /// Generates as many tokens, and says how many per second after the first.
    fn generate(&mut self, prompt: &[u32], tokens: usize) -> Result<(f64, Vec<u32>), Error> {
        // On a thread of its own, as the engine is, where the backend wants it.
        std::thread::scope(|scope| {
            let work = || {
                let refused = |source| Error::Threads { threads: 1, source };
                self.model.backend().attach().map_err(refused)?;
                Ok(self.compute(prompt, tokens))
            };
            let thread = std::thread::Builder::new().name("bitnet-plain".into());
            let thread = thread
                .spawn_scoped(scope, work)
                .map_err(|source| Error::Threads { threads: 1, source })?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn compute(&mut self, prompt: &[u32], tokens: usize) -> (f64, Vec<u32>) {
        let (mut batch, mut scratch) = (Batch::default(), self.model.scratch());
        let (mut ids, mut next, mut computed) = (Vec::new(), prompt.to_vec(), 0);
        let mut begin = Instant::now();
        while ids.len() < tokens {
            batch.clear();
            batch.push(&next, computed, &self.pages, Outputs::Last);
            computed += next.len();
            let logits = self.model.forward(&batch, &mut self.kv, &mut scratch);
            let greatest = greatest(logits.row(0).logits());
            if ids.is_empty() {
                begin = Instant::now();
            }
            next = vec![greatest];
            ids.push(greatest);
        }
        ((tokens - 1) as f64 / begin.elapsed().as_secs_f64(), ids)
    }
}

/// The place of the greatest of all logits, the first of equals.
fn greatest(logits: &[f32]) -> u32 {
    let first = (0, f32::NEG_INFINITY);
    let greater = |best: (usize, f32), (id, &logit): (usize, &f32)| {
        if logit > best.1 { (id, logit) } else { best }
    };
    logits.iter().enumerate().fold(first, greater).0 as u32
}

/// Sends prompts that begin the same, one after another.
fn share(model: &BitNetModel, config: &OverheadConfig) -> Result<SharedPrefix, Error> {
    let shared = config.shared_tokens / PAGE * PAGE;
    let beginning = prompt_ids(model, 1, shared);
    let before = model.stats();
    let mut times = Vec::new();
    for index in 0..=config.iterations {
        let ids = [&beginning[..], &prompt_ids(model, 2 + index, OWN)].concat();
        times.push(first_token_ms(model, ids)?);
    }
    // The engine's figures come after its events.
    drop(model.engine().stepwise()?);
    let after = model.stats();
    let cached_tokens = after.cached_tokens - before.cached_tokens;
    Ok(SharedPrefix {
        shared_tokens: shared,
        prompt_tokens: shared + OWN,
        prompts: times.len(),
        computed_tokens: after.prompt_tokens - before.prompt_tokens - cached_tokens,
        cached_tokens,
        first_ms: times[0],
        next_ms: Figure::new(times.split_off(1)).expect("at least one iteration"),
    })
}

/// Milliseconds from a request to its first token.
fn first_token_ms(model: &BitNetModel, ids: Vec<u32>) -> Result<f64, Error> {
    let sampling = GenerationConfig::default().sampling()?;
    let work = Work::Generate { sampling, max_new_tokens: 1, stop_ids: Vec::new() };
    let begin = Instant::now();
    let events = model.engine().submit(Request::new(ids, work))?;
    let mut first = begin;
    loop {
        match events.recv_blocking() {
            Ok(Event::Token { at, .. }) => first = at,
            Ok(Event::Finished(_)) => break,
            Ok(Event::Failed(error)) => return Err(error.into()),
            Ok(_) => {}
            Err(_) => return Err(EngineError::Stopped.into()),
        }
    }
    Ok(1e3 * first.duration_since(begin).as_secs_f64())
}

#[cfg(all(test, feature = "demo-model"))]
mod tests {
    use super::*;

    const QUICK: OverheadConfig =
        OverheadConfig { threads: 1, shared_tokens: 200, generated_tokens: 20, iterations: 3 };

    fn measure(config: &OverheadConfig) -> Result<OverheadReport, Error> {
        run(&BitNetModel::demo, &ModelConfig::default(), config, &mut |_| ())
    }

    #[test]
    fn loop_and_engine_write_the_same_and_a_shared_beginning_is_computed_once() {
        let report = measure(&QUICK).unwrap();
        assert!(report.is_right(), "{report:?}");
        let SharedPrefix { shared_tokens, prompts, computed_tokens, cached_tokens, .. } =
            report.shared;
        assert_eq!((shared_tokens, prompts), (192, 4));
        assert_eq!((computed_tokens, cached_tokens), (192 + 4 * OWN as u64, 3 * 192));
        let ratio = report.ratio.median;
        assert!(ratio > 0.0 && (report.engine.median > 0.0) && report.plain.median > 0.0);
        let wrong = SharedPrefix { computed_tokens: 4 * 208, cached_tokens: 0, ..report.shared };
        assert!(!wrong.is_right());
    }

    #[test]
    fn settings_without_sense_are_refused() {
        for (config, expected) in [
            (OverheadConfig { shared_tokens: 63, ..QUICK }, "`shared_tokens` is 63"),
            (OverheadConfig { generated_tokens: 1, ..QUICK }, "`generated_tokens` is 1"),
            (OverheadConfig { shared_tokens: 512, ..QUICK }, "`tokens` is 529"),
        ] {
            let error = measure(&config).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
