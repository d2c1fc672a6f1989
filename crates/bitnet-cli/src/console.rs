//! What goes to stderr: notes, warnings, errors, log lines; and whether it may be coloured or move.
//!
//! A stderr that cannot be written to (closed, full) stops nothing.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use crate::failure::Failure;

/// How much is said.
#[derive(clap::Args)]
pub struct ConsoleArgs {
    /// Say nothing on stderr but errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Output")]
    quiet: bool,
    /// Log what is chosen and why; twice for more (RUST_LOG overrides)
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    verbose: u8,
}

impl ConsoleArgs {
    pub fn open(&self) -> Console {
        let stderr = io::stderr().is_terminal();
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Console {
            quiet: self.quiet,
            verbose: self.verbose,
            color: stderr && !dumb && !set("NO_COLOR"),
            moving: stderr && !dumb && !self.quiet,
        }
    }
}

/// Where messages for people go.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    quiet: bool,
    verbose: u8,
    color: bool,
    moving: bool,
}

impl Console {
    /// Whether a progress bar can be shown.
    pub fn has_bars(&self) -> bool {
        self.moving
    }

    /// Something good to know.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.line(&printable(text), DIM);
        }
    }

    /// The beginning of a text whose rest comes on stdout, for one who reads both on a terminal.
    pub fn beginning(&self, text: &str) {
        if self.moving && io::stdout().is_terminal() {
            let _ = write!(io::stderr(), "{}", self.paint(text, DIM));
        }
    }

    /// What the user asked for just now, quiet or not.
    pub fn reply(&self, text: &str) {
        self.line(&printable(text), DIM);
    }

    /// Something that works, but not as hoped.
    pub fn warn(&self, text: &str) {
        if !self.quiet {
            self.line(&format!("{} {}", self.paint("warning:", YELLOW), printable(text)), "");
        }
    }

    /// Something that does not work, and what to try.
    pub fn error(&self, text: &str, hint: Option<&str>) {
        self.line(&format!("{} {}", self.paint("error:", RED), printable(text)), "");
        if let Some(hint) = hint {
            self.line(&format!("{} {}", self.paint("hint:", CYAN), printable(hint)), "");
        }
    }

    fn line(&self, text: &str, style: &str) {
        let _ = writeln!(io::stderr(), "{}", self.paint(text, style));
    }

    fn paint(&self, text: &str, style: &str) -> String {
        if self.color && !style.is_empty() {
            format!("{style}{text}{RESET}")
        } else {
            text.to_owned()
        }
    }

    /// Starts logging to stderr, as `RUST_LOG` says, else as `-v` does: warnings only without either.
    pub fn install_log(&self) -> Result<()> {
        let value = std::env::var_os("RUST_LOG").map(|value| value.to_string_lossy().into_owned());
        let asked = value.as_ref().is_some_and(|value| !value.is_empty()) || self.verbose > 0;
        let filter = match value {
            Some(value) if !value.is_empty() => EnvFilter::try_new(&value).map_err(|error| {
                Failure::input(format!("RUST_LOG={value} is no log filter: {error}"))
                    .hint("use error, warn, info, debug or trace, or module=level,…")
            })?,
            _ => EnvFilter::new(match (self.quiet, self.verbose) {
                (true, _) => "error",
                (_, 0) => "warn",
                (_, 1) => "info",
                (_, _) => "debug",
            }),
        };
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .with_ansi(self.color)
            .without_time()
            .log_internal_errors(false); // they would go to the stderr that has just failed
        // Who asks for no log gets what is wrong in the words of the program.
        Ok(match asked {
            true => tracing::subscriber::set_global_default(subscriber.finish())?,
            false => {
                let subscriber = subscriber.event_format(Warnings(*self)).finish();
                tracing::subscriber::set_global_default(subscriber)?;
            }
        })
    }
}

/// Writes warnings and errors of the libraries as the program writes its own.
struct Warnings(Console);

impl<S, N> FormatEvent<S, N> for Warnings
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut said = Said::default();
        event.record(&mut said);
        let (name, style) = match *event.metadata().level() {
            Level::ERROR => ("error:", RED),
            _ => ("warning:", YELLOW),
        };
        let fields = match said.fields.is_empty() {
            true => String::new(),
            false => format!(" ({})", said.fields.join(", ")),
        };
        let text = printable(&format!("{}{fields}", said.message));
        writeln!(writer, "{} {text}", self.0.paint(name, style))
    }
}

/// The parts of an event.
#[derive(Default)]
struct Said {
    message: String,
    fields: Vec<String>,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push(format!("{name} {value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// Messages quote files and templates, which must not steer the terminal.
fn printable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => safe.push(c),
            c if c.is_control() => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

const DIM: &str = "\u{1b}[2m";
const RED: &str = "\u{1b}[1;31m";
const YELLOW: &str = "\u{1b}[1;33m";
const CYAN: &str = "\u{1b}[1;36m";
const RESET: &str = "\u{1b}[0m";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_do_not_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2J\r\n\té"), "a\\u{1b}[2J\\r\n\té");
    }
}
