//! `/v1/chat/completions`: the next turn of a conversation.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use bitnet::{Output, Prompt, Timings, TokenLogprobs};
use serde::Serialize;

use crate::answers::{Answers, TimingReport, Usage, finish_reason};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generate::{self, Head, Received, receive};
use crate::logprobs::{self, Content};
use crate::sse::{self, Wording};
use crate::state::{App, Engines};
use crate::translate::{Asked, Endpoint};
use crate::{json, messages};

/// Answers a conversation, at once or in pieces.
pub async fn create(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let received = receive(Arc::clone(&app), request).await?;
    let (answers, chat, stream) = received.compute(begin).await?;
    if stream {
        return Ok(sse::response(answers, chat, app.config.keep_alive));
    }
    let outputs = answers.finish().await?;
    Ok(json::response(&chat.whole(&outputs)))
}

fn begin(request: &Received, mut fields: Fields) -> Result<(Answers, Chat, bool), ApiError> {
    let engines = &request.engines;
    let (headers, client, server) = (&request.headers, &request.client, &request.app.config);
    let asked = Asked::read(Endpoint::Chat, &mut fields, headers, client, server)?;
    engines.check_name(asked.model.as_deref())?;
    let messages = messages::read(&mut fields)?.ok_or_else(|| ApiError::missing("messages"))?;
    let prompt = Prompt::Chat(messages);
    for name in ["echo", "prompt", "suffix"] {
        if fields.take(name).is_some_and(|value| value != false) {
            return Err(ApiError::unsupported(name, "it belongs to /v1/completions"));
        }
    }
    fields.end()?;
    let answers = generate::begin(engines, &asked, &[prompt], "messages", asked.max_tokens)?;
    let object = if asked.stream { "chat.completion.chunk" } else { "chat.completion" };
    let head = Head::new("chatcmpl", object, engines, asked.service_tier.as_deref());
    let logprobs = asked.config.logprobs.is_some().then(|| Arc::clone(engines));
    let Asked { include_usage, n, stream, .. } = asked;
    Ok((answers, Chat { head, include_usage, n, logprobs }, stream))
}

/// How answers are worded.
struct Chat {
    head: Head,
    include_usage: bool,
    n: usize,
    /// Those who know the tokens, if it is asked how likely they were.
    logprobs: Option<Arc<Engines>>,
}

#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<Choice<'a>>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingReport>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<Content>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<ChunkChoice<'a>>,
    /// Outer: whether the field is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingReport>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: Option<Content>,
    finish_reason: Option<&'static str>,
}

#[derive(Default, Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

impl Chat {
    fn whole<'a>(&'a self, outputs: &'a [Output]) -> Whole<'a> {
        let choice = |(index, output): (usize, &'a Output)| Choice {
            index,
            message: Message { role: "assistant", content: &output.text, refusal: None },
            logprobs: self.logprobs(logprobs::shown(output)),
            finish_reason: finish_reason(&output.finish_reason),
        };
        let timings: Vec<Timings> = outputs.iter().map(|output| output.timings).collect();
        Whole {
            head: &self.head,
            choices: outputs.iter().enumerate().map(choice).collect(),
            usage: Usage::of(&timings, self.n),
            timings: match &timings[..] {
                [one] => Some(one.into()),
                _ => None,
            },
        }
    }

    fn logprobs(&self, tokens: &[TokenLogprobs]) -> Option<Content> {
        let engines = self.logprobs.as_ref()?;
        Some(logprobs::content(engines.model().tokenizer(), tokens))
    }

    fn chunk<'a>(
        &'a self,
        index: usize,
        delta: Delta<'a>,
        logprobs: Option<Content>,
        finish_reason: Option<&'static str>,
    ) -> Chunk<'a> {
        Chunk {
            head: &self.head,
            choices: vec![ChunkChoice { index, delta, logprobs, finish_reason }],
            usage: self.include_usage.then_some(None),
            timings: None,
        }
    }
}

impl Wording for Chat {
    type Chunk<'a> = Chunk<'a>;

    fn begin(&self, index: usize) -> Option<Chunk<'_>> {
        let delta = Delta { role: Some("assistant"), content: Some("") };
        Some(self.chunk(index, delta, None, None))
    }

    fn text<'a>(&'a self, index: usize, text: &'a str, tokens: &[TokenLogprobs]) -> Chunk<'a> {
        let delta = Delta { content: Some(text), ..Default::default() };
        self.chunk(index, delta, self.logprobs(tokens), None)
    }

    fn end<'a>(&'a self, index: usize, output: &'a Output, tokens: &[TokenLogprobs]) -> Chunk<'a> {
        let reason = finish_reason(&output.finish_reason);
        let logprobs = if tokens.is_empty() { None } else { self.logprobs(tokens) };
        let chunk = self.chunk(index, Delta::default(), logprobs, Some(reason));
        Chunk { timings: Some((&output.timings).into()), ..chunk }
    }

    fn usage(&self, timings: &[Timings]) -> Option<Chunk<'_>> {
        let usage = sse::usage(self.include_usage, timings, self.n)?;
        Some(Chunk {
            head: &self.head,
            choices: Vec::new(),
            usage: Some(Some(usage)),
            timings: None,
        })
    }
}
