//! `chat`: a conversation, at a terminal or through pipes.

mod command;
mod lines;
mod reader;
mod session;
mod settings;

use std::io::{self, Write};

use anyhow::{Context, Result};
use bitnet::{BitNetModel, Error, FinishReason, Message, Output, Prompt, Role};

use crate::args::{ModelArgs, SamplingArgs};
use crate::console::Console;
use crate::failure::{self, Failure, Interrupted};
use crate::interrupt::{self, Watch};
use crate::load::{self, Loaded};
use crate::pieces::{self, Next};
use crate::report::{Table, plural};
use crate::timings;

use command::Command;
use reader::{Input, Reader};
use session::{Session, TooLong};

/// Talk with a model
///
/// Each line is a turn; a backslash at its end, or """ before and after, makes it several lines.
/// /help lists the commands. With pipes, turns come from stdin and answers go to stdout.
#[derive(clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// What the model shall be, in its own words: the system message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
}

impl ChatArgs {
    /// What `inference --conversation` amounts to.
    pub fn new(model: ModelArgs, system: Option<String>, sampling: SamplingArgs) -> Self {
        Self { model, system, sampling }
    }
}

pub fn run(args: ChatArgs, console: &Console) -> Result<()> {
    if args.sampling.max_tokens == 0 {
        return Err(Failure::input("-n 0: an answer has at least one token").into());
    }
    args.sampling.check()?;
    interrupt::install()?;
    let loaded = load::load(&args.model, console)?;
    check_template(&loaded.model)?;
    let mut reader = Reader::open()?;
    greet(&loaded, &reader, console);
    let session = Session::new(args.system, args.sampling);
    let mut chat = Chat {
        loaded,
        session,
        last: None,
        saved: Vec::new(),
        console,
        at_terminal: reader.is_terminal(),
    };
    loop {
        match reader.next()? {
            Input::Text(text) if text.trim().is_empty() => {}
            Input::Text(text) => match Command::parse(&text) {
                Some(Ok(Command::Exit)) => return Ok(()),
                Some(Ok(command)) => chat.obey(command)?,
                Some(Err(message)) => chat.complain(Failure::input(message).into())?,
                None => chat.turn(text)?,
            },
            Input::Interrupted => console.note("(Ctrl-D or /exit leaves)"),
            Input::End => return Ok(()),
        }
    }
}

fn check_template(model: &BitNetModel) -> Result<()> {
    if model.tokenizer().chat_template().is_some() {
        return Ok(());
    }
    // Asks for the reason: none at all, or one that cannot be read.
    let reason = model.tokenizer().encode_chat(&[Message::new(Role::User, "")], true).err();
    let reason = reason
        .map_or_else(|| "this model has no chat template".to_owned(), |reason| reason.to_string());
    Err(Failure::input(reason)
        .hint("`bitnet-cli inference` continues plain text with any model")
        .into())
}

fn greet(loaded: &Loaded, reader: &Reader, console: &Console) {
    let info = loaded.model.info();
    let context = plural(info.context_length, "token");
    let threads = plural(loaded.threads.count, "thread");
    console.note(&format!("{}, context {context}, {threads}", info.name));
    if reader.is_terminal() {
        console.note("/help lists commands, Ctrl-C stops an answer, Ctrl-D leaves");
    }
}

struct Chat<'a> {
    loaded: Loaded,
    session: Session,
    last: Option<Output>,
    /// Files that this conversation has been saved to, which may be overwritten.
    saved: Vec<String>,
    console: &'a Console,
    at_terminal: bool,
}

impl Chat<'_> {
    /// Shows an error. A person can go on after it; a pipe is told by the exit code.
    fn complain(&self, error: anyhow::Error) -> Result<()> {
        let closed = error.is::<Interrupted>() || failure::is_closed_pipe(&error);
        if closed || !self.at_terminal {
            return Err(error);
        }
        failure::print(&error, self.console);
        Ok(())
    }

    fn turn(&mut self, text: String) -> Result<()> {
        self.session.ask(text);
        self.answer().or_else(|error| self.complain(error))?;
        if self.at_terminal {
            writeln!(io::stdout())?; // an empty line before the next prompt
        }
        Ok(())
    }

    /// Answers the last turn, or takes it back if that fails.
    fn answer(&mut self) -> Result<()> {
        let answered = self.try_answer();
        if answered.is_err() {
            self.session.take_back_question();
        }
        answered
    }

    fn try_answer(&mut self) -> Result<()> {
        let context = self.loaded.model.info().context_length;
        let model = &self.loaded.model;
        let forgotten = self.session.make_room(context, |messages| count(model, messages, true))?;
        if forgotten > 0 {
            self.console.warn(&format!(
                "the context of {context} tokens is full: forgot the oldest {}; /clear starts afresh",
                plural(forgotten, "exchange")
            ));
        }
        let output = self.generate()?;
        let interrupted = output.finish_reason == FinishReason::Cancelled;
        self.session.answered(output.text.clone());
        if interrupted && !self.at_terminal {
            return Err(Interrupted.into());
        }
        let note = match interrupted {
            true => Some("(stopped)".to_owned()),
            false => timings::finish_note(&output, context).map(|note| format!("({note})")),
        };
        note.inspect(|note| self.console.note(note));
        self.last = Some(output);
        Ok(())
    }

    fn generate(&mut self) -> Result<Output> {
        let prompt = Prompt::Chat(self.session.messages());
        let config = self.session.next_config();
        let watch = Watch::start();
        let mut stream = Box::pin(self.loaded.model.generate_stream(prompt, &config)?);
        let mut stdout = io::stdout().lock();
        loop {
            let piece = match pieces::next(&mut stream, &watch)? {
                Next::Piece(piece) => piece,
                Next::End => break,
                Next::Interrupted => {
                    stream.cancel();
                    break;
                }
            };
            stdout.write_all(piece.text.as_bytes())?;
            stdout.flush()?;
        }
        stdout.write_all(b"\n")?;
        stdout.flush()?;
        stream.output().context("an answer that has ended has a summary")
    }

    fn obey(&mut self, command: Command) -> Result<()> {
        match self.try_obey(command) {
            Ok(()) => Ok(()),
            Err(error) => self.complain(error),
        }
    }

    fn try_obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Exit => {} // the loop's business
            Command::Help => self.say(&command::help()),
            Command::Clear => {
                self.session.clear();
                self.say("forgot the conversation");
            }
            Command::System(None) => {
                self.say(self.session.system().unwrap_or("there is no system message"))
            }
            Command::System(Some(text)) => {
                self.session.set_system(text);
                self.say("set the system message");
            }
            Command::Undo => match self.session.undo() {
                true => self.say("took back the last exchange"),
                false => self.say("there is nothing to take back"),
            },
            Command::Regenerate => match self.session.forget_answer() {
                true => return self.answer(),
                false => self.say("there is no answer to make again"),
            },
            Command::Save(file) => return self.save(file),
            Command::Set(None) => self.say(settings::table(&self.session.sampling).trim_end()),
            Command::Set(Some((name, value))) => {
                settings::set(&mut self.session.sampling, &name, &value)?;
                self.say(&format!("{name} is {value}"));
            }
            Command::Stats => self.stats()?,
        }
        Ok(())
    }

    /// Replies to commands are for people, so they go to stderr with all other notes; asked for, they are not `--quiet`.
    fn say(&self, text: &str) {
        self.console.reply(text);
    }

    fn save(&mut self, file: String) -> Result<()> {
        let text =
            if file.ends_with(".json") { self.session.json() } else { self.session.transcript() };
        let exists = std::path::Path::new(&file).exists();
        if exists && !self.saved.contains(&file) {
            return Err(Failure::input(format!("{file}: exists already"))
                .hint("give another name")
                .into());
        }
        std::fs::write(&file, text).with_context(|| format!("{file}: cannot be written"))?;
        self.say(&format!("saved to {file}"));
        self.saved.push(file);
        Ok(())
    }

    fn stats(&self) -> Result<()> {
        let context = self.loaded.model.info().context_length;
        let messages = self.session.messages();
        let used = match messages.is_empty() {
            true => 0,
            false => count(&self.loaded.model, &messages, false)?,
        };
        let mut table = Table::facts();
        table.row(["exchanges", &self.session.exchanges().to_string()]);
        table.row(["context", &format!("{used} of {context} tokens")]);
        self.say(table.render("").trim_end());
        if let Some(output) = &self.last {
            self.say(&format!(
                "last answer\n{}",
                timings::table(&self.loaded, &output.timings).trim_end()
            ));
        }
        Ok(())
    }
}

/// Tokens of a conversation, with the beginning of an answer or without.
fn count(model: &BitNetModel, messages: &[Message], answering: bool) -> Result<usize> {
    Ok(model.tokenizer().encode_chat(messages, answering).map_err(Error::from)?.len())
}

impl From<TooLong> for Failure {
    fn from(error: TooLong) -> Self {
        Self::input(error.to_string())
            .hint("shorten it, or give a longer context with -c if the model allows it")
    }
}
