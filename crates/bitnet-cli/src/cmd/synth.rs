//! `synth`: a model file with random weights, for studies of size and speed that need no download.

mod plan;
mod preset;
mod vocabulary;
mod weights;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use bitnet::{Checkpoint, Error, OpenOptions};
use bitnet_kernels::dense::DenseType;
use bitnet_model::decoder::free_bytes;
use bitnet_model::format::gguf::write::{self, TensorType};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use self::plan::Plan;
use self::preset::{Dimensions, Preset};
use crate::console::Console;
use crate::failure::{Failure, Interrupted};
use crate::interrupt::{self, Watch};
use crate::{numbers, output_file, report};

/// Write a GGUF file with random ternary weights, as large and as fast as a real model of its dimensions
#[derive(clap::Args)]
pub struct SynthArgs {
    /// Dimensions of a published model [default: those of 2b-4t]
    #[arg(long, value_name = "NAME")]
    preset: Option<Preset>,
    /// File to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    sizes: Sizes,
    /// Encoding of the ternary weights
    #[arg(long = "type", value_name = "TYPE", default_value = "i2_s")]
    ternary: Ternary,
    /// Encoding of embedding and output head
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    head: Head,
    /// Same seed, same file
    #[arg(long, value_name = "N", default_value_t = 0, allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(0..=u64::MAX))]
    seed: u64,
}

/// Dimensions that replace the preset's
#[derive(clap::Args)]
pub struct Sizes {
    /// Width of the residual stream
    #[arg(long, value_name = "N", value_parser = size(), allow_hyphen_values = true, help_heading = "Dimensions")]
    hidden: Option<u32>,
    /// Width of the feed-forward layer
    #[arg(long, value_name = "N", value_parser = size(), allow_hyphen_values = true, help_heading = "Dimensions")]
    ffn: Option<u32>,
    /// Decoder layers
    #[arg(long, value_name = "N", value_parser = size(), allow_hyphen_values = true, help_heading = "Dimensions")]
    layers: Option<u32>,
    /// Query heads [default: as many as fill the hidden size]
    #[arg(long, value_name = "N", value_parser = size(), allow_hyphen_values = true, help_heading = "Dimensions")]
    heads: Option<u32>,
    /// Key and value heads [default: as many as query heads]
    #[arg(long, value_name = "N", value_parser = size(), allow_hyphen_values = true, help_heading = "Dimensions")]
    kv_heads: Option<u32>,
    /// Width of a head
    #[arg(long, value_name = "N", value_parser = size(), allow_hyphen_values = true, help_heading = "Dimensions")]
    head_dim: Option<u32>,
    /// Tokens of the vocabulary
    #[arg(long, value_name = "N", value_parser = size(), allow_hyphen_values = true, help_heading = "Dimensions")]
    vocab: Option<u32>,
}

fn size() -> impl Fn(&str) -> Result<u32, String> + Clone + Send + Sync {
    numbers::whole(1..=1 << 24)
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Ternary {
    #[value(name = "i2_s")]
    I2S,
    #[value(name = "tq2_0")]
    Tq2_0,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Head {
    F16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q6_k")]
    Q6K,
}

pub fn run(args: &SynthArgs, console: &Console) -> Result<()> {
    let begin = Instant::now();
    check_output(args)?;
    let dimensions = Dimensions::new(args.preset, &args.sizes)?;
    let plan = plan(&dimensions, args)?;
    output_file::check(&args.output)?;
    check_space(&plan, &args.output)?;
    console.note(&announcement(&dimensions, &plan, args));
    interrupt::install()?;
    write(&plan, args, console)?;
    let checkpoint =
        Checkpoint::open(&args.output, &OpenOptions::default()).map_err(Error::from)?;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}: {}, {} parameters, written in {}",
        args.output.display(),
        report::bytes(checkpoint.size_bytes()),
        plan.parameters(),
        report::seconds(begin.elapsed()),
    )?;
    Ok(out.flush()?)
}

/// What is about to be written, of which the command line may have said little.
fn announcement(it: &Dimensions, plan: &Plan, args: &SynthArgs) -> String {
    let Dimensions { name, hidden, ffn, layers, heads, kv_heads, vocab, .. } = it;
    let named = |value: &dyn Fn() -> Option<clap::builder::PossibleValue>| {
        value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    };
    let ternary = named(&|| args.ternary.to_possible_value());
    let head = named(&|| args.head.to_possible_value());
    let bytes = report::bytes(plan.bytes());
    format!(
        "{name}: {layers} layers, hidden size {hidden}, feed-forward {ffn}, {heads} heads ({kv_heads} for keys and values), \
         {vocab} tokens, {ternary} with {head}: {bytes}"
    )
}

/// Refuses a file for which there is no room, where the system tells.
fn check_space(plan: &Plan, output: &Path) -> Result<(), Failure> {
    let folder = output.parent().filter(|folder| !folder.as_os_str().is_empty());
    let (needed, free) = (plan.bytes(), free_bytes(folder.unwrap_or(Path::new("."))));
    match free.filter(|free| *free < needed) {
        None => Ok(()),
        Some(free) => {
            let (shown, needed, free) =
                (output.display(), report::bytes(needed), report::bytes(free));
            let message = format!("{shown}: {needed} are needed, and the disk has {free} free");
            Err(Failure::input(message).hint("name a file on another disk, or a smaller model"))
        }
    }
}

/// Renaming would put a file in the place of a device, pipe or link, for everyone on the machine: `--force` is for files.
fn check_output(args: &SynthArgs) -> Result<(), Failure> {
    let refuse =
        |what, hint| Err(Failure::input(format!("{} {what}", args.output.display())).hint(hint));
    match fs::symlink_metadata(&args.output) {
        Ok(found) if !found.is_file() => {
            refuse("is no ordinary file, expected one to write", "name another file")
        }
        Ok(_) if !args.force => {
            refuse("exists already", "name another file, or replace it with --force")
        }
        _ => Ok(()),
    }
}

fn plan(dimensions: &Dimensions, args: &SynthArgs) -> Result<Plan> {
    let ternary = match args.ternary {
        Ternary::I2S => TensorType::I2S,
        Ternary::Tq2_0 => TensorType::Tq2_0,
    };
    let head = match args.head {
        Head::F16 => DenseType::F16,
        Head::Q8_0 => DenseType::Q8_0,
        Head::Q6K => DenseType::Q6K,
    };
    Plan::new(dimensions, ternary, head, args.seed)
}

/// Writes beside the file first, so that its name never stands for half a model.
fn write(plan: &Plan, args: &SynthArgs, console: &Console) -> Result<()> {
    let mut partial = args.output.clone().into_os_string();
    partial.push(".incomplete");
    let partial = PathBuf::from(partial);
    let watch = Watch::start();
    let result = write_file(plan, &partial, &bar(plan, console), &watch)
        .and_then(|()| fs::rename(&partial, &args.output));
    if result.is_err() {
        let _ = fs::remove_file(&partial); // the error that led here is the one to tell
    }
    if watch.pressed() && result.is_err() {
        return Err(Interrupted.into());
    }
    result.with_context(|| format!("{} cannot be written", args.output.display()))
}

fn write_file(plan: &Plan, path: &Path, bar: &ProgressBar, watch: &Watch) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    weights::in_order(plan, |pieces| {
        write::write(&mut out, plan.metadata(), plan.tensors(), |tensor, out| {
            for _ in plan.pieces_of(tensor) {
                let piece = pieces.next().expect("there are as many pieces as the plan has")?;
                if watch.pressed() {
                    return Err(io::Error::other("interrupted"));
                }
                out.write_all(&piece)?;
                bar.inc(piece.len() as u64);
            }
            Ok(())
        })
    })?;
    bar.finish_and_clear();
    out.flush()
}

fn bar(plan: &Plan, console: &Console) -> ProgressBar {
    if !console.has_bars() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "writing {bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec}",
    )
    .expect("the template is well-formed")
    .progress_chars("##-");
    ProgressBar::with_draw_target(Some(plan.bytes()), ProgressDrawTarget::stderr())
        .with_style(style)
}
