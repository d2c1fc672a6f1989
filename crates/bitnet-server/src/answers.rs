//! Several generations at the same time, as one stream of what happens in any of them.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bitnet::{Error, FinishReason, GenerationStream, Output, Timings, TokenLogprobs};
use futures_core::Stream;
use serde::Serialize;

use crate::error::ApiError;
use crate::logprobs;

/// The answers to a request. Dropping them ends the work within one step.
#[derive(Debug)]
pub struct Answers {
    /// None after its end.
    streams: Vec<Option<Answer>>,
    /// Who is asked first, so that none of them has to wait for another.
    first: usize,
    /// The field that the prompt came in, for messages.
    prompt: &'static str,
}

#[derive(Debug)]
struct Answer {
    stream: GenerationStream,
    /// Of tokens whose text is still held back.
    held: Vec<TokenLogprobs>,
    /// How many were handed out.
    told: usize,
}

/// What happens in an answer.
#[derive(Debug)]
pub enum Event {
    /// More text, never none, and how likely the tokens were that it became certain with, if that was asked for.
    Text(String, Vec<TokenLogprobs>),
    /// It is complete. So many of its tokens were in the pieces of text.
    End(Box<Output>, usize),
}

impl Answers {
    /// These, whose prompts came in the field `prompt`.
    pub fn new(streams: Vec<GenerationStream>, prompt: &'static str) -> Self {
        let answer = |stream| Some(Answer { stream, held: Vec::new(), told: 0 });
        Self { streams: streams.into_iter().map(answer).collect(), first: 0, prompt }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// What happens next, and in which of them; none after the end of all.
    pub fn poll_event(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<(usize, Event), ApiError>>> {
        let (count, first) = (self.streams.len(), self.first);
        for index in (0..count).map(|step| (first + step) % count) {
            if let Poll::Ready(event) = self.poll_one(index, context) {
                self.first = (index + 1) % count;
                return Poll::Ready(Some(event.map(|event| (index, event))));
            }
        }
        match self.streams.iter().any(Option::is_some) {
            true => Poll::Pending,
            false => Poll::Ready(None),
        }
    }

    /// The next event of one; pending as well after its end.
    fn poll_one(
        &mut self,
        index: usize,
        context: &mut Context<'_>,
    ) -> Poll<Result<Event, ApiError>> {
        let Some(Answer { stream, held, told }) = &mut self.streams[index] else {
            return Poll::Pending;
        };
        loop {
            match std::task::ready!(Pin::new(&mut *stream).poll_next(context)) {
                Some(Ok(piece)) => {
                    held.extend(piece.logprobs);
                    if !piece.text.is_empty() {
                        *told += held.len();
                        return Poll::Ready(Ok(Event::Text(piece.text, std::mem::take(held))));
                    }
                }
                Some(Err(error)) => return Poll::Ready(Err(self.failed(&error))),
                None => {
                    let output = stream.output().expect("without an error, the end has a reason");
                    let told = (*told).min(logprobs::shown(&output).len());
                    self.streams[index] = None;
                    return Poll::Ready(match output.finish_reason {
                        FinishReason::Deadline => Err(ApiError::deadline()),
                        _ => Ok(Event::End(Box::new(output), told)),
                    });
                }
            }
        }
    }

    fn failed(&self, error: &Error) -> ApiError {
        ApiError::from_library(error, self.prompt)
    }

    /// All of them, in order, when all have ended; the first error ends all.
    pub async fn finish(mut self) -> Result<Vec<Output>, ApiError> {
        let mut outputs: Vec<_> = self.streams.iter().map(|_| None).collect();
        while let Some(event) = poll_fn(|context| self.poll_event(context)).await {
            if let (index, Event::End(output, _)) = event? {
                outputs[index] = Some(*output);
            }
        }
        Ok(outputs.into_iter().flatten().collect())
    }
}

/// Why an answer ended, in OpenAI's words.
pub fn finish_reason(reason: &FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop(_) | FinishReason::Cancelled => "stop",
        FinishReason::Length | FinishReason::Context | FinishReason::Deadline => "length",
    }
}

/// How many tokens there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: usize,
}

impl Usage {
    /// Of the answers to some prompts, `n` to each, which count their prompt once.
    pub fn of(timings: &[Timings], n: usize) -> Self {
        let prompts = || timings.iter().step_by(n);
        let prompt_tokens = prompts().map(|timings| timings.prompt_tokens).sum();
        let completion_tokens = timings.iter().map(|timings| timings.generated_tokens).sum();
        let cached_tokens = prompts().map(|timings| timings.cached_tokens).sum();
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens },
        }
    }
}

/// Where the time of an answer went, under llama.cpp's names.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TimingReport {
    queue_ms: f64,
    cache_n: usize,
    prompt_n: usize,
    prompt_ms: f64,
    prompt_per_second: Option<f64>,
    predicted_n: usize,
    predicted_ms: f64,
    predicted_per_second: Option<f64>,
}

impl From<&Timings> for TimingReport {
    fn from(timings: &Timings) -> Self {
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        Self {
            queue_ms: ms(timings.queue_time),
            cache_n: timings.cached_tokens,
            prompt_n: timings.prompt_tokens - timings.cached_tokens,
            prompt_ms: ms(timings.prompt_time),
            prompt_per_second: timings.prompt_tokens_per_second(),
            predicted_n: timings.generated_tokens,
            predicted_ms: ms(timings.decode_time),
            predicted_per_second: timings.decode_tokens_per_second(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_counts_once_and_its_answers_all() {
        let timings = |prompt_tokens, cached_tokens, generated_tokens| Timings {
            prompt_tokens,
            cached_tokens,
            generated_tokens,
            ..Default::default()
        };
        let all = [timings(10, 0, 3), timings(10, 9, 4), timings(20, 5, 1), timings(20, 19, 1)];
        let usage = Usage::of(&all, 2);
        assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (30, 9, 39));
        assert_eq!(usage.prompt_tokens_details.cached_tokens, 5);
    }
}
