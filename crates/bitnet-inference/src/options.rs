//! How a request is served beside others: it changes when tokens come, and never which.

use std::sync::Arc;
use std::time::Instant;

use crate::error::InvalidConfig;

/// How a request is served beside others.
///
/// ```
/// use std::time::{Duration, Instant};
/// use bitnet_inference::{Queue, RequestOptions};
///
/// let options = RequestOptions {
///     queue: Queue::new("batch jobs", 0.3),
///     priority: 10,
///     deadline: Some(Instant::now() + Duration::from_secs(60)),
///     ..Default::default()
/// };
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RequestOptions {
    /// Where it waits. Queues in which requests wait get shares of the engine by their weights.
    pub queue: Queue,
    /// Of the requests of a queue, one with a higher priority goes first; each level counts as much as having come
    /// [`InferenceConfig::priority_step_ms`](crate::InferenceConfig::priority_step_ms) earlier, so that no request waits for
    /// ever. From ten levels on it also takes the place of one that runs.
    pub priority: i32,
    /// When the answer is of no more use. A request that has not begun by then fails; an answer ends with what there is.
    pub deadline: Option<Instant>,
    /// Beginnings of texts are shared among requests with the same salt only. With a salt of its own, nobody can find out from
    /// the time an answer takes whether somebody else has asked the same.
    pub cache_salt: Option<Arc<str>>,
    /// How often the request is computed anew when a step breaks off, before it fails. What has been generated stands.
    pub max_retries: u32,
    /// Go on when nobody receives the answer any more.
    pub detached: bool,
}

/// A queue, which exists as long as it is used.
#[derive(Clone, Debug, PartialEq)]
pub struct Queue {
    /// Requests with the same name share a queue.
    pub name: Arc<str>,
    /// Its share of the computed tokens while others wait too, relative to their weights; finite and above 0. The newest
    /// request's counts.
    pub weight: f64,
}

impl Queue {
    /// A queue with a weight.
    pub fn new(name: &str, weight: f64) -> Self {
        Self { name: name.into(), weight }
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self::new("default", 1.0)
    }
}

impl RequestOptions {
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        let weight = self.queue.weight;
        // Far beyond any use, and sums of it stay exact enough.
        match (1e-6..=1e6).contains(&weight) {
            true => Ok(()),
            false => Err(InvalidConfig::new("weight", weight, "from 0.000001 to 1000000")),
        }
    }
}
