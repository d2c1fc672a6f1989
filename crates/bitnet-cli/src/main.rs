//! The command line of BitNet models: arguments and environment in; text on stdout, everything else on stderr.

mod args;
mod cache;
mod cmd;
mod compiled_for;
mod console;
mod failure;
#[cfg(feature = "grammar")]
mod format_args;
#[cfg(feature = "hub")]
mod hub;
mod interrupt;
mod load;
mod logits;
mod numbers;
mod output_file;
mod pieces;
mod report;
mod spelling;
mod text_input;
mod threads;
mod timings;

use std::process::ExitCode;

use clap::Parser;

use args::Cli;

fn main() -> ExitCode {
    match compiled_for::missing() {
        None => program(),
        Some(missing) => {
            compiled_for::complain(missing);
            ExitCode::from(failure::FAILED)
        }
    }
}

/// All but what has to come first. Not a part of `main`, so that nothing of it does.
#[inline(never)]
fn program() -> ExitCode {
    failure::install_panic_hook();
    let cli = match Cli::try_parse_from(spelling::modern(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print(); // nobody is left to tell if the terminal has gone
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::BAD_INPUT));
        }
    };
    let console = cli.console.open();
    let result = console.install_log().and_then(|()| cmd::run(cli.command, &console));
    failure::exit_code(result, &console)
}
