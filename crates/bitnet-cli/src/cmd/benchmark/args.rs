//! The arguments of `benchmark`, and which of them go together.

use std::path::PathBuf;

use anyhow::Result;
use bitnet::bench::kernel::parse_shape;
use bitnet::{HeadType, KvType};

use crate::args::{ModelSource, PackingArg, kv_types};
use crate::failure::Failure;
use crate::numbers;
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
    pub model: Option<ModelSource>,
    /// Numbers of compute threads, as 1,2,4; those above the number of processors are flagged [default: as for inference]
    #[arg(short, long, value_name = "N,…", value_delimiter = ',')]
    #[arg(allow_hyphen_values = true, value_parser = numbers::whole(1..=threads::MAX))]
    pub threads: Vec<usize>,
    /// SIMD levels, as sse,avx,avx2,avx512; those not available here are listed with the reason [default: the best]
    #[arg(long, value_name = "LEVEL,…", value_delimiter = ',')]
    pub simd_level: Vec<String>,
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// How ternary weights lie in memory, as 2bit,1.6bit; auto: what a short timing while loading finds faster [default: auto; with
    /// --kernel-bench 2bit,1.6bit]
    #[arg(long, value_name = "FORM,…", value_delimiter = ',')]
    pub packing: Vec<PackingArg>,
    /// How the output head is held, as int8,two-stage: int8, two-stage (the same logits, found by reading two bits a weight; needs
    /// a quarter more memory), or file (as the model file has it: slower, the reference) [default: int8]
    #[arg(long, value_name = "FORM,…", value_delimiter = ',')]
    pub head: Vec<HeadType>,
    /// Number types in which the keys and values of earlier tokens are kept, as f16,int8 [default: f16]
    #[arg(long, value_name = "TYPE,…", value_delimiter = ',', value_parser = kv_types())]
    pub kv_dtype: Vec<KvType>,
    /// Tokens of the prompt; 0 leaves it out [default: 512, or what the model's context holds; with --ablation and --modes 64, with
    /// --traffic 128, with --overhead what leaves 64]
    #[arg(short, long, value_name = "TOKENS", allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(0..=MOST_TOKENS))]
    pub prompt_tokens: Option<usize>,
    /// Tokens to generate in each measurement; 0 leaves it out [default: 128; with --ablation 16, with --modes, --traffic and
    /// --overhead 64]
    #[arg(short = 'n', long, value_name = "TOKENS", allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(0..=MOST_TOKENS))]
    pub max_tokens: Option<usize>,
    /// Tokens in the cache when a generation begins, as 0,1024,4000: one measurement for each [default: 0]
    #[arg(long, alias = "depth", value_name = "TOKENS,…", value_delimiter = ',')]
    #[arg(allow_hyphen_values = true, value_parser = numbers::whole(0..=MOST_TOKENS))]
    pub ctx: Vec<usize>,
    /// Numbers of sequences to generate together, as 1,8,32, with the first of --ctx [default: none]
    #[arg(long, value_name = "N,…", value_delimiter = ',', allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(1..=MOST_TOGETHER))]
    pub batch_sizes: Vec<usize>,
    /// Measurements of each
    #[arg(long, value_name = "N", default_value_t = 5, allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(1..=MOST_ITERATIONS))]
    pub iterations: usize,
    /// Runs before the measurements that are not counted
    #[arg(long, value_name = "N", default_value_t = 1, allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(0..=MOST_ITERATIONS))]
    pub warmup: usize,
    /// Keep weights and caches from being paged out; an error where the system does not allow it
    #[arg(long)]
    #[arg(conflicts_with_all = ["load", "kernel_bench"])]
    pub mlock: bool,
    #[command(flatten)]
    pub mode: Mode,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// Write the results to a file as well, in the format of its ending: .json, .csv or .md
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Draw curves over those of --threads, --ctx and --batch-sizes that have several values, as threads.svg, context.svg and
    /// batch.svg in this folder: tokens/s, and the share of what the machine allows
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    #[arg(conflicts_with_all = ["load", "kernel_bench", "ablation", "modes", "phases", "traffic", "overhead"])]
    pub plot: Option<PathBuf>,
}

/// Measurements of something else than a model's speed.
#[derive(clap::Args)]
#[command(next_help_heading = "Other measurements")]
pub struct Mode {
    /// Measure loading in each way: seconds, GB/s of rearranging weights, memory
    #[arg(long, conflicts_with_all = ["simd_level", "prompt_tokens", "max_tokens", "ctx", "batch_sizes", "warmup"])]
    pub load: bool,
    /// Measure the integer product alone, beside a naive one; needs no model
    #[arg(long, conflicts_with_all = ["load", "head", "kv_dtype", "PlacementArgs", "prompt_tokens", "max_tokens", "ctx", "batch_sizes", "warmup"])]
    pub kernel_bench: bool,
    /// Measure what each step from plain code to the engine's brings, for a product and for the model; the last step has the
    /// greatest of --threads
    #[arg(long, conflicts_with_all = ["load", "kernel_bench", "simd_level", "packing", "ctx", "batch_sizes"])]
    pub ablation: bool,
    /// Answer six prompts in three ways: one by one, by several engines with a share of the threads each, and together; with
    /// the greatest of --threads
    #[arg(long, conflicts_with_all = ["load", "kernel_bench", "ablation", "simd_level", "ctx", "batch_sizes", "warmup"])]
    pub modes: bool,
    /// Measure where the time of a step goes, phase by phase, and how much of it threads wait for each other: a prompt, and as
    /// many sequences as --batch-sizes says, with the greatest of --threads
    #[arg(long, conflicts_with_all = ["load", "kernel_bench", "ablation", "modes", "simd_level", "warmup"])]
    pub phases: bool,
    /// Send requests at random times and measure how long they wait for the first token, and how evenly the next ones come
    #[arg(long, conflicts_with_all = ["load", "kernel_bench", "ablation", "modes", "phases", "simd_level", "ctx", "batch_sizes", "iterations", "warmup"])]
    pub traffic: bool,
    /// Measure what the engine adds to the model: an answer alone beside a plain loop over the same weights, and prompts that begin
    /// with the same -p tokens, which are computed once
    #[arg(long, conflicts_with_all = ["load", "kernel_bench", "ablation", "modes", "phases", "traffic", "simd_level", "ctx", "batch_sizes", "warmup"])]
    pub overhead: bool,
    /// Requests of --traffic
    #[arg(
        long,
        value_name = "N",
        default_value_t = 20,
        allow_hyphen_values = true,
        requires = "traffic"
    )]
    #[arg(value_parser = numbers::whole(1..=MOST_TOGETHER))]
    pub requests: usize,
    /// Requests per second of --traffic, as a share of those that can be answered
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.8,
        allow_hyphen_values = true,
        requires = "traffic"
    )]
    #[arg(value_parser = numbers::real)]
    pub load_factor: f32,
    /// Milliseconds that a step may take while there are answers, one case for each; 0: any time [default: 100,0]
    #[arg(
        long,
        value_name = "MS,…",
        value_delimiter = ',',
        allow_hyphen_values = true,
        requires = "traffic"
    )]
    #[arg(value_parser = numbers::whole(0..=86_400_000u64))]
    pub step_target: Vec<u64>,
    /// Rows and columns of the product, as 4096x4096; --kernel-bench takes several [default: 4096x4096]
    #[arg(long, value_name = "ROWSxCOLS", value_delimiter = ',', value_parser = parse_shape)]
    pub shape: Vec<(usize, usize)>,
    /// Tokens that the product has at once [default: 1,64]
    #[arg(long, value_name = "N,…", value_delimiter = ',', allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(1..=MOST_TOGETHER))]
    pub batch: Vec<usize>,
}

impl BenchmarkArgs {
    /// Whether they make sense together.
    pub fn check(&self) -> Result<()> {
        let (args, mode) = (self, &self.mode);
        let product = mode.kernel_bench || mode.ablation;
        if !(product || mode.shape.is_empty() && mode.batch.is_empty()) {
            return Err(Failure::input(
                "--shape and --batch are for a product, and none is measured",
            )
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
        if mode.load || mode.modes || mode.phases || mode.ablation || mode.traffic || mode.overhead
        {
            for (name, count) in [
                ("--packing", args.packing.len()),
                ("--head", args.head.len()),
                ("--kv-dtype", args.kv_dtype.len()),
            ] {
                if count > 1 {
                    let message = format!("{name} takes one value with another measurement");
                    let hint = "several are compared where none of --load, --modes, --phases, --ablation, --traffic and --overhead is given";
                    return Err(Failure::input(message).hint(hint).into());
                }
            }
        }
        check_levels(&args.simd_level)
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
