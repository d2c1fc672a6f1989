//! `man`: the manual page.

use std::io::Write;

use anyhow::Result;
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::args::Cli;

/// Print the manual page
///
/// Read it with: bitnet-cli man | man -l -
#[derive(clap::Args)]
pub struct ManArgs {}

/// One page for all: the program's, then each subcommand's options under its name.
pub fn run(_: &ManArgs) -> Result<()> {
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    let mut page = Vec::new();
    Man::new(cli.clone()).render(&mut page)?;
    for command in cli.get_subcommands() {
        section(command, &mut page)?;
    }
    Ok(std::io::stdout().write_all(&page)?)
}

fn section(command: &Command, page: &mut Vec<u8>) -> Result<()> {
    let name = command.get_name().to_uppercase();
    let man = Man::new(command.clone());
    writeln!(page, ".SH {name}")?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    Ok(())
}
