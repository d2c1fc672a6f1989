//! `benchmark`: tokens per second beside what memory and arithmetic give at best.

mod output;
mod tables;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use bitnet::bench::{
    self, Agreement, BenchConfig, BenchProgress, BenchReport, Case, Measurement, Outcome,
};
use bitnet::{BitNetModel, ModelBuilder, ModelConfig};
use bitnet_kernels::cpu::topology::Topology;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::output::Format;
use crate::args::ModelSource;
use crate::console::Console;
use crate::failure::Failure;
use crate::{load, numbers, threads};

/// Measure how fast a model runs here, and how near that is to what the machine can do
///
/// Each level with each number of threads loads the model anew. Prompt and generation are measured apart: the prompt's
/// speed until its first token, the generation's after a prompt of one token. Before and after each case come probes of
/// the memory's read bandwidth and of the multiply-add peak with the same threads. Tokens and logits are compared between
/// all cases; where they differ, the exit code is 1.
#[derive(clap::Args)]
pub struct BenchmarkArgs {
    /// A GGUF file, a model directory, or hf:OWNER/NAME [default: the built-in demo]
    #[arg(short, long, env = "BITNET_MODEL", hide_env_values = true, value_name = "MODEL")]
    #[arg(value_parser = ModelSource::parser())]
    model: Option<ModelSource>,
    /// Numbers of compute threads, as 1,2,4; those above the number of processors are flagged [default: as for inference]
    #[arg(short, long, value_name = "N,…", value_delimiter = ',')]
    #[arg(allow_hyphen_values = true, value_parser = numbers::whole(1..=threads::MAX))]
    threads: Vec<usize>,
    /// SIMD levels, as sse,avx,avx2,avx512; those not available here are listed with the reason [default: the best]
    #[arg(long, value_name = "LEVEL,…", value_delimiter = ',')]
    simd_level: Vec<String>,
    /// Tokens of the prompt; 0 leaves it out
    #[arg(short, long, value_name = "TOKENS", default_value_t = 512, allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(0..=usize::MAX))]
    prompt_tokens: usize,
    /// Tokens to generate; 0 leaves it out
    #[arg(
        short = 'n',
        long,
        value_name = "TOKENS",
        default_value_t = 128,
        allow_hyphen_values = true
    )]
    #[arg(value_parser = numbers::whole(0..=usize::MAX))]
    max_tokens: usize,
    /// Measurements of each case
    #[arg(long, value_name = "N", default_value_t = 3, allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(1..=usize::MAX))]
    iterations: usize,
    /// Runs before the measurements that are not counted
    #[arg(long, value_name = "N", default_value_t = 1, allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(0..=usize::MAX))]
    warmup: usize,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Write the results to a file as well, in the format of its ending: .json, .csv or .md
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
}

pub fn run(args: &BenchmarkArgs, console: &Console) -> Result<()> {
    let format = args.output.as_deref().map(Format::of).transpose()?;
    check_levels(&args.simd_level)?;
    let path = args.model.as_ref().map(|source| load::resolve(source, console)).transpose()?;
    if path.is_none() {
        drop(load::demo(console)?); // its note, or the error that there is none
    }
    let open = || opened(path.as_deref());
    let report = measure(args, &open, console)?;
    warn(&report, console);
    if let (Some(path), Some(format)) = (&args.output, format) {
        fs::write(path, format.render(&report)?)
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let mut out = io::stdout().lock();
    match args.json {
        true => write!(out, "{}", Format::Json.render(&report)?)?,
        false => write!(out, "{}", tables::render(&report))?,
    }
    out.flush()?;
    match measurements(&report).any(|(_, m)| m.agreement == Agreement::Different) {
        true => {
            Err(anyhow::anyhow!("not all levels and thread counts gave the same tokens and logits"))
        }
        false => Ok(()),
    }
}

/// A name that no level has is a mistake; a level that this machine lacks is a result.
fn check_levels(names: &[String]) -> Result<()> {
    for name in names {
        if let Err(error @ bitnet::IsaError::Unknown { .. }) = bitnet::Isa::parse(name) {
            return Err(Failure::input(error.to_string()).hint(error.help()).into());
        }
    }
    Ok(())
}

#[cfg(feature = "demo-model")]
fn opened(path: Option<&std::path::Path>) -> ModelBuilder {
    path.map_or_else(BitNetModel::demo, BitNetModel::from_pretrained)
}

#[cfg(not(feature = "demo-model"))]
fn opened(path: Option<&std::path::Path>) -> ModelBuilder {
    BitNetModel::from_pretrained(path.expect("`load::demo` is an error without the demo model"))
}

fn measure(
    args: &BenchmarkArgs,
    open: &dyn Fn() -> ModelBuilder,
    console: &Console,
) -> Result<BenchReport> {
    let config = BenchConfig {
        threads: match args.threads.is_empty() {
            true => vec![threads::decide(0, threads::environment, &Topology::detect())?.count],
            false => args.threads.clone(),
        },
        simd_levels: args.simd_level.clone(),
        prompt_tokens: args.prompt_tokens,
        generated_tokens: args.max_tokens,
        iterations: args.iterations,
        warmup: args.warmup,
    };
    let bar = bar(console);
    let report = bench::run(open, &ModelConfig::default(), &config, &mut |now: BenchProgress| {
        bar.set_length(now.total as u64);
        bar.set_position(now.done as u64);
        bar.set_message(now.what);
    })?;
    bar.finish_and_clear();
    Ok(report)
}

fn bar(console: &Console) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}")
        .expect("the template is well-formed")
        .progress_chars("##-");
    let target = match console.has_bars() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    ProgressBar::with_draw_target(None, target).with_style(style)
}

/// What makes figures worth less.
fn warn(report: &BenchReport, console: &Console) {
    let processors = report.machine.processors;
    if let Some(load) = report.machine.load_average
        && load > 0.5 * processors as f64
    {
        console.warn(&format!(
            "the load average was {load:.1} on {processors} processors when this began: other programs slow it down"
        ));
    }
    let mut counts: Vec<_> =
        report.cases.iter().filter(|case| case.oversubscribed).map(|case| case.threads).collect();
    counts.sort_unstable();
    counts.dedup();
    for count in counts {
        console.warn(&format!(
            "{count} threads are more than the {processors} processors: they take turns"
        ));
    }
}

/// The cases that ran.
fn measurements(report: &BenchReport) -> impl Iterator<Item = (&Case, &Measurement)> {
    report.cases.iter().filter_map(|case| match &case.outcome {
        Outcome::Measured(measurement) => Some((case, &**measurement)),
        Outcome::NotAvailable { .. } => None,
    })
}
