//! Requests in queues: the names of the tuning guide for what [`RequestOptions`] says to the engine.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bitnet_inference::{
    GenerationConfig, Output, Queue, RequestOptions, ResponseFormat, StreamingConfig,
};

use crate::default_model::default_model;
use crate::error::{Error, invalid};
use crate::model::BitNetModel;
use crate::prompt::Prompt;
use crate::stream::GenerationStream;

/// Tokens that count as much as one level of priority with [`SchedulingStrategy::ShortestFirst`].
const TOKENS_OF_A_LEVEL: usize = 8;
/// Levels from one queue to the next with [`SchedulingStrategy::Priority`]: as many as make a request take a running one's place.
const LEVELS_OF_A_QUEUE: i32 = 10;

/// Who goes first of the requests that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SchedulingStrategy {
    /// Queues in which requests wait get shares of the computed tokens by their weights; in a queue, who came first.
    #[default]
    FairShare,
    /// Who came first. There are no queues.
    Fifo,
    /// Who is in the queue with the highest weight; it even takes the place of one that runs. Having waited for
    /// ten times [`InferenceConfig::priority_step_ms`](crate::InferenceConfig::priority_step_ms) counts as much as a queue.
    Priority,
    /// Who needs the fewest tokens, prompt and longest answer together; having waited for
    /// [`InferenceConfig::priority_step_ms`](crate::InferenceConfig::priority_step_ms) counts as much as 8 of them. There are
    /// no queues.
    ShortestFirst,
}

/// A request that has not been sent yet.
///
/// ```
/// # #[cfg(feature = "demo-model")] futures_lite::future::block_on(async {
/// use std::time::{Duration, Instant};
/// use bitnet::{BitNetModel, GenerationConfig, InferenceRequest, RequestOptions};
///
/// let model = BitNetModel::demo().await?;
/// let config = GenerationConfig { max_new_tokens: 4, ..Default::default() };
/// let request = InferenceRequest::new("Once upon a time", config)
///     .with_options(RequestOptions { priority: 3, ..Default::default() })
///     .with_deadline(Instant::now() + Duration::from_secs(600));
/// let output = model.submit(request)?.finish().await?;
/// assert_eq!(output.ids.len(), 4);
/// # Ok::<(), bitnet::Error>(()) }).unwrap();
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct InferenceRequest {
    prompt: Prompt,
    config: GenerationConfig,
    queue: Option<Arc<str>>,
    options: RequestOptions,
    streaming: Option<StreamingConfig>,
    format: ResponseFormat,
}

impl InferenceRequest {
    /// A request that is served as any other.
    pub fn new(prompt: impl Into<Prompt>, config: GenerationConfig) -> Self {
        let (prompt, options, format) =
            (prompt.into(), RequestOptions::default(), ResponseFormat::Text);
        Self { prompt, config, queue: None, options, streaming: None, format }
    }

    /// Puts it into the queue of this name, one of those of the [`RequestScheduler`] that it is sent through.
    pub fn with_priority(self, queue: &str) -> Self {
        Self { queue: Some(queue.into()), ..self }
    }

    /// How it is served beside others.
    pub fn with_options(self, options: RequestOptions) -> Self {
        Self { options, ..self }
    }

    /// When the answer is of no more use; see [`RequestOptions::deadline`].
    pub fn with_deadline(self, deadline: Instant) -> Self {
        Self { options: RequestOptions { deadline: Some(deadline), ..self.options }, ..self }
    }

    /// What form the answer has. The grammar is read when the request is sent, on the thread that sends it, which takes
    /// milliseconds, or seconds for one that goes to the limits; the model keeps those read last.
    ///
    /// ```
    /// # #[cfg(all(feature = "demo-model", feature = "grammar"))] {
    /// use bitnet::{BitNetModel, GenerationConfig, InferenceRequest, ResponseFormat};
    ///
    /// let model = BitNetModel::demo().load()?;
    /// let schema = r#"{"type": "object", "properties": {"age": {"type": "integer", "maximum": 99, "minimum": 10}},
    ///     "required": ["age"], "additionalProperties": false}"#;
    /// let request = InferenceRequest::new("Tom said:", GenerationConfig::default())
    ///     .with_format(ResponseFormat::JsonSchema(schema.into()));
    /// let output = futures_lite::future::block_on(model.submit(request)?.finish())?;
    /// # let output = output.text.split_whitespace().collect::<String>();
    /// assert_eq!(output.len(), r#"{"age":10}"#.len());
    /// # }
    /// # Ok::<(), bitnet::Error>(())
    /// ```
    pub fn with_format(self, format: ResponseFormat) -> Self {
        Self { format, ..self }
    }

    /// How its pieces are handed out. Decides on [`RequestOptions::max_retries`] and [`RequestOptions::detached`].
    pub fn with_streaming(self, streaming: StreamingConfig) -> Self {
        Self { streaming: Some(streaming), ..self }
    }
}

impl BitNetModel {
    /// Sends a request.
    ///
    /// # Errors
    /// If the request has a setting that it cannot have, names a queue, which only a [`RequestScheduler`] has, or if too many
    /// wait.
    pub fn submit(&self, request: InferenceRequest) -> Result<GenerationStream, Error> {
        if let Some(name) = request.queue {
            return Err(Error::UnknownQueue { name: name.to_string(), known: Vec::new() });
        }
        let ids = self.encode(&request.prompt)?;
        self.send(request, ids)
    }

    fn send(&self, request: InferenceRequest, ids: Vec<u32>) -> Result<GenerationStream, Error> {
        let InferenceRequest { prompt, config, options, streaming, format, .. } = request;
        self.start(&prompt, ids, &config, options, streaming, &format)
    }
}

/// Sends requests to a model by queues. Clones of the model and other schedulers share the engine with it; queues of the same
/// name are the same.
///
/// The weights of all queues together count as much as [`BitNetModel::generate`] and requests that name no queue, which share
/// the queue `default` unless that is added.
///
/// ```
/// # #[cfg(feature = "demo-model")] futures_lite::future::block_on(async {
/// # let config = bitnet::GenerationConfig { max_new_tokens: 4, ..Default::default() };
/// # bitnet::set_default_model(&bitnet::BitNetModel::demo().await?);
/// use bitnet::{InferenceRequest, RequestScheduler, SchedulingStrategy};
///
/// let scheduler = RequestScheduler::new(SchedulingStrategy::FairShare);
///
/// // Configure priority queues
/// scheduler.add_queue("high_priority", 0.7); // 70% of resources
/// scheduler.add_queue("normal", 0.3);        // 30% of resources
///
/// // Submit requests with priority
/// let request = InferenceRequest::new("Hello", config)
///     .with_priority("high_priority");
///
/// let output = scheduler.submit(request).await?;
/// # assert_eq!(output.timings.generated_tokens, 4);
/// # Ok::<(), bitnet::Error>(()) }).unwrap();
/// ```
#[derive(Debug)]
pub struct RequestScheduler {
    strategy: SchedulingStrategy,
    model: Option<BitNetModel>,
    queues: Mutex<Queues>,
}

#[derive(Debug, Default)]
struct Queues {
    /// With weights as they were given.
    list: Vec<Queue>,
    warned: bool,
}

impl RequestScheduler {
    /// A scheduler without queues, for the default model; see [`set_default_model`](crate::set_default_model).
    pub fn new(strategy: SchedulingStrategy) -> Self {
        Self { strategy, model: None, queues: Mutex::default() }
    }

    /// Sends requests to this model.
    pub fn with_model(self, model: &BitNetModel) -> Self {
        Self { model: Some(model.clone()), ..self }
    }

    /// Adds a queue, or gives one another weight. A weight that no queue can have, and a queue with a strategy that has none,
    /// are errors of the requests that are sent to it.
    pub fn add_queue(&self, name: &str, weight: f64) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.list.retain(|queue| &*queue.name != name);
        queues.list.push(Queue::new(name, weight));
        queues.warned = false;
    }

    /// Sends a request and waits for its answer. Dropping the future ends the work.
    ///
    /// # Errors
    /// As [`stream`](Self::stream), and whatever may happen on the way.
    pub async fn submit(&self, request: InferenceRequest) -> Result<Output, Error> {
        self.stream(request).await?.finish().await
    }

    /// Sends a request. What takes time is loading the default model, if it is not there yet.
    ///
    /// # Errors
    /// If there is no model, no queue of this name, a setting that cannot be, or if too many requests wait.
    pub async fn stream(&self, request: InferenceRequest) -> Result<GenerationStream, Error> {
        let model = match &self.model {
            Some(model) => model.clone(),
            None => default_model().await?,
        };
        let ids = model.encode(&request.prompt)?;
        let tokens = ids.len().saturating_add(request.config.max_new_tokens);
        let options = self.options(&request, tokens)?;
        model.send(InferenceRequest { options, ..request }, ids)
    }

    /// What a request that takes so many tokens at most means to the engine.
    fn options(&self, request: &InferenceRequest, tokens: usize) -> Result<RequestOptions, Error> {
        let InferenceRequest { queue: name, options, .. } = request;
        let strategy = self.strategy;
        if options.queue != Queue::default() {
            let expected = "the default one: `with_priority` names a queue of the scheduler";
            return Err(invalid("queue", &options.queue.name, expected));
        }
        if let (Some(name), SchedulingStrategy::Fifo | SchedulingStrategy::ShortestFirst) =
            (name, strategy)
        {
            let expected =
                format!("none with SchedulingStrategy::{strategy:?}, which has no queues");
            return Err(invalid("queue", name, expected));
        }
        let (queue, level) = match strategy {
            SchedulingStrategy::FairShare => (self.queue(name.as_deref())?.0, 0),
            SchedulingStrategy::Priority => {
                let level = self.queue(name.as_deref())?.1;
                (options.queue.clone(), level)
            }
            SchedulingStrategy::Fifo if options.priority != 0 => {
                let expected = "0 with SchedulingStrategy::Fifo, where who came first goes first";
                return Err(invalid("priority", options.priority, expected));
            }
            SchedulingStrategy::Fifo => (options.queue.clone(), 0),
            SchedulingStrategy::ShortestFirst => {
                let level = tokens.div_ceil(TOKENS_OF_A_LEVEL).min(i32::MAX as usize) as i32;
                (options.queue.clone(), -level)
            }
        };
        let priority = options.priority.saturating_add(level);
        Ok(RequestOptions { queue, priority, ..options.clone() })
    }

    /// A queue with its share of 1, and the level of its requests: 0 for the lightest.
    fn queue(&self, name: Option<&str>) -> Result<(Queue, i32), Error> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let Queues { list, warned } = &mut *queues;
        if let Some(bad) = list.iter().find(|queue| !(queue.weight > 0.0 && queue.weight < 1e9)) {
            return Err(invalid("weight", bad.weight, "above 0 and below 1000000000"));
        }
        let wanted = name.unwrap_or("default");
        let Some(found) = list.iter().find(|queue| &*queue.name == wanted) else {
            let known = list.iter().map(|queue| queue.name.to_string()).collect();
            return match name {
                None => Ok((Queue::default(), 0)),
                Some(name) => Err(Error::UnknownQueue { name: name.to_owned(), known }),
            };
        };
        let sum: f64 = list.iter().map(|queue| queue.weight).sum();
        if (sum - 1.0).abs() > 1e-6 && !std::mem::replace(warned, true) {
            tracing::warn!(
                sum,
                "the weights of queues are not 1 together; they count as shares of their sum"
            );
        }
        let lighter: Vec<f64> =
            list.iter().map(|queue| queue.weight).filter(|&w| w < found.weight).collect();
        let distinct = lighter.iter().enumerate().filter(|(i, w)| !lighter[..*i].contains(w));
        let level = distinct.count() as i32 * LEVELS_OF_A_QUEUE;
        Ok((Queue { weight: found.weight / sum, ..found.clone() }, level))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(strategy: SchedulingStrategy) -> RequestScheduler {
        let scheduler = RequestScheduler::new(strategy);
        scheduler.add_queue("high", 7.0);
        scheduler.add_queue("low", 1.0);
        scheduler.add_queue("normal", 2.0);
        scheduler
    }

    /// The queue's name, its weight, and the priority that a request for this queue gets.
    #[track_caller]
    fn check(
        strategy: SchedulingStrategy,
        queue: Option<&str>,
        priority: i32,
        expected: Result<(&str, f64, i32), &str>,
    ) {
        let mut request = InferenceRequest::new("x", GenerationConfig::default())
            .with_options(RequestOptions { priority, ..Default::default() });
        request.queue = queue.map(Into::into);
        let found = scheduler(strategy).options(&request, 100).map_err(|error| error.to_string());
        let found = found.map(|o| (o.queue.name.to_string(), o.queue.weight, o.priority));
        let expected = expected.map(|(name, weight, level)| (name.to_owned(), weight, level));
        assert_eq!(found, expected.map_err(str::to_owned));
    }

    #[test]
    fn weights_are_shares_of_their_sum() {
        check(SchedulingStrategy::FairShare, Some("high"), 0, Ok(("high", 0.7, 0)));
        check(SchedulingStrategy::FairShare, Some("low"), 3, Ok(("low", 0.1, 3)));
        check(SchedulingStrategy::FairShare, None, 0, Ok(("default", 1.0, 0)));
    }

    #[test]
    fn heavier_queues_are_ten_levels_apart_in_one_queue() {
        check(SchedulingStrategy::Priority, Some("low"), 0, Ok(("default", 1.0, 0)));
        check(SchedulingStrategy::Priority, Some("normal"), 2, Ok(("default", 1.0, 12)));
        check(SchedulingStrategy::Priority, Some("high"), 0, Ok(("default", 1.0, 20)));
    }

    #[test]
    fn shorter_requests_have_a_higher_priority() {
        check(SchedulingStrategy::ShortestFirst, None, 0, Ok(("default", 1.0, -13)));
    }

    #[test]
    fn settings_without_effect_are_errors() {
        check(
            SchedulingStrategy::Fifo,
            Some("high"),
            0,
            Err(
                "`queue` is high; it should be none with SchedulingStrategy::Fifo, which has no queues",
            ),
        );
        check(
            SchedulingStrategy::Fifo,
            None,
            1,
            Err(
                "`priority` is 1; it should be 0 with SchedulingStrategy::Fifo, where who came first goes first",
            ),
        );
    }

    #[test]
    fn a_queue_of_the_engine_does_not_go_past_the_scheduler() {
        let queue = Queue::new("mine", 2.0);
        let request = InferenceRequest::new("x", GenerationConfig::default())
            .with_options(RequestOptions { queue, ..Default::default() });
        let error = scheduler(SchedulingStrategy::Fifo).options(&request, 1).unwrap_err();
        assert!(error.to_string().starts_with("`queue` is mine; it should be the default one"));
    }

    #[test]
    fn an_unknown_queue_is_an_error_that_names_the_known_ones() {
        check(
            SchedulingStrategy::FairShare,
            Some("hgih"),
            0,
            Err("there is no queue `hgih`; there are high, low, normal"),
        );
    }

    #[test]
    fn a_weight_that_cannot_be_is_an_error() {
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let scheduler = RequestScheduler::new(SchedulingStrategy::FairShare);
            scheduler.add_queue("a", weight);
            let error = scheduler.queue(Some("a")).unwrap_err().to_string();
            assert!(error.starts_with("`weight` is "), "{error}");
        }
    }
}
