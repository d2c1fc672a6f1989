//! Measures a model, case by case.

use std::collections::HashMap;

use bitnet_inference::InferenceConfig;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::head::HeadType;

use super::advice::Advice;
use super::bytes::{self, TokenBytes};
use super::drive::{self, Windows};
use super::machine::Machine;
use super::probes::{Bracket, Probes};
use super::report::{
    BenchReport, Case, Line, Measured, Measurement, ModelFacts, Outcome, Outputs, Settings, Work,
};
use super::source::{self, Build};
use super::watch::Watch;
use super::{BenchConfig, BenchProgress, Steps, hash, invalid};
use crate::builder::ModelBuilder;
use crate::config::{ModelConfig, automatic_threads};
use crate::error::Error;
use crate::model::BitNetModel;

/// Tokens of the text on which every case has to agree with the oracle, and as many after it.
const COMPARED_TOKENS: usize = 8;

/// More of anything than can be measured, and so few that their products are numbers.
const MOST: usize = 1 << 20;

/// A level by its name, and a number of threads.
pub(super) type Wanted = (String, usize);

/// Measures each level with each number of threads. `open` says which model, `model` how else it runs; it is loaded once for each
/// case, since a backend's threads and instructions are fixed when it is made, and once before them for the oracle.
///
/// The report lists a level that this machine does not have, with the reason, and a case that computes something else than the
/// oracle, as wrong. Other errors end the benchmark.
pub fn run(
    open: &dyn Fn() -> ModelBuilder,
    model: &ModelConfig,
    config: &BenchConfig,
    progress: &mut dyn FnMut(BenchProgress),
) -> Result<BenchReport, Error> {
    let wanted = wanted(model, config);
    run_cases(open, model, config, wanted, None, progress)
}

/// All levels with all numbers of threads.
fn wanted(model: &ModelConfig, config: &BenchConfig) -> Vec<Wanted> {
    let own_level = model.simd_level.clone().unwrap_or_else(|| "auto".into());
    let own_threads = match model.threads {
        0 => automatic_threads(),
        threads => threads,
    };
    let levels = match config.simd_levels.is_empty() {
        true => vec![own_level],
        false => config.simd_levels.clone(),
    };
    let threads =
        if config.threads.is_empty() { vec![own_threads] } else { config.threads.clone() };
    levels.iter().flat_map(|level| threads.iter().map(move |&n| (level.clone(), n))).collect()
}

/// Measures the given cases. `oracle` stands in for what the scalar code gives; tests use it.
pub(super) fn run_cases(
    open: &dyn Fn() -> ModelBuilder,
    model: &ModelConfig,
    config: &BenchConfig,
    wanted: Vec<Wanted>,
    oracle: Option<Outputs>,
    progress: &mut dyn FnMut(BenchProgress),
) -> Result<BenchReport, Error> {
    check(config)?;
    let machine = Machine::detect();
    let works = works(config);
    let mut steps = Steps::new(1 + wanted.len() * (2 + works.len()), progress);
    steps.next("asking the scalar code on one thread".into());
    let scalar = ModelConfig {
        threads: 1,
        simd_level: Some(Isa::Scalar.name().to_owned()),
        ..model.clone()
    };
    let (facts, room, found) = {
        let model = open().with_config(scalar).load()?;
        check_context(config, &model)?;
        (facts(open, &model)?, room(config, &model), outputs(&model)?)
    };
    let mut bench = Bench {
        config,
        machine: &machine,
        probes: Probes::new(&machine)?,
        oracle: oracle.unwrap_or(found),
        seen: HashMap::new(),
        works,
        room,
        steps,
    };
    let mut cases = Vec::new();
    for (simd_level, threads) in wanted {
        let outcome = bench.outcome(open, model, &simd_level, threads)?;
        let oversubscribed = threads > machine.processors;
        cases.push(Case { simd_level, threads, oversubscribed, outcome });
    }
    let oracle = bench.oracle;
    Ok(BenchReport {
        build: Build::current(),
        model: facts,
        settings: settings(config),
        oracle,
        advice: Advice::new(&cases),
        cases,
        machine,
    })
}

fn check(config: &BenchConfig) -> Result<(), Error> {
    if config.iterations == 0 {
        return Err(invalid("iterations", 0, "at least 1"));
    }
    if config.prompt_tokens == 0 && config.generated_tokens == 0 {
        let expected = "at least 1, or prompt_tokens has to be";
        return Err(invalid("generated_tokens", 0, expected));
    }
    if config.threads.contains(&0) {
        return Err(invalid("threads", 0, "at least 1"));
    }
    let counts = [
        ("prompt_tokens", Some(config.prompt_tokens)),
        ("generated_tokens", Some(config.generated_tokens)),
        ("depths", config.depths.iter().copied().max()),
        ("batch_sizes", config.batch_sizes.iter().copied().max()),
        ("iterations", Some(config.iterations)),
        ("warmup", Some(config.warmup)),
    ];
    for (field, most) in counts {
        if let Some(found) = most.filter(|&count| count > MOST) {
            return Err(invalid(field, found, format!("at most {MOST}")));
        }
    }
    if config.batch_sizes.contains(&0) {
        return Err(invalid("batch_sizes", 0, "at least 1"));
    }
    if config.generated_tokens == 0 && !(config.batch_sizes.is_empty() && config.depths.is_empty())
    {
        return Err(invalid("generated_tokens", 0, "at least 1 to measure depths and batches"));
    }
    Ok(())
}

fn depths(config: &BenchConfig) -> Vec<usize> {
    if config.depths.is_empty() { vec![0] } else { config.depths.clone() }
}

fn settings(config: &BenchConfig) -> Settings {
    Settings {
        prompt_tokens: config.prompt_tokens,
        generated_tokens: config.generated_tokens,
        depths: depths(config),
        batch_sizes: config.batch_sizes.clone(),
        iterations: config.iterations,
        warmup: config.warmup,
    }
}

/// The lines of each case.
fn works(config: &BenchConfig) -> Vec<Work> {
    let mut works = Vec::new();
    if config.prompt_tokens > 0 {
        works.push(Work::Prompt { tokens: config.prompt_tokens });
    }
    let (tokens, depths) = (config.generated_tokens, depths(config));
    if tokens > 0 {
        works.extend(depths.iter().map(|&depth| Work::Generation { tokens, depth }));
        let batch = |&sequences: &usize| Work::Batch {
            sequences,
            tokens: batch_windows(config).tokens,
            depth: depths[0],
        };
        works.extend(config.batch_sizes.iter().map(batch));
    }
    works
}

/// How a generation at a depth is cut into measurements. One far from the start is one long sequence, since filling the cache
/// takes so long; elsewhere each measurement is a sequence of its own.
fn generation_windows(config: &BenchConfig, depth: usize) -> Windows {
    let (tokens, runs) = (config.generated_tokens, config.warmup + config.iterations);
    match depth >= 4 * tokens * runs {
        true => Windows::around(depth, tokens, config.warmup, config.iterations),
        false => Windows { prompt: depth.max(1), tokens, warmup: 0, count: 1 },
    }
}

/// How sequences generated together are: prompts of many sequences take long, so they are computed once.
fn batch_windows(config: &BenchConfig) -> Windows {
    let tokens = config.generated_tokens;
    Windows::around(depths(config)[0], tokens, config.warmup, config.iterations)
}

/// Tokens of the longest sequence.
fn longest(config: &BenchConfig) -> (&'static str, usize) {
    let step_tokens = InferenceConfig::default().max_batch_tokens;
    let generations =
        depths(config).iter().map(|&d| generation_windows(config, d).longest(1, step_tokens)).max();
    let batches = config
        .batch_sizes
        .iter()
        .map(|&sequences| batch_windows(config).longest(sequences, step_tokens))
        .max();
    let candidates = [
        ("prompt_tokens", config.prompt_tokens + 1),
        ("generated_tokens", generations.unwrap_or(0)),
        ("batch_sizes", batches.unwrap_or(0)),
    ];
    candidates.into_iter().max_by_key(|&(_, tokens)| tokens).expect("there are three")
}

fn check_context(config: &BenchConfig, model: &BitNetModel) -> Result<(), Error> {
    let context = model.info().context_length;
    let (field, tokens) = longest(config);
    match tokens <= context {
        true => Ok(()),
        false => {
            let found = format!("such that a sequence gets {tokens} tokens");
            Err(invalid(field, found, format!("less than the context, {context} tokens")))
        }
    }
}

/// An engine with room for all that is measured.
fn room(config: &BenchConfig, model: &BitNetModel) -> InferenceConfig {
    let most = config.batch_sizes.iter().copied().max().unwrap_or(1);
    let step_tokens = InferenceConfig::default().max_batch_tokens;
    let longest = batch_windows(config).longest(most, step_tokens);
    let info = model.info();
    drive::room_for(most, longest, info.context_length, info.kv_bytes_per_token)
}

fn facts(open: &dyn Fn() -> ModelBuilder, model: &BitNetModel) -> Result<ModelFacts, Error> {
    let checkpoint = open().checkpoint()?;
    let stored = match model.config().tie_word_embeddings {
        true => "model.embed_tokens.weight",
        false => "lm_head.weight",
    };
    let stored = checkpoint.tensors().find(|tensor| tensor.name == stored);
    let head_dtype = match (model.info().head, stored) {
        (HeadType::File, Some(tensor)) => tensor.encoding.to_owned(),
        (head, _) => head.to_string(),
    };
    let sha256 = match model.info().path {
        Some(_) => source::of_files(checkpoint.files()),
        #[cfg(feature = "demo-model")]
        None => Some(source::of_bytes(crate::builder::DEMO)),
        #[cfg(not(feature = "demo-model"))]
        None => None,
    };
    let weights = bytes::ternary_weights(model.config());
    Ok(ModelFacts::new(model.info(), weights, head_dtype, sha256))
}

/// What a model gives on a short text.
fn outputs(model: &BitNetModel) -> Result<Outputs, Error> {
    let tokens = COMPARED_TOKENS.min(model.info().context_length / 2).max(1);
    let ids = prompt_ids(model, 0, tokens);
    let timed = drive::generate(model.engine(), vec![ids.clone()], tokens)?;
    let generated = timed.first().map(|one| hash::of_ids(&one.ids)).unwrap_or_default();
    let logits = hash::of_floats(&model.logits(&ids)?.data);
    Ok(Outputs { tokens_hash: generated, logits_hash: logits })
}

/// Tokens as various as those of a text, the same in every run, others for each sequence.
pub(super) fn prompt_ids(model: &BitNetModel, sequence: usize, count: usize) -> Vec<u32> {
    let vocab = model.config().vocab_size as u64;
    let first = 1 + sequence as u64 * 0x1000_0000;
    let id = |i: u64| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16) % vocab;
    (first..first + count as u64).map(|i| id(i) as u32).collect()
}

struct Bench<'a> {
    config: &'a BenchConfig,
    machine: &'a Machine,
    probes: Probes,
    oracle: Outputs,
    /// Hash of the tokens that the first case generated in each work.
    seen: HashMap<Work, String>,
    works: Vec<Work>,
    room: InferenceConfig,
    steps: Steps<'a>,
}

impl Bench<'_> {
    fn outcome(
        &mut self,
        open: &dyn Fn() -> ModelBuilder,
        model: &ModelConfig,
        simd_level: &str,
        threads: usize,
    ) -> Result<Outcome, Error> {
        let isa = match Isa::parse(simd_level) {
            Ok(isa) => isa,
            Err(error) => return Ok(Outcome::NotAvailable { reason: error.to_string() }),
        };
        self.step(isa, threads, "loading");
        let simd_level = Some(isa.name().to_owned());
        let config = ModelConfig { threads, simd_level, ..model.clone() };
        let builder = open().with_config(config).with_inference_config(self.room.clone());
        let model = builder.load()?;
        let found = outputs(&model)?;
        if found != self.oracle {
            let what = "the tokens or logits of a short text".to_owned();
            return Ok(Outcome::Wrong { what, found, expected: self.oracle.clone() });
        }
        self.step(isa, threads, "probing memory, arithmetic and barriers");
        let probes = self.probes.all(isa, threads)?;
        let mut before = self.probes.take(isa, threads)?;
        let mut lines = Vec::new();
        for work in self.works.clone() {
            self.step(isa, threads, &work.to_string());
            let mut measured = match self.measure(&model, work)? {
                Ok(measured) => measured,
                Err(wrong) => return Ok(wrong),
            };
            let after = self.probes.take(isa, threads)?;
            measured.probes = before.and(&after);
            before = after;
            lines.extend(Line::new(measured));
        }
        let load_seconds = model.info().load_time.as_secs_f64();
        Ok(Outcome::Measured(Box::new(Measurement {
            kernel: isa.name(),
            load_seconds,
            probes,
            lines,
            outputs: found,
        })))
    }

    fn step(&mut self, isa: Isa, threads: usize, what: &str) {
        let plural = if threads == 1 { "" } else { "s" };
        self.steps.next(format!("{isa}, {threads} thread{plural}: {what}"));
    }

    /// Runs one work as often as asked for. `Err`: its tokens were not always the same.
    fn measure(
        &mut self,
        model: &BitNetModel,
        work: Work,
    ) -> Result<Result<Measured, Outcome>, Error> {
        let head_before = model.head_counts().unwrap_or_default();
        let mut watch = Watch::begin(self.machine.processors);
        let mut rates = Vec::new();
        let mut wrong = None;
        let mut hashes = |tokens: &[u32]| {
            let found = hash::of_ids(tokens);
            let expected = self.seen.entry(work).or_insert_with(|| found.clone()).clone();
            if found != expected && wrong.is_none() {
                wrong = Some(differs(work, found, expected));
            }
        };
        let engine = model.engine();
        let runs = self.config.warmup + self.config.iterations;
        let (windows, repeat) = match work {
            Work::Prompt { tokens } => {
                for run in 0..runs {
                    let prompts = vec![prompt_ids(model, 0, tokens)];
                    let timed = drive::generate(engine, prompts, 1)?;
                    watch.note_clock();
                    hashes(&timed[0].ids);
                    let seconds = timed[0].prompt_seconds().filter(|_| run >= self.config.warmup);
                    rates.extend(seconds.map(|seconds| tokens as f64 / seconds));
                }
                (None, 0)
            }
            Work::Generation { depth, .. } => {
                let windows = generation_windows(self.config, depth);
                (Some(windows), if windows.count == 1 { runs } else { 1 })
            }
            Work::Batch { .. } => (Some(batch_windows(self.config)), 1),
        };
        let sequences = if let Work::Batch { sequences, .. } = work { sequences } else { 1 };
        if let Some(windows) = windows {
            for run in 0..repeat {
                let prompts = (0..sequences).map(|i| prompt_ids(model, i, windows.prompt));
                let (found, ids) = drive::windows(engine, prompts.collect(), &windows)?;
                watch.note_clock();
                hashes(&ids);
                let counts = repeat == 1 || run >= self.config.warmup;
                rates.extend(found.into_iter().filter(|_| counts));
            }
        }
        if let Some(wrong) = wrong {
            return Ok(Err(wrong));
        }
        let head_counts = model.head_counts().unwrap_or_default().since(head_before);
        let context = windows.map_or(0.0, |windows| windows.context());
        let step_tokens = engine.limits().max_batch_tokens;
        let tokens_per_step = match work {
            Work::Prompt { tokens } => tokens.min(step_tokens),
            Work::Generation { .. } | Work::Batch { .. } => sequences,
        };
        Ok(Ok(Measured {
            work,
            rates,
            tokens_per_step,
            bytes_per_step: TokenBytes::new(model, context)
                .for_sequences(sequences)
                .with_head_counts(model.config(), head_counts, sequences),
            macs_per_token: bytes::ternary_weights(model.config()),
            probes: Bracket::default(),
            conditions: watch.end(),
            tokens_hash: self.seen[&work].clone(),
        }))
    }
}

fn differs(work: Work, found: String, expected: String) -> Outcome {
    let tokens = |tokens_hash| Outputs { tokens_hash, logits_hash: String::new() };
    let what = format!("the tokens of {work}, which an earlier run gave otherwise");
    Outcome::Wrong { what, found: tokens(found), expected: tokens(expected) }
}
