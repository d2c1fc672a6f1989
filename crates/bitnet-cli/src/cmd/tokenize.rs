//! `tokenize`: text to token ids and back.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use anyhow::Result;
use bitnet::{Checkpoint, Error, OpenOptions, Special, Tokenizer};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::args::ModelSource;
use crate::console::Console;
use crate::failure::Failure;
use crate::report::{Align, Table, plural};
use crate::{load, numbers, text_input};

/// Turn text into token ids, or ids into text
///
/// Without TEXT or --file the text is read from stdin, less one newline at its end.
#[derive(clap::Args)]
pub struct TokenizeArgs {
    /// The text, after -- if it begins with a dash; - reads stdin
    #[arg(value_name = "TEXT", conflicts_with_all = ["file", "ids"])]
    text: Option<String>,
    /// A file with the text; - reads stdin
    #[arg(short, long, value_name = "FILE", conflicts_with = "ids")]
    file: Option<PathBuf>,
    /// Turn these ids into text instead
    #[arg(long, value_name = "ID,…", value_delimiter = ',', allow_hyphen_values = true)]
    #[arg(value_parser = numbers::whole(0..=u32::MAX))]
    ids: Vec<u32>,
    /// A GGUF file, a model directory, or hf:OWNER/NAME [default: the built-in demo]
    #[arg(short, long, env = "BITNET_MODEL", hide_env_values = true, value_name = "MODEL")]
    #[arg(value_parser = ModelSource::parser())]
    model: Option<ModelSource>,
    /// Read control tokens such as <|eot_id|> in the text as tokens, not as characters
    #[arg(long, conflicts_with = "ids")]
    special: bool,
    /// Put no begin-of-text token before the text
    #[arg(long, conflicts_with = "ids")]
    no_bos: bool,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub fn run(args: &TokenizeArgs, console: &Console) -> Result<()> {
    with_tokenizer(args.model.as_ref(), console, |tokenizer| {
        let (ids, text) = if args.ids.is_empty() {
            let text = args.text()?;
            let special = if args.special { Special::Template } else { Special::Text };
            let ids = tokenizer.encode(&text, special, !args.no_bos).map_err(Error::from)?;
            (ids, text)
        } else {
            check(&args.ids, tokenizer)?;
            (args.ids.clone(), tokenizer.decode(&args.ids, false))
        };
        // Not by lines, of which a long text has millions.
        let mut out = BufWriter::new(io::stdout().lock());
        if args.json {
            serde_json::to_writer(&mut out, &Tokens { text: &text, ids: &ids, tokenizer })
                .map_err(io::Error::from)?;
            writeln!(out)?;
        } else if args.ids.is_empty() {
            write_pieces(&ids, tokenizer, &mut out)?;
            out.flush()?;
            console.note(&format!(
                "{} for {}",
                plural(ids.len(), "token"),
                plural(text.len(), "byte")
            ));
        } else {
            writeln!(out, "{text}")?;
        }
        Ok(out.flush()?)
    })
}

/// A file's tokenizer is read without its weights.
fn with_tokenizer(
    source: Option<&ModelSource>,
    console: &Console,
    work: impl FnOnce(&Tokenizer) -> Result<()>,
) -> Result<()> {
    match source {
        Some(source) => {
            let path = load::resolve(source, console)?;
            let checkpoint =
                Checkpoint::open(&path, &OpenOptions::default()).map_err(Error::from)?;
            let tokenizer = Tokenizer::from_source(&checkpoint.tokenizer_source());
            work(&tokenizer.map_err(Error::from)?)
        }
        None => work(load::demo(console)?.load()?.tokenizer()),
    }
}

impl TokenizeArgs {
    fn text(&self) -> Result<String> {
        match (&self.text, &self.file) {
            (Some(text), _) if text != "-" => Ok(text.clone()),
            (_, Some(path)) => text_input::read(path),
            (Some(_), _) => text_input::stdin(),
            (None, None) if text_input::stdin_is_piped() => text_input::stdin(),
            (None, None) => Err(Failure::input("no text")
                .hint("give TEXT, --file FILE or --ids, or pipe it in")
                .into()),
        }
    }
}

fn check(ids: &[u32], tokenizer: &Tokenizer) -> Result<(), Failure> {
    let size = tokenizer.vocab_size();
    match ids.iter().find(|id| **id as usize >= size) {
        Some(id) => Err(Failure::input(format!(
            "--ids: there is no token {id}, ids end at {}",
            size.saturating_sub(1)
        ))),
        None => Ok(()),
    }
}

/// Writes ids, tokens as the vocabulary writes them, and their text in quotes.
///
/// A line is kept for each token that occurs, not for each time it does: a long text takes no more than its ids.
fn write_pieces(ids: &[u32], tokenizer: &Tokenizer, out: &mut impl Write) -> io::Result<()> {
    let distinct: BTreeSet<u32> = ids.iter().copied().collect();
    let mut table = Table::new(&[Align::Right, Align::Left, Align::Left]);
    for &id in &distinct {
        let written = tokenizer.id_to_token(id).unwrap_or_default().escape_debug().to_string();
        let text = tokenizer.decode(&[id], false);
        let text = match text.contains(char::REPLACEMENT_CHARACTER) {
            _ if tokenizer.is_special(id) => "control token".to_owned(),
            true => "part of a character".to_owned(),
            false => format!("{text:?}"),
        };
        table.row([id.to_string(), written, text]);
    }
    let table = table.render("");
    let lines: HashMap<u32, &str> = distinct.into_iter().zip(table.lines()).collect();
    ids.iter().try_for_each(|id| writeln!(out, "{}", lines[id]))
}

/// The JSON object, written as it is made.
struct Tokens<'a> {
    text: &'a str,
    ids: &'a [u32],
    tokenizer: &'a Tokenizer,
}

impl Serialize for Tokens<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Tokens", 3)?;
        object.serialize_field("ids", self.ids)?;
        object.serialize_field("pieces", &Pieces(self))?;
        object.serialize_field("text", self.text)?;
        object.end()
    }
}

/// The text of each token.
struct Pieces<'a>(&'a Tokens<'a>);

impl Serialize for Pieces<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Tokens { ids, tokenizer, .. } = self.0;
        serializer.collect_seq(ids.iter().map(|id| tokenizer.decode(&[*id], false)))
    }
}
