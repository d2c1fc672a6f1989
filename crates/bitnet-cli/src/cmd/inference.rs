//! `inference`: one prompt in, its continuation out.

use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use bitnet::{GenerationConfig, InferenceRequest, Message, Output, Prompt, ResponseFormat, Role};

use crate::args::{ModelArgs, SamplingArgs};
use crate::console::Console;
use crate::failure::{Failure, Interrupted};
use crate::interrupt::{self, Watch};
use crate::load::{self, Loaded};
use crate::pieces::{self, Next};
use crate::{logits, numbers, output_file, text_input, timings};

use super::chat;

/// Generate text from a prompt
///
/// The text goes to stdout as it is made and nothing else does; timings and notes go to stderr.
/// Without --prompt, --file or --token-ids the prompt is read from stdin, less one newline at its end.
#[derive(clap::Args)]
pub struct InferenceArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// The text to continue; - reads stdin
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// A file with the text to continue; - reads stdin
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The prompt as token ids, used as they are
    #[arg(long, value_name = "ID,…", value_delimiter = ',', allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(0..=u32::MAX))]
    token_ids: Vec<u32>,
    /// Ask the prompt as a turn of a chat, in the form the model was trained on
    #[arg(long)]
    chat: bool,
    /// What the model shall be, as the system message of --chat
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// As bitnet.cpp's -cnv: start a chat with the prompt as its system message
    #[arg(long)]
    conversation: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[cfg(feature = "grammar")]
    #[command(flatten)]
    format: crate::format_args::FormatArgs,
    /// Print one JSON object with ids, text, finish reason and timings instead of the text; `model_hash` is sha256: with the hash
    /// of the model's files, or, above 64 MiB, sampled: with one of their lengths and 64 places of 64 KiB
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Write the logits after each prompt token to a safetensors file, as `logits` [tokens, vocab]; with `--head file --kv-dtype
    /// f32` they are the reference's within 1e-4, else they differ by about a hundredth of their spread
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    logits: Option<PathBuf>,
}

pub fn run(args: InferenceArgs, console: &Console) -> Result<()> {
    args.check()?;
    args.sampling.check()?;
    if args.conversation {
        let system = args.prompt.or(args.system);
        return chat::run(chat::ChatArgs::new(args.model, system, args.sampling), console);
    }
    interrupt::install()?;
    if let Some(file) = &args.logits {
        output_file::check(file)?;
    }
    let (prompt, format) = (args.prompt()?, args.format()?);
    let loaded = load::load(&args.model, console)?;
    if let Some(file) = &args.logits {
        write_logits(&loaded, &prompt, file, console)?;
    }
    if args.sampling.max_tokens == 0 {
        return Ok(());
    }
    let mut config = args.sampling.config();
    config.seed.get_or_insert_with(random_seed);
    let request = InferenceRequest::new(prompt.clone(), config.clone()).with_format(format);
    generate(&args, &loaded, &prompt, request, &config, console)
}

impl InferenceArgs {
    /// Refuses what cannot work together, with the reason.
    fn check(&self) -> Result<(), Failure> {
        let given = [
            ("--prompt", self.prompt.is_some()),
            ("--file", self.file.is_some()),
            ("--token-ids", !self.token_ids.is_empty()),
        ];
        let given: Vec<_> =
            given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        let cannot = |what: &str, why: &str| Err(Failure::input(format!("{what}: {why}")));
        if let [a, b, ..] = given[..] {
            return cannot(&format!("{a} with {b}"), "both give the prompt, expected one of them");
        }
        if self.chat && !self.token_ids.is_empty() {
            return cannot(
                "--chat with --token-ids",
                "ids are a complete prompt, nothing is put around them",
            );
        }
        if self.system.is_some() && !self.chat && !self.conversation {
            return cannot("--system without --chat", "a plain text has no roles");
        }
        if self.conversation {
            self.check_conversation()?;
        }
        if self.sampling.max_tokens == 0 && self.logits.is_none() {
            return cannot("-n 0", "generates nothing, which makes sense with --logits only");
        }
        if self.json && self.sampling.max_tokens == 0 {
            return cannot("--json with -n 0", "there is no answer to report");
        }
        Ok(())
    }

    /// A conversation has many answers and reads its turns from stdin.
    fn check_conversation(&self) -> Result<(), Failure> {
        let wrong = [
            #[cfg(feature = "grammar")]
            ("a form of the answer", self.format.is_given(), "it describes one answer"),
            ("--json", self.json, "it describes one answer, and a conversation has many"),
            (
                "--logits",
                self.logits.is_some(),
                "it describes one prompt, and a conversation has many",
            ),
            ("--chat", self.chat, "one asks a single question, the other goes on"),
            ("--file", self.file.is_some(), "the turns are read from stdin"),
            ("--token-ids", !self.token_ids.is_empty(), "the turns are read from stdin"),
            (
                "--system",
                self.system.is_some() && self.prompt.is_some(),
                "the prompt of a conversation is its system message already",
            ),
        ];
        match wrong.iter().find(|(_, wrong, _)| *wrong) {
            Some((name, _, why)) => {
                Err(Failure::input(format!("{name} with --conversation: {why}")))
            }
            None => Ok(()),
        }
    }

    #[cfg(feature = "grammar")]
    fn format(&self) -> Result<ResponseFormat> {
        self.format.format()
    }

    #[cfg(not(feature = "grammar"))]
    fn format(&self) -> Result<ResponseFormat> {
        Ok(ResponseFormat::Text)
    }

    fn prompt(&self) -> Result<Prompt> {
        if !self.token_ids.is_empty() {
            return Ok(Prompt::Ids(self.token_ids.clone()));
        }
        let text = self.text()?;
        if !self.chat {
            return Ok(Prompt::Text(text));
        }
        let system = self.system.clone().map(|content| Message { role: Role::System, content });
        let user = Message { role: Role::User, content: text };
        Ok(Prompt::Chat(system.into_iter().chain([user]).collect()))
    }

    fn text(&self) -> Result<String> {
        match (&self.prompt, &self.file) {
            (Some(text), _) if text != "-" => Ok(text.clone()),
            (_, Some(path)) => text_input::read(path),
            (Some(_), _) => text_input::stdin(),
            (None, None) => {
                let text =
                    if text_input::stdin_is_piped() { text_input::stdin()? } else { String::new() };
                let missing = || {
                    Failure::input("no prompt")
                        .hint("give one with -p TEXT or --file FILE, or pipe it in")
                };
                if text.is_empty() { Err(missing().into()) } else { Ok(text) }
            }
        }
    }
}

fn write_logits(
    loaded: &Loaded,
    prompt: &Prompt,
    file: &std::path::Path,
    console: &Console,
) -> Result<()> {
    let ids = loaded.model.encode(prompt)?;
    let logits = loaded.model.logits(&ids)?;
    logits::write(file, &logits)?;
    console.note(&format!(
        "logits [{}, {}] written to {}",
        logits.tokens,
        logits.vocab,
        file.display()
    ));
    Ok(())
}

fn generate(
    args: &InferenceArgs,
    loaded: &Loaded,
    prompt: &Prompt,
    request: InferenceRequest,
    config: &GenerationConfig,
    console: &Console,
) -> Result<()> {
    let watch = Watch::start();
    let mut stream = Box::pin(loaded.model.submit(request)?);
    if let (Prompt::Text(text), false) = (prompt, args.json) {
        console.beginning(text);
    }
    let mut stdout = io::stdout().lock();
    let mut last = None;
    let interrupted = loop {
        match pieces::next(&mut stream, &watch)? {
            Next::Piece(_) if args.json => {}
            Next::Piece(piece) => {
                last = piece.text.chars().next_back().or(last);
                stdout.write_all(piece.text.as_bytes())?;
                stdout.flush()?;
            }
            Next::End => break false,
            Next::Interrupted => break true,
        }
    };
    if last.is_some_and(|last| last != '\n') {
        stdout.write_all(b"\n")?;
    }
    stdout.flush()?;
    if interrupted {
        if last.is_none() {
            console.note(""); // ends the line with the terminal's ^C
        }
        return Err(Interrupted.into());
    }
    let output = stream.output().context("an answer that has ended has a summary")?;
    if args.json {
        writeln!(stdout, "{}", timings::json(loaded, config, &output))?;
    }
    drop(stdout);
    report(loaded, &output, console);
    Ok(())
}

fn report(loaded: &Loaded, output: &Output, console: &Console) {
    let note = timings::end_note(output, loaded.model.info().context_length);
    let table = timings::table(loaded, &output.timings);
    console.note(&format!("\n{}", table.trim_end()));
    if let Some(note) = note {
        console.note(&note);
    }
}

/// Chosen here so that it can be reported and used again.
fn random_seed() -> u64 {
    u64::from(RandomState::new().hash_one(0_u8) as u32)
}
