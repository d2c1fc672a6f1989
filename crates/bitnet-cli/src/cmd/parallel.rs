//! `parallel`: many prompts, answered together or by several workers.

pub mod compare;
mod item;
pub mod strategy;
mod worker;

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{ModelArgs, SamplingArgs};
use crate::console::Console;
use crate::failure::{Failure, Interrupted};
use crate::interrupt::{self, Watch};
use crate::report::plural;
use crate::{numbers, text_input};

use item::Item;
use strategy::Strategy;
use worker::{Crew, Job};

/// Prompts of --demo, which the built-in model can continue.
const DEMO: [&str; 6] = [
    "Once upon a time",
    "Lily and Tom went to the park",
    "The little dog was sad because",
    "One day, a big red ball",
    "Mom said that it was time to",
    "In the garden there was a",
];
const DEMO_TOKENS: usize = 40;

/// Answer many prompts at once
///
/// Results go to stdout in the order of the prompts; one that fails does not stop the others.
/// Prompts are arguments, lines of a file, or lines of stdin; at a terminal they are asked for.
#[derive(clap::Args)]
#[command(after_long_help = STRATEGIES)]
pub struct ParallelArgs {
    /// Prompts
    #[arg(value_name = "PROMPT")]
    given: Vec<String>,
    /// A file with a prompt in each line; - reads stdin
    #[arg(short, long, visible_alias = "prompts", value_name = "FILE", conflicts_with = "given")]
    file: Option<PathBuf>,
    /// Six built-in prompts of 40 tokens
    #[arg(long, conflicts_with_all = ["given", "file", "interactive"])]
    demo: bool,
    /// Ask for prompts; an empty line has them answered
    #[arg(long, conflicts_with_all = ["given", "file", "json", "benchmark_strategies"])]
    interactive: bool,
    /// How to share the processors; see --help [default: batched]
    #[arg(short, long, visible_alias = "parallel", value_name = "NAME|WxM", value_delimiter = ',')]
    #[arg(value_parser = Strategy::parse)]
    strategy: Vec<Strategy>,
    /// Workers of --threads threads each: as --strategy WxM
    #[arg(short, long, value_name = "W", allow_hyphen_values = true, conflicts_with = "strategy")]
    #[arg(value_parser = numbers::whole(1..=strategy::MOST))]
    workers: Option<usize>,
    /// Give each worker a process of its own
    #[arg(long)]
    processes: bool,
    /// Seconds that an answer may take; it ends with what there is
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true, value_parser = seconds)]
    timeout: Option<Duration>,
    /// Measure the strategies one after another, and compare them with one prompt at a time
    #[arg(long)]
    benchmark_strategies: bool,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Answers prompts of a parent process with so many threads.
    #[arg(long, hide = true, value_name = "THREADS")]
    child: Option<usize>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

const STRATEGIES: &str = "\
Strategies:
  batched      One engine with all threads, which computes up to 16 prompts
               together and reads the weights once for all of them
  auto         The same
  sequential   One prompt after another, with all threads
  WxM          W workers with M threads each, which share the weights, or with
               --processes are processes that share them through the cache
  balanced     3x4
  concurrent   6x2
  power        2x6
--benchmark-strategies takes several, separated by commas.";

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.001..=86_400.0).contains(seconds));
    let seconds = seconds.ok_or("expected a number of seconds from 0.001 to 86400, a day")?;
    Ok(Duration::from_secs_f64(seconds))
}

pub fn run(mut args: ParallelArgs, console: &Console) -> Result<()> {
    if let Some(threads) = args.child {
        args.model.threads.threads = threads;
        return worker::serve(&args.job(Vec::new()), &args.model, console);
    }
    if args.demo {
        args.sampling.max_tokens = DEMO_TOKENS;
    }
    if args.sampling.max_tokens == 0 {
        return Err(Failure::input("-n 0: an answer has at least one token").into());
    }
    args.sampling.check()?;
    args.check_strategies()?;
    interrupt::install()?;
    if args.interactive || (args.wants_prompts() && io::stdin().is_terminal()) {
        return converse(&mut args, console);
    }
    let job = args.job(args.prompts()?);
    if args.benchmark_strategies {
        return compare::run(&mut args, &job, console);
    }
    let crew = Crew::start(args.strategies(&job)[0], &mut args, console)?;
    let begin = Instant::now();
    let items = answer(crew, &job, console)?;
    print(&items, &args)?;
    console.note(&total(&items, begin.elapsed()));
    let failed = items.iter().filter(|item| item.error.is_some()).count();
    match failed {
        0 => Ok(()),
        _ => anyhow::bail!("{} of {} failed", failed, plural(items.len(), "prompt")),
    }
}

impl ParallelArgs {
    fn check_strategies(&self) -> Result<(), Failure> {
        if self.strategy.len() > 1 && !self.benchmark_strategies {
            let message = "--strategy with several names: prompts are answered in one way";
            return Err(Failure::input(message).hint("--benchmark-strategies compares them"));
        }
        if self.processes && !self.benchmark_strategies {
            let of_workers = |s: &Strategy| matches!(s, Strategy::Workers { .. });
            if self.workers.is_none() && !self.strategy.iter().any(of_workers) {
                let message = "--processes without workers: there is one engine, in this process";
                return Err(Failure::input(message).hint("add --strategy WxM"));
            }
        }
        let fixed = |s: &&Strategy| matches!(s, Strategy::Workers { .. });
        if let Some(strategy) = self.strategy.iter().find(fixed)
            && self.model.threads.threads > 0
        {
            let message = format!("--threads with --strategy {strategy}: that says how many");
            return Err(Failure::input(message).hint("use --workers W --threads M"));
        }
        Ok(())
    }

    fn wants_prompts(&self) -> bool {
        self.given.is_empty() && self.file.is_none() && !self.demo
    }

    /// From where the arguments say; without a word about it, six for a comparison, and else what comes from stdin.
    fn prompts(&self) -> Result<Vec<String>> {
        if self.demo || (self.benchmark_strategies && self.wants_prompts()) {
            return Ok(DEMO.map(str::to_owned).to_vec());
        }
        if !self.given.is_empty() {
            return Ok(self.given.clone());
        }
        let (text, name) = match &self.file {
            Some(file) => (text_input::read(file)?, file.display().to_string()),
            None => (text_input::stdin()?, "stdin".to_owned()),
        };
        let prompts: Vec<_> =
            text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
        match prompts.is_empty() {
            true => {
                Err(Failure::input(format!("{name}: no prompt, expected one in each line")).into())
            }
            false => Ok(prompts),
        }
    }

    /// The strategies to use; without a word about it, `batched`, or all for a comparison.
    fn strategies(&self, job: &Job) -> Vec<Strategy> {
        match (self.workers, &self.strategy[..]) {
            (Some(workers), _) => {
                let threads = self.model.threads.threads;
                let threads = if threads == 0 { compare::processors() / workers } else { threads };
                vec![Strategy::Workers { workers, threads: threads.max(1) }]
            }
            (None, []) if self.benchmark_strategies => Strategy::all(job.prompts.len()),
            (None, []) if self.demo => vec![Strategy::BALANCED],
            (None, []) => vec![Strategy::Batched],
            (None, given) => given.to_vec(),
        }
    }

    fn job(&self, prompts: Vec<String>) -> Job {
        Job { prompts, config: self.sampling.config(), timeout: self.timeout }
    }
}

/// Has prompts answered, with a bar.
fn answer(mut crew: Crew, job: &Job, console: &Console) -> Result<Vec<Item>> {
    let watch = Watch::start();
    let bar = bar(job.prompts.len(), console);
    let items = crew.answer(job, &watch, &|| bar.inc(1));
    bar.finish_and_clear();
    match watch.pressed() {
        true => Err(Interrupted.into()),
        false => Ok(items),
    }
}

/// How long all took, and each.
fn total(items: &[Item], time: Duration) -> String {
    let tokens: usize = items.iter().map(|item| item.ids.len()).sum();
    let mean = items.iter().map(|item| item.seconds).sum::<f64>() / items.len() as f64;
    let (prompts, seconds) = (plural(items.len(), "prompt"), time.as_secs_f64());
    let tokens_per_second = tokens as f64 / seconds;
    format!(
        "{prompts} in {seconds:.2} s, {mean:.2} s each; {} together, {tokens_per_second:.1} tokens/s",
        plural(tokens, "token")
    )
}

fn bar(prompts: usize, console: &Console) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} prompts, {elapsed}")
        .expect("the template is well-formed")
        .progress_chars("##-");
    let target = match console.has_bars() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    ProgressBar::with_draw_target(Some(prompts as u64), target).with_style(style)
}

fn print(items: &[Item], args: &ParallelArgs) -> Result<()> {
    let mut out = io::stdout().lock();
    if args.json {
        let report = serde_json::json!({ "results": items });
        writeln!(out, "{report:#}")?;
        return Ok(out.flush()?);
    }
    for (index, item) in items.iter().enumerate() {
        writeln!(out, "[{}/{}] {}", index + 1, items.len(), item.summary())?;
        match &item.error {
            None => writeln!(out, "{}{}\n", item.prompt, item.text)?,
            Some(error) => writeln!(out, "{}\nfailed: {error}\n", item.prompt)?,
        }
    }
    Ok(out.flush()?)
}

/// Prompts from a terminal, again and again.
fn converse(args: &mut ParallelArgs, console: &Console) -> Result<()> {
    let strategy = args.strategies(&args.job(Vec::new()))[0];
    let mut crew = Crew::start(strategy, args, console)?;
    console.note("a prompt in each line; an empty line has them answered, Ctrl-D ends");
    loop {
        let mut prompts = Vec::new();
        let mut ended = true;
        for line in io::stdin().lock().lines() {
            match line? {
                line if line.trim().is_empty() => {
                    ended = false;
                    break;
                }
                line => prompts.push(line),
            }
        }
        if !prompts.is_empty() {
            let job = args.job(prompts);
            let watch = Watch::start();
            let items = crew.answer(&job, &watch, &|| ());
            print(&items, args)?;
        }
        if ended {
            return Ok(());
        }
    }
}
