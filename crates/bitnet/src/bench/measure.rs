//! Runs the cases one after another.

use std::time::Duration;

use bitnet_inference::{GenerationConfig, InvalidConfig, SamplingStrategy};
use bitnet_kernels::cpu::isa::Isa;
use bitnet_kernels::cpu::probe::{self, ReadProbe};

use super::bytes::{self, TokenBytes};
use super::report::{
    Agreement, BenchReport, Case, Measurement, ModelFacts, Outcome, ProbeSummary, Rate, Settings,
};
use super::{BenchConfig, BenchProgress, hash, machine::Machine};
use crate::builder::ModelBuilder;
use crate::config::{ModelConfig, automatic_threads};
use crate::error::Error;
use crate::model::BitNetModel;

/// Time for each probe, before a case and after it.
const PROBE_TIME: Duration = Duration::from_millis(200);

/// Tokens whose logits are compared.
const COMPARED_TOKENS: usize = 8;

/// Measures each level with each number of threads. `open` makes the model anew for each, `model` says how else it runs.
///
/// The report lists a level that this machine does not have, with the reason. Other errors end the benchmark.
pub fn run(
    open: &dyn Fn() -> ModelBuilder,
    model: &ModelConfig,
    config: &BenchConfig,
    progress: &mut dyn FnMut(BenchProgress),
) -> Result<BenchReport, Error> {
    check(config)?;
    let machine = Machine::detect();
    let cases = cases(model, config, &machine);
    let steps = 2 + config.warmup + config.iterations;
    let mut bench = Bench {
        config,
        read: ReadProbe::new(machine.probe_bytes()),
        reference: None,
        facts: None,
        total: cases.len() * steps,
        progress,
    };
    let mut done = Vec::new();
    for (index, case) in cases.into_iter().enumerate() {
        done.push(bench.case(open, model, case, index * steps)?);
    }
    let facts = match bench.facts {
        Some(facts) => facts,
        None => bench.facts_alone(open, model)?,
    };
    Ok(BenchReport {
        version: env!("CARGO_PKG_VERSION"),
        machine,
        model: facts,
        settings: Settings {
            prompt_tokens: config.prompt_tokens,
            generated_tokens: config.generated_tokens,
            iterations: config.iterations,
            warmup: config.warmup,
        },
        cases: done,
    })
}

fn check(config: &BenchConfig) -> Result<(), Error> {
    let wrong = |field, found: usize, expected: &str| {
        Err(InvalidConfig { field, found: found.to_string(), expected: expected.into() }.into())
    };
    if config.iterations == 0 {
        return wrong("iterations", 0, "at least 1");
    }
    if config.prompt_tokens == 0 && config.generated_tokens == 0 {
        return wrong("generated_tokens", 0, "at least 1, or prompt_tokens has to be");
    }
    if config.threads.contains(&0) {
        return wrong("threads", 0, "at least 1");
    }
    Ok(())
}

/// All cases, still without outcome.
fn cases(
    model: &ModelConfig,
    config: &BenchConfig,
    machine: &Machine,
) -> Vec<(String, usize, bool)> {
    let own_level = model.simd_level.clone().unwrap_or_else(|| "auto".into());
    let own_threads = match model.threads {
        0 => automatic_threads(),
        threads => threads,
    };
    let or = |given: &[usize], own| if given.is_empty() { vec![own] } else { given.to_vec() };
    let levels = match config.simd_levels.is_empty() {
        true => vec![own_level],
        false => config.simd_levels.clone(),
    };
    let threads = or(&config.threads, own_threads);
    let pairs = levels.iter().flat_map(|level| threads.iter().map(move |&n| (level.clone(), n)));
    pairs.map(|(level, n)| (level, n, n > machine.processors)).collect()
}

struct Bench<'a> {
    config: &'a BenchConfig,
    read: ReadProbe,
    /// Tokens and logits of the first case that ran.
    reference: Option<(String, String)>,
    facts: Option<ModelFacts>,
    total: usize,
    progress: &'a mut dyn FnMut(BenchProgress),
}

impl Bench<'_> {
    fn case(
        &mut self,
        open: &dyn Fn() -> ModelBuilder,
        model: &ModelConfig,
        (simd_level, threads, oversubscribed): (String, usize, bool),
        first_step: usize,
    ) -> Result<Case, Error> {
        let outcome = match Isa::parse(&simd_level) {
            Ok(isa) => {
                let config = ModelConfig {
                    threads,
                    simd_level: Some(isa.name().to_owned()),
                    ..model.clone()
                };
                let measured =
                    self.measure(open().with_config(config), isa, threads, first_step)?;
                Outcome::Measured(Box::new(measured))
            }
            Err(error) => Outcome::NotAvailable { reason: error.to_string() },
        };
        Ok(Case { simd_level, threads, oversubscribed, outcome })
    }

    fn measure(
        &mut self,
        builder: ModelBuilder,
        isa: Isa,
        threads: usize,
        first_step: usize,
    ) -> Result<Measurement, Error> {
        let mut steps = first_step..;
        let mut step = |this: &mut Self, what: &str| {
            let done = steps.next().unwrap_or_default();
            let what = format!("{isa}, {threads} threads: {what}");
            (this.progress)(BenchProgress { done, total: this.total, what });
        };
        step(self, "loading");
        let model = builder.load()?;
        self.check_context(&model)?;
        step(self, "probing memory and arithmetic");
        let (mut reads, mut macs) = self.probe(isa, threads)?;
        let (mut prompt, mut generation, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        for iteration in 0..self.config.warmup + self.config.iterations {
            step(self, if iteration < self.config.warmup { "warming up" } else { "measuring" });
            let counts = iteration >= self.config.warmup;
            prompt.extend(self.prompt(&model)?.filter(|_| counts));
            let (rate, ids) = self.generation(&model)?;
            generation.extend(rate.filter(|_| counts));
            tokens = ids;
        }
        let logits = model.logits(&prompt_ids(&model, self.compared_tokens(&model)))?;
        let (reads_after, macs_after) = self.probe(isa, threads)?;
        reads.extend(reads_after);
        macs.extend(macs_after);

        let hashes = (hash::of_ids(&tokens), hash::of_floats(&logits.data));
        let agreement = compare(self.reference.as_ref(), &hashes);
        let weights = bytes::ternary_weights(model.config());
        self.reference.get_or_insert_with(|| hashes.clone());
        self.facts.get_or_insert_with(|| ModelFacts::new(model.info(), weights));
        let prompt = Rate::new(self.config.prompt_tokens, prompt);
        let generation = Rate::new(self.config.generated_tokens, generation);
        let context = (self.config.generated_tokens as f64 + 1.0) / 2.0;
        let bytes_per_token = TokenBytes::new(&model, context);
        Ok(Measurement {
            kernel: isa.name(),
            load_seconds: model.info().load_time.as_secs_f64(),
            prompt_macs_per_second: prompt.as_ref().map(|rate| rate.median * weights as f64),
            bytes_per_second: generation
                .as_ref()
                .map(|rate| rate.median * bytes_per_token.total() as f64),
            prompt,
            generation,
            peak_macs_per_second: ProbeSummary::new(&macs),
            bytes_per_token,
            read_bandwidth: ProbeSummary::new(&reads),
            tokens_hash: hashes.0,
            logits_hash: hashes.1,
            agreement,
        })
    }

    fn probe(&self, isa: Isa, threads: usize) -> Result<(Vec<f64>, Vec<f64>), Error> {
        let refused = |source| Error::Threads { threads, source };
        let reads = self.read.measure(threads, PROBE_TIME).map_err(refused)?;
        let macs = probe::multiply_adds(isa, threads, PROBE_TIME / 2).map_err(refused)?;
        Ok((reads, macs))
    }

    fn check_context(&self, model: &BitNetModel) -> Result<(), Error> {
        let context = model.info().context_length;
        let needed = 1 + self.config.prompt_tokens.max(self.config.generated_tokens + 1);
        if needed <= context {
            return Ok(());
        }
        let (field, found) = match self.config.prompt_tokens > self.config.generated_tokens {
            true => ("prompt_tokens", self.config.prompt_tokens),
            false => ("generated_tokens", self.config.generated_tokens),
        };
        let expected = format!("less than the context, {context} tokens");
        Err(InvalidConfig { field, found: found.to_string(), expected }.into())
    }

    fn compared_tokens(&self, model: &BitNetModel) -> usize {
        COMPARED_TOKENS.min(model.info().context_length)
    }

    /// Tokens per second of one prompt.
    fn prompt(&self, model: &BitNetModel) -> Result<Option<f64>, Error> {
        if self.config.prompt_tokens == 0 {
            return Ok(None);
        }
        let ids = prompt_ids(model, self.config.prompt_tokens);
        let output = model.generate_blocking(ids, &greedy(1))?;
        Ok(output.timings.prompt_tokens_per_second())
    }

    /// Tokens per second of one generation, and its tokens.
    fn generation(&self, model: &BitNetModel) -> Result<(Option<f64>, Vec<u32>), Error> {
        // The first token comes from the prompt, so one more makes the number asked for.
        let tokens = match self.config.generated_tokens {
            0 => COMPARED_TOKENS.min(model.info().context_length - 1),
            tokens => tokens + 1,
        };
        let output = model.generate_blocking(prompt_ids(model, 1), &greedy(tokens))?;
        let rate = output.timings.decode_tokens_per_second();
        Ok((rate.filter(|_| self.config.generated_tokens > 0), output.ids))
    }

    /// The model, where no case could run it.
    fn facts_alone(
        &mut self,
        open: &dyn Fn() -> ModelBuilder,
        model: &ModelConfig,
    ) -> Result<ModelFacts, Error> {
        let model = open().with_config(ModelConfig { simd_level: None, ..model.clone() }).load()?;
        Ok(ModelFacts::new(model.info(), bytes::ternary_weights(model.config())))
    }
}

/// `found`: hashes of tokens and of logits.
fn compare(reference: Option<&(String, String)>, found: &(String, String)) -> Agreement {
    match reference {
        None => Agreement::Reference,
        Some(reference) if reference == found => Agreement::Same,
        Some(_) => Agreement::Different,
    }
}

/// The likeliest token each time, and nothing ends the text.
fn greedy(max_new_tokens: usize) -> GenerationConfig {
    GenerationConfig {
        sampling_strategy: SamplingStrategy::Greedy,
        max_new_tokens,
        ignore_eos: true,
        ..GenerationConfig::default()
    }
}

/// Tokens as various as those of a text, the same in every run.
fn prompt_ids(model: &BitNetModel, count: usize) -> Vec<u32> {
    let vocab = model.config().vocab_size as u64;
    (1..=count as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) % vocab) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_logits_both_have_to_be_the_same() {
        let pair = |tokens: &str, logits: &str| (tokens.to_owned(), logits.to_owned());
        let reference = pair("t", "l");
        assert_eq!(compare(None, &reference), Agreement::Reference);
        assert_eq!(compare(Some(&reference), &pair("t", "l")), Agreement::Same);
        assert_eq!(compare(Some(&reference), &pair("t", "m")), Agreement::Different);
        assert_eq!(compare(Some(&reference), &pair("u", "l")), Agreement::Different);
    }
}
