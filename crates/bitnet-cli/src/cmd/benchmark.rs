//! `benchmark`: tokens per second beside what memory and arithmetic give at best.

mod ablation;
mod fit;
mod kernel;
mod load;
mod model;
mod modes;
mod output;
mod phases;
mod plot;
mod sheet;
mod traffic;
mod warnings;

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use bitnet::bench::ablation::AblationConfig;
use bitnet::bench::kernel::{KernelConfig, parse_shape};
use bitnet::bench::modes::ModesConfig;
use bitnet::bench::phases::PhasesConfig;
use bitnet::bench::traffic::TrafficConfig;
use bitnet::bench::{self, BenchConfig, BenchProgress};
use bitnet::{BitNetModel, HeadType, KvType, ModelBuilder, ModelConfig};
use bitnet_kernels::cpu::topology::Topology;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use self::output::Format;
use self::sheet::Document;
use self::warnings::warnings;
use crate::args::{ModelSource, PackingArg, ThreadArgs, kv_types};
use crate::cache;
use crate::console::Console;
use crate::failure::Failure;
use crate::load::{demo, resolve};
use crate::numbers;
use crate::output_file;
use crate::threads::{self, PlacementArgs};

/// More tokens than any model looks back on; sums of a few of them do not overflow.
const MOST_TOKENS: usize = 1 << 20;
/// More sequences, and more tokens of a product, than anybody computes together.
const MOST_TOGETHER: usize = 1 << 16;
/// More measurements than anybody waits for.
const MOST_ITERATIONS: usize = 10_000;

/// Measure how fast a model runs here, and how near that is to what the machine can do
///
/// Prompt and generation are measured apart: the prompt's speed until its first token, the generation's after a prompt.
/// Right before and after each single measurement come probes of the memory's read bandwidth and of the multiply-add peak with
/// the same threads, and the shares that are printed are medians of the measurements' ratios to them. "of read" counts all bytes
/// that a token reads, "of peak" the products of ternary weights; "of bound" is against the less of what both probes allow, all
/// integer products counted: two for each weight of an int8 head and for each number of int8 KV, as the other factor has sixteen
/// bits. Several values of --threads, --simd-level, --packing, --head and --kv-dtype make a case of each combination, judged by
/// the bytes that it read itself. Before all, the scalar code on one thread says which tokens and logits are right; a case that
/// gives others is reported as wrong, and the exit code is 1.
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
    #[command(flatten)]
    placement: PlacementArgs,
    /// How ternary weights lie in memory, as 2bit,1.6bit; auto: what a short timing while loading finds faster [default: auto; with
    /// --kernel-bench 2bit,1.6bit]
    #[arg(long, value_name = "FORM,…", value_delimiter = ',')]
    packing: Vec<PackingArg>,
    /// How the output head is held, as int8,two-stage: int8, two-stage (the same logits, found by reading two bits a weight; needs
    /// a quarter more memory), or file (as the model file has it: slower, the reference) [default: int8]
    #[arg(long, value_name = "FORM,…", value_delimiter = ',')]
    head: Vec<HeadType>,
    /// Number types in which the keys and values of earlier tokens are kept, as f16,int8 [default: f16]
    #[arg(long, value_name = "TYPE,…", value_delimiter = ',', value_parser = kv_types())]
    kv_dtype: Vec<KvType>,
    /// Tokens of the prompt; 0 leaves it out [default: 512, or what the model's context holds; with --ablation and --modes 64, with
    /// --traffic 128]
    #[arg(short, long, value_name = "TOKENS", allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(0..=MOST_TOKENS))]
    prompt_tokens: Option<usize>,
    /// Tokens to generate in each measurement; 0 leaves it out [default: 128; with --ablation 16, with --modes and --traffic 64]
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
    /// Keep weights and caches from being paged out; an error where the system does not allow it
    #[arg(long)]
    #[arg(conflicts_with_all = ["load", "kernel_bench"])]
    mlock: bool,
    #[command(flatten)]
    mode: Mode,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Write the results to a file as well, in the format of its ending: .json, .csv or .md
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    /// Draw curves over those of --threads, --ctx and --batch-sizes that have several values, as threads.svg, context.svg and
    /// batch.svg in this folder: tokens/s, and the share of what the machine allows
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    #[arg(conflicts_with_all = ["load", "kernel_bench", "ablation", "modes", "phases", "traffic"])]
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
    #[arg(long, conflicts_with_all = ["load", "head", "kv_dtype", "PlacementArgs", "prompt_tokens", "max_tokens", "ctx", "batch_sizes", "warmup"])]
    kernel_bench: bool,
    /// Measure what each step from plain code to the engine's brings, for a product and for the model; the last step has the
    /// greatest of --threads
    #[arg(long, conflicts_with_all = ["load", "kernel_bench", "simd_level", "packing", "ctx", "batch_sizes"])]
    ablation: bool,
    /// Answer six prompts in three ways: one by one, by several engines with a share of the threads each, and together; with
    /// the greatest of --threads
    #[arg(long, conflicts_with_all = ["load", "kernel_bench", "ablation", "simd_level", "ctx", "batch_sizes", "warmup"])]
    modes: bool,
    /// Measure where the time of a step goes, phase by phase, and how much of it threads wait for each other: a prompt, and as
    /// many sequences as --batch-sizes says, with the greatest of --threads
    #[arg(long, conflicts_with_all = ["load", "kernel_bench", "ablation", "modes", "simd_level", "warmup"])]
    phases: bool,
    /// Send requests at random times and measure how long they wait for the first token, and how evenly the next ones come
    #[arg(long, conflicts_with_all = ["load", "kernel_bench", "ablation", "modes", "phases", "simd_level", "ctx", "batch_sizes", "iterations", "warmup"])]
    traffic: bool,
    /// Requests of --traffic
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20,
        allow_hyphen_values = true,
        requires = "traffic"
    )]
    #[arg(value_parser = numbers::whole(1..=MOST_TOGETHER))]
    requests: usize,
    /// Requests per second of --traffic, as a share of those that can be answered
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.8,
        allow_hyphen_values = true,
        requires = "traffic"
    )]
    #[arg(value_parser = numbers::real)]
    load_factor: f32,
    /// Milliseconds that a step may take while there are answers, one case for each; 0: any time [default: 100,0]
    #[arg(
        long,
        value_name = "MS,…",
        value_delimiter = ',',
        allow_hyphen_values = true,
        requires = "traffic"
    )]
    #[arg(value_parser = numbers::whole(0..=86_400_000u64))]
    step_target: Vec<u64>,
    /// Rows and columns of the product, as 4096x4096; --kernel-bench takes several [default: 4096x4096]
    #[arg(long, value_name = "ROWSxCOLS", value_delimiter = ',', value_parser = parse_shape)]
    shape: Vec<(usize, usize)>,
    /// Tokens that the product has at once [default: 1,64]
    #[arg(long, value_name = "N,…", value_delimiter = ',', allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(1..=MOST_TOGETHER))]
    batch: Vec<usize>,
}

pub fn run(args: &BenchmarkArgs, console: &Console) -> Result<()> {
    let format = args.output.as_deref().map(Format::of).transpose()?;
    check(args)?;
    if let Some(file) = &args.output {
        output_file::check(file)?;
    }
    if let Some(folder) = &args.plot {
        std::fs::create_dir_all(folder).map_err(|error| {
            Failure::input(format!("{}: cannot be made: {error}", folder.display()))
        })?;
        output_file::check(&folder.join("threads.svg"))?;
    }
    let most = args.threads.iter().copied().max().unwrap_or(0);
    let threads = ThreadArgs { threads: most, threads_batch: 0, placement: args.placement.clone() };
    let chosen = threads::choose(&threads, &threads::environment, &Topology::detect())?;
    let threads = match args.threads.is_empty() {
        true => vec![chosen.plan.decode],
        false => args.threads.clone(),
    };
    if args.mode.kernel_bench {
        return run_kernel(args, threads, format, console);
    }
    chosen.warnings.iter().for_each(|warning| console.warn(warning));
    let path = args.model.as_ref().map(|source| resolve(source, console)).transpose()?;
    if path.is_none() {
        drop(demo(console)?); // its note, or the error that there is none
    }
    let mut model = model_config(args);
    chosen.apply(&mut model);
    let subject = Subject {
        args,
        open: &|| opened(path.as_deref()),
        model,
        threads: &threads,
        format,
        console,
    };
    match &args.mode {
        Mode { load: true, .. } => subject.load(),
        Mode { modes: true, .. } => subject.modes(),
        Mode { phases: true, .. } => subject.phases(),
        Mode { ablation: true, .. } => subject.ablation(),
        Mode { traffic: true, .. } => subject.traffic(),
        _ => subject.model(),
    }
}

fn check(args: &BenchmarkArgs) -> Result<()> {
    let mode = &args.mode;
    let product = mode.kernel_bench || mode.ablation;
    if !(product || mode.shape.is_empty() && mode.batch.is_empty()) {
        return Err(Failure::input("--shape and --batch are for a product, and none is measured")
            .hint("add --kernel-bench or --ablation; sequences together are --batch-sizes")
            .into());
    }
    if mode.ablation && mode.shape.len() > 1 {
        return Err(Failure::input("--ablation takes one --shape").into());
    }
    if mode.kernel_bench && args.packing.contains(&PackingArg::Auto) {
        return Err(Failure::input("--kernel-bench with --packing auto: no model is loaded")
            .hint("give 2bit, 1.6bit or both")
            .into());
    }
    if mode.load || mode.modes || mode.phases || mode.ablation || mode.traffic {
        for (name, count) in [
            ("--packing", args.packing.len()),
            ("--head", args.head.len()),
            ("--kv-dtype", args.kv_dtype.len()),
        ] {
            if count > 1 {
                let message = format!("{name} takes one value with another measurement");
                let hint = "several are compared where none of --load, --modes, --phases, --ablation and --traffic is given";
                return Err(Failure::input(message).hint(hint).into());
            }
        }
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

/// How the model runs, but for its threads and for what is varied.
fn model_config(args: &BenchmarkArgs) -> ModelConfig {
    let default = ModelConfig::default();
    ModelConfig {
        packing: args.packing.first().map_or(default.packing, |packing| packing.packing()),
        head: args.head.first().copied().unwrap_or(default.head),
        kv_dtype: args.kv_dtype.first().copied().unwrap_or(default.kv_dtype),
        lock_memory: args.mlock,
        ..default
    }
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
        packings: args.packing.iter().filter_map(|packing| packing.packing()).collect(),
        iterations: args.iterations,
    };
    let report = with_bar(console, |progress| bench::kernel::run(&config, progress))?;
    warn_of_build(&report.build, console);
    deliver(args, format, &report, &kernel::document(&report))?;
    verdict(report.is_right())
}

/// A model that is measured in one way or another.
struct Subject<'a> {
    args: &'a BenchmarkArgs,
    open: &'a dyn Fn() -> ModelBuilder,
    model: ModelConfig,
    threads: &'a [usize],
    format: Option<Format>,
    console: &'a Console,
}

impl Subject<'_> {
    fn most_threads(&self) -> usize {
        self.threads.iter().copied().max().unwrap_or(1)
    }

    /// Hands a report out, after what makes it worth less.
    fn end(
        &self,
        build: &bench::Build,
        report: &impl Serialize,
        document: &Document,
    ) -> Result<()> {
        warn_of_build(build, self.console);
        deliver(self.args, self.format, report, document)
    }

    fn model(&self) -> Result<()> {
        let args = self.args;
        let mut config = BenchConfig {
            threads: self.threads.to_vec(),
            simd_levels: args.simd_level.clone(),
            packings: args.packing.iter().map(|packing| packing.packing()).collect(),
            heads: args.head.clone(),
            kv_dtypes: args.kv_dtype.clone(),
            prompt_tokens: args.prompt_tokens.unwrap_or(512),
            generated_tokens: args.max_tokens.unwrap_or(128),
            depths: args.ctx.clone(),
            batch_sizes: args.batch_sizes.clone(),
            iterations: args.iterations,
            warmup: args.warmup,
        };
        let given = (args.prompt_tokens.is_some(), args.max_tokens.is_some());
        if let Some(note) = fit::fit(&mut config, given, bench::context_of(self.open)?) {
            self.console.note(&note);
        }
        let report = with_bar(self.console, |progress| {
            bench::run(self.open, &self.model, &config, progress)
        })?;
        warnings(&report).iter().for_each(|warning| self.console.warn(warning));
        if let Some(folder) = &args.plot {
            let pictures = plot::pictures(&report, &command())?;
            for (name, picture) in pictures {
                output::write(&folder.join(name), &picture)?;
            }
        }
        self.end(&report.build, &report, &model::document(&report))?;
        verdict(report.is_right())
    }

    fn ablation(&self) -> Result<()> {
        let args = self.args;
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
            threads: self.most_threads(),
            iterations: args.iterations,
            model: Some(model),
        };
        let report = with_bar(self.console, |progress| {
            bench::ablation::run(self.open, &self.model, &config, progress)
        })?;
        self.end(&report.build, &report, &ablation::document(&report))?;
        verdict(report.is_right())
    }

    fn modes(&self) -> Result<()> {
        let config = ModesConfig {
            prompts: 6,
            threads: self.most_threads(),
            prompt_tokens: self.args.prompt_tokens.unwrap_or(64),
            generated_tokens: self.args.max_tokens.unwrap_or(64),
            iterations: self.args.iterations,
        };
        let report = with_bar(self.console, |progress| {
            bench::modes::run(self.open, &self.model, &config, progress)
        })?;
        self.end(&report.build, &report, &modes::document(&report))?;
        verdict(report.is_right())
    }

    fn phases(&self) -> Result<()> {
        let args = self.args;
        let depths = args.ctx.first().copied().into_iter().collect();
        let mut fitted = BenchConfig {
            prompt_tokens: args.prompt_tokens.unwrap_or(512),
            generated_tokens: args.max_tokens.unwrap_or(64),
            depths,
            iterations: 1,
            warmup: 0,
            ..BenchConfig::default()
        };
        let given = (args.prompt_tokens.is_some(), args.max_tokens.is_some());
        if let Some(note) = fit::fit(&mut fitted, given, bench::context_of(self.open)?) {
            self.console.note(&note);
        }
        let config = PhasesConfig {
            threads: self.most_threads(),
            prompt_tokens: fitted.prompt_tokens,
            generated_tokens: fitted.generated_tokens,
            depth: args.ctx.first().copied().unwrap_or(0),
            batch_sizes: or(&args.batch_sizes, &[1]),
            iterations: args.iterations,
        };
        let report = with_bar(self.console, |progress| {
            bench::phases::run(self.open, &self.model, &config, progress)
        })?;
        self.end(&report.build, &report, &phases::document(&report))
    }

    fn traffic(&self) -> Result<()> {
        let args = self.args;
        let config = TrafficConfig {
            threads: self.most_threads(),
            requests: args.mode.requests,
            prompt_tokens: args.prompt_tokens.unwrap_or(128),
            generated_tokens: args.max_tokens.unwrap_or(64),
            load: args.mode.load_factor.into(),
            step_targets_ms: or(&args.mode.step_target, &[100, 0]),
        };
        let report = with_bar(self.console, |progress| {
            bench::traffic::run(self.open, &self.model, &config, progress)
        })?;
        self.end(&report.build, &report, &traffic::document(&report))
    }

    fn load(&self) -> Result<()> {
        // On the disk where packed weights are kept otherwise, and not among them. One name for all, so that what a benchmark
        // that was stopped has left is used and deleted by the next.
        let folder = cache::folder(&|name| std::env::var_os(name));
        let folder = folder.map(|folder| folder.join("benchmark"));
        let (threads, iterations) = (self.threads, self.args.iterations);
        let report = with_bar(self.console, |progress| {
            let folder = folder.as_deref();
            bench::load::run(self.open, &self.model, folder, threads, iterations, progress)
        })?;
        self.end(&report.build, &report, &load::document(&report))
    }
}

/// The command line, so that whoever sees a picture can make it again.
fn command() -> String {
    let quoted = |arg: std::ffi::OsString| {
        let arg = arg.to_string_lossy().into_owned();
        let plain = |c: char| c.is_alphanumeric() || "-_=.,:/+@%".contains(c);
        if !arg.is_empty() && arg.chars().all(plain) { arg } else { format!("'{arg}'") }
    };
    let args: Vec<_> = std::env::args_os().skip(1).map(quoted).collect();
    format!("bitnet-cli {}", args.join(" "))
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

/// A build that says nothing of the engine's speed.
fn warn_of_build(build: &bench::Build, console: &Console) {
    if build.debug {
        console.warn("this is a debug build: --release is many times as fast");
    }
}

#[cfg(all(test, feature = "demo-model"))]
mod tests;
