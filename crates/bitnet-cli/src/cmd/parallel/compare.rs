//! The strategies beside one another, each measured.

use std::io::{self, Write};
use std::time::Instant;

use anyhow::Result;
use bitnet_kernels::cpu::topology::Topology;

use crate::console::Console;
use crate::failure::Interrupted;
use crate::interrupt::Watch;
use crate::report::{Align, Table, plural};

use super::ParallelArgs;
use super::strategy::Strategy;
use super::worker::{Crew, Job};

/// How often each is measured; the median counts.
const REPEATS: usize = 3;
/// Characters of the longest bar.
const BAR: f64 = 24.0;

struct Measured {
    strategy: Strategy,
    is_processes: bool,
    /// Of each repetition.
    seconds: Vec<f64>,
    tokens: usize,
    /// Mean over the prompts of the last repetition.
    per_prompt: f64,
}

impl Measured {
    fn median(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    }

    fn rate(&self) -> f64 {
        self.tokens as f64 / self.median()
    }

    fn name(&self) -> String {
        match self.is_processes {
            true => format!("{} processes", self.strategy),
            false => self.strategy.to_string(),
        }
    }
}

/// Processors that this process may use.
pub fn processors() -> usize {
    Topology::detect().recommended_threads().threads
}

pub fn warn_if_too_many(threads: usize, console: &Console) {
    let processors = Topology::detect().available();
    if threads > processors {
        console.warn(&format!("{threads} threads on {}", plural(processors, "processor")));
    }
}

pub fn run(args: &mut ParallelArgs, job: &Job, console: &Console) -> Result<()> {
    let mut config = job.config.clone();
    config.seed.get_or_insert(0); // all do the same work
    let job = Job { prompts: job.prompts.clone(), config, timeout: job.timeout };
    let mut strategies = args.strategies(&job);
    if !strategies.contains(&Strategy::Sequential) {
        strategies.insert(0, Strategy::Sequential);
    }
    let (mut found, mut texts) = (Vec::<Measured>::new(), None);
    for strategy in strategies {
        console.note(&format!("measuring {strategy}"));
        let mut crew = Crew::start(strategy, args, console)?;
        let watch = Watch::start();
        let mut measured = Measured {
            strategy,
            is_processes: args.processes && matches!(strategy, Strategy::Workers { .. }),
            seconds: Vec::new(),
            tokens: 0,
            per_prompt: 0.0,
        };
        for repeat in 0..=REPEATS {
            let begin = Instant::now();
            let items = crew.answer(&job, &watch, &|| ());
            if watch.pressed() {
                return Err(Interrupted.into());
            }
            if let Some(item) = items.iter().find(|item| item.error.is_some()) {
                let error = item.error.as_deref().unwrap_or_default();
                anyhow::bail!("{strategy}: {:?} failed: {error}", item.prompt);
            }
            let ids: Vec<_> = items.iter().map(|item| item.ids.clone()).collect();
            anyhow::ensure!(
                texts.get_or_insert_with(|| ids.clone()) == &ids,
                "{strategy}: other answers than before"
            );
            if repeat > 0 {
                measured.seconds.push(begin.elapsed().as_secs_f64()); // the first one warms up
            }
            measured.tokens = ids.iter().map(Vec::len).sum();
            measured.per_prompt =
                items.iter().map(|item| item.seconds).sum::<f64>() / items.len() as f64;
        }
        found.push(measured);
    }
    print(args, &job, &found)
}

fn print(args: &ParallelArgs, job: &Job, found: &[Measured]) -> Result<()> {
    let sequential = found.iter().find(|m| m.strategy == Strategy::Sequential);
    let sequential = sequential.expect("it is always measured").median();
    let best = found.iter().map(Measured::rate).fold(0.0, f64::max);
    let mut out = io::stdout().lock();
    if args.json {
        let rows: Vec<_> = found
            .iter()
            .map(|m| {
                serde_json::json!({
                    "strategy": m.strategy.to_string(), "processes": m.is_processes,
                    "seconds": m.seconds, "median_s": m.median(), "tokens": m.tokens,
                    "tokens_per_s": m.rate(), "mean_prompt_s": m.per_prompt,
                    "speedup": sequential / m.median(), "best": m.rate() == best,
                })
            })
            .collect();
        let prompts = job.prompts.len();
        writeln!(out, "{:#}", serde_json::json!({ "prompts": prompts, "strategies": rows }))?;
        return Ok(out.flush()?);
    }
    let right = Align::Right;
    let mut table = Table::new(&[Align::Left, right, right, right, right, Align::Left]);
    table.row(["strategy", "total s", "per prompt s", "tokens/s", "speed-up", ""]);
    for m in found {
        let bar = "#".repeat((m.rate() / best * BAR).round() as usize);
        let mark = if m.rate() == best { " best" } else { "" };
        table.row([
            m.name(),
            format!("{:.2}", m.median()),
            format!("{:.2}", m.per_prompt),
            format!("{:.1}", m.rate()),
            format!("{:.2}", sequential / m.median()),
            format!("{bar}{mark}"),
        ]);
    }
    write!(out, "{}", table.render(""))?;
    writeln!(
        out,
        "{}, medians of {REPEATS}; speed-up against one prompt after another, all answers the same",
        plural(job.prompts.len(), "prompt")
    )?;
    Ok(out.flush()?)
}
