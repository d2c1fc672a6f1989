//! What became of a prompt.

use bitnet::{FinishReason, Output};
use serde::{Deserialize, Serialize};

use crate::report::plural;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Item {
    pub prompt: String,
    pub text: String,
    pub ids: Vec<u32>,
    /// `stop`, `length`, `context`, or `timeout`; none if it failed.
    pub finish_reason: Option<String>,
    /// Why there is no text, or only a part.
    pub error: Option<String>,
    pub prompt_tokens: usize,
    /// From its turn to the end of the answer.
    pub seconds: f64,
    /// Of these, until its first step.
    pub queue_s: f64,
}

impl Item {
    pub fn failed(prompt: &str, error: impl ToString) -> Self {
        Self { prompt: prompt.to_owned(), error: Some(error.to_string()), ..Self::default() }
    }

    /// Its time was over before anything was computed.
    pub fn timed_out(prompt: &str) -> Self {
        let finish_reason = Some("timeout".to_owned());
        Self { prompt: prompt.to_owned(), finish_reason, ..Self::default() }
    }

    pub fn answered(prompt: &str, output: Output, seconds: f64) -> Self {
        let reason = match output.finish_reason {
            FinishReason::Stop(_) => "stop",
            FinishReason::Length => "length",
            FinishReason::Context => "context",
            FinishReason::Deadline => "timeout",
            FinishReason::Cancelled => "cancelled",
        };
        Self {
            prompt: prompt.to_owned(),
            text: output.text,
            prompt_tokens: output.timings.prompt_tokens,
            ids: output.ids,
            finish_reason: Some(reason.to_owned()),
            error: None,
            seconds,
            queue_s: output.timings.queue_time.as_secs_f64(),
        }
    }

    /// In a line.
    pub fn summary(&self) -> String {
        let tokens = plural(self.ids.len(), "token");
        match &self.finish_reason {
            Some(reason) => format!("{tokens} in {:.2} s, {reason}", self.seconds),
            None => "failed".to_owned(),
        }
    }
}
