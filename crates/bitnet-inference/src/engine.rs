//! The loop: choose sequences, run them through the model as one batch, draw a token for each, hand the tokens out.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bitnet_kernels::backend::Backend;
use bitnet_kernels::logits::{LogitRow, Logits};
use bitnet_kernels::profile::Phase;
use bitnet_model::batch::Batch;
use bitnet_model::decoder::{Model, Scratch};
use bitnet_model::kv::KvCache;

use crate::config::{EngineConfig, Limits};
use crate::error::{EngineError, InvalidConfig};
use crate::handle::{Job, Permit};
use crate::options::RequestOptions;
use crate::request::Work;
use crate::sampler::SampleError;
use crate::scheduler::{Entry, Finished, Plan, Scheduler};
use crate::sequence::{FinishReason, SeqId, Task};
use crate::stats::{Counters, End, Observer};
use crate::sync::channel::Sender;

/// What the engine tells the one who asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The first step of this request begins.
    Started {
        /// When.
        at: Instant,
        /// Tokens of the prompt that need not be computed, as another sequence began with them.
        cached: usize,
    },
    /// A token was generated.
    Token {
        /// Its id.
        id: u32,
        /// When it was drawn.
        at: Instant,
    },
    /// The next rows of what [`Work::Score`] or [`Work::Logits`] asked for.
    Rows(Vec<f32>),
    /// A generation is over.
    Finished(FinishReason),
    /// All rows have been sent.
    AllRows,
    /// The request came to nothing.
    Failed(EngineError),
}

/// One who waits for events.
struct Client {
    events: Sender<Event>,
    /// Held until the first step, so that it counts as waiting.
    permit: Option<Permit>,
    score: bool,
    submitted: Instant,
    /// When the first step began.
    started: Option<Instant>,
    /// When the first token was drawn, and the last.
    first: Option<Instant>,
    last: Option<Instant>,
    deadline: Option<Instant>,
    /// To go on when nobody receives any more.
    detached: bool,
}

fn store(counter: &AtomicU64, value: u64) {
    counter.store(value, Ordering::Relaxed);
}

/// A model at work. Owned by one thread; nothing is locked.
pub struct Engine<B: Backend> {
    model: Arc<Model<B>>,
    kv: KvCache<B>,
    scratch: Scratch<B>,
    scheduler: Scheduler,
    clients: HashMap<SeqId, Client>,
    limits: Limits,
    counters: Arc<Counters>,
    observer: Arc<dyn Observer>,
    /// The step under way, here to use its memory again.
    step: Step,
    /// Those whose request is over, and its last event: told once the figures are without them.
    ended: Vec<(Client, Event)>,
}

/// What is computed in a step, and what came of it.
#[derive(Default)]
struct Step {
    plan: Plan,
    batch: Batch,
    /// How many tokens each entry of the plan got.
    drawn: Vec<usize>,
    /// Entries that came to nothing.
    failed: Vec<(SeqId, EngineError)>,
}

impl<B: Backend> Engine<B> {
    /// An engine with nothing to do. The cache's memory is reserved, and used as sequences grow.
    pub fn new(
        model: Arc<Model<B>>,
        config: &EngineConfig,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, InvalidConfig> {
        let limits = config.limits(model.config())?;
        let kv = KvCache::new(&**model.backend(), model.config(), config.kv_dtype, limits.pages);
        let (scratch, scheduler) = (model.scratch(), Scheduler::new(limits));
        tracing::info!(
            context = limits.max_seq_len,
            kv_pages = limits.pages,
            kv_dtype = ?config.kv_dtype,
            max_batch_size = limits.max_batch_size,
            "engine ready"
        );
        let (clients, step, counters) = (HashMap::new(), Step::default(), Arc::default());
        let mut engine = Self {
            model,
            kv,
            scratch,
            scheduler,
            clients,
            limits,
            counters,
            observer,
            step,
            ended: Vec::new(),
        };
        engine.count();
        Ok(engine)
    }

    /// The limits that requests are checked against.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Prepares the calling thread for [`Self::step`], such as by binding it to a processor.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn attach(&self) -> std::io::Result<()> {
        self.model.backend().attach()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// Figures about it.
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Takes a request that was checked by the handle.
    pub(crate) fn add(&mut self, Job { request, events, permit, submitted }: Job) {
        let score = matches!(request.work, Work::Score { .. });
        let RequestOptions { deadline, detached, .. } = request.options;
        let (permit, started, first, last) = (Some(permit), None, None, None);
        let client =
            Client { events, permit, score, submitted, started, first, last, deadline, detached };
        let generate = matches!(request.work, Work::Generate { .. });
        if generate && request.ids.len() == self.limits.max_seq_len {
            // There is no room for an answer.
            client.end(Event::Finished(FinishReason::Context), &*self.observer, Instant::now());
            return;
        }
        self.model.foresee(&request.ids); // one row from a disk takes as long as a token
        let id = self.scheduler.add(request, submitted);
        self.clients.insert(id, client);
    }

    /// Computes the next step of everything that is to be done. Returns the number of tokens computed.
    pub fn step(&mut self) -> usize {
        self.drop_unwanted();
        self.scheduler.allow(self.memory_left());
        let working = self.scheduler.plan(&mut self.step.plan);
        if !working && let Some((id, tokens)) = self.scheduler.without_memory() {
            self.fail(id, EngineError::OutOfMemory { tokens });
        }
        self.count();
        if !working {
            return 0;
        }
        self.announce();
        let Self { model, kv, scratch, scheduler, clients, step, .. } = self;
        let profile = Arc::clone(model.backend().profile());
        let _step = profile.step(step.plan.entries.iter().map(Entry::tokens).sum());
        scheduler.fill(&mut step.batch, &step.plan);
        let expected = scheduler.step_model().seconds(step.plan.size);
        let begin = Instant::now();
        let logits = model.forward(&step.batch, kv, scratch);
        let time = begin.elapsed();
        scheduler.observe(&step.plan, time);
        self.observer.step(step.batch.len(), step.plan.entries.len(), time);
        let phase = profile.phase(Phase::Sampling);
        step.draw(logits, scheduler, clients);
        drop(phase);
        self.deliver();
        self.count();
        let Step { plan, batch, .. } = &self.step;
        let (tokens, sequences) = (batch.len(), plan.entries.len());
        tracing::trace!(tokens, sequences, seconds = time.as_secs_f64(), expected, "step");
        batch.len()
    }

    /// Bytes that the cache may take in the next step, if somebody limits that: what is left beside the working memory to come,
    /// and beside pages that have been given out and not been written.
    fn memory_left(&self) -> Option<u64> {
        let left = self.observer.memory_left()?;
        let Limits { max_batch_tokens, max_batch_size, layout, .. } = self.limits;
        let scratch = self.model.scratch_bytes_at_most(max_batch_tokens, max_batch_size);
        let scratch = scratch.saturating_sub(self.model.scratch_bytes(&self.scratch));
        let unwritten = match self.scheduler.unwritten_pages() {
            0 => 0,
            pages => layout.bytes_of_pages(pages) + layout.bytes(1), // they need not begin with a chunk
        };
        Some(left.saturating_sub((scratch + unwritten) as u64))
    }

    /// Gives memory back to the system that no request needs now: of pages that are only kept, of working memory, and of layers
    /// that can be read from their file again.
    pub(crate) fn give_back(&mut self) {
        let before = self.scheduler.pool().bytes();
        for pages in self.scheduler.give_back() {
            self.kv.give_back(&**self.model.backend(), &pages);
        }
        self.scratch = self.model.scratch();
        self.model.give_back();
        let bytes = before - self.scheduler.pool().bytes();
        tracing::debug!(bytes, "gave memory of the key-value cache back");
        self.count();
    }

    /// The addresses of the cache in this process's memory.
    pub(crate) fn kv_memory(&self) -> Vec<std::ops::Range<usize>> {
        self.kv.memory(&**self.model.backend())
    }

    /// After a panic in [`Self::step`]: begins anew with what was running and may be retried, and ends the rest with an error.
    pub(crate) fn recover(&mut self, message: &str) {
        self.scratch = self.model.scratch();
        self.counters.failed_steps.fetch_add(1, Ordering::Relaxed);
        for id in self.scheduler.restart_running() {
            self.fail(id, EngineError::Panicked { message: message.to_owned() });
        }
        self.count();
    }

    /// Ends sequences whose receiving end is gone, and those whose time is over.
    fn drop_unwanted(&mut self) {
        let now = Instant::now();
        let Self { scheduler, clients, ended, .. } = self;
        for (id, client) in clients.extract_if(|_, client| client.is_unwanted(now)) {
            scheduler.remove(id);
            let last = match &client {
                _ if client.is_cancelled() => Event::Finished(FinishReason::Cancelled),
                Client { permit: Some(_), .. } => Event::Failed(EngineError::DeadlineExceeded),
                _ => Event::Finished(FinishReason::Deadline),
            };
            ended.push((client, last));
        }
    }

    /// Passes the scheduler's figures on, then the last events: whoever has heard that a request is over finds it in no figure.
    fn count(&mut self) {
        let at = Instant::now();
        self.publish();
        for (mut client, last) in self.ended.drain(..) {
            client.permit = None;
            client.end(last, &*self.observer, at);
        }
    }

    fn publish(&self) {
        let (counters, scheduler) = (&self.counters, &self.scheduler);
        let pool = scheduler.pool();
        store(&counters.running, scheduler.running() as u64);
        store(&counters.kv_pages, pool.total() as u64);
        store(&counters.kv_pages_used, (pool.total() - pool.unheld()) as u64);
        store(&counters.kv_pages_kept, pool.kept() as u64);
        store(&counters.kv_bytes, pool.bytes() as u64);
        store(&counters.scratch_bytes, self.model.scratch_bytes(&self.scratch) as u64);
        store(&counters.preemptions, scheduler.preemptions());
        store(&counters.evicted_pages, pool.stats().evicted);
        let [base, token, pair] = scheduler.step_model().costs().map(f64::to_bits);
        store(&counters.step_base, base);
        store(&counters.step_token, token);
        store(&counters.step_pair, pair);
    }

    /// Tells those whose first step this is.
    fn announce(&mut self) {
        let Self { step, clients, scheduler, counters, observer, .. } = self;
        let at = Instant::now();
        counters.steps.fetch_add(1, Ordering::Relaxed);
        for entry in &step.plan.entries {
            let Some(client) = clients.get_mut(&entry.id) else { continue };
            if client.permit.take().is_some() {
                let sequence =
                    scheduler.running_mut(entry.id).expect("plans name running sequences");
                let (prompt, cached) = (sequence.prompt_len, sequence.cached.unwrap_or(0));
                counters.prompt_tokens.fetch_add(prompt as u64, Ordering::Relaxed);
                counters.cached_tokens.fetch_add(cached as u64, Ordering::Relaxed);
                client.started = Some(at);
                observer.started(at.saturating_duration_since(client.submitted));
                let started = Event::Started { at, cached };
                let _ = client.events.try_send(started); // whoever is gone is found in the next step
            }
        }
    }

    /// Books the step and tells what came of it.
    fn deliver(&mut self) {
        let Self { scheduler, clients, step, counters, observer, ended, .. } = self;
        let at = Instant::now();
        for (entry, drawn) in step.plan.entries.iter().zip(&step.drawn) {
            let accepted = drawn.saturating_sub(1);
            counters.drafted_tokens.fetch_add(entry.draft.len() as u64, Ordering::Relaxed);
            counters.accepted_tokens.fetch_add(accepted as u64, Ordering::Relaxed);
        }
        scheduler.commit(&step.plan, &step.drawn, |id, tokens, finished| {
            let Some(client) = clients.get_mut(&id) else { return };
            if !tokens.is_empty() {
                counters.generated_tokens.fetch_add(tokens.len() as u64, Ordering::Relaxed);
                match client.last.replace(at) {
                    None => {
                        client.first = Some(at);
                        observer.first_token(at.saturating_duration_since(client.submitted));
                        let began = client.started.unwrap_or(at);
                        observer.prefilled(at.saturating_duration_since(began));
                    }
                    Some(last) => observer.tokens(tokens.len(), at.saturating_duration_since(last)),
                }
            }
            for &id in tokens {
                let _ = client.events.try_send(Event::Token { id, at });
            }
            let last = match finished {
                None => return,
                Some(Finished::Generated(reason)) => Event::Finished(reason),
                Some(Finished::AllRows) => Event::AllRows,
            };
            ended.extend(clients.remove(&id).map(|client| (client, last)));
        });
        for (id, error) in std::mem::take(&mut self.step.failed) {
            self.fail(id, error);
        }
    }

    fn fail(&mut self, id: SeqId, error: EngineError) {
        tracing::debug!(%error, "request failed");
        self.scheduler.remove(id);
        let client = self.clients.remove(&id);
        self.ended.extend(client.map(|client| (client, Event::Failed(error))));
    }
}

impl Client {
    /// Whether nobody receives any more.
    fn is_cancelled(&self) -> bool {
        self.events.is_closed() && !self.detached
    }

    fn is_unwanted(&self, now: Instant) -> bool {
        self.is_cancelled() || self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Tells the last event.
    fn end(self, last: Event, observer: &dyn Observer, at: Instant) {
        let after = at.saturating_duration_since(self.submitted);
        if let (Some(first), Some(last)) = (self.first, self.last) {
            observer.decoded(last.saturating_duration_since(first));
        }
        match &last {
            Event::Finished(reason) => observer.ended(End::Generated(reason), after),
            Event::Failed(error) => observer.ended(End::Failed(error), after),
            _ => observer.ended(End::AllRows, after),
        }
        let _ = self.events.try_send(last); // whoever is gone needs to know nothing
    }
}

impl Step {
    /// Draws tokens from each entry's rows of logits, or sends the rows on.
    fn draw(
        &mut self,
        logits: &Logits,
        scheduler: &mut Scheduler,
        clients: &HashMap<SeqId, Client>,
    ) {
        self.drawn.clear();
        let mut next = 0;
        for entry in &self.plan.entries {
            // Of the rows of a draft, those after the first that was wrong are left.
            let rows = (next..next + entry.outputs.len()).map(|row| logits.row(row));
            next += entry.outputs.len();
            let sequence = scheduler.running_mut(entry.id).expect("plans name running sequences");
            let tokens = sequence.tokens.len();
            let drawn = match &sequence.task {
                _ if entry.outputs.is_empty() => Ok(0),
                Task::Generate { .. } => scheduler.draw(entry, rows),
                Task::Rows { .. } => {
                    let client = clients.get(&entry.id).expect("every sequence has a client");
                    let next = &sequence.tokens[entry.outputs.start + 1..];
                    send_rows(client, rows, next).map(|()| 0)
                }
            };
            if let Err(source) = drawn {
                self.failed.push((entry.id, EngineError::Sample { tokens, source }));
            }
            self.drawn.push(drawn.unwrap_or(0));
        }
    }
}

/// Sends rows of logits, or how well each foresaw the token that is `next`.
fn send_rows<'a>(
    client: &Client,
    rows: impl Iterator<Item = LogitRow<'a>>,
    next: &[u32],
) -> Result<(), SampleError> {
    let rows = rows.map(LogitRow::logits); // all of them, since such sequences want all
    let rows = match client.score {
        true => score(rows, next)?,
        false => rows.flatten().copied().collect(),
    };
    let _ = client.events.try_send(Event::Rows(rows));
    Ok(())
}

/// `-ln p(next[i])` by each row of logits.
fn score<'a>(rows: impl Iterator<Item = &'a [f32]>, next: &[u32]) -> Result<Vec<f32>, SampleError> {
    rows.zip(next).map(|(row, &id)| negative_log_likelihood(row, id)).collect()
}

fn negative_log_likelihood(logits: &[f32], id: u32) -> Result<f32, SampleError> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from((x - max).exp())).sum();
    let value = f64::from(max) + sum.ln() - f64::from(logits[id as usize]);
    match value.is_finite() {
        true => Ok(value as f32),
        false => Err(SampleError::NotFinite { id, value: value as f32 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_the_negative_logarithm_of_the_softmax() {
        let rows = [[0.0, 0.0, 2f32.ln()], [1000.0, 0.0, 0.0]];
        let scores = score(rows.iter().map(|row| &row[..]), &[2, 0]).unwrap();
        assert!((scores[0] - 2f32.ln()).abs() < 1e-6); // 2 / (1 + 1 + 2)
        assert_eq!(scores[1], 0.0);
    }

    #[test]
    fn a_row_that_is_no_number_has_no_score() {
        assert!(score([&[0.0, f32::NAN][..]].into_iter(), &[0]).is_err());
    }
}
