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

/// Variables that the program looks at; what they do is in the help of the flags that they stand for, or here.
const ENVIRONMENT: [(&str, &str); 11] = [
    ("BITNET_MODEL", "The model where -m is not given."),
    (
        "BITNET_THREADS, RAYON_NUM_THREADS, OMP_NUM_THREADS",
        "The number of compute threads where -t is not given, the first of them that is set and not 0.",
    ),
    ("BITNET_CACHE_DIR", "Where packed weights are kept where --cache-dir is not given."),
    ("BITNET_CACHE_SIZE", "What they may take on the disk where --cache-size is not given."),
    ("RUST_LOG", "What is logged to stderr, before -q and -v: a level, or module=level,…"),
    ("NO_COLOR, TERM=dumb", "No colours on stderr; a dumb terminal gets no progress bars either."),
    ("HF_HOME, HF_HUB_CACHE, XDG_CACHE_HOME", "Where models named hf:OWNER/NAME are kept."),
    ("HF_TOKEN, HF_TOKEN_PATH", "The token for models that need a login, or the file with it."),
    ("HF_ENDPOINT", "The server they come from, if not https://huggingface.co."),
    ("HF_HUB_OFFLINE", "1: take them from the cache and do not look for newer ones."),
    ("HTTPS_PROXY", "The proxy for downloads."),
];

/// One page for all: the program's, then each subcommand with its options under its name.
pub fn run(_: &ManArgs) -> Result<()> {
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    let man = Man::new(cli.clone());
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    commands(&cli, &mut page)?;
    man.render_options_section(&mut page)?;
    for command in cli.get_subcommands() {
        section(command, &mut page)?;
    }
    environment(&mut page)?;
    let mut notes = Vec::new();
    man.render_extra_section(&mut notes)?;
    page.extend(replaced(notes, "\n.SH EXTRA\n", "\n.SH NOTES\n")?.bytes());
    man.render_version_section(&mut page)?;
    Ok(std::io::stdout().write_all(&page)?)
}

/// The list of subcommands, which have no pages of their own.
fn commands(cli: &Command, page: &mut Vec<u8>) -> Result<()> {
    writeln!(page, ".SH COMMANDS")?;
    for command in cli.get_subcommands() {
        let names: Vec<_> =
            [command.get_name()].into_iter().chain(command.get_visible_aliases()).collect();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        writeln!(page, ".TP\n\\fB{}\\fR\n{}", escaped(&names.join(", ")), escaped(&about))?;
    }
    Ok(())
}

/// A subcommand; what would be sections on a page of its own is one level lower here.
fn section(command: &Command, page: &mut Vec<u8>) -> Result<()> {
    let man = Man::new(command.clone());
    let mut own = Vec::new();
    man.render_synopsis_section(&mut own)?;
    man.render_description_section(&mut own)?;
    man.render_options_section(&mut own)?;
    if command.get_after_long_help().is_some() {
        man.render_extra_section(&mut own)?;
    }
    let own = replaced(own, "\n.SH EXTRA\n", "\n.SH NOTES\n")?;
    let own = own.replace("\n.SH ", "\n.SS ").replacen(".SH ", ".SS ", 1);
    write!(page, ".SH {}\n{own}", escaped(&command.get_name().to_uppercase()))?;
    Ok(())
}

fn replaced(text: Vec<u8>, from: &str, to: &str) -> Result<String> {
    Ok(format!("\n{}", String::from_utf8(text)?).replace(from, to).trim_start_matches('\n').into())
}

fn environment(page: &mut Vec<u8>) -> Result<()> {
    writeln!(page, ".SH ENVIRONMENT")?;
    for (names, what) in ENVIRONMENT {
        writeln!(page, ".TP\n{}\n{}", escaped(names), escaped(what))?;
    }
    Ok(())
}

/// Text for roff, in which a backslash is an order and a hyphen is not a minus.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}
