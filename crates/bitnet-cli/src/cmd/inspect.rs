//! `inspect`: what is in a model file and what the engine makes of it, from headers alone.

mod findings;
mod sections;

use std::io::{self, Write};

use anyhow::Result;
use bitnet::{Checkpoint, Error, OpenOptions};
use serde_json::{Map, Value};

use crate::args::ModelSource;
use crate::cmd::info::model;
use crate::console::Console;
use crate::load;

/// Show what a model file holds: metadata, tensors, sizes, and what the engine makes of them
///
/// Reads headers only, so it takes no longer for a large model.
#[derive(clap::Args)]
pub struct InspectArgs {
    /// A GGUF file, a model directory, or hf:OWNER/NAME
    #[arg(short, long, env = "BITNET_MODEL", hide_env_values = true, value_name = "MODEL")]
    #[arg(value_parser = ModelSource::parser(), conflicts_with = "positional")]
    model: Option<ModelSource>,
    /// The model, with or without -m before it
    #[arg(value_name = "MODEL", value_parser = ModelSource::parser(), required_unless_present = "model")]
    positional: Option<ModelSource>,
    /// List all tensors
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    json: bool,
}

pub fn run(args: &InspectArgs, console: &Console) -> Result<()> {
    let source =
        args.positional.as_ref().or(args.model.as_ref()).expect("clap requires one of both");
    let path = load::resolve(source, console)?;
    let checkpoint = Checkpoint::open(&path, &OpenOptions::default()).map_err(Error::from)?;
    let mut all: Vec<_> = model::of_checkpoint(&path, &checkpoint).into();
    all.push(sections::architecture(&checkpoint));
    all.push(sections::kernels(&checkpoint));
    all.push(sections::bytes_per_token(&checkpoint));
    all.extend(sections::metadata(&checkpoint));
    if args.tensors {
        all.push(sections::tensors(&checkpoint));
    }
    all.push(findings::section(&checkpoint));
    let mut out = io::stdout().lock();
    if args.json {
        let object: Map<_, _> = all.into_iter().map(|s| (s.json.0.to_owned(), s.json.1)).collect();
        writeln!(out, "{:#}", Value::Object(object))?;
    } else {
        let text: Vec<_> = all.iter().map(|s| format!("{}\n{}", s.title, s.text)).collect();
        write!(out, "{}", text.join("\n"))?;
    }
    Ok(out.flush()?)
}
