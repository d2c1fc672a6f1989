//! Flags that say what form the answer has.

use std::path::PathBuf;

use anyhow::Result;
use bitnet::ResponseFormat;

use crate::text_input;

const FORM: &str = "Form of the answer";

/// At most one of them.
#[derive(clap::Args)]
#[group(multiple = false)]
pub struct FormatArgs {
    /// Answer with any JSON object
    #[arg(long, help_heading = FORM)]
    json_object: bool,
    /// Answer with JSON that is valid by the JSON schema in this file; - reads stdin
    #[arg(long, value_name = "FILE", help_heading = FORM)]
    json_schema: Option<PathBuf>,
    /// Answer with a text that all of matches this regular expression
    #[arg(long, value_name = "REGEX", allow_hyphen_values = true, help_heading = FORM)]
    regex: Option<String>,
    /// Answer with a text of the Lark grammar in this file; - reads stdin
    #[arg(long, value_name = "FILE", help_heading = FORM)]
    grammar: Option<PathBuf>,
}

impl FormatArgs {
    /// Whether any form was asked for.
    pub fn is_given(&self) -> bool {
        self.json_object
            || self.json_schema.is_some()
            || self.regex.is_some()
            || self.grammar.is_some()
    }

    /// As the library wants it.
    pub fn format(&self) -> Result<ResponseFormat> {
        if let Some(path) = &self.json_schema {
            return Ok(ResponseFormat::JsonSchema(text_input::read(path)?));
        }
        if let Some(path) = &self.grammar {
            return Ok(ResponseFormat::Lark(text_input::read(path)?));
        }
        Ok(match &self.regex {
            Some(regex) => ResponseFormat::Regex(regex.clone()),
            None if self.json_object => ResponseFormat::JsonObject,
            None => ResponseFormat::Text,
        })
    }
}
