//! How things end: exit codes, error messages with hints, and what happens at a bug.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use bitnet::{EngineError, Error};

use crate::console::Console;
use crate::report;

/// Something went wrong while running.
pub const FAILED: u8 = 1;
/// A file, flag, request or variable cannot be what it is.
pub const BAD_INPUT: u8 = 2;
/// A bug.
pub const PANICKED: u8 = 101;
/// Ctrl-C, as shells count it: 128 + SIGINT.
pub const INTERRUPTED: u8 = 130;

/// The user gave something that cannot work.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// Says where, what was found and what was expected.
    pub fn input(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    /// Adds what to try.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The user pressed Ctrl-C.
#[derive(Debug)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Prints an error, if there is one, and says how the process ends.
pub fn exit_code(result: anyhow::Result<()>, console: &Console) -> ExitCode {
    let code = match result {
        Ok(()) => 0,
        Err(error) if error.is::<Interrupted>() => INTERRUPTED,
        // The reader of our output has had enough (`| head`), which is its good right. Programs in C are ended by a signal
        // then, which a shell with `pipefail` takes for a failure; those in Rust that answer it (ripgrep, fd, bat) end well.
        Err(error) if is_closed_pipe(&error) => 0,
        Err(error) => {
            print(&error, console);
            code(&error)
        }
    };
    let _ = io::stdout().flush();
    ExitCode::from(if BUG_SEEN.load(Ordering::Relaxed) { PANICKED } else { code })
}

/// Prints an error and its hint.
pub fn print(error: &anyhow::Error, console: &Console) {
    console.error(&chain(error), hint(error).as_deref());
}

/// Whether the reader of our output has gone.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let closed = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(closed)
}

fn code(error: &anyhow::Error) -> u8 {
    match (error.is::<Failure>(), error.downcast_ref()) {
        (true, _) => BAD_INPUT,
        (_, Some(error)) => code_of_library(error),
        _ => FAILED,
    }
}

/// Most of what the library refuses is what it was given.
fn code_of_library(error: &Error) -> u8 {
    use EngineError::{EmptyPrompt, PromptTooLong, UnknownToken};
    match error {
        Error::Engine(EmptyPrompt | PromptTooLong { .. } | UnknownToken { .. }) => BAD_INPUT,
        Error::Engine(_)
        | Error::Threads { .. }
        | Error::MemoryLimit { .. }
        | Error::LoadingPanicked => FAILED,
        _ => BAD_INPUT,
    }
}

fn hint(error: &anyhow::Error) -> Option<String> {
    match error.downcast_ref::<Failure>() {
        Some(failure) => failure.hint.clone(),
        None => match error.downcast_ref::<Error>()? {
            Error::Config(error) => Some(format!("{} sets it", flag(error.field))),
            Error::Engine(EngineError::PromptTooLong { tokens, context }) => Some(format!(
                "shorten it by {}, or raise {} if the model allows more",
                report::plural(tokens - context, "token"),
                flag("max_seq_len"),
            )),
            error => error.help(),
        },
    }
}

/// The flag for a field of the library's settings.
fn flag(field: &str) -> String {
    match field {
        "max_seq_len" => "-c/--ctx-size".to_owned(),
        "max_new_tokens" | "generated_tokens" => "-n/--max-tokens".to_owned(),
        "repetition_penalty" => "--repeat-penalty".to_owned(),
        "window" => "--ctx".to_owned(),
        "text" => "-f/--file".to_owned(),
        "batches" => "--batch".to_owned(),
        "use_mmap" => "--no-mmap".to_owned(),
        "lock_memory" => "--mlock".to_owned(),
        _ => format!("--{}", field.replace('_', "-")),
    }
}

/// The causes in one line. Some errors repeat their cause in their own words, which is left out.
fn chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !line.contains(&cause) {
            line += if line.is_empty() { "" } else { ": " };
            line += &cause;
        }
    }
    line
}

static BUG_SEEN: AtomicBool = AtomicBool::new(false);

/// A panic on any thread is a bug of ours: say so, and end with [`PANICKED`] whatever comes after.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        BUG_SEEN.store(true, Ordering::Relaxed);
        let place = info.location().map_or_else(|| "somewhere".to_owned(), ToString::to_string);
        let message = info.payload_as_str().unwrap_or("no message");
        let _ = writeln!(io::stderr(), "{}", bug_message(message, &place));
    }));
}

fn bug_message(message: &str, place: &str) -> String {
    format!(
        "error: this is a bug in bitnet-cli {}: {message} (at {place})\n\
         hint: please report it with the command and this message",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn causes_follow_in_one_line_without_repetitions() {
        let inner = anyhow::anyhow!("no such file");
        let error = inner.context("x.gguf: no such file").context("cannot load the model");
        assert_eq!(chain(&error), "cannot load the model: x.gguf: no such file");
    }

    #[test]
    fn codes_and_hints_survive_added_context() {
        let error =
            Err::<(), _>(Failure::input("-5 threads").hint("use 0")).context("bad").unwrap_err();
        assert_eq!((code(&error), hint(&error).as_deref()), (BAD_INPUT, Some("use 0")));
        assert_eq!(code(&anyhow::anyhow!("disk full")), FAILED);
    }

    #[test]
    fn a_closed_pipe_is_recognised_under_other_errors() {
        let closed =
            anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing");
        assert!(is_closed_pipe(&closed));
        assert!(!is_closed_pipe(&anyhow::Error::new(io::Error::from(io::ErrorKind::NotFound))));
    }

    #[test]
    fn a_bug_names_its_place_and_asks_for_a_report() {
        let message = bug_message("index 3 out of range", "src/x.rs:1:2");
        assert!(message.contains("this is a bug") && message.contains("src/x.rs:1:2"), "{message}");
    }
}
