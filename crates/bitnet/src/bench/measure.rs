//! Measures a model, case by case.

use std::collections::HashMap;
use std::time::Duration;

use bitnet_inference::InferenceConfig;
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::packed::Packing;
use bitnet_kernels::head::HeadType;
use bitnet_kernels::kv::{KvType, PAGE};
use bitnet_model::format::Checkpoint;
use bitnet_model::kv::page_bytes;

use super::advice::Advice;
use super::bytes::{self, TokenBytes, TokenProducts};
use super::drive::{self, Samples, Windows};
use super::line::{Line, Measured};
use super::machine::Machine;
use super::plan::{self, prompt_ids};
use super::probes::{Around, Probe, Prober, Probes};
use super::report::{BenchReport, Case, Measurement, ModelFacts, Oracle, Outcome, Outputs, Work};
use super::setup::{Forms, Setup};
use super::source::{self, Build};
use super::watch::Watch;
use super::{BenchConfig, BenchProgress, Steps, hash};
use crate::builder::{Kept, ModelBuilder};
use crate::config::ModelConfig;
use crate::error::Error;
use crate::model::BitNetModel;

/// Tokens of the text on which every case has to agree with the oracle, and as many after it.
const COMPARED_TOKENS: usize = 8;

/// What the logits depend on: how the head is held, and how keys and values are stored.
type Arithmetic = (HeadType, KvType);

/// Measures every combination of what `config` varies. `open` says which model, `model` how else it runs.
///
/// The report lists a level that this machine does not have, with the reason, and a case that computes something else than the
/// oracle, as wrong. Other errors end the benchmark.
pub fn run(
    open: &dyn Fn() -> ModelBuilder,
    model: &ModelConfig,
    config: &BenchConfig,
    progress: &mut dyn FnMut(BenchProgress),
) -> Result<BenchReport, Error> {
    run_cases(open, model, config, Setup::all(model, config), None, progress)
}

/// Measures the given cases. `oracle` stands in for what the scalar code gives; tests use it.
pub(super) fn run_cases(
    open: &dyn Fn() -> ModelBuilder,
    model: &ModelConfig,
    config: &BenchConfig,
    setups: Vec<Setup>,
    oracle: Option<Outputs>,
    progress: &mut dyn FnMut(BenchProgress),
) -> Result<BenchReport, Error> {
    plan::check(config)?;
    let machine = Machine::detect();
    let works = plan::works(config);
    let mut arithmetics: Vec<Arithmetic> = setups.iter().map(arithmetic).collect();
    arithmetics.dedup();
    let steps = arithmetics.len() + setups.len() * (2 + works.len());
    let checkpoint = open().with_config(model.clone()).checkpoint()?;
    let mut bench = Bench {
        open,
        model,
        config,
        head_encoding: head_encoding(&checkpoint),
        machine: &machine,
        probes: Probes::new(&machine)?,
        injected: oracle,
        oracles: Vec::new(),
        kept: None,
        facts: None,
        seen: HashMap::new(),
        works,
        steps: Steps::new(steps, progress),
    };
    let mut cases = Vec::new();
    for setup in &setups {
        let expected = bench.oracle(&checkpoint, setup, &setups)?;
        let outcome = bench.outcome(setup, expected)?;
        let oversubscribed = setup.threads > machine.processors;
        cases.push(Case { setup: setup.clone(), oversubscribed, outcome });
    }
    let facts = bench.facts.take().expect("an oracle was asked for the first case");
    Ok(BenchReport {
        build: Build::current(),
        model: facts,
        settings: plan::settings(config),
        oracles: bench.oracles.into_iter().map(named).collect(),
        advice: Advice::new(&cases),
        cases,
        machine,
    })
}

fn arithmetic(setup: &Setup) -> Arithmetic {
    (setup.head, setup.kv_dtype)
}

fn named(((head, kv_dtype), outputs): (Arithmetic, Outputs)) -> Oracle {
    Oracle { head: head.to_string(), kv_dtype: kv_dtype.to_string(), outputs }
}

/// The encoding of the table that is the output head.
fn head_encoding(checkpoint: &Checkpoint) -> String {
    let name = match checkpoint.config().tie_word_embeddings {
        true => "model.embed_tokens.weight",
        false => "lm_head.weight",
    };
    let stored = checkpoint.tensors().find(|tensor| tensor.name == name);
    stored.map_or_else(|| "file".to_owned(), |tensor| tensor.encoding.to_owned())
}

fn facts(model: &BitNetModel, checkpoint: &Checkpoint) -> ModelFacts {
    let sha256 = match model.info().path {
        Some(_) => source::of_files(checkpoint.files()),
        #[cfg(feature = "demo-model")]
        None => Some(source::of_bytes(crate::builder::DEMO)),
        #[cfg(not(feature = "demo-model"))]
        None => None,
    };
    let weights = bytes::ternary_weights(model.config());
    ModelFacts::new(model.info(), weights, head_encoding(checkpoint), sha256)
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

struct Bench<'a> {
    open: &'a dyn Fn() -> ModelBuilder,
    model: &'a ModelConfig,
    config: &'a BenchConfig,
    head_encoding: String,
    machine: &'a Machine,
    probes: Probes,
    /// Stands in for all oracles.
    injected: Option<Outputs>,
    /// In the order in which they were asked.
    oracles: Vec<(Arithmetic, Outputs)>,
    /// Weights of the case before, which the next one takes if it wants them as they lie.
    kept: Option<Kept>,
    /// The model, once the first oracle has loaded it.
    facts: Option<ModelFacts>,
    /// Hash of the tokens that the first case of an arithmetic generated in each work.
    seen: HashMap<(Arithmetic, Work), String>,
    works: Vec<Work>,
    steps: Steps<'a>,
}

impl Bench<'_> {
    /// What the scalar code gives on one thread, from weights in two bits each. All that `setups` want of the same weights is found
    /// at once, since the cases then may take others.
    fn oracle(
        &mut self,
        checkpoint: &Checkpoint,
        setup: &Setup,
        setups: &[Setup],
    ) -> Result<Outputs, Error> {
        for other in setups.iter().filter(|other| other.head == setup.head) {
            if self.known(other).is_none() {
                let found = self.ask(checkpoint, other)?;
                self.oracles.push((arithmetic(other), found));
            }
        }
        Ok(self.known(setup).expect("its head is its own").clone())
    }

    fn known(&self, setup: &Setup) -> Option<&Outputs> {
        let known = self.oracles.iter().find(|(known, _)| *known == arithmetic(setup));
        known.map(|(_, outputs)| outputs)
    }

    fn ask(&mut self, checkpoint: &Checkpoint, setup: &Setup) -> Result<Outputs, Error> {
        self.steps.next("asking the scalar code on one thread".into());
        let scalar = Setup {
            threads: 1,
            simd_level: Isa::Scalar.name().to_owned(),
            packing: Some(Packing::TwoBits),
            fused: true,
            ..setup.clone()
        };
        let (model, _) = self.load(&scalar)?;
        if self.facts.is_none() {
            self.facts = Some(facts(&model, checkpoint));
        }
        match &self.injected {
            Some(injected) => Ok(injected.clone()),
            None => outputs(&model),
        }
    }

    /// A model for a case, with an engine that has room for all that is measured, and how long it took to load its weights.
    fn load(&mut self, setup: &Setup) -> Result<(BitNetModel, Duration), Error> {
        let config = setup.config(self.model);
        let builder = (self.open)().with_config(config.clone());
        let builder = if setup.fused { builder } else { builder.unfused() };
        let checkpoint = builder.checkpoint()?;
        let arch = checkpoint.config();
        let context = match config.max_seq_len {
            0 => arch.max_position_embeddings,
            tokens => tokens,
        };
        plan::check_context(self.config, context)?;
        let bytes_per_token = page_bytes(arch, setup.kv_dtype) / PAGE;
        let room: InferenceConfig = plan::room(self.config, context, bytes_per_token);
        let builder = builder.with_inference_config(room);
        let model = super::held(builder.load_sharing(&mut self.kept)?)?;
        let weights = self.kept.as_ref().expect("a model that was loaded is kept");
        Ok((model, weights.load_time))
    }

    fn outcome(&mut self, setup: &Setup, expected: Outputs) -> Result<Outcome, Error> {
        let isa = match Isa::parse(&setup.simd_level) {
            Ok(isa) => isa,
            Err(error) => return Ok(Outcome::NotAvailable { reason: error.to_string() }),
        };
        let thread_plan = setup.config(self.model).thread_plan()?;
        self.step(setup, isa, "loading");
        let (model, load_time) = self.load(setup)?;
        let found = outputs(&model)?;
        if found != expected {
            let what = "the tokens or logits of a short text".to_owned();
            return Ok(Outcome::Wrong { what, found, expected });
        }
        self.step(setup, isa, "probing memory, arithmetic and barriers");
        let memory = Probes::clone(&self.probes);
        let mut prober = memory.with(isa, &thread_plan);
        let probes = prober.all()?;
        let mut lines = Vec::new();
        for work in self.works.clone() {
            self.step(setup, isa, &work.to_string());
            match self.measure(&model, arithmetic(setup), work, &mut prober)? {
                Ok(measured) => lines.extend(Line::new(measured)),
                Err(wrong) => return Ok(wrong),
            }
        }
        Ok(Outcome::Measured(Box::new(Measurement {
            kernel: isa.name(),
            forms: Forms::of(&model, &self.head_encoding),
            load_seconds: load_time.as_secs_f64(),
            probes,
            lines,
            outputs: found,
        })))
    }

    fn step(&mut self, setup: &Setup, isa: Isa, what: &str) {
        let plural = if setup.threads == 1 { "" } else { "s" };
        self.steps.next(format!("{isa}, {} thread{plural}: {what}", setup.threads));
    }

    /// Runs one work as often as asked for. `Err`: its tokens were not always the same.
    fn measure(
        &mut self,
        model: &BitNetModel,
        arithmetic: Arithmetic,
        work: Work,
        prober: &mut Prober<'_>,
    ) -> Result<Result<Measured, Outcome>, Error> {
        let head_before = model.head_counts().unwrap_or_default();
        let mut watch = Watch::begin(self.machine.processors);
        let mut wrong = None;
        let mut hashes = |tokens: &[u32]| {
            let found = hash::of_ids(tokens);
            let seen = self.seen.entry((arithmetic, work));
            let expected = seen.or_insert_with(|| found.clone()).clone();
            if found != expected && wrong.is_none() {
                wrong = Some(differs(work, found, expected));
            }
        };
        let mut probe = || {
            watch.note_clock();
            prober.take()
        };
        let (shape, samples) = match work {
            Work::Prompt { tokens } => (
                Shape::prompt(model, tokens),
                prompts(model, tokens, self.config, &mut hashes, &mut probe)?,
            ),
            Work::Generation { depth, .. } => {
                let windows = plan::generation_windows(self.config, depth);
                let samples =
                    generations(model, &windows, 1, self.config, &mut hashes, &mut probe)?;
                (Shape::windows(&windows, 1), samples)
            }
            Work::Batch { sequences, .. } => {
                let windows = plan::batch_windows(self.config);
                let samples =
                    generations(model, &windows, sequences, self.config, &mut hashes, &mut probe)?;
                (Shape::windows(&windows, sequences), samples)
            }
        };
        if let Some(wrong) = wrong {
            return Ok(Err(wrong));
        }
        let counts = model.head_counts().unwrap_or_default().since(head_before);
        Ok(Ok(Measured {
            work,
            samples,
            tokens_per_step: shape.tokens_per_step,
            bytes_per_step: TokenBytes::new(model, shape.context_read)
                .for_sequences(shape.sequences)
                .with_head_counts(model.config(), counts, shape.sequences)
                .for_prompt(shape.steps),
            products_per_token: TokenProducts::new(model, shape.context, counts, shape.outputs),
            conditions: watch.end(),
            tokens_hash: self.seen[&(arithmetic, work)].clone(),
        }))
    }
}

/// What the steps of a work are like.
struct Shape {
    tokens_per_step: f64,
    /// Sequences that have keys and values of their own, and an output in each step or in the last one.
    sequences: usize,
    /// Steps until there is an output.
    steps: usize,
    /// Outputs for each token.
    outputs: f64,
    /// Earlier tokens, on average.
    context: f64,
    /// The same where each token reads the keys and values of all; those of a prompt are shared by many tokens, and not
    /// counted as read.
    context_read: f64,
}

impl Shape {
    fn prompt(model: &BitNetModel, tokens: usize) -> Self {
        let steps = tokens.div_ceil(model.engine().limits().max_batch_tokens);
        Self {
            tokens_per_step: tokens as f64 / steps as f64,
            sequences: 1,
            steps,
            outputs: 1.0 / tokens as f64,
            context: (tokens as f64 + 1.0) / 2.0,
            context_read: 0.0,
        }
    }

    fn windows(windows: &Windows, sequences: usize) -> Self {
        let context = windows.context();
        let tokens_per_step = sequences as f64;
        Self { tokens_per_step, sequences, steps: 1, outputs: 1.0, context, context_read: context }
    }
}

type TakeProbe<'a> = dyn FnMut() -> Result<Probe, Error> + 'a;

/// Prompt tokens per second until the first answer's token, with probes between prompts.
fn prompts(
    model: &BitNetModel,
    tokens: usize,
    config: &BenchConfig,
    hashes: &mut dyn FnMut(&[u32]),
    probe: &mut TakeProbe<'_>,
) -> Result<Samples, Error> {
    let mut one = || -> Result<f64, Error> {
        let prompts = vec![prompt_ids(model, 0, tokens)];
        let timed = drive::generate(model.engine(), prompts, 1)?;
        hashes(&timed[0].ids);
        let seconds = timed[0].prompt_seconds().ok_or(bitnet_inference::EngineError::Stopped)?;
        Ok(tokens as f64 / seconds)
    };
    for _ in 0..config.warmup {
        one()?;
    }
    let (mut samples, mut before) = (Vec::new(), probe()?);
    for _ in 0..config.iterations {
        let rate = one()?;
        let after = probe()?;
        samples.push((rate, Around { before, after }));
        before = after;
    }
    Ok(samples)
}

/// Tokens per second of all sequences, with probes on both sides of each window; where a window is a sequence of its own, as
/// many sequences as there are measurements.
fn generations(
    model: &BitNetModel,
    windows: &Windows,
    sequences: usize,
    config: &BenchConfig,
    hashes: &mut dyn FnMut(&[u32]),
    probe: &mut TakeProbe<'_>,
) -> Result<Samples, Error> {
    let mut one = |windows: &Windows| -> Result<Samples, Error> {
        let prompts = (0..sequences).map(|i| prompt_ids(model, i, windows.prompt)).collect();
        let (samples, ids) = drive::windows(model.engine(), prompts, windows, probe)?;
        hashes(&ids);
        Ok(samples)
    };
    if windows.warmup + windows.count == config.warmup + config.iterations {
        return one(windows);
    }
    for _ in 0..config.warmup {
        one(&Windows { warmup: 1, count: 0, ..*windows })?;
    }
    let mut samples = Vec::new();
    for _ in 0..config.iterations {
        samples.extend(one(windows)?);
    }
    Ok(samples)
}

fn differs(work: Work, found: String, expected: String) -> Outcome {
    let tokens = |tokens_hash| Outputs { tokens_hash, logits_hash: String::new() };
    let what = format!("the tokens of {work}, which an earlier run gave otherwise");
    Outcome::Wrong { what, found: tokens(found), expected: tokens(expected) }
}
