//! Answers as server-sent events, with a comment from time to time while there is nothing to say.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bitnet::{Output, Timings, TokenLogprobs};
use futures_core::Stream;
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use crate::answers::{Answers, Event, Usage};
use crate::logprobs;

/// How an endpoint words what happens.
pub trait Wording {
    /// What goes over the wire.
    type Chunk<'a>: Serialize
    where
        Self: 'a;

    /// The beginning of an answer, before its first text.
    fn begin(&self, index: usize) -> Option<Self::Chunk<'_>>;
    /// More text, and how likely its tokens were, if that was asked for.
    fn text<'a>(&'a self, index: usize, text: &'a str, tokens: &[TokenLogprobs])
    -> Self::Chunk<'a>;
    /// The end of an answer, and how likely the tokens were that came with no text.
    fn end<'a>(
        &'a self,
        index: usize,
        output: &'a Output,
        tokens: &[TokenLogprobs],
    ) -> Self::Chunk<'a>;
    /// How many tokens there were, if that was asked for.
    fn usage(&self, timings: &[Timings]) -> Option<Self::Chunk<'_>>;
}

/// A stream of events, whose end is `[DONE]`. An error is the last event before it.
pub fn response<W>(answers: Answers, wording: W, keep_alive: Duration) -> Response
where
    W: Wording + Unpin + Send + 'static,
{
    let mut response = Response::new(Body::from_stream(Events::new(answers, wording, keep_alive)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no")); // nginx would collect it
    response
}

struct Events<W> {
    answers: Answers,
    wording: W,
    ready: VecDeque<Bytes>,
    /// Which answers have begun.
    begun: Vec<bool>,
    timings: Vec<Timings>,
    quiet: Pin<Box<Sleep>>,
    keep_alive: Duration,
    over: bool,
}

fn event(chunk: &impl Serialize) -> Bytes {
    let json = serde_json::to_string(chunk).expect("chunks are objects of texts and numbers");
    Bytes::from(format!("data: {json}\n\n"))
}

impl<W: Wording> Events<W> {
    fn new(answers: Answers, wording: W, keep_alive: Duration) -> Self {
        let count = answers.len();
        Self {
            answers,
            wording,
            ready: VecDeque::new(),
            begun: vec![false; count],
            timings: vec![Timings::default(); count],
            quiet: Box::pin(tokio::time::sleep(keep_alive)),
            keep_alive,
            over: false,
        }
    }

    fn begin(&mut self, index: usize) {
        if !std::mem::replace(&mut self.begun[index], true) {
            self.ready.extend(self.wording.begin(index).as_ref().map(event));
        }
    }

    fn take(&mut self, index: usize, happened: Event) {
        self.begin(index);
        let chunk = match &happened {
            Event::Text(text, tokens) => event(&self.wording.text(index, text, tokens)),
            Event::End(output, told) => {
                self.timings[index] = output.timings;
                let rest = &logprobs::shown(output)[*told..];
                event(&self.wording.end(index, output, rest))
            }
        };
        self.ready.push_back(chunk);
    }

    fn end(&mut self) {
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.over = true;
    }

    /// A comment, when nothing was said for long.
    fn poll_quiet(&mut self, context: &mut Context<'_>) -> Poll<Bytes> {
        std::task::ready!(self.quiet.as_mut().poll(context));
        self.wait();
        Poll::Ready(Bytes::from_static(b": keep-alive\n\n"))
    }

    fn wait(&mut self) {
        self.quiet.as_mut().reset(Instant::now() + self.keep_alive);
    }
}

impl<W: Wording + Unpin> Stream for Events<W> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                this.wait();
                return Poll::Ready(Some(Ok(bytes)));
            }
            if this.over {
                return Poll::Ready(None);
            }
            match this.answers.poll_event(context) {
                Poll::Ready(Some(Ok((index, happened)))) => this.take(index, happened),
                Poll::Ready(Some(Err(error))) => {
                    this.ready.push_back(Bytes::from(format!("data: {}\n\n", error.object())));
                    this.end();
                }
                Poll::Ready(None) => {
                    this.ready.extend(this.wording.usage(&this.timings).as_ref().map(event));
                    this.end();
                }
                Poll::Pending => return this.poll_quiet(context).map(|bytes| Some(Ok(bytes))),
            }
        }
    }
}

/// The usage of a stream that asked for it.
pub fn usage(include: bool, timings: &[Timings], n: usize) -> Option<Usage> {
    include.then(|| Usage::of(timings, n))
}
