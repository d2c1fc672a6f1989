//! `/v1/completions`: the rest of a text.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use bitnet::{Output, Prompt, Timings};
use serde::Serialize;
use serde_json::Value;

use crate::answers::{Answers, TimingReport, Usage, finish_reason};
use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::generate::{self, Head, Received, receive};
use crate::json;
use crate::sse::{self, Wording};
use crate::state::{App, Engines};
use crate::translate::Asked;

/// Tokens of an answer if nobody says how many, as with OpenAI.
const TOKENS: usize = 16;

/// Continues texts, at once or in pieces.
pub async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let received = receive(Arc::clone(&app), request).await?;
    let (answers, text, stream) = received.compute(begin).await?;
    if stream {
        return Ok(sse::response(answers, text, app.config.keep_alive));
    }
    let outputs = answers.finish().await?;
    Ok(json::response(&text.whole(&outputs)))
}

fn begin(request: &Received, mut fields: Fields) -> Result<(Answers, Text, bool), ApiError> {
    let (engines, server) = (&request.engines, &request.app.config);
    let asked = Asked::read(&mut fields, &request.headers, &request.client, server)?;
    engines.check_name(asked.model.as_deref())?;
    let prompts = prompts(&mut fields, server.max_choices / asked.n)?;
    let echo = fields.bool("echo")?.unwrap_or(false);
    if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        let why = "the model continues texts, and does not fill gaps in them";
        return Err(ApiError::unsupported("suffix", why));
    }
    fields.end()?;
    let max_tokens = asked.max_tokens.unwrap_or(TOKENS);
    let answers = generate::begin(engines, &asked, &prompts, "prompt", Some(max_tokens))?;
    let head = Head::new("cmpl", "text_completion", engines, asked.service_tier.as_deref());
    let echo = echo.then(|| prompts.iter().map(|prompt| text_of(prompt, engines)).collect());
    let Asked { include_usage, n, stream, .. } = asked;
    Ok((answers, Text { head, include_usage, n, echo }, stream))
}

/// A text, several, token ids, or several lists of them; no more than `most`.
fn prompts(fields: &mut Fields, most: usize) -> Result<Vec<Prompt>, ApiError> {
    let prompts = match fields.take("prompt").ok_or_else(|| ApiError::missing("prompt"))? {
        Value::Array(values) => match values.first() {
            None => {
                let message = "Invalid 'prompt': an empty array; there should be something in it.";
                return Err(ApiError::value("prompt", message));
            }
            Some(Value::Number(_)) => vec![Prompt::Ids(fields::ids(&values, "prompt")?)],
            Some(_) if values.len() > most => {
                let message = format!(
                    "'prompt' has {} prompts; with this 'n' it may have {most}.",
                    values.len()
                );
                return Err(ApiError::value("prompt", message));
            }
            Some(_) => {
                let one = |(index, value)| prompt(value, &format!("prompt[{index}]"));
                values.into_iter().enumerate().map(one).collect::<Result<_, _>>()?
            }
        },
        one => vec![prompt(one, "prompt")?],
    };
    Ok(prompts)
}

fn prompt(value: Value, path: &str) -> Result<Prompt, ApiError> {
    match value {
        Value::Array(values) => Ok(Prompt::Ids(fields::ids(&values, path)?)),
        value => Ok(Prompt::Text(fields::string(value, path)?)),
    }
}

fn text_of(prompt: &Prompt, engines: &Engines) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Ids(ids) => engines.model().tokenizer().decode(ids, true),
        Prompt::Chat(_) => unreachable!("there are only texts and tokens here"),
    }
}

/// How answers are worded.
struct Text {
    head: Head,
    include_usage: bool,
    n: usize,
    /// The texts of the prompts, if they are to stand before the answers.
    echo: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Reply<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<Choice<'a>>,
    /// Outer: whether the field is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingReport>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    text: std::borrow::Cow<'a, str>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

impl Text {
    /// What stands before an answer.
    fn before(&self, index: usize) -> &str {
        self.echo.as_ref().map_or("", |texts| &texts[index / self.n])
    }

    fn whole<'a>(&'a self, outputs: &'a [Output]) -> Reply<'a> {
        let choice = |(index, output): (usize, &'a Output)| Choice {
            index,
            text: match self.before(index) {
                "" => output.text.as_str().into(),
                before => format!("{before}{}", output.text).into(),
            },
            logprobs: None,
            finish_reason: Some(finish_reason(&output.finish_reason)),
        };
        let timings: Vec<Timings> = outputs.iter().map(|output| output.timings).collect();
        Reply {
            head: &self.head,
            choices: outputs.iter().enumerate().map(choice).collect(),
            usage: Some(Some(Usage::of(&timings, self.n))),
            timings: match &timings[..] {
                [one] => Some(one.into()),
                _ => None,
            },
        }
    }

    fn chunk<'a>(
        &'a self,
        index: usize,
        text: &'a str,
        finish_reason: Option<&'static str>,
    ) -> Reply<'a> {
        Reply {
            head: &self.head,
            choices: vec![Choice { index, text: text.into(), logprobs: None, finish_reason }],
            usage: self.include_usage.then_some(None),
            timings: None,
        }
    }
}

impl Wording for Text {
    type Chunk<'a> = Reply<'a>;

    fn begin(&self, index: usize) -> Option<Reply<'_>> {
        match self.before(index) {
            "" => None,
            before => Some(self.chunk(index, before, None)),
        }
    }

    fn text<'a>(&'a self, index: usize, text: &'a str) -> Reply<'a> {
        self.chunk(index, text, None)
    }

    fn end<'a>(&'a self, index: usize, output: &'a Output) -> Reply<'a> {
        let reason = finish_reason(&output.finish_reason);
        Reply { timings: Some((&output.timings).into()), ..self.chunk(index, "", Some(reason)) }
    }

    fn usage(&self, timings: &[Timings]) -> Option<Reply<'_>> {
        let usage = sse::usage(self.include_usage, timings, self.n)?;
        Some(Reply {
            head: &self.head,
            choices: Vec::new(),
            usage: Some(Some(usage)),
            timings: None,
        })
    }
}
