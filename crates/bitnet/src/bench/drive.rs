//! Runs sequences through a model's engine and takes the time of every token.

use std::time::Instant;

use async_channel::Receiver;
use bitnet_inference::engine::Event;
use bitnet_inference::{
    EngineError, EngineHandle, GenerationConfig, InferenceConfig, Request, Work,
};
use bitnet_kernels::kv::PAGE;

use super::probes::{Around, Probe};
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
        let before = |tokens: usize| (tokens + 1) * (2 * warmup + count - 1) / 2;
        let fitting = (depth * 2 / (2 * warmup + count - 1).max(1)).saturating_sub(1);
        let tokens = tokens.min(fitting.max(SHORTEST));
        Self { prompt: depth.saturating_sub(before(tokens)).max(1), tokens, warmup, count }
    }

    /// Steps after the first token: each window has one more than it has tokens, which wakes the threads and is not timed.
    fn total(&self) -> usize {
        (self.tokens + 1) * (self.warmup + self.count)
    }

    /// Tokens in the cache while a token of a counted window is computed, on average: its own keys and values are read as well.
    pub fn context(&self) -> f64 {
        let windows = self.warmup as f64 + (self.count as f64 - 1.0) / 2.0;
        let tokens = self.tokens as f64;
        self.prompt as f64 + (tokens + 1.0) * windows + 1.0 + (tokens + 1.0) / 2.0
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
        step_target_ms: 0,   // nobody waits for the next token
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
    submit(engine, prompts, tokens)?.iter().map(collect).collect()
}

fn submit(
    engine: &EngineHandle,
    prompts: Vec<Vec<u32>>,
    tokens: usize,
) -> Result<Vec<Receiver<Event>>, Error> {
    let greedy = GenerationConfig::default().sampling()?;
    let submit = |ids| {
        let work = Work::Generate {
            sampling: greedy.clone(),
            max_new_tokens: tokens,
            stop_ids: Vec::new(),
        };
        engine.submit(Request::new(ids, work))
    };
    Ok(prompts.into_iter().map(submit).collect::<Result<_, _>>()?)
}

fn collect(events: &Receiver<Event>) -> Result<Timed, Error> {
    let mut found = Timed { started: Instant::now(), ids: Vec::new(), at: Vec::new() };
    loop {
        match events.recv_blocking() {
            Ok(Event::Started { at, .. }) => found.started = at,
            Ok(Event::Token { id, at, .. }) => {
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

/// Tokens per second of each measurement, and the probes around it.
pub(super) type Samples = Vec<(f64, Around)>;

/// Tokens per second of all sequences together in each counted window with what `probe` found on both sides of it, and the
/// tokens of the first sequence. The engine stands still between windows.
pub(super) fn windows(
    engine: &EngineHandle,
    prompts: Vec<Vec<u32>>,
    windows: &Windows,
    probe: &mut dyn FnMut() -> Result<Probe, Error>,
) -> Result<(Samples, Vec<u32>), Error> {
    let (sequences, limits) = (prompts.len(), engine.limits());
    let stepwise = engine.stepwise()?;
    let tokens = 1 + windows.total() + windows.lead(sequences, limits.max_batch_tokens);
    let events = submit(engine, prompts, tokens)?;
    let mut running: Vec<Running> = events.into_iter().map(Running::new).collect();
    while !running.iter().all(Running::has_begun) {
        stepwise.run(1)?;
        running.iter_mut().try_for_each(Running::receive)?;
    }
    let mut window = || -> Result<f64, Error> {
        stepwise.run(windows.tokens + 1)?;
        running[0].receive()?;
        let [first, .., last] = running[0].last(windows.tokens + 1)? else {
            return Err(EngineError::Stopped.into());
        };
        let seconds = last.duration_since(*first).as_secs_f64();
        Ok((sequences * windows.tokens) as f64 / seconds)
    };
    for _ in 0..windows.warmup {
        window()?;
    }
    let mut samples = Vec::with_capacity(windows.count);
    if windows.count > 0 {
        let mut before = probe()?;
        for _ in 0..windows.count {
            let rate = window()?;
            let after = probe()?;
            samples.push((rate, Around { before, after }));
            before = after;
        }
    }
    let mut ids = running.swap_remove(0).ids;
    ids.truncate(1 + windows.total()); // as many in every case
    Ok((samples, ids))
}

/// A sequence that is being generated step by step.
struct Running {
    events: Receiver<Event>,
    ids: Vec<u32>,
    at: Vec<Instant>,
}

impl Running {
    fn new(events: Receiver<Event>) -> Self {
        Self { events, ids: Vec::new(), at: Vec::new() }
    }

    fn has_begun(&self) -> bool {
        !self.ids.is_empty()
    }

    /// Takes what has come so far.
    fn receive(&mut self) -> Result<(), Error> {
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Token { id, at, .. } => {
                    self.ids.push(id);
                    self.at.push(at);
                }
                Event::Failed(error) => return Err(error.into()),
                _ => {}
            }
        }
        match self.events.is_closed() && !self.has_begun() {
            true => Err(EngineError::Stopped.into()),
            false => Ok(()),
        }
    }

    /// When the last `count` tokens were drawn.
    fn last(&self, count: usize) -> Result<&[Instant], Error> {
        let from = self.at.len().checked_sub(count).ok_or(EngineError::Stopped)?;
        Ok(&self.at[from..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_around_the_depth() {
        let long = Windows::around(4000, 128, 1, 5);
        assert_eq!(long, Windows { prompt: 4000 - 129 * 6 / 2, tokens: 128, warmup: 1, count: 5 });
        assert_eq!(long.context(), 4000.0 + 65.5);
        let short = Windows::around(128, 128, 1, 5);
        assert_eq!((short.prompt, short.tokens), (2, 41));
        assert_eq!(short.context(), 2.0 + 42.0 * 3.0 + 22.0);
        assert_eq!(Windows::around(0, 128, 1, 3).tokens, 8);
        assert_eq!(
            Windows::around(50, 20, 0, 1),
            Windows { prompt: 50, tokens: 20, warmup: 0, count: 1 }
        );
    }

    #[cfg(feature = "demo-model")]
    #[test]
    fn windows_are_measured_between_probes_while_all_sequences_run() {
        let model = crate::BitNetModel::demo().load().unwrap();
        let engine = model.engine();
        let prompts: Vec<_> = (1..4).map(|id| vec![id; 5]).collect();
        let expected = generate(engine, vec![prompts[0].clone()], 13).unwrap().remove(0).ids;
        let plan = Windows { prompt: 5, tokens: 3, warmup: 1, count: 2 };
        let mut turns = 0.0;
        let mut probe = || {
            turns += 1.0;
            Ok(Probe::of(turns, turns))
        };
        let (samples, ids) = windows(engine, prompts, &plan, &mut probe).unwrap();
        let around: Vec<_> = samples.iter().map(|(_, around)| around.read()).collect();
        assert_eq!((around, ids), (vec![1.5, 2.5], expected));
        assert!(samples.iter().all(|(rate, _)| *rate > 0.0));
    }
}
