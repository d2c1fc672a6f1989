//! `completions`: a completion script for a shell.

use std::io::Write;

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;

/// Print a completion script for a shell
///
/// For example, in ~/.bashrc: source <(bitnet-cli completions bash)
#[derive(clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new(); // the generator panics where it cannot write
    clap_complete::generate(args.shell, &mut Cli::command(), "bitnet-cli", &mut script);
    Ok(std::io::stdout().write_all(&script)?)
}
