//! Requests that wait a moment for others, to be computed together.

use std::collections::VecDeque;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use bitnet_inference::{GenerationConfig, Output};

use crate::error::{Error, invalid};
use crate::model::BitNetModel;
use crate::prompt::Prompt;
use crate::scheduler::InferenceRequest;
use crate::stream::GenerationStream;

/// When requests that come one by one begin.
///
/// ```
/// # #[cfg(feature = "demo-model")] futures_lite::future::block_on(async {
/// # let model = bitnet::BitNetModel::demo().await?;
/// # let config = bitnet::GenerationConfig { max_new_tokens: 4, ..Default::default() };
/// use std::time::Duration;
/// use bitnet::{BitNetModel, DynamicBatchConfig, DynamicBatcher};
///
/// let dynamic_config = DynamicBatchConfig {
///     // Maximum wait time for batching
///     max_wait_time: Duration::from_millis(50),
///
///     // Target batch size
///     target_batch_size: 8,
///
///     // Maximum batch size
///     max_batch_size: 32,
///
///     // Enable continuous batching
///     continuous_batching: true,
///
///     ..Default::default()
/// };
/// let batcher = DynamicBatcher::new(&model, dynamic_config)?;
/// let output = batcher.generate("Hello", &config).await?;
/// # assert_eq!(output.ids.len(), 4);
/// # Ok::<(), bitnet::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DynamicBatchConfig {
    /// Without continuous batching: how long a request waits for others at most.
    pub max_wait_time: Duration,
    /// Without continuous batching: so many that wait begin at once.
    pub target_batch_size: usize,
    /// Requests that are computed together at most; [`InferenceConfig::max_batch_size`](crate::InferenceConfig::max_batch_size)
    /// bounds it too.
    pub max_batch_size: usize,
    /// Whether a request joins those that run at the next step, and never waits. If not, those that have gathered begin
    /// together, when all that began before them are done.
    pub continuous_batching: bool,
}

impl Default for DynamicBatchConfig {
    /// Continuous.
    fn default() -> Self {
        Self {
            max_wait_time: Duration::from_millis(50),
            target_batch_size: 8,
            max_batch_size: 32,
            continuous_batching: true,
        }
    }
}

/// Sends requests to a model as a [`DynamicBatchConfig`] says. Shared by reference among all who send.
#[derive(Debug)]
pub struct DynamicBatcher {
    messages: mpsc::Sender<Message>,
}

enum Message {
    Request(Box<Waiting>),
    /// A request is done, or nobody wants its answer any more.
    Ended,
    /// There will be no more requests.
    Closed,
}

struct Waiting {
    request: InferenceRequest,
    since: Instant,
    reply: async_channel::Sender<Result<(GenerationStream, Slot), Error>>,
}

/// A place among those that run.
#[derive(Debug)]
struct Slot(mpsc::Sender<Message>);

impl Drop for Slot {
    fn drop(&mut self) {
        let _ = self.0.send(Message::Ended); // the batcher may be gone
    }
}

impl DynamicBatcher {
    /// A batcher for a model, with a thread of its own named `bitnet-batcher`.
    ///
    /// # Errors
    /// If a setting has a value that it cannot have, or the system refuses the thread.
    pub fn new(model: &BitNetModel, config: DynamicBatchConfig) -> Result<Self, Error> {
        let DynamicBatchConfig { target_batch_size: target, max_batch_size: most, .. } = config;
        if target == 0 {
            return Err(invalid("target_batch_size", 0, "at least 1"));
        }
        if target > most {
            let expected = format!("at most max_batch_size, {most}");
            return Err(invalid("target_batch_size", target, expected));
        }
        let (messages, received) = mpsc::channel();
        let (model, slots) = (model.clone(), messages.clone());
        let mut gathering = Gathering { config, waiting: VecDeque::new(), running: 0 };
        let work = move || gathering.run(&model, &received, &slots);
        std::thread::Builder::new()
            .name("bitnet-batcher".into())
            .spawn(work)
            .map_err(|source| Error::Threads { threads: 1, source })?;
        Ok(Self { messages })
    }

    /// Sends a prompt and waits for the answer. Dropping the future ends the work.
    ///
    /// # Errors
    /// As [`BitNetModel::generate`].
    pub async fn generate(
        &self,
        prompt: impl Into<Prompt>,
        config: &GenerationConfig,
    ) -> Result<Output, Error> {
        self.submit(InferenceRequest::new(prompt, config.clone())).await
    }

    /// Sends a request and waits for the answer. Dropping the future ends the work.
    ///
    /// # Errors
    /// As [`BitNetModel::submit`].
    pub async fn submit(&self, request: InferenceRequest) -> Result<Output, Error> {
        let (reply, receiver) = async_channel::bounded(1);
        let waiting = Waiting { request, since: Instant::now(), reply };
        let stopped = || Error::Engine(bitnet_inference::EngineError::Stopped);
        self.messages.send(Message::Request(Box::new(waiting))).map_err(|_| stopped())?;
        let (stream, _slot) = receiver.recv().await.map_err(|_| stopped())??;
        stream.finish().await
    }
}

impl Drop for DynamicBatcher {
    fn drop(&mut self) {
        let _ = self.messages.send(Message::Closed); // who waited has borrowed this, so nobody does
    }
}

struct Gathering {
    config: DynamicBatchConfig,
    waiting: VecDeque<Waiting>,
    running: usize,
}

impl Gathering {
    fn run(
        &mut self,
        model: &BitNetModel,
        messages: &mpsc::Receiver<Message>,
        slots: &mpsc::Sender<Message>,
    ) {
        loop {
            self.waiting.retain(|waiting| !waiting.reply.is_closed());
            let wait = self.begin(Instant::now(), |waiting| {
                let slot = Slot(slots.clone());
                let stream = model.submit(waiting.request).map(|stream| (stream, slot));
                let _ = waiting.reply.try_send(stream); // whoever is gone needs no answer
            });
            let message = match wait {
                Some(time) => messages.recv_timeout(time),
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match message {
                Ok(Message::Request(waiting)) => self.waiting.push_back(*waiting),
                Ok(Message::Ended) => self.running -= 1,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::Closed) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Begins what is to begin now. Returns how long to wait if nothing happens before.
    fn begin(&mut self, now: Instant, mut start: impl FnMut(Waiting)) -> Option<Duration> {
        let DynamicBatchConfig { max_wait_time, target_batch_size: target, .. } = self.config;
        let oldest = self.waiting.front()?.since;
        if !self.config.continuous_batching {
            if self.running > 0 {
                return None;
            }
            let left = max_wait_time.saturating_sub(now.saturating_duration_since(oldest));
            if self.waiting.len() < target && !left.is_zero() {
                return Some(left);
            }
        }
        while self.running < self.config.max_batch_size
            && let Some(waiting) = self.waiting.pop_front()
        {
            self.running += 1;
            start(waiting);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: DynamicBatchConfig = DynamicBatchConfig {
        max_wait_time: Duration::from_millis(50),
        target_batch_size: 3,
        max_batch_size: 4,
        continuous_batching: false,
    };

    /// So many requests wait since `now`, and so many run; after `waited`, this many begin and this long is to be waited.
    #[track_caller]
    fn check(
        config: DynamicBatchConfig,
        (waiting, running): (usize, usize),
        waited: u64,
        expected: (usize, Option<u64>),
    ) {
        let (since, (reply, _receiver)) = (Instant::now(), async_channel::bounded(1));
        let request = InferenceRequest::new("x", GenerationConfig::default());
        let one = || Waiting { request: request.clone(), since, reply: reply.clone() };
        let waiting = (0..waiting).map(|_| one()).collect();
        let mut gathering = Gathering { config, waiting, running };
        let mut begun = 0;
        let wait = gathering.begin(since + Duration::from_millis(waited), |_| begun += 1);
        assert_eq!((begun, wait), (expected.0, expected.1.map(Duration::from_millis)));
        assert_eq!(gathering.running, running + begun);
    }

    #[test]
    fn a_lone_request_waits_for_others_so_long_and_no_longer() {
        check(CONFIG, (1, 0), 0, (0, Some(50)));
        check(CONFIG, (2, 0), 20, (0, Some(30)));
        check(CONFIG, (1, 0), 50, (1, None));
    }

    #[test]
    fn the_target_begins_at_once() {
        check(CONFIG, (3, 0), 0, (3, None));
    }

    #[test]
    fn no_more_than_the_most_run() {
        check(CONFIG, (9, 0), 0, (4, None));
        let continuous = DynamicBatchConfig { continuous_batching: true, ..CONFIG };
        check(continuous, (9, 3), 0, (1, None));
        check(continuous, (9, 4), 0, (0, None));
    }

    #[test]
    fn with_continuous_batching_nobody_waits_for_others() {
        let continuous = DynamicBatchConfig { continuous_batching: true, ..CONFIG };
        check(continuous, (1, 2), 0, (1, None));
        check(CONFIG, (3, 2), 90, (0, None));
    }
}
