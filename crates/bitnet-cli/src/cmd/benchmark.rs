//! `benchmark`: tokens per second beside what memory and arithmetic give at best.

mod ablation;
mod kernel;
mod load;
mod model;
mod modes;
mod output;
mod phases;
mod plot;
mod sheet;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use bitnet::bench::ablation::AblationConfig;
use bitnet::bench::kernel::{KernelConfig, parse_shape};
use bitnet::bench::modes::ModesConfig;
use bitnet::bench::phases::PhasesConfig;
use bitnet::bench::{self, BenchConfig, BenchProgress, BenchReport, Case};
use bitnet::{BitNetModel, HeadType, ModelBuilder, ModelConfig};
use bitnet_kernels::cpu::packed::Packing;
use bitnet_kernels::cpu::topology::Topology;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use self::output::Format;
use self::sheet::Document;
use crate::args::ModelSource;
use crate::cache;
use crate::console::Console;
use crate::failure::Failure;
use crate::load::{demo, resolve};
use crate::{numbers, threads};

/// More tokens than any model looks back on; sums of a few of them do not overflow.
const MOST_TOKENS: usize = 1 << 20;
/// More sequences, and more tokens of a product, than anybody computes together.
const MOST_TOGETHER: usize = 1 << 16;
/// More measurements than anybody waits for.
const MOST_ITERATIONS: usize = 10_000;

/// Measure how fast a model runs here, and how near that is to what the machine can do
///
/// Prompt and generation are measured apart: the prompt's speed until its first token, the generation's after a prompt.
/// Right before and after each measurement come probes of the memory's read bandwidth and of the multiply-add peak with the
/// same threads. Before all, the scalar code on one thread says which tokens and logits are right; a level or a number of threads
/// that gives others is reported as wrong, and the exit code is 1.
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
    /// How the output head is held: int8, two-stage (the same logits, found by reading two bits a weight; needs a
    /// quarter more memory), or file (as the model file has it: slower, the reference)
    #[arg(long, value_name = "FORM", default_value = "int8")]
    head: HeadType,
    /// Tokens of the prompt; 0 leaves it out [default: 512; with --ablation and --modes 64]
    #[arg(short, long, value_name = "TOKENS", allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(0..=MOST_TOKENS))]
    prompt_tokens: Option<usize>,
    /// Tokens to generate in each measurement; 0 leaves it out [default: 128; with --ablation 16, with --modes 64]
    #[arg(short = 'n', long, value_name = "TOKENS", allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(0..=MOST_TOKENS))]
    max_tokens: Option<usize>,
    /// Tokens in the cache when a generation begins, as 0,1024,4000: one measurement for each [default: 0]
    #[arg(long, alias = "depth", value_name = "TOKENS,…", value_delimiter = ',')]
    #[arg(allow_hyphen_values = true, value_parser = numbers::whole(0..=MOST_TOKENS))]
    ctx: Vec<usize>,
    /// Numbers of sequences to generate together, as 1,8,32, with the first of --ctx [default: none]
    #[arg(long, value_name = "N,…", value_delimiter = ',', allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(1..=MOST_TOGETHER))]
    batch_sizes: Vec<usize>,
    /// Measurements of each
    #[arg(long, value_name = "N", default_value_t = 5, allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(1..=MOST_ITERATIONS))]
    iterations: usize,
    /// Runs before the measurements that are not counted
    #[arg(long, value_name = "N", default_value_t = 1, allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(0..=MOST_ITERATIONS))]
    warmup: usize,
    #[command(flatten)]
    mode: Mode,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Write the results to a file as well, in the format of its ending: .json, .csv or .md
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    /// Draw curves over --threads, --ctx and --batch-sizes into an SVG file
    #[arg(long, value_name = "FILE.svg", help_heading = "Output")]
    #[arg(conflicts_with_all = ["load", "kernel_bench", "ablation", "modes", "phases"])]
    plot: Option<PathBuf>,
}

/// Measurements of something else than a model's speed.
#[derive(clap::Args)]
#[command(next_help_heading = "Other measurements")]
struct Mode {
    /// Measure loading in each way: seconds, GB/s of rearranging weights, memory
    #[arg(long, conflicts_with_all = ["simd_level", "prompt_tokens", "max_tokens", "ctx", "batch_sizes", "warmup"])]
    load: bool,
    /// Measure the integer product alone, beside a naive one; needs no model
    #[arg(long, conflicts_with_all = ["load", "head", "prompt_tokens", "max_tokens", "ctx", "batch_sizes", "warmup"])]
    kernel_bench: bool,
    /// Measure what each step from plain code to the engine's brings, for a product and for the model; the last step has the
    /// greatest of --threads
    #[arg(long, conflicts_with_all = ["load", "kernel_bench", "simd_level", "ctx", "batch_sizes"])]
    ablation: bool,
    /// Answer six prompts in three ways: one by one, by several engines with a share of the threads each, and together; with
    /// the greatest of --threads
    #[arg(long, conflicts_with_all = ["load", "kernel_bench", "ablation", "simd_level", "ctx", "batch_sizes", "warmup"])]
    modes: bool,
    /// Measure where the time of a step goes, phase by phase, and how much of it threads wait for each other: a prompt, and as
    /// many sequences as --batch-sizes says, with the greatest of --threads
    #[arg(long, conflicts_with_all = ["load", "kernel_bench", "ablation", "modes", "simd_level", "warmup"])]
    phases: bool,
    /// Rows and columns of the product, as 4096x4096; --kernel-bench takes several [default: 4096x4096]
    #[arg(long, value_name = "ROWSxCOLS", value_delimiter = ',', value_parser = parse_shape)]
    shape: Vec<(usize, usize)>,
    /// How the product's weights lie in memory, as 2bit,1.6bit [default: as the engine packs them]
    #[arg(long, value_name = "FORM,…", value_delimiter = ',', requires = "kernel_bench")]
    packing: Vec<Packing>,
    /// Tokens that the product has at once [default: 1,64]
    #[arg(long, value_name = "N,…", value_delimiter = ',', allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(1..=MOST_TOGETHER))]
    batch: Vec<usize>,
}

pub fn run(args: &BenchmarkArgs, console: &Console) -> Result<()> {
    let format = args.output.as_deref().map(Format::of).transpose()?;
    check(args)?;
    let threads = match args.threads.is_empty() {
        true => vec![threads::decide(0, threads::environment, &Topology::detect())?.count],
        false => args.threads.clone(),
    };
    if args.mode.kernel_bench {
        return run_kernel(args, threads, format, console);
    }
    let path = args.model.as_ref().map(|source| resolve(source, console)).transpose()?;
    if path.is_none() {
        drop(demo(console)?); // its note, or the error that there is none
    }
    let open = || opened(path.as_deref());
    match &args.mode {
        Mode { load: true, .. } => run_load(args, &open, &threads, format, console),
        Mode { modes: true, .. } => run_modes(args, &open, &threads, format, console),
        Mode { phases: true, .. } => run_phases(args, &open, &threads, format, console),
        Mode { ablation: true, .. } => run_ablation(args, &open, &threads, format, console),
        _ => run_model(args, &open, threads, format, console),
    }
}

fn check(args: &BenchmarkArgs) -> Result<()> {
    let product = args.mode.kernel_bench || args.mode.ablation;
    if !(product || args.mode.shape.is_empty() && args.mode.batch.is_empty()) {
        return Err(Failure::input("--shape and --batch are for a product, and none is measured")
            .hint("add --kernel-bench or --ablation; sequences together are --batch-sizes")
            .into());
    }
    if args.mode.ablation && args.mode.shape.len() > 1 {
        return Err(Failure::input("--ablation takes one --shape").into());
    }
    if let Some(path) = &args.plot
        && path.extension().is_none_or(|ending| ending != "svg")
    {
        let name = path.display();
        return Err(Failure::input(format!("{name}: plots are SVG"))
            .hint("end the name in .svg")
            .into());
    }
    check_levels(&args.simd_level)
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

fn run_model(
    args: &BenchmarkArgs,
    open: &dyn Fn() -> ModelBuilder,
    threads: Vec<usize>,
    format: Option<Format>,
    console: &Console,
) -> Result<()> {
    let config = BenchConfig {
        threads,
        simd_levels: args.simd_level.clone(),
        prompt_tokens: args.prompt_tokens.unwrap_or(512),
        generated_tokens: args.max_tokens.unwrap_or(128),
        depths: args.ctx.clone(),
        batch_sizes: args.batch_sizes.clone(),
        iterations: args.iterations,
        warmup: args.warmup,
    };
    let report =
        with_bar(console, |progress| bench::run(open, &model_config(args), &config, progress))?;
    warn(&report, console);
    if let Some(path) = &args.plot {
        output::write(path, &plot::svg(&report)?)?;
    }
    deliver(args, format, &report, &model::document(&report))?;
    verdict(report.is_right())
}

/// How the model runs, but for what is varied.
fn model_config(args: &BenchmarkArgs) -> ModelConfig {
    ModelConfig { head: args.head, ..ModelConfig::default() }
}

fn run_kernel(
    args: &BenchmarkArgs,
    threads: Vec<usize>,
    format: Option<Format>,
    console: &Console,
) -> Result<()> {
    let config = KernelConfig {
        shapes: or(&args.mode.shape, &[(4096, 4096)]),
        batches: or(&args.mode.batch, &[1, 64]),
        threads,
        simd_levels: args.simd_level.clone(),
        packings: args.mode.packing.clone(),
        iterations: args.iterations,
    };
    let report = with_bar(console, |progress| bench::kernel::run(&config, progress))?;
    warn_of_build(&report.build, console);
    deliver(args, format, &report, &kernel::document(&report))?;
    verdict(report.is_right())
}

fn run_ablation(
    args: &BenchmarkArgs,
    open: &dyn Fn() -> ModelBuilder,
    threads: &[usize],
    format: Option<Format>,
    console: &Console,
) -> Result<()> {
    let model = BenchConfig {
        prompt_tokens: args.prompt_tokens.unwrap_or(64),
        generated_tokens: args.max_tokens.unwrap_or(16),
        iterations: args.iterations,
        warmup: args.warmup,
        ..BenchConfig::default()
    };
    let config = AblationConfig {
        shape: args.mode.shape.first().copied().unwrap_or((4096, 4096)),
        batches: or(&args.mode.batch, &[1, 64]),
        threads: threads.iter().copied().max().unwrap_or(1),
        iterations: args.iterations,
        model: Some(model),
    };
    let report = with_bar(console, |progress| {
        bench::ablation::run(open, &model_config(args), &config, progress)
    })?;
    warn_of_build(&report.build, console);
    deliver(args, format, &report, &ablation::document(&report))?;
    verdict(report.is_right())
}

fn run_modes(
    args: &BenchmarkArgs,
    open: &dyn Fn() -> ModelBuilder,
    threads: &[usize],
    format: Option<Format>,
    console: &Console,
) -> Result<()> {
    let config = ModesConfig {
        prompts: 6,
        threads: threads.iter().copied().max().unwrap_or(1),
        prompt_tokens: args.prompt_tokens.unwrap_or(64),
        generated_tokens: args.max_tokens.unwrap_or(64),
        iterations: args.iterations,
    };
    let report = with_bar(console, |progress| {
        bench::modes::run(open, &model_config(args), &config, progress)
    })?;
    warn_of_build(&report.build, console);
    deliver(args, format, &report, &modes::document(&report))?;
    verdict(report.is_right())
}

fn run_phases(
    args: &BenchmarkArgs,
    open: &dyn Fn() -> ModelBuilder,
    threads: &[usize],
    format: Option<Format>,
    console: &Console,
) -> Result<()> {
    let config = PhasesConfig {
        threads: threads.iter().copied().max().unwrap_or(1),
        prompt_tokens: args.prompt_tokens.unwrap_or(512),
        generated_tokens: args.max_tokens.unwrap_or(64),
        depth: args.ctx.first().copied().unwrap_or(0),
        batch_sizes: or(&args.batch_sizes, &[1]),
        iterations: args.iterations,
    };
    let report = with_bar(console, |progress| {
        bench::phases::run(open, &model_config(args), &config, progress)
    })?;
    warn_of_build(&report.build, console);
    deliver(args, format, &report, &phases::document(&report))
}

fn run_load(
    args: &BenchmarkArgs,
    open: &dyn Fn() -> ModelBuilder,
    threads: &[usize],
    format: Option<Format>,
    console: &Console,
) -> Result<()> {
    // On the disk where packed weights are kept otherwise, and not among them. One name for all, so that what a benchmark that
    // was stopped has left is used and deleted by the next.
    let folder = cache::folder(&|name| std::env::var_os(name));
    let folder = folder.map(|folder| folder.join("benchmark"));
    let report = with_bar(console, |progress| {
        let (config, iterations) = (model_config(args), args.iterations);
        bench::load::run(open, &config, folder.as_deref(), threads, iterations, progress)
    })?;
    warn_of_build(&report.build, console);
    deliver(args, format, &report, &load::document(&report))
}

fn or<T: Clone>(given: &[T], default: &[T]) -> Vec<T> {
    if given.is_empty() { default.to_vec() } else { given.to_vec() }
}

/// To the file that was asked for, and to stdout.
fn deliver(
    args: &BenchmarkArgs,
    format: Option<Format>,
    report: &impl Serialize,
    document: &Document,
) -> Result<()> {
    if let (Some(path), Some(format)) = (&args.output, format) {
        output::write(path, &format.render(report, document)?)?;
    }
    let mut out = io::stdout().lock();
    match args.json {
        true => write!(out, "{}", output::json(report)?)?,
        false => write!(out, "{}", document.text())?,
    }
    Ok(out.flush()?)
}

/// Speed without the right results is no result.
fn verdict(right: bool) -> Result<()> {
    match right {
        true => Ok(()),
        false => Err(anyhow::anyhow!("not everything that ran computed what it should")),
    }
}

fn with_bar<T>(
    console: &Console,
    work: impl FnOnce(&mut dyn FnMut(BenchProgress)) -> Result<T, bitnet::Error>,
) -> Result<T> {
    let bar = bar(console);
    let result = work(&mut |now| {
        bar.set_length(now.total as u64);
        bar.set_position(now.done as u64);
        bar.set_message(now.what);
    });
    bar.finish_and_clear();
    Ok(result?)
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
    warn_of_build(&report.build, console);
    warnings(report).iter().for_each(|warning| console.warn(warning));
}

fn warn_of_build(build: &bench::Build, console: &Console) {
    if build.debug {
        console.warn("this is a debug build: --release is many times as fast");
    }
}

/// Measurements that differ by more than this are not the same speed.
const SPREAD: f64 = 0.05;
/// A share of the processors' time that is more than the system's own housekeeping.
const BUSY: f64 = 0.05;

fn warnings(report: &BenchReport) -> Vec<String> {
    let processors = report.machine.processors as f64;
    let mut counts: Vec<_> =
        report.cases.iter().filter(|case| case.oversubscribed).map(|case| case.threads).collect();
    counts.sort_unstable();
    counts.dedup();
    let oversubscribed = |count: usize| {
        format!("{count} threads are more than the {processors} processors: {processors} are used")
    };
    let mut warnings: Vec<_> = counts.into_iter().map(oversubscribed).collect();

    let lines: Vec<_> =
        report.cases.iter().filter_map(Case::measurement).flat_map(|m| &m.lines).collect();
    let wide: Vec<_> = lines.iter().filter(|line| line.rate.spread > SPREAD).collect();
    let widest = wide.iter().map(|line| line.rate.spread).fold(0.0, f64::max);
    if !wide.is_empty() {
        warnings.push(format!(
            "{} of {} measurements differ by more than {:.0} % between runs, by up to {:.0} %: the machine was not quiet, or its clock changed",
            wide.len(),
            lines.len(),
            100.0 * SPREAD,
            100.0 * widest
        ));
    }
    let most = |value: fn(&bench::Conditions) -> Option<f64>| {
        lines.iter().filter_map(|line| value(&line.conditions)).fold(0.0, f64::max)
    };
    let others = most(|conditions| conditions.other_processes);
    if others > BUSY * processors {
        warnings.push(format!(
            "other processes used up to {others:.1} of {processors} processors meanwhile: they slow it down"
        ));
    }
    let stolen = most(|conditions| conditions.stolen);
    if stolen > BUSY * processors {
        warnings.push(format!(
            "the hypervisor took up to {stolen:.1} of {processors} processors for others"
        ));
    }
    let throttled: u64 = lines.iter().filter_map(|line| line.conditions.throttled).sum();
    if throttled > 0 {
        warnings.push(format!("processors slowed down {throttled} times because of heat"));
    }
    warnings
}

#[cfg(all(test, feature = "demo-model"))]
mod tests;
