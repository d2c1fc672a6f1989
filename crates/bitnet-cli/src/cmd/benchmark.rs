//! `benchmark`: tokens per second beside what memory and arithmetic give at best.

mod ablation;
mod args;
mod fit;
mod kernel;
mod load;
mod model;
mod modes;
mod output;
mod overhead;
mod phases;
mod plot;
mod sheet;
mod traffic;
mod warnings;

use std::io::{self, Write};

use anyhow::Result;
use bitnet::bench::ablation::AblationConfig;
use bitnet::bench::kernel::KernelConfig;
use bitnet::bench::modes::ModesConfig;
use bitnet::bench::overhead::OverheadConfig;
use bitnet::bench::phases::PhasesConfig;
use bitnet::bench::traffic::TrafficConfig;
use bitnet::bench::{self, BenchConfig, BenchProgress};
use bitnet::{BitNetModel, ModelBuilder, ModelConfig};
use bitnet_kernels::cpu::topology::Topology;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

pub use self::args::BenchmarkArgs;
use self::args::Mode;
use self::output::Format;
use self::sheet::Document;
use self::warnings::warnings;
use crate::args::ThreadArgs;
use crate::cache;
use crate::console::Console;
use crate::failure::Failure;
use crate::load::{demo, resolve};
use crate::output_file;
use crate::threads;

pub fn run(args: &BenchmarkArgs, console: &Console) -> Result<()> {
    let format = args.output.as_deref().map(Format::of).transpose()?;
    args.check()?;
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
        Mode { overhead: true, .. } => subject.overhead(),
        _ => subject.model(),
    }
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

    fn overhead(&self) -> Result<()> {
        let args = self.args;
        let fitting = bench::context_of(self.open)?.saturating_sub(64);
        let config = OverheadConfig {
            threads: self.most_threads(),
            shared_tokens: args.prompt_tokens.unwrap_or(fitting.min(512)),
            generated_tokens: args.max_tokens.unwrap_or(64),
            iterations: args.iterations,
        };
        let report = with_bar(self.console, |progress| {
            bench::overhead::run(self.open, &self.model, &config, progress)
        })?;
        self.end(&report.build, &report, &overhead::document(&report))?;
        verdict(report.is_right())
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
