//! What can be written on the command line. Doc comments are the help; groups that several subcommands share are here.

use std::ffi::OsString;
use std::path::PathBuf;

use bitnet::{
    Device, DraftStrategy, Error, GenerationConfig, HeadType, HiddenAct, I2sLayout, KvType,
    LoadingStrategy, ModelConfig, PackedLayout, Packing, SamplingStrategy,
};
use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Parser, ValueEnum};

use crate::cache::{self, CacheArgs};
use crate::cmd::Command;
use crate::console::ConsoleArgs;
use crate::failure::Failure;
use crate::threads::PlacementArgs;
use crate::{numbers, threads};

/// Run BitNet b1.58 (ternary) language models
#[derive(Parser)]
#[command(name = "bitnet-cli", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "\
Example: bitnet-cli run -p \"Once upon a time\"

Exit codes: 0 fine (also when the reader of the output leaves early, as in `| head`), 1 failed while running, 2 bad input, \
130 interrupted, 101 a bug.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub console: ConsoleArgs,
}

/// Which model, and how it runs
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A GGUF file, a model directory, or hf:OWNER/NAME [default: the built-in demo]
    #[arg(short, long, env = "BITNET_MODEL", hide_env_values = true, value_name = "MODEL")]
    #[arg(value_parser = ModelSource::parser())]
    pub model: Option<ModelSource>,
    #[command(flatten)]
    pub threads: ThreadArgs,
    /// Longest text in tokens, prompt and answer together [default: the model's]
    #[arg(short, long, value_name = "TOKENS", allow_hyphen_values = true, help_heading = MODEL)]
    #[arg(value_parser = numbers::whole(1..=u32::MAX))]
    pub ctx_size: Option<u32>,
    /// Number type in which the keys and values of earlier tokens are kept
    #[arg(long, value_name = "TYPE", default_value = "f16", help_heading = MODEL)]
    #[arg(value_parser = kv_types())]
    kv_dtype: KvType,
    /// How the output head is held: int8, two-stage (the same logits, found by reading two bits a weight; needs a
    /// quarter more memory), or file (as the model file has it: slower, the reference)
    #[arg(long, value_name = "FORM", default_value = "int8", help_heading = MODEL)]
    head: HeadType,
    /// SIMD level to use instead of the best one; `info` lists them
    #[arg(long, value_name = "LEVEL", help_heading = MODEL)]
    simd_level: Option<String>,
    /// Bits that a ternary weight takes in memory; auto: what a short timing finds faster
    #[arg(long, value_name = "BITS", default_value = "auto", help_heading = MODEL)]
    packing: PackingArg,
    /// Where to compute: auto or cpu
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = MODEL)]
    device: Device,
    /// Read files instead of mapping them into memory
    #[arg(long, help_heading = MODEL)]
    no_mmap: bool,
    /// Where weights are while the model runs: mmap, in mapped files that processes share; preload, in memory of its own; lazy,
    /// in mapped files with a few layers in memory at a time
    #[arg(long, value_name = "STRATEGY", default_value = "mmap", help_heading = MODEL)]
    load: LoadArg,
    /// Layers in memory at a time with --load lazy [default: 8]
    #[arg(long, value_name = "N", allow_hyphen_values = true, help_heading = MODEL)]
    #[arg(value_parser = numbers::whole(1..=usize::MAX))]
    max_layers_in_memory: Option<usize>,
    /// Keep weights and caches from being paged out; a warning where the system does not allow it
    #[arg(long, help_heading = MODEL)]
    mlock: bool,
    #[command(flatten)]
    cache: CacheArgs,
    /// Byte order of I2_S tensors; `block64` for files quantized on ARM by bitnet.cpp of 2025
    #[arg(long, value_name = "LAYOUT", default_value = "block128", help_heading = MODEL)]
    i2s_layout: I2sArg,
    /// Byte order of packed tensors in safetensors
    #[arg(long, value_name = "LAYOUT", default_value = "hf-rows", help_heading = MODEL)]
    packed_layout: PackedArg,
    /// Activation function, where the model's files name the wrong one
    #[arg(long, value_name = "NAME", help_heading = MODEL)]
    activation: Option<ActivationArg>,
}

const MODEL: &str = "Model";

/// Threads alone, for subcommands that load no model.
#[derive(clap::Args)]
pub struct ThreadArgs {
    /// Compute threads; 0, the default: as BITNET_THREADS, RAYON_NUM_THREADS or OMP_NUM_THREADS say, else one for each physical core
    #[arg(short, long, value_name = "N", default_value = "0", hide_default_value = true)]
    #[arg(allow_hyphen_values = true, value_parser = threads::parse)]
    pub threads: usize,
    /// Compute threads for prompts, where more may help than for generating; 0, the default: as many as --threads [also: -tb]
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    #[arg(allow_hyphen_values = true, value_parser = threads::parse)]
    pub threads_batch: usize,
    #[command(flatten)]
    pub placement: PlacementArgs,
}

impl ModelArgs {
    /// As the library wants it, but for its threads.
    pub fn config(&self) -> Result<ModelConfig, Failure> {
        let default = ModelConfig::default();
        Ok(ModelConfig {
            device: self.device,
            simd_level: self.simd_level.clone(),
            packing: self.packing.packing(),
            use_mmap: !self.no_mmap,
            loading_strategy: match self.load {
                LoadArg::Mmap => LoadingStrategy::MemoryMap,
                LoadArg::Lazy => LoadingStrategy::Lazy,
                LoadArg::Preload => LoadingStrategy::Preload,
            },
            max_layers_in_memory: self.max_layers_in_memory.unwrap_or(default.max_layers_in_memory),
            lock_memory: self.mlock,
            packed_cache: self.cache.config(&cache::environment)?,
            max_seq_len: self.ctx_size.map_or(0, |tokens| tokens as usize),
            kv_dtype: self.kv_dtype,
            head: self.head,
            i2s_layout: match self.i2s_layout {
                I2sArg::Block128 => I2sLayout::Block128,
                I2sArg::Block64 => I2sLayout::Block64,
            },
            packed_layout: match self.packed_layout {
                PackedArg::HfRows => PackedLayout::HfRows,
                PackedArg::WfMsb => PackedLayout::WfMsb,
            },
            hidden_act: self.activation.as_ref().map(|name| match name {
                ActivationArg::Relu2 => HiddenAct::Relu2,
                ActivationArg::Silu => HiddenAct::Silu,
            }),
            ..default
        })
    }

    /// Refuses what would have no effect.
    pub fn check(&self) -> Result<(), Failure> {
        if self.max_layers_in_memory.is_some() && !matches!(self.load, LoadArg::Lazy) {
            let message =
                "--max-layers-in-memory without --load lazy: otherwise all layers are there";
            return Err(Failure::input(message));
        }
        Ok(())
    }

    /// What was asked for and says nothing about a model with tensors in these encodings.
    pub fn idle(&self, has: impl Fn(&str) -> bool) -> Vec<String> {
        let i2s = matches!(self.i2s_layout, I2sArg::Block64) && !has("I2_S");
        let packed = matches!(self.packed_layout, PackedArg::WfMsb) && !has("U8");
        let warnings = [
            (i2s, "--i2s-layout changes nothing: the model has no tensors in I2_S"),
            (packed, "--packed-layout changes nothing: the model has no packed safetensors"),
        ];
        let cache = self.cache.idle().filter(|_| self.model.is_none()).map(|flag| {
            format!("{flag} changes nothing: the built-in model is packed at each load")
        });
        let of_layouts = warnings.into_iter().filter(|(idle, _)| *idle);
        of_layouts.map(|(_, warning)| warning.to_owned()).chain(cache).collect()
    }
}

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    Path(PathBuf),
    /// A model on Hugging Face's hub, `hf:owner/name`.
    Hub(String),
}

impl ModelSource {
    /// For clap: a path need not be UTF-8.
    pub fn parser() -> impl TypedValueParser<Value = Self> {
        OsStringValueParser::new().try_map(Self::parse)
    }

    fn parse(text: OsString) -> Result<Self, String> {
        if text.is_empty() {
            return Err(
                "the name is empty; leave -m out (and unset BITNET_MODEL) for the built-in demo"
                    .into(),
            );
        }
        match text.to_str().filter(|text| text.starts_with("hf:")) {
            None => Ok(Self::Path(text.into())),
            Some(id) => check_hub_id(id).map(|()| Self::Hub(id.to_owned())),
        }
    }
}

#[cfg(feature = "hub")]
fn check_hub_id(id: &str) -> Result<(), String> {
    let parsed: Result<bitnet::hub::HubId, _> = id.parse();
    parsed.map(drop).map_err(|error| format!("{error}; {}", error.help()))
}

/// Without downloads no name is any good; loading says so.
#[cfg(not(feature = "hub"))]
fn check_hub_id(_: &str) -> Result<(), String> {
    Ok(())
}

/// For clap: the types of keys and values by name.
pub fn kv_types() -> impl TypedValueParser<Value = KvType> {
    PossibleValuesParser::new(KvType::ALL.map(KvType::name)).try_map(|name| name.parse::<KvType>())
}

/// A packing of ternary weights, or none in particular.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PackingArg {
    Auto,
    #[value(name = "2bit")]
    TwoBits,
    #[value(name = "1.6bit")]
    FiveTrits,
}

impl PackingArg {
    pub fn packing(self) -> Option<Packing> {
        match self {
            Self::Auto => None,
            Self::TwoBits => Some(Packing::TwoBits),
            Self::FiveTrits => Some(Packing::FiveTrits),
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LoadArg {
    Mmap,
    Lazy,
    Preload,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum I2sArg {
    Block128,
    Block64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PackedArg {
    /// `[rows / 4, cols]`, as Hugging Face's models have it
    HfRows,
    /// `[rows, cols / 4]`, first weight on top
    WfMsb,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ActivationArg {
    Silu,
    Relu2,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DraftArg {
    Off,
    Ngram,
}

/// How tokens are chosen
#[derive(clap::Args, Clone, Debug)]
pub struct SamplingArgs {
    /// Most tokens to generate
    #[arg(
        short = 'n',
        long,
        alias = "n-predict",
        value_name = "TOKENS",
        allow_hyphen_values = true,
        value_parser = numbers::whole(0..=usize::MAX),
        default_value_t = 512
    )]
    pub max_tokens: usize,
    /// How freely to choose; 0 always takes the likeliest token
    #[arg(long, alias = "temp", value_name = "T", allow_hyphen_values = true, default_value_t = 0.8, help_heading = SAMPLING)]
    #[arg(value_parser = numbers::real)]
    pub temperature: f32,
    /// Choose among the K likeliest tokens; 0: all
    #[arg(long, value_name = "K", allow_hyphen_values = true, default_value_t = 40, help_heading = SAMPLING)]
    #[arg(value_parser = numbers::whole(0..=usize::MAX))]
    pub top_k: usize,
    /// Choose among the likeliest tokens that together have this probability; 1: all
    #[arg(long, value_name = "P", allow_hyphen_values = true, default_value_t = 0.95, help_heading = SAMPLING)]
    #[arg(value_parser = numbers::real)]
    pub top_p: f32,
    /// Choose among tokens at least P times as likely as the likeliest; 0: all
    #[arg(long, value_name = "P", allow_hyphen_values = true, default_value_t = 0.05, help_heading = SAMPLING)]
    #[arg(value_parser = numbers::real)]
    pub min_p: f32,
    /// Make tokens that occurred lately less likely; 1: off
    #[arg(long, value_name = "X", allow_hyphen_values = true, default_value_t = 1.0, help_heading = SAMPLING)]
    #[arg(value_parser = numbers::real)]
    pub repeat_penalty: f32,
    /// How many tokens count as lately
    #[arg(long, value_name = "N", allow_hyphen_values = true, default_value_t = 64, help_heading = SAMPLING)]
    #[arg(value_parser = numbers::whole(0..=usize::MAX))]
    pub repeat_last_n: usize,
    /// Make tokens of the answer less likely, -2 to 2
    #[arg(long, value_name = "X", allow_hyphen_values = true, default_value_t = 0.0, help_heading = SAMPLING)]
    #[arg(value_parser = numbers::real)]
    pub presence_penalty: f32,
    /// The same for each time they occurred, -2 to 2
    #[arg(long, value_name = "X", allow_hyphen_values = true, default_value_t = 0.0, help_heading = SAMPLING)]
    #[arg(value_parser = numbers::real)]
    pub frequency_penalty: f32,
    /// Same seed, same answer [default: another one each time]
    #[arg(long, value_name = "N", allow_hyphen_values = true, help_heading = SAMPLING)]
    #[arg(value_parser = numbers::whole(0..=u64::MAX))]
    pub seed: Option<u64>,
    /// End before this text; may be given several times
    #[arg(long, value_name = "TEXT", help_heading = SAMPLING, allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Go on after the model's end of text
    #[arg(long, help_heading = SAMPLING)]
    pub ignore_eos: bool,
    /// Try likely next tokens along with the one before them: `ngram` takes what followed the same words before. Same answer
    #[arg(long, value_name = "STRATEGY", default_value = "off", help_heading = SAMPLING)]
    draft: DraftArg,
}

const SAMPLING: &str = "Sampling";

impl SamplingArgs {
    /// Refuses settings that cannot be, before a model is loaded for them.
    pub fn check(&self) -> Result<(), Error> {
        // No tokens at all is for the subcommands to judge.
        let config = GenerationConfig { max_new_tokens: self.max_tokens.max(1), ..self.config() };
        config.sampling().map(drop).map_err(Error::Config)
    }

    /// As the library wants it.
    pub fn config(&self) -> GenerationConfig {
        GenerationConfig {
            sampling_strategy: SamplingStrategy::of(
                self.temperature,
                self.top_k,
                self.top_p,
                self.min_p,
            ),
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
            max_new_tokens: self.max_tokens,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            draft: match self.draft {
                DraftArg::Off => DraftStrategy::Off,
                DraftArg::Ngram => DraftStrategy::Ngram,
            },
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn models_are_paths_or_hub_names() {
        let parse = |text: &str| ModelSource::parse(text.into()).ok();
        assert_eq!(parse("a/b.gguf"), Some(ModelSource::Path("a/b.gguf".into())));
        assert_eq!(parse("hf:o/n-1.5"), Some(ModelSource::Hub("hf:o/n-1.5".into())));
        assert_eq!(parse(""), None);
    }

    #[cfg(feature = "hub")]
    #[test]
    fn hub_names_are_checked_before_anything_is_asked() {
        for bad in ["hf:", "hf:o", "hf:/n", "hf:../n", "hf:o/n/../x", "hf:o/a b"] {
            assert!(ModelSource::parse(bad.into()).is_err(), "{bad}");
        }
    }
}
