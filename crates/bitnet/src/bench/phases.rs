//! Where the time of a step goes: a prompt, one sequence and several, phase by phase and thread by thread.

use bitnet_inference::InferenceConfig;
use bitnet_kernels::profile::Profiled;
use serde::Serialize;

use super::drive;
use super::machine::Machine;
use super::plan::prompt_ids;
use super::source::Build;
use super::{BenchProgress, Steps, invalid};
use crate::builder::ModelBuilder;
use crate::config::ModelConfig;
use crate::error::Error;
use crate::model::BitNetModel;

/// What to take apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhasesConfig {
    /// Compute threads.
    pub threads: usize,
    /// Tokens of the prompt; 0 leaves it out.
    pub prompt_tokens: usize,
    /// Steps of each number of sequences; 0 leaves them out.
    pub generated_tokens: usize,
    /// Tokens in the cache when sequences generate.
    pub depth: usize,
    /// Numbers of sequences that generate together.
    pub batch_sizes: Vec<usize>,
    /// Prompts that are measured.
    pub iterations: usize,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PhasesReport {
    /// Which program ran.
    #[serde(flatten)]
    pub build: Build,
    /// Where it ran.
    pub machine: Machine,
    /// The model's name.
    pub model: String,
    /// Compute threads.
    pub threads: usize,
    /// Each kind of step.
    pub steps: Vec<StepPhases>,
}

/// A kind of step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepPhases {
    /// What it does, as `prompt of 512`.
    pub what: String,
    /// Tokens computed at a time.
    pub tokens: usize,
    /// Steps that were measured.
    pub steps: usize,
    /// Milliseconds of a step, on average.
    pub milliseconds: f64,
    /// What they are made of.
    pub phases: Vec<PhaseShare>,
}

/// A phase of a kind of step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PhaseShare {
    /// Which.
    pub phase: &'static str,
    /// Milliseconds of a step.
    pub milliseconds: f64,
    /// Of the step's time.
    pub share: f64,
    /// Times in a step that threads wait for each other.
    pub barriers: f64,
    /// How much of the phase each thread computes; the rest of it, it waits.
    pub busy: Vec<f64>,
}

impl StepPhases {
    fn new(what: String, tokens: usize, found: &Profiled) -> Self {
        let steps = found.steps.max(1) as f64;
        let total = found.time().as_secs_f64();
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let phases = found.phases.iter().map(|phase| {
            let seconds = phase.time.as_secs_f64();
            PhaseShare {
                phase: phase.phase.name(),
                milliseconds: 1e3 * seconds / steps,
                share: share(seconds, total),
                barriers: phase.barriers as f64 / steps,
                busy: phase.busy.iter().map(|busy| share(busy.as_secs_f64(), seconds)).collect(),
            }
        });
        let (phases, milliseconds) = (phases.collect(), 1e3 * total / steps);
        Self { what, tokens, steps: found.steps, milliseconds, phases }
    }

    /// Seconds that threads computed, out of those that they had.
    pub fn busy(&self) -> f64 {
        let of = |phase: &PhaseShare| {
            phase.share * phase.busy.iter().sum::<f64>() / phase.busy.len().max(1) as f64
        };
        self.phases.iter().map(of).sum()
    }

    /// Times in a step that threads wait for each other.
    pub fn barriers(&self) -> f64 {
        self.phases.iter().map(|phase| phase.barriers).sum()
    }
}

/// Takes steps apart.
pub fn run(
    open: &dyn Fn() -> ModelBuilder,
    model: &ModelConfig,
    config: &PhasesConfig,
    progress: &mut dyn FnMut(BenchProgress),
) -> Result<PhasesReport, Error> {
    if config.threads == 0 || config.iterations == 0 || config.batch_sizes.contains(&0) {
        return Err(invalid("threads, iterations and batch_sizes", 0, "at least 1"));
    }
    if config.prompt_tokens == 0 && config.generated_tokens == 0 {
        let expected = "at least 1, or prompt_tokens has to be";
        return Err(invalid("generated_tokens", 0, expected));
    }
    let mut steps = Steps::new(2 + config.batch_sizes.len(), progress);
    steps.next("loading".into());
    let most = config.batch_sizes.iter().copied().max().unwrap_or(1);
    let inference = InferenceConfig {
        max_batch_tokens: config.prompt_tokens.max(InferenceConfig::default().max_batch_tokens),
        max_batch_size: most.max(InferenceConfig::default().max_batch_size),
        prefix_cache: false, // every measurement computes what it says
        ..InferenceConfig::default()
    };
    let model = ModelConfig { threads: config.threads, ..model.clone() };
    let model = super::held(open().with_config(model).with_inference_config(inference).load()?)?;
    let mut found = Vec::new();
    if config.prompt_tokens > 0 {
        let what = format!("prompt of {}", config.prompt_tokens);
        steps.next(what.clone());
        let profiled = prompt(&model, config)?;
        found.push(StepPhases::new(what, config.prompt_tokens, &profiled));
    }
    for &sequences in config.batch_sizes.iter().filter(|_| config.generated_tokens > 0) {
        let plural = if sequences == 1 { "" } else { "s" };
        let what = format!("{sequences} sequence{plural} from {} on", config.depth);
        steps.next(what.clone());
        let profiled = generation(&model, config, sequences)?;
        found.push(StepPhases::new(what, sequences, &profiled));
    }
    Ok(PhasesReport {
        build: Build::current(),
        machine: Machine::detect(),
        model: model.info().name.clone(),
        threads: config.threads,
        steps: found,
    })
}

/// Prompts, after one that warms up.
fn prompt(model: &BitNetModel, config: &PhasesConfig) -> Result<Profiled, Error> {
    let (engine, ids) = (model.engine(), prompt_ids(model, 0, config.prompt_tokens));
    drive::generate(engine, vec![ids.clone()], 1)?;
    engine.profile().start(config.prompt_tokens);
    for _ in 0..config.iterations {
        drive::generate(engine, vec![ids.clone()], 1)?;
    }
    Ok(engine.profile().stop())
}

/// Steps in which all sequences take part; those of their prompts have other numbers of tokens.
fn generation(
    model: &BitNetModel,
    config: &PhasesConfig,
    sequences: usize,
) -> Result<Profiled, Error> {
    let engine = model.engine();
    let ids = |sequence| prompt_ids(model, sequence, config.depth.max(2));
    let prompts: Vec<_> = (0..sequences).map(ids).collect();
    let mut tokens = 1 + config.generated_tokens;
    loop {
        engine.profile().start(sequences);
        drive::generate(engine, prompts.clone(), tokens)?;
        let found = engine.profile().stop();
        // A small model may have answered the first request before the last one is handed in; longer answers overlap.
        let longer = prompts[0].len() + 4 * tokens <= engine.limits().max_seq_len;
        if found.steps >= config.generated_tokens || !longer {
            return Ok(found);
        }
        tokens *= 4;
    }
}

#[cfg(all(test, feature = "demo-model"))]
mod tests {
    use super::*;

    const QUICK: PhasesConfig = PhasesConfig {
        threads: 2,
        prompt_tokens: 9,
        generated_tokens: 6,
        depth: 3,
        batch_sizes: Vec::new(),
        iterations: 2,
    };

    fn phases(config: &PhasesConfig) -> Result<PhasesReport, Error> {
        run(&BitNetModel::demo, &ModelConfig::default(), config, &mut |_| ())
    }

    #[test]
    fn phases_make_up_the_time_of_a_step() {
        let config = PhasesConfig { batch_sizes: vec![1, 4], ..QUICK };
        let report = phases(&config).unwrap();
        let kinds: Vec<_> = report.steps.iter().map(|step| step.tokens).collect();
        assert_eq!(kinds, [9, 1, 4]);
        assert_eq!(report.steps[0].steps, 2);
        for step in &report.steps {
            assert!(step.steps > 0, "{step:#?}");
            let shares: f64 = step.phases.iter().map(|phase| phase.share).sum();
            assert!((shares - 1.0).abs() < 1e-9, "{step:#?}");
            assert!(step.busy() > 0.0 && step.busy() <= 1.0, "{step:#?}");
            let product = step.phases.iter().find(|phase| phase.phase == "gate, up").unwrap();
            assert!(product.share > 0.0 && product.busy[0] > 0.0, "{step:#?}");
        }
    }

    #[test]
    fn a_layer_of_few_tokens_has_five_barriers_at_most() {
        let batch_sizes = vec![1, 2, 8];
        let report = phases(&PhasesConfig { batch_sizes, prompt_tokens: 0, ..QUICK }).unwrap();
        let layers = BitNetModel::demo().load().unwrap().config().num_hidden_layers;
        for step in &report.steps {
            // One for the embedding, two for the head.
            assert!(step.barriers() <= (5 * layers + 3) as f64, "{step:#?}");
        }
    }

    #[test]
    fn nothing_to_take_apart_is_refused() {
        let nothing = PhasesConfig { prompt_tokens: 0, generated_tokens: 0, ..QUICK };
        for wrong in [nothing, PhasesConfig { threads: 0, ..QUICK }] {
            assert!(matches!(phases(&wrong), Err(Error::Config(_))));
        }
    }
}
