//! Where turns come from: a line editor with history at a terminal, else the lines of stdin.

use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{Config, Editor};

use super::lines::Lines;
use crate::failure::Failure;

const HISTORY: usize = 1000;

/// What the user did.
pub enum Input {
    Text(String),
    /// Ctrl-C at an empty or half-written turn.
    Interrupted,
    End,
}

/// Reads turns.
pub struct Reader {
    lines: Lines,
    source: Source,
}

enum Source {
    Editor { editor: Box<Editor<(), FileHistory>>, history: Option<PathBuf> },
    Stdin { ended: bool },
}

impl Reader {
    /// An editor if both ends are a terminal.
    pub fn open() -> Result<Self> {
        let source = match io::stdin().is_terminal() && io::stdout().is_terminal() {
            true => editor()?,
            false => Source::Stdin { ended: false },
        };
        Ok(Self { lines: Lines::default(), source })
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self.source, Source::Editor { .. })
    }

    /// The next turn.
    pub fn next(&mut self) -> Result<Input> {
        match &mut self.source {
            Source::Editor { editor, history } => edit(editor, history.as_ref(), &mut self.lines),
            Source::Stdin { ended } => read(ended, &mut self.lines),
        }
    }
}

fn editor() -> Result<Source> {
    let config = Config::builder().max_history_size(HISTORY)?.auto_add_history(false).build();
    let mut editor = Box::new(Editor::with_config(config)?);
    let history = history_file();
    if let Some(file) = &history {
        let _ = editor.load_history(file); // there is none the first time
    }
    Ok(Source::Editor { editor, history })
}

/// The user's data directory, if there is a user with one.
fn history_file() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = if cfg!(windows) {
        var("APPDATA")
    } else if cfg!(target_os = "macos") {
        var("HOME").map(|home| home.join("Library/Application Support"))
    } else {
        var("XDG_DATA_HOME").or_else(|| Some(var("HOME")?.join(".local/share")))
    };
    let folder = data.filter(|data| data.is_absolute())?.join("bitnet");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("chat_history"))
}

fn edit(
    editor: &mut Editor<(), FileHistory>,
    history: Option<&PathBuf>,
    lines: &mut Lines,
) -> Result<Input> {
    loop {
        match editor.readline(if lines.is_open() { "… " } else { "> " }) {
            Ok(line) => {
                let Some(text) = lines.push(&line) else { continue };
                let _ = editor.add_history_entry(&text);
                if let Some(file) = history {
                    let _ = editor.append_history(file); // a full disk must not end a conversation
                }
                return Ok(Input::Text(text));
            }
            Err(ReadlineError::Interrupted) => {
                lines.finish();
                return Ok(Input::Interrupted);
            }
            Err(ReadlineError::Eof) => return Ok(lines.finish().map_or(Input::End, Input::Text)),
            Err(error) => return Err(error).context("the terminal cannot be read"),
        }
    }
}

fn read(ended: &mut bool, lines: &mut Lines) -> Result<Input> {
    while !*ended {
        let mut line = Vec::new();
        *ended =
            io::stdin().lock().read_until(b'\n', &mut line).context("stdin cannot be read")? == 0;
        let text = match *ended {
            true => lines.finish(),
            false => {
                let line = std::str::from_utf8(&line)
                    .map_err(|_| Failure::input("stdin: a line is not UTF-8 text"))?;
                lines.push(line.trim_end_matches(['\n', '\r']))
            }
        };
        if let Some(text) = text {
            return Ok(Input::Text(text));
        }
    }
    Ok(Input::End)
}
