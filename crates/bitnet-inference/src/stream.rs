//! From the engine's tokens to text, on the caller's side: pieces without cut characters, ended exactly at a stop text.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bitnet_model::tokenizer::IncrementalDecoder;
use futures_core::Stream;

use crate::engine::Event;
use crate::error::EngineError;
use crate::sampler::TokenLogprobs;
use crate::sequence::{FinishReason, Stop};
use crate::sync::channel::Receiver;

mod stop;

pub use stop::StopFilter;

/// A part of a generation: what one token brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    /// Text that is now certain. Empty while a character is incomplete or a stop text may have begun; never a part of a
    /// character.
    pub text: String,
    /// The token, or none at the end, when text that was held back comes out.
    pub ids: Vec<u32>,
    /// How likely each of `ids` was, if [`GenerationConfig::logprobs`](crate::GenerationConfig::logprobs) asks for that, else
    /// nothing.
    pub logprobs: Vec<TokenLogprobs>,
}

/// A generation as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The tokens that it continues.
    pub prompt_ids: Vec<u32>,
    /// The tokens generated, the one that ended the text included.
    pub ids: Vec<u32>,
    /// How likely each of them was, if [`GenerationConfig::logprobs`](crate::GenerationConfig::logprobs) asks for that, else
    /// nothing.
    pub logprobs: Vec<TokenLogprobs>,
    /// Their text, without control tokens and up to the stop text or token.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// How long it took.
    pub timings: Timings,
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Where the time of a generation went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them whose keys and values were there already, from another sequence that began with them.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// From the request to its first step.
    pub queue_time: Duration,
    /// From the first step to the first token: the prompt's computation.
    pub prompt_time: Duration,
    /// From the first token to the last.
    pub decode_time: Duration,
}

impl Timings {
    /// From the request to the first token.
    pub fn time_to_first_token(&self) -> Duration {
        self.queue_time + self.prompt_time
    }

    /// Tokens of the prompt computed per second; none if no token was generated, since then it is not known when the prompt was
    /// done.
    pub fn prompt_tokens_per_second(&self) -> Option<f64> {
        let computed = self.prompt_tokens - self.cached_tokens;
        (self.generated_tokens > 0).then(|| per_second(computed, self.prompt_time))?
    }

    /// Tokens per second after the first; none if there are no two tokens.
    pub fn decode_tokens_per_second(&self) -> Option<f64> {
        per_second(self.generated_tokens.checked_sub(1)?, self.decode_time)
    }
}

fn per_second(tokens: usize, time: Duration) -> Option<f64> {
    (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64())
}

/// A generation under way: a [`Stream`] of pieces for async code, [`Generation::next_blocking`] for plain threads.
///
/// Dropping it cancels the work: the engine computes at most the step that it is in.
pub struct Generation {
    events: Pin<Box<Receiver<Event>>>,
    /// None when the text is complete.
    decoder: Option<IncrementalDecoder>,
    stop: StopFilter,
    /// Tokens that end the text and are not a part of it.
    stop_ids: Vec<u32>,
    prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    text: String,
    finish_reason: Option<FinishReason>,
    failed: bool,
    submitted: Instant,
    started: Option<Instant>,
    cached: usize,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Generation {
    /// Makes text of the events of a generation of `prompt_ids`. The text ends at the first of the `stop` texts.
    pub fn new(
        events: Receiver<Event>,
        decoder: IncrementalDecoder,
        stop: Vec<String>,
        prompt_ids: Vec<u32>,
        submitted: Instant,
    ) -> Self {
        Self {
            events: Box::pin(events),
            decoder: Some(decoder),
            stop: StopFilter::new(stop),
            stop_ids: Vec::new(),
            prompt_ids,
            ids: Vec::new(),
            logprobs: Vec::new(),
            text: String::new(),
            finish_reason: None,
            failed: false,
            submitted,
            started: None,
            cached: 0,
            first: None,
            last: None,
        }
    }

    /// Leaves the text of these tokens out, the ones that end it.
    pub fn with_stop_ids(self, stop_ids: Vec<u32>) -> Self {
        Self { stop_ids, ..self }
    }

    /// Waits for the next piece; none after the end.
    pub fn next_blocking(&mut self) -> Option<Result<Piece, EngineError>> {
        while !self.is_over() {
            let event = self.events.recv_blocking().ok();
            if let Some(piece) = self.take(event) {
                return Some(piece);
            }
        }
        None
    }

    /// Ends the generation; the text so far is its result.
    pub fn cancel(&mut self) {
        if !self.is_over() {
            self.end(FinishReason::Cancelled);
        }
    }

    /// The result, after the end.
    pub fn output(&self) -> Option<Output> {
        let finish_reason = self.finish_reason.clone()?;
        Some(Output {
            prompt_ids: self.prompt_ids.clone(),
            ids: self.ids.clone(),
            logprobs: self.logprobs.clone(),
            text: self.text.clone(),
            finish_reason,
            timings: self.timings(),
        })
    }

    /// How long what has been done so far took.
    pub fn timings(&self) -> Timings {
        let between = |from: Option<Instant>, to: Option<Instant>| {
            from.zip(to).map(|(from, to)| to.saturating_duration_since(from)).unwrap_or_default()
        };
        Timings {
            prompt_tokens: self.prompt_ids.len(),
            cached_tokens: self.cached,
            generated_tokens: self.ids.len(),
            queue_time: between(Some(self.submitted), self.started),
            prompt_time: between(self.started, self.first),
            decode_time: between(self.first, self.last),
        }
    }

    fn is_over(&self) -> bool {
        self.failed || self.finish_reason.is_some()
    }

    /// Takes an event, or the end of them, and gives the piece that it makes, if it makes one.
    fn take(&mut self, event: Option<Event>) -> Option<Result<Piece, EngineError>> {
        match event {
            Some(Event::Started { at, cached }) => {
                (self.started, self.cached) = (Some(at), cached);
                None
            }
            Some(Event::Token { id, at, logprobs }) => {
                Some(Ok(self.token(id, at, logprobs.map(|logprobs| *logprobs))))
            }
            Some(Event::Finished(reason)) => {
                let piece = self.end(reason);
                (!piece.text.is_empty()).then_some(Ok(piece))
            }
            Some(Event::Failed(error)) => self.fail(error),
            Some(Event::Rows(_) | Event::Logprobs(_) | Event::AllRows) => None, // a generation has none
            None => self.fail(EngineError::Stopped),
        }
    }

    fn token(&mut self, id: u32, at: Instant, logprobs: Option<TokenLogprobs>) -> Piece {
        self.first.get_or_insert(at);
        self.last = Some(at);
        self.ids.push(id);
        self.logprobs.extend(logprobs.clone());
        let decoder = self.decoder.as_mut().filter(|_| !self.stop_ids.contains(&id));
        let decoded = decoder.map(|decoder| decoder.push(id)).unwrap_or_default();
        let (text, stop) = self.stop.push(&decoded);
        self.text.push_str(&text);
        if let Some(stop) = stop {
            self.finish(FinishReason::Stop(Stop::Text(stop)));
        }
        Piece { text, ids: vec![id], logprobs: logprobs.into_iter().collect() }
    }

    /// Lets out what was held back.
    fn end(&mut self, reason: FinishReason) -> Piece {
        let rest = self.decoder.take().map(IncrementalDecoder::finish).unwrap_or_default();
        let (mut text, stop) = self.stop.push(&rest);
        let reason = match stop {
            Some(stop) => FinishReason::Stop(Stop::Text(stop)),
            None => reason,
        };
        text.push_str(&self.stop.finish());
        self.text.push_str(&text);
        self.finish(reason);
        Piece { text, ..Piece::default() }
    }

    fn finish(&mut self, reason: FinishReason) {
        self.finish_reason = Some(reason);
        self.events.close(); // the engine finds it closed and frees the pages
    }

    fn fail(&mut self, error: EngineError) -> Option<Result<Piece, EngineError>> {
        self.failed = true;
        Some(Err(error))
    }
}

impl Stream for Generation {
    type Item = Result<Piece, EngineError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.is_over() {
            let event = ready!(self.events.as_mut().poll_next(context));
            if let Some(piece) = self.take(event) {
                return Poll::Ready(Some(piece));
            }
        }
        Poll::Ready(None)
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("ids", &self.ids)
            .field("text", &self.text)
            .field("finish_reason", &self.finish_reason)
            .finish_non_exhaustive()
    }
}
