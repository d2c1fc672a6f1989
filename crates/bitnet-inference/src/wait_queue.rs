//! Who is next of those that wait: of the queues the one that was served least for its weight, of its requests the one that
//! came first, priorities counted in.
//!
//! Weighted fair queueing with start times (Goyal et al. 1996) in computed tokens. A request is charged when it begins, with
//! what it will likely take, so that a queue cannot take all places at once; when it ends, it is charged with what it took.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::options::Queue;
use crate::sequence::{SeqId, Sequence};

/// Where a sequence stands: smaller is earlier. The microsecond at which it came, less a head start for its priority.
///
/// Since all grow older at the same rate, nobody's place changes while they wait, and everybody who waits comes to be first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    pub micros: i64,
    pub id: SeqId,
}

/// All that wait.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue {
    queues: BTreeMap<Arc<str>, Waiting>,
    /// The service of the queue that was served last, at which queues begin that had nothing to do.
    now: f64,
}

#[derive(Debug)]
struct Waiting {
    weight: f64,
    /// Tokens charged, by weight.
    service: f64,
    sequences: BTreeMap<Rank, Sequence>,
}

impl WaitQueue {
    pub fn push(&mut self, sequence: Sequence) {
        let queue = self.queue(&sequence.queue);
        queue.sequences.insert(sequence.rank, sequence);
    }

    /// The queue with this name and weight. One that had nothing to do begins where the others are.
    fn queue(&mut self, Queue { name, weight }: &Queue) -> &mut Waiting {
        if !self.queues.contains_key(name) {
            let new = Waiting { weight: *weight, service: self.now, sequences: BTreeMap::new() };
            self.queues.insert(Arc::clone(name), new);
        }
        let queue = self.queues.get_mut(name).expect("it is there now");
        queue.weight = *weight;
        queue
    }

    /// Who is next.
    pub fn first(&self) -> Option<&Sequence> {
        let waiting = self.queues.values().filter(|queue| !queue.sequences.is_empty());
        let queue = waiting.min_by(|a, b| a.service.total_cmp(&b.service))?;
        queue.sequences.values().next()
    }

    /// Takes who is next.
    pub fn pop(&mut self) -> Option<Sequence> {
        let (name, rank) = self.first().map(|first| (Arc::clone(&first.queue.name), first.rank))?;
        let queue = self.queues.get_mut(&name)?;
        self.now = self.now.max(queue.service);
        queue.sequences.remove(&rank)
    }

    /// Books tokens for a queue, or takes back what was booked in advance.
    pub fn charge(&mut self, queue: &Queue, tokens: f64) {
        let found = self.queues.get_mut(&queue.name);
        let found = match found {
            Some(found) => found,
            None => self.queue(queue),
        };
        found.service += tokens / queue.weight;
        // A queue without requests is kept as long as it has been served more than its share of what others wait for.
        let (now, contended) = (self.now, !self.is_empty());
        let owes = |queue: &Waiting| contended && queue.service > now;
        self.queues.retain(|_, queue| !queue.sequences.is_empty() || owes(queue));
    }

    /// Tokens by which a queue was served less for its weight than another one.
    pub fn owed(&self, queue: &Queue, other: &Queue) -> f64 {
        let service = |queue: &Queue| match self.queues.get(&queue.name) {
            Some(queue) => queue.service,
            None => self.now,
        };
        (service(other) - service(queue)) * queue.weight
    }

    /// Takes a sequence out.
    pub fn remove(&mut self, id: SeqId) -> Option<Sequence> {
        self.queues.values_mut().find_map(|queue| {
            let rank = *queue.sequences.iter().find(|(rank, _)| rank.id == id)?.0;
            queue.sequences.remove(&rank)
        })
    }

    pub fn is_empty(&self) -> bool {
        self.queues.values().all(|queue| queue.sequences.is_empty())
    }
}
