//! Three ways to answer several prompts on the same processors: one engine with all threads and one prompt after the other,
//! several engines with a share of the threads each, and one engine that computes all of them together.
//!
//! People start several processes because engines that do not batch leave processors idle; the third way is what that stands in
//! for. The several engines here are in one process, each with a model of its own in memory.

use std::time::Instant;

use bitnet_inference::InferenceConfig;
use serde::Serialize;

use super::drive;
use super::hash;
use super::line::Figure;
use super::machine::Machine;
use super::plan::prompt_ids;
use super::source::Build;
use super::{BenchProgress, Steps, invalid};
use crate::builder::ModelBuilder;
use crate::config::ModelConfig;
use crate::error::Error;
use crate::model::BitNetModel;

/// What to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModesConfig {
    /// Prompts to be answered.
    pub prompts: usize,
    /// Threads in all.
    pub threads: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens of each answer.
    pub generated_tokens: usize,
    /// Measurements of each.
    pub iterations: usize,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModesReport {
    /// Which program ran.
    #[serde(flatten)]
    pub build: Build,
    /// Where it ran.
    pub machine: Machine,
    /// The model's name.
    pub model: String,
    /// Prompts that were answered.
    pub prompts: usize,
    /// Tokens of each prompt.
    pub prompt_tokens: usize,
    /// Tokens of each answer.
    pub generated_tokens: usize,
    /// The three ways.
    pub modes: Vec<Mode>,
}

impl ModesReport {
    /// Whether all gave the same answers.
    pub fn is_right(&self) -> bool {
        self.modes.windows(2).all(|pair| pair[0].tokens_hash == pair[1].tokens_hash)
    }
}

/// A way to answer several prompts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mode {
    /// `one by one`, `workers` or `batch`.
    pub name: &'static str,
    /// Engines.
    pub engines: usize,
    /// Threads of each.
    pub threads: usize,
    /// Seconds until all prompts are answered.
    pub seconds: Figure,
    /// Generated tokens per second, the time of the prompts counted.
    pub tokens_per_second: f64,
    /// How many times as fast as one by one.
    pub speed_up: f64,
    /// Hash of all answers.
    pub tokens_hash: String,
}

/// Measures the three ways.
pub fn run(
    open: &dyn Fn() -> ModelBuilder,
    model: &ModelConfig,
    config: &ModesConfig,
    progress: &mut dyn FnMut(BenchProgress),
) -> Result<ModesReport, Error> {
    let positive = [
        ("prompts", config.prompts),
        ("threads", config.threads),
        ("prompt_tokens", config.prompt_tokens),
        ("generated_tokens", config.generated_tokens),
        ("iterations", config.iterations),
    ];
    if let Some((field, _)) = positive.into_iter().find(|&(_, value)| value == 0) {
        return Err(invalid(field, 0, "at least 1"));
    }
    let workers = config.threads.min(config.prompts);
    let ways = [
        ("one by one", 1, config.threads, 1),
        ("workers", workers, config.threads / workers, 1),
        ("batch", 1, config.threads, config.prompts),
    ];
    let mut steps = Steps::new(2 * ways.len(), progress);
    let (mut modes, mut name): (Vec<Mode>, _) = (Vec::new(), String::new());
    let mut kept = None;
    for (way, engines, threads, together) in ways {
        steps.next(format!("{way}: loading"));
        let load = |engine| {
            let inference = InferenceConfig {
                max_batch_size: together,
                max_batch_tokens: InferenceConfig::default().max_batch_tokens.max(together),
                prefix_cache: false, // every prompt is computed
                ..InferenceConfig::default()
            };
            let config = ModelConfig { threads, ..model.clone() };
            let builder = open().with_config(config).with_inference_config(inference);
            super::held(match engine {
                0 => builder.load_sharing(&mut kept)?,
                _ => builder.load()?, // as a process of its own would have it
            })
        };
        let models = (0..engines).map(load).collect::<Result<Vec<_>, _>>()?;
        steps.next(format!("{way}: {engines} × {threads} threads"));
        let mut seconds = Vec::new();
        let mut tokens_hash = String::new();
        for iteration in 0..=config.iterations {
            let begin = Instant::now();
            let answers = answer(&models, config, together)?;
            if iteration > 0 {
                seconds.push(begin.elapsed().as_secs_f64()); // the first one warms up
            }
            tokens_hash = hash::of_ids(&answers);
        }
        let seconds = Figure::new(seconds).expect("measured at least once");
        let first = modes.first().map_or(seconds.median, |mode| mode.seconds.median);
        modes.push(Mode {
            name: way,
            engines,
            threads,
            tokens_per_second: (config.prompts * config.generated_tokens) as f64 / seconds.median,
            speed_up: first / seconds.median,
            seconds,
            tokens_hash,
        });
        name.clone_from(&models[0].info().name);
    }
    Ok(ModesReport {
        build: Build::current(),
        machine: Machine::detect(),
        model: name,
        prompts: config.prompts,
        prompt_tokens: config.prompt_tokens,
        generated_tokens: config.generated_tokens,
        modes,
    })
}

/// Answers all prompts, each engine those that are its turn, `together` at a time. Returns all answers in order.
fn answer(
    models: &[BitNetModel],
    config: &ModesConfig,
    together: usize,
) -> Result<Vec<u32>, Error> {
    let own = |engine: usize| (engine..config.prompts).step_by(models.len()).collect::<Vec<_>>();
    let work = &|engine: usize| -> Result<Vec<(usize, Vec<u32>)>, Error> {
        let model = &models[engine];
        let mut answers = Vec::new();
        for prompts in own(engine).chunks(together) {
            let ids = |&i: &usize| prompt_ids(model, i, config.prompt_tokens);
            let ids = prompts.iter().map(ids).collect();
            let timed = drive::generate(model.engine(), ids, config.generated_tokens)?;
            answers.extend(prompts.iter().copied().zip(timed.into_iter().map(|one| one.ids)));
        }
        Ok(answers)
    };
    let mut answers = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..models.len()).map(|i| scope.spawn(move || work(i))).collect();
        let mut all = work(0)?;
        for worker in workers {
            all.extend(worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok::<_, Error>(all)
    })?;
    answers.sort();
    Ok(answers.into_iter().flat_map(|(_, ids)| ids).collect())
}

#[cfg(all(test, feature = "demo-model"))]
mod tests {
    use super::*;

    const QUICK: ModesConfig = ModesConfig {
        prompts: 3,
        threads: 2,
        prompt_tokens: 5,
        generated_tokens: 4,
        iterations: 1,
    };

    fn compare(config: &ModesConfig) -> Result<ModesReport, Error> {
        run(&BitNetModel::demo, &ModelConfig::default(), config, &mut |_| ())
    }

    #[test]
    fn all_ways_give_the_same_answers() {
        let report = compare(&QUICK).unwrap();
        assert!(report.is_right(), "{report:#?}");
        let shapes: Vec<_> = report.modes.iter().map(|m| (m.name, m.engines, m.threads)).collect();
        assert_eq!(shapes, [("one by one", 1, 2), ("workers", 2, 1), ("batch", 1, 2)]);
        assert_eq!(report.modes[0].speed_up, 1.0);
    }

    #[test]
    fn other_answers_are_seen() {
        let mut report = compare(&ModesConfig { threads: 1, ..QUICK }).unwrap();
        report.modes[1].tokens_hash.push('x');
        assert!(!report.is_right());
    }

    #[test]
    fn no_prompts_or_tokens_are_refused() {
        for wrong in [
            ModesConfig { prompts: 0, ..QUICK },
            ModesConfig { generated_tokens: 0, ..QUICK },
            ModesConfig { iterations: 0, ..QUICK },
        ] {
            assert!(matches!(compare(&wrong), Err(Error::Config(_))));
        }
        let long = ModesConfig { prompt_tokens: 1 << 20, ..QUICK };
        assert!(compare(&long).is_err());
    }
}
