//! The subcommands. A new one is a file here, a line in `mod`, a variant and an arm.

mod benchmark;
mod cache;
mod chat;
mod completions;
mod inference;
pub mod info;
mod inspect;
mod man;
mod parallel;
mod perplexity;
#[cfg(feature = "server")]
mod serve;
mod synth;
mod tokenize;

use anyhow::Result;

use crate::console::Console;

#[derive(clap::Subcommand)]
pub enum Command {
    #[command(visible_alias = "run")]
    Inference(Box<inference::InferenceArgs>),
    Chat(Box<chat::ChatArgs>),
    Tokenize(tokenize::TokenizeArgs),
    Info(info::InfoArgs),
    Inspect(inspect::InspectArgs),
    #[command(visible_alias = "bench")]
    Benchmark(Box<benchmark::BenchmarkArgs>),
    Parallel(Box<parallel::ParallelArgs>),
    Perplexity(Box<perplexity::PerplexityArgs>),
    #[cfg(feature = "server")]
    Serve(Box<serve::ServeArgs>),
    Cache(cache::CacheCommandArgs),
    Synth(synth::SynthArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
}

pub fn run(command: Command, console: &Console) -> Result<()> {
    match command {
        Command::Inference(args) => inference::run(*args, console),
        Command::Chat(args) => chat::run(*args, console),
        Command::Tokenize(args) => tokenize::run(&args, console),
        Command::Info(args) => info::run(&args, console),
        Command::Inspect(args) => inspect::run(&args, console),
        Command::Benchmark(args) => benchmark::run(&args, console),
        Command::Parallel(args) => parallel::run(*args, console),
        Command::Perplexity(args) => perplexity::run(&args, console),
        #[cfg(feature = "server")]
        Command::Serve(args) => serve::run(*args, console),
        Command::Cache(args) => cache::run(&args, console),
        Command::Synth(args) => synth::run(&args, console),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    }
}
