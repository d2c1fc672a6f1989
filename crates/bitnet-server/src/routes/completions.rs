//! `/v1/completions`: the rest of a text.

use std::cell::Cell;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use bitnet::{Output, Prompt, RequestOptions, Timings, TokenLogprobs};
use serde::Serialize;
use serde_json::Value;

use crate::answers::{Answers, TimingReport, Usage, finish_reason};
use crate::error::ApiError;
use crate::fields::{self, Fields};
use crate::generate::{self, Head, Received, receive};
use crate::json;
use crate::logprobs::{self, Lists};
use crate::sse::{self, Wording};
use crate::state::{App, Engines};
use crate::translate::{Asked, Endpoint};

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
    let prompts = match text.about_prompts() {
        Some(asked) => of_prompts(asked, outputs.iter().step_by(text.n)).await?,
        None => Vec::new(),
    };
    Ok(json::response(&text.whole(&outputs, &prompts)))
}

/// How likely the tokens of the prompts of these answers were.
async fn of_prompts(
    Probabilities { engines, top, options }: Probabilities,
    outputs: impl Iterator<Item = &Output>,
) -> Result<Vec<Vec<TokenLogprobs>>, ApiError> {
    let mut prompts = Vec::new();
    for output in outputs {
        let found = engines.free().prompt_logprobs(&output.prompt_ids, top, options.clone()).await;
        prompts.push(found.map_err(|error| ApiError::from_library(&error, "prompt"))?);
    }
    Ok(prompts)
}

fn begin(request: &Received, mut fields: Fields) -> Result<(Answers, Text, bool), ApiError> {
    let (engines, server) = (&request.engines, &request.app.config);
    let asked =
        Asked::read(Endpoint::Text, &mut fields, &request.headers, &request.client, server)?;
    engines.check_name(asked.model.as_deref())?;
    let prompts = prompts(&mut fields, server.max_choices / asked.n)?;
    let echo = fields.bool("echo")?.unwrap_or(false);
    if fields.string("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        let why = "the model continues texts, and does not fill gaps in them";
        return Err(ApiError::unsupported("suffix", why));
    }
    fields.end()?;
    if echo && asked.stream && asked.config.logprobs.is_some() {
        let why = "with echo, where those of the prompt are told too, the answer is not streamed";
        return Err(ApiError::unsupported("logprobs", why));
    }
    let max_tokens = asked.max_tokens.unwrap_or(TOKENS);
    let answers = generate::begin(engines, &asked, &prompts, "prompt", Some(max_tokens))?;
    let head = Head::new("cmpl", "text_completion", engines, asked.service_tier.as_deref());
    let echo = echo.then(|| prompts.iter().map(|prompt| text_of(prompt, engines)).collect());
    let probabilities =
        |top| Probabilities { engines: Arc::clone(engines), top, options: asked.options.clone() };
    let logprobs = asked.config.logprobs.map(|top| Likely {
        asked: probabilities(top),
        offsets: vec![Cell::new(0); answers.len()],
    });
    let Asked { include_usage, n, stream, .. } = asked;
    Ok((answers, Text { head, include_usage, n, echo, logprobs }, stream))
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
    logprobs: Option<Likely>,
}

/// What is needed to find how likely tokens were.
#[derive(Clone)]
struct Probabilities {
    engines: Arc<Engines>,
    /// Alternatives to each.
    top: usize,
    options: RequestOptions,
}

/// What is needed to tell it.
struct Likely {
    asked: Probabilities,
    /// Characters of each answer that were told.
    offsets: Vec<Cell<usize>>,
}

impl Likely {
    fn lists(&self, index: usize, tokens: &[TokenLogprobs]) -> Lists {
        let mut lists = Lists::default();
        lists.extend(self.asked.engines.model().tokenizer(), tokens, &self.offsets[index]);
        lists
    }

    /// Those of a whole answer, after those of its prompt if these are told too.
    fn whole(&self, index: usize, output: &Output, prompt: Option<&[TokenLogprobs]>) -> Lists {
        let (mut lists, offset) = (Lists::default(), &self.offsets[index]);
        let tokenizer = self.asked.engines.model().tokenizer();
        if let (Some(prompt), Some(first)) = (prompt, output.prompt_ids.first()) {
            lists.push(tokenizer, *first, None, offset);
            lists.extend(tokenizer, prompt, offset);
        }
        lists.extend(tokenizer, logprobs::shown(output), offset);
        lists
    }
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
    logprobs: Option<Lists>,
    finish_reason: Option<&'static str>,
}

impl Text {
    /// What stands before an answer.
    fn before(&self, index: usize) -> &str {
        self.echo.as_ref().map_or("", |texts| &texts[index / self.n])
    }

    /// What is needed to find how likely the tokens of the prompts were, if that is to be told.
    fn about_prompts(&self) -> Option<Probabilities> {
        self.logprobs.as_ref().filter(|_| self.echo.is_some()).map(|likely| likely.asked.clone())
    }

    fn whole<'a>(&'a self, outputs: &'a [Output], prompts: &[Vec<TokenLogprobs>]) -> Reply<'a> {
        let prompt = |index: usize| prompts.get(index / self.n).map(Vec::as_slice);
        let choice = |(index, output): (usize, &'a Output)| Choice {
            index,
            text: match self.before(index) {
                "" => output.text.as_str().into(),
                before => format!("{before}{}", output.text).into(),
            },
            logprobs: self.logprobs.as_ref().map(|l| l.whole(index, output, prompt(index))),
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
        logprobs: Option<Lists>,
        finish_reason: Option<&'static str>,
    ) -> Reply<'a> {
        Reply {
            head: &self.head,
            choices: vec![Choice { index, text: text.into(), logprobs, finish_reason }],
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
            before => Some(self.chunk(index, before, None, None)),
        }
    }

    fn text<'a>(&'a self, index: usize, text: &'a str, tokens: &[TokenLogprobs]) -> Reply<'a> {
        let logprobs = self.logprobs.as_ref().map(|likely| likely.lists(index, tokens));
        self.chunk(index, text, logprobs, None)
    }

    fn end<'a>(&'a self, index: usize, output: &'a Output, tokens: &[TokenLogprobs]) -> Reply<'a> {
        let reason = finish_reason(&output.finish_reason);
        let logprobs = self.logprobs.as_ref().filter(|_| !tokens.is_empty());
        let logprobs = logprobs.map(|likely| likely.lists(index, tokens));
        let chunk = self.chunk(index, "", logprobs, Some(reason));
        Reply { timings: Some((&output.timings).into()), ..chunk }
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
