//! Runs sequences through a model's engine and takes the time of every token.

use std::time::Instant;

use async_channel::Receiver;
use bitnet_inference::engine::Event;
use bitnet_inference::{
    EngineError, EngineHandle, GenerationConfig, InferenceConfig, Request, Work,
};
use bitnet_kernels::kv::PAGE;

use crate::error::Error;

/// What came of one sequence.
pub(super) struct Timed {
    started: Instant,
    pub ids: Vec<u32>,
    at: Vec<Instant>,
}

impl Timed {
    /// Seconds from the first step to the first token.
    pub fn prompt_seconds(&self) -> Option<f64> {
        Some(self.at.first()?.duration_since(self.started).as_secs_f64())
    }

    /// Tokens per second after the first one.
    pub fn rate(&self) -> Option<f64> {
        let (first, last) = (self.at.first()?, self.at.last()?);
        let seconds = last.duration_since(*first).as_secs_f64();
        (seconds > 0.0).then(|| (self.at.len() - 1) as f64 / seconds)
    }
}

/// A generation cut into measurements: after a prompt come windows of the same number of tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Windows {
    pub prompt: usize,
    /// Tokens of a window.
    pub tokens: usize,
    /// Windows that are not counted.
    pub warmup: usize,
    /// Windows that are.
    pub count: usize,
}

impl Windows {
    /// `count` windows after `warmup` of up to `tokens` each in one sequence, so that a counted one begins with `depth` tokens
    /// in the cache on average. Windows get shorter where the first would have to begin before the start.
    pub fn around(depth: usize, tokens: usize, warmup: usize, count: usize) -> Self {
        /// So few tokens give a time at all.
        const SHORTEST: usize = 8;
        let before = |tokens: usize| tokens * (2 * warmup + count - 1) / 2;
        let fitting = depth * 2 / (2 * warmup + count - 1).max(1);
        let tokens = tokens.min(fitting.max(SHORTEST));
        Self { prompt: depth.saturating_sub(before(tokens)).max(1), tokens, warmup, count }
    }

    /// Tokens after the first one.
    fn total(&self) -> usize {
        self.tokens * (self.warmup + self.count)
    }

    /// Tokens in the cache while a token of a counted window is computed, on average: its own keys and values are read as well.
    pub fn context(&self) -> f64 {
        let windows = self.warmup as f64 + (self.count as f64 - 1.0) / 2.0;
        let tokens = self.tokens as f64;
        self.prompt as f64 + tokens * windows + (tokens + 1.0) / 2.0
    }

    /// Tokens that one of `sequences` sequences reaches at most. Those that begin first run ahead, until the prompts of all
    /// have been computed.
    pub fn longest(&self, sequences: usize, step_tokens: usize) -> usize {
        self.prompt + 1 + self.total() + self.lead(sequences, step_tokens)
    }

    fn lead(&self, sequences: usize, step_tokens: usize) -> usize {
        match sequences {
            1 => 0,
            _ => {
                sequences * self.prompt / step_tokens.saturating_sub(sequences).max(1)
                    + sequences
                    + 2
            }
        }
    }
}

/// An engine that takes `sequences` sequences at once, each of up to `tokens` tokens.
pub(super) fn room_for(
    sequences: usize,
    tokens: usize,
    context: usize,
    bytes_per_token: usize,
) -> InferenceConfig {
    let default = InferenceConfig::default();
    let positions = (sequences * tokens.next_multiple_of(PAGE)).max(context.next_multiple_of(PAGE));
    InferenceConfig {
        max_batch_size: default.max_batch_size.max(sequences),
        max_batch_tokens: default.max_batch_tokens.max(2 * sequences),
        max_waiting: default.max_waiting.max(sequences),
        kv_cache_bytes: positions.saturating_mul(bytes_per_token),
        prefix_cache: false, // every measurement computes what it says
        ..default
    }
}

/// Generates `tokens` tokens after each of the prompts, all at the same time, always the likeliest, whatever ends a text.
pub(super) fn generate(
    engine: &EngineHandle,
    prompts: Vec<Vec<u32>>,
    tokens: usize,
) -> Result<Vec<Timed>, Error> {
    let greedy = GenerationConfig::default().sampling()?;
    let submit = |ids| {
        let work = Work::Generate {
            sampling: greedy.clone(),
            max_new_tokens: tokens,
            stop_ids: Vec::new(),
        };
        engine.submit(Request { ids, work })
    };
    let running: Vec<_> = prompts.into_iter().map(submit).collect::<Result<_, _>>()?;
    running.iter().map(collect).collect()
}

fn collect(events: &Receiver<Event>) -> Result<Timed, Error> {
    let mut found = Timed { started: Instant::now(), ids: Vec::new(), at: Vec::new() };
    loop {
        match events.recv_blocking() {
            Ok(Event::Started { at, .. }) => found.started = at,
            Ok(Event::Token { id, at }) => {
                found.ids.push(id);
                found.at.push(at);
            }
            Ok(Event::Finished(_)) => return Ok(found),
            Ok(Event::Failed(error)) => return Err(error.into()),
            Ok(_) => {}
            Err(_) => return Err(EngineError::Stopped.into()),
        }
    }
}

/// Tokens per second of all sequences together in each counted window, and the tokens of the first sequence.
pub(super) fn windows(
    engine: &EngineHandle,
    prompts: Vec<Vec<u32>>,
    windows: &Windows,
) -> Result<(Vec<f64>, Vec<u32>), Error> {
    let limits = engine.limits();
    let mut lead = windows.lead(prompts.len(), limits.max_batch_tokens);
    loop {
        let tokens = 1 + windows.total() + lead;
        let timed = generate(engine, prompts.clone(), tokens)?;
        let times: Vec<&[Instant]> = timed.iter().map(|one| &one.at[..]).collect();
        let rates = rates(&times, windows);
        // A small model may have answered the first request before the last one is handed in; longer answers overlap.
        let longer = windows.prompt + tokens + lead.max(64) <= limits.max_seq_len;
        if rates.len() == windows.count || !longer {
            let mut ids = timed.into_iter().next().map(|one| one.ids).unwrap_or_default();
            ids.truncate(1 + windows.total()); // as many in every case
            return Ok((rates, ids));
        }
        lead += lead.max(64);
    }
}

/// Counted from the moment when the last sequence has its first token; all tokens of a step have the same time.
fn rates(times: &[&[Instant]], windows: &Windows) -> Vec<f64> {
    let Some(&all_run) = times.iter().filter_map(|times| times.first()).max() else {
        return Vec::new();
    };
    let steps: Vec<Instant> = times[0].iter().copied().filter(|&at| at >= all_run).collect();
    let edges: Vec<Instant> = steps.into_iter().step_by(windows.tokens).collect();
    let pairs = edges.windows(2).skip(windows.warmup).take(windows.count);
    let tokens = (times.len() * windows.tokens) as f64;
    pairs.map(|pair| tokens / pair[1].duration_since(pair[0]).as_secs_f64()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn windows_lie_around_the_depth() {
        let long = Windows::around(4000, 128, 1, 5);
        assert_eq!(long, Windows { prompt: 4000 - 128 * 6 / 2, tokens: 128, warmup: 1, count: 5 });
        assert_eq!(long.context(), 4000.0 + 64.5);
        let short = Windows::around(128, 128, 1, 5);
        assert_eq!((short.prompt, short.tokens), (2, 42));
        assert_eq!(short.context(), 2.0 + 42.0 * 3.0 + 21.5);
        assert_eq!(Windows::around(0, 128, 1, 3).tokens, 8);
        assert_eq!(
            Windows::around(50, 20, 0, 1),
            Windows { prompt: 50, tokens: 20, warmup: 0, count: 1 }
        );
    }

    #[test]
    fn rates_count_all_sequences_from_when_the_last_has_begun() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let first: Vec<_> = [0, 1, 2, 4, 6, 8, 12, 16, 20].map(at).into();
        let second: Vec<_> = [2, 4, 6, 8, 12, 16, 20, 21, 22].map(at).into();
        let windows = Windows { prompt: 1, tokens: 2, warmup: 0, count: 2 };
        // Four tokens from second 2 to 6, four from 6 to 12.
        assert_eq!(rates(&[&first, &second], &windows), [1.0, 4.0 / 6.0]);
        let later = Windows { warmup: 1, count: 9, ..windows };
        assert_eq!(rates(&[&first, &second], &later), [4.0 / 6.0, 0.5]);
        assert_eq!(rates(&[], &windows), [0.0; 0]);
    }
}
