//! Who runs in the next step. Pure bookkeeping over plain data.
//!
//! A prompt is a sequence with many tokens to compute, a running answer one with a single token; there is no other difference.
//! Sequences join and leave between steps (iteration-level scheduling: Yu et al. 2022, Orca). When pages run out, the sequence
//! that ranks last gives its pages back and computes its tokens again later, which gives the same answer: a token's arithmetic
//! does not depend on what else is in the batch. While there are answers, prompts are cut to pieces by the time that they take
//! (chunked prefill: Agrawal et al. 2023, SARATHI).

use std::time::{Duration, Instant};

use bitnet_kernels::kv::PAGE;
use bitnet_kernels::logits::LogitRow;
use bitnet_model::batch::{Batch, Outputs};

use crate::block_pool::{BlockPool, Chain, PrefixStats};
use crate::config::Limits;
use crate::draft::StepCost;
use crate::request::Request;
use crate::sampler::SampleError;
use crate::sequence::{FinishReason, SeqId, Sequence, Task};
use crate::step_model::{StepModel, StepSize};
use crate::wait_queue::WaitQueue;

/// Levels of priority from which on a request takes the place of one that runs.
const PREEMPTING: i32 = 10;
/// Tokens that a queue is owed when it gets the place of another queue's request.
const OWED: f64 = 512.0;
/// Tokens of a prompt that a step has in any case, so that prompts come to an end.
const LEAST_PIECE: usize = 8;
/// The same while it is not known what steps cost, enough to learn it.
const FIRST_PIECE: usize = 16;

/// All sequences of an engine, and the pages of its cache.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    waiting: WaitQueue,
    /// By rank.
    running: Vec<Sequence>,
    next_id: u64,
    /// When requests began to come.
    epoch: Instant,
    cost: StepCost,
    model: StepModel,
    preemptions: u64,
}

/// One step: which sequences compute how many of their tokens.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// In the order of the batch; each sequence at most once.
    pub entries: Vec<Entry>,
    /// What they cost.
    pub size: StepSize,
}

/// What a step may still take.
struct Room {
    tokens: usize,
    outputs: usize,
    /// Seconds, if somebody waits for the next token of an answer.
    seconds: Option<f64>,
    /// Whether a part of a prompt is in the step.
    has_prompt: bool,
}

/// A sequence's part of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The sequence.
    pub id: SeqId,
    /// Tokens of the sequence to compute.
    pub count: usize,
    /// Tokens to compute after them, in case that they are drawn.
    pub draft: Vec<u32>,
    /// Those of all these that need logits, by their index in the sequence.
    pub outputs: std::ops::Range<usize>,
}

impl Entry {
    /// Tokens to compute, with those of the draft.
    pub fn tokens(&self) -> usize {
        self.count + self.draft.len()
    }
}

/// How a sequence ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finished {
    /// A generation, for this reason.
    Generated(FinishReason),
    /// All rows of logits that were wanted have been computed.
    AllRows,
}

impl Scheduler {
    /// A scheduler with nothing to do and all pages free.
    pub fn new(limits: Limits) -> Self {
        let pool = BlockPool::new(limits.pages, limits.eviction, limits.layout);
        Self {
            limits,
            pool,
            waiting: WaitQueue::default(),
            running: Vec::new(),
            next_id: 0,
            epoch: Instant::now(),
            cost: StepCost::default(),
            model: StepModel::default(),
            preemptions: 0,
        }
    }

    /// Takes a request that came at `now` and has been checked against the limits.
    pub fn add(&mut self, request: Request, now: Instant) -> SeqId {
        let id = SeqId(self.next_id);
        self.next_id += 1;
        let came = now.saturating_duration_since(self.epoch).as_micros() as i64;
        let step = self.limits.priority_step.as_micros() as i64; // a day at most
        let head_start = i64::from(request.options.priority).saturating_mul(step);
        let mut sequence = Sequence::new(id, request, came.saturating_sub(head_start));
        sequence.reserve(self.limits.max_seq_len);
        self.waiting.push(sequence);
        id
    }

    /// Forgets a sequence, if it is there, and frees its pages.
    pub fn remove(&mut self, id: SeqId) {
        let found = self.running.iter().position(|sequence| sequence.id == id);
        let sequence = match found {
            Some(index) => Some(self.running.remove(index)),
            None => self.waiting.remove(id),
        };
        if let Some(sequence) = sequence {
            self.settle(&sequence);
            self.release(sequence.pages);
        }
    }

    /// Charges a sequence's queue with what was computed for it, in place of what was expected.
    fn settle(&mut self, sequence: &Sequence) {
        let difference = sequence.used() as f64 - sequence.paid as f64;
        self.waiting.charge(&sequence.queue, difference);
    }

    /// After a step that broke off: frees all pages, as what is in the cache cannot be trusted any more. Sequences that may be
    /// computed anew wait for it; the others are forgotten, and returned.
    pub fn restart_running(&mut self) -> Vec<SeqId> {
        self.pool.clear();
        let mut failed = Vec::new();
        for mut sequence in std::mem::take(&mut self.running) {
            sequence.restart();
            // What was drawn in that step has not been told, and whether the answer ends there neither.
            if sequence.retries_left > 0 && sequence.told == sequence.tokens.len() {
                sequence.retries_left -= 1;
                self.waiting.push(sequence);
            } else {
                self.settle(&sequence);
                failed.push(sequence.id);
            }
        }
        failed
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Pages that no sequence holds, those included that are kept for what is in them.
    pub fn free_pages(&self) -> usize {
        self.pool.unheld()
    }

    /// Lets the cache take so many more bytes from the system in the next step; none stands for any number. Sequences make room
    /// for one another as where there are no more pages.
    pub fn allow(&mut self, bytes: Option<u64>) {
        self.pool.allow(bytes);
    }

    /// Pages that sequences have for tokens still to be computed only, and that may not have their memory yet.
    pub fn unwritten_pages(&self) -> usize {
        let unwritten = |s: &Sequence| s.pages.len() - s.computed.div_ceil(PAGE).min(s.pages.len());
        self.running.iter().map(unwritten).sum()
    }

    /// After a plan with nothing in it: the sequence that can never run as there is no memory for it, and its tokens.
    pub fn without_memory(&self) -> Option<(SeqId, usize)> {
        let first = self.waiting.first().filter(|_| self.pool.is_limited())?;
        Some((first.id, first.tokens.len()))
    }

    /// Forgets what is only kept. Returns the pages whose memory may go back to the system, in ranges.
    pub fn give_back(&mut self) -> Vec<std::ops::Range<usize>> {
        self.pool.give_back()
    }

    /// How many sequences run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// The pages of the cache.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// How often a sequence had to make room for another one.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// What steps cost.
    pub fn step_model(&self) -> &StepModel {
        &self.model
    }

    /// How often beginnings of sequences were found in the cache.
    pub fn prefix_stats(&self) -> PrefixStats {
        self.pool.stats()
    }

    /// A sequence that runs.
    pub fn running_mut(&mut self, id: SeqId) -> Option<&mut Sequence> {
        self.running.iter_mut().find(|sequence| sequence.id == id)
    }

    /// The next step: first one token of every answer, then prompts up to the budget, then those that wait while pages last.
    /// A step of answers only may have drafts. Returns whether there is anything to do.
    pub fn plan(&mut self, plan: &mut Plan) -> bool {
        (plan.size, _) = (StepSize::default(), plan.entries.clear());
        self.make_way();
        let Limits { max_batch_tokens: tokens, max_outputs: outputs, .. } = self.limits;
        let mut room = Room { tokens, outputs, seconds: None, has_prompt: false };
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].pending() == 1 && self.ensure_pages(index) {
                self.add_entry(index, plan, &mut room);
            }
            index += 1; // `ensure_pages` takes sequences from the end only
        }
        if !plan.entries.is_empty() {
            let target = self.limits.step_target.map(|target| target.as_secs_f64());
            let left = |target| match self.model.is_known() {
                true => target - self.model.seconds(plan.size),
                false => 0.0,
            };
            room.seconds = target.map(left);
        }
        for index in 0..self.running.len() {
            if self.running[index].pending() > 1 {
                self.add_entry(index, plan, &mut room);
            }
        }
        while room.has_some()
            && let Some(index) = self.admit()
        {
            self.add_entry(index, plan, &mut room);
        }
        if !room.has_prompt {
            self.add_drafts(plan, &room);
        }
        !plan.entries.is_empty()
    }

    /// Adds as many of a sequence's tokens to the plan as the budgets allow.
    fn add_entry(&self, index: usize, plan: &mut Plan, room: &mut Room) {
        let sequence = &self.running[index];
        let mut count = sequence.pending().min(room.tokens);
        let is_prompt = sequence.pending() > 1;
        if let Some(seconds) = room.seconds.filter(|_| is_prompt) {
            let least = match (room.has_prompt, self.model.is_known()) {
                (true, _) => 0,
                (false, true) => LEAST_PIECE,
                (false, false) => FIRST_PIECE,
            };
            count = count.min(self.model.fitting(seconds, sequence.computed).max(least));
        }
        let extra = sequence.outputs(count).len().saturating_sub(room.outputs);
        count -= extra; // rows of logits are wanted from some token on, so leaving out tokens leaves out rows
        if count == 0 {
            return;
        }
        let outputs = sequence.outputs(count);
        room.tokens -= count;
        room.outputs -= outputs.len();
        room.has_prompt |= is_prompt;
        let size = StepSize::of(sequence.computed, count, outputs.len(), self.limits.row_tokens);
        if let Some(seconds) = &mut room.seconds {
            *seconds -= self.model.seconds(size) - self.model.seconds(StepSize::default());
        }
        plan.size += size;
        plan.entries.push(Entry { id: sequence.id, count, draft: Vec::new(), outputs });
    }

    /// Lets a sequence give its place up if the next of its queue is far more important, or if another queue is owed much:
    /// long answers would keep it waiting until they end.
    fn make_way(&mut self) {
        while let Some(next) = self.waiting.first()
            && !self.fits(next)
        {
            let gives_way = |sequence: &Sequence| match sequence.queue.name == next.queue.name {
                true => {
                    sequence.rank > next.rank
                        && next.priority.saturating_sub(sequence.priority) >= PREEMPTING
                }
                false => self.waiting.owed(&next.queue, &sequence.queue) >= OWED,
            };
            match self.running.iter().rposition(gives_way) {
                Some(index) => self.preempt(index),
                None => return,
            }
        }
    }

    /// Adds drafts to the answers of a plan, as far as the budgets and the pages go.
    fn add_drafts(&mut self, plan: &mut Plan, &Room { mut tokens, mut outputs, .. }: &Room) {
        let price = self.cost.price(plan.entries.len());
        for entry in &mut plan.entries {
            let sequence = self.running.iter_mut().find(|sequence| sequence.id == entry.id);
            let sequence = sequence.expect("plans name running sequences");
            let len = sequence.tokens.len();
            let most = sequence.draftable(self.limits.max_seq_len).min(tokens).min(outputs);
            let Task::Generate { drafting: Some(drafting), .. } = &mut sequence.task else {
                continue;
            };
            entry.draft = drafting.propose(&sequence.tokens, most, price);
            while sequence.pages.len() * PAGE < len + entry.draft.len() {
                match self.pool.take() {
                    Some(page) => sequence.pages.push(page),
                    None => entry.draft.truncate(sequence.pages.len() * PAGE - len),
                }
            }
            let drafted = entry.draft.len();
            entry.outputs.end += drafted;
            tokens -= drafted;
            outputs -= drafted;
            plan.size += StepSize::of(len, drafted, drafted, self.limits.row_tokens);
        }
    }

    /// Books how long a step took.
    pub fn observe(&mut self, plan: &Plan, time: Duration) {
        self.model.observe(plan.size, time);
        if plan.entries.iter().all(|entry| entry.count == 1) {
            let drafted = plan.entries.iter().map(|entry| entry.draft.len()).sum();
            self.cost.observe(plan.entries.len(), drafted, time);
        }
    }

    /// Lets the next of those that wait run, if there is room for all its tokens. Returns its place among those that run.
    fn admit(&mut self) -> Option<usize> {
        if !self.fits(self.waiting.first()?) {
            return None;
        }
        let mut first = self.waiting.pop()?;
        let (found, chain) = self.find(&first);
        found.iter().for_each(|&page| self.pool.share(page));
        first.computed = found.len() * PAGE;
        first.filed = (found.len(), chain);
        if first.cached.is_none() {
            first.cached = Some(first.computed);
            first.paid = first.likely_use();
            self.waiting.charge(&first.queue, first.paid as f64);
        }
        first.pages.extend(found);
        let index = self.running.partition_point(|sequence| sequence.rank < first.rank);
        self.running.insert(index, first);
        let has_pages = self.ensure_pages(index);
        assert!(has_pages, "there was room for all its tokens");
        Some(index)
    }

    /// Whether there is room for a sequence, and a page for each that runs and may need one, so that they need not make room for
    /// one another soon.
    fn fits(&self, sequence: &Sequence) -> bool {
        if self.running.len() == self.limits.max_batch_size {
            return false;
        }
        let (found, _) = self.find(sequence);
        // Those that are only kept can be taken as long as they are not wanted.
        let kept = found.iter().filter(|&&page| self.pool.is_kept(page)).count();
        let needed = sequence.pages_needed() - found.len();
        let grows = |running: &&Sequence| running.may_grow(self.limits.max_seq_len);
        needed + self.running.iter().filter(grows).count() <= self.pool.available() - kept
    }

    /// The pages of other sequences that begin as one does, as many as it may have, and what comes after them.
    fn find(&self, sequence: &Sequence) -> (Vec<u32>, Chain) {
        let (mut pages, mut chain) = (Vec::new(), Chain::default());
        if self.limits.prefix_cache {
            let salt = sequence.cache_salt.as_ref();
            for tokens in sequence.tokens.chunks_exact(PAGE).take(sequence.shareable()) {
                let Some((page, next)) = self.pool.find(chain, salt, tokens) else { break };
                pages.push(page);
                chain = next;
            }
        }
        (pages, chain)
    }

    /// Files the pages of a sequence that have become full, so that others find them.
    fn file(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        let (salt, (filed, chain)) = (sequence.cache_salt.as_ref(), &mut sequence.filed);
        while self.limits.prefix_cache && (*filed + 1) * PAGE <= sequence.computed {
            let tokens = &sequence.tokens[*filed * PAGE..][..PAGE];
            let page = &mut sequence.pages[*filed];
            (*page, *chain) = self.pool.file(*page, *chain, salt, tokens);
            *filed += 1;
        }
    }

    /// Gives a running sequence the pages that its tokens need, taking them from sequences that rank after it. False if it had to
    /// give up its own.
    fn ensure_pages(&mut self, index: usize) -> bool {
        while self.running[index].pages.len() < self.running[index].pages_needed() {
            match self.pool.take() {
                Some(page) => self.running[index].pages.push(page),
                None => {
                    let preempted_itself = self.running.len() - 1 == index;
                    self.preempt(self.running.len() - 1);
                    if preempted_itself {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn preempt(&mut self, index: usize) {
        self.preemptions += 1;
        let mut sequence = self.running.remove(index);
        let pages = sequence.restart();
        self.release(pages);
        self.waiting.push(sequence);
    }

    /// Puts the tokens of a plan, with their places in the cache, in place of what is in `batch`.
    pub fn fill(&self, batch: &mut Batch, plan: &Plan) {
        batch.clear();
        for entry in &plan.entries {
            let sequence = self.running.iter().find(|sequence| sequence.id == entry.id);
            let sequence = sequence.expect("plans name running sequences");
            let (row, start) = (batch.len(), sequence.computed);
            let ids = sequence.tokens[start..start + entry.count].iter().chain(&entry.draft);
            batch.push(ids, start, &sequence.pages, Outputs::None);
            let outputs = entry.outputs.clone().enumerate();
            let Batch { outputs: all, spare, .. } = &mut *batch;
            let output =
                |(i, index)| (row + index - start, sequence.wanted_logits(entry, i, spare));
            all.extend(outputs.map(output));
        }
    }

    /// Draws what follows a sequence's tokens from its rows of logits: one token, and as many more as its draft foresaw.
    /// Returns how many.
    ///
    /// # Panics
    /// If the sequence does not run or generates nothing.
    pub fn draw<'a>(
        &mut self,
        entry: &Entry,
        rows: impl Iterator<Item = LogitRow<'a>>,
    ) -> Result<usize, SampleError> {
        let limit = self.limits.max_seq_len;
        self.running_mut(entry.id).expect("plans name running sequences").draw(entry, rows, limit)
    }

    /// Books a step that has been computed. `drawn` has an element for each entry: how many tokens were drawn. `tell` is
    /// called for each entry with its sequence's new tokens, and with how the sequence ended if it did; then the scheduler
    /// has forgotten it.
    pub fn commit(
        &mut self,
        plan: &Plan,
        drawn: &[usize],
        mut tell: impl FnMut(SeqId, &[u32], Option<Finished>),
    ) {
        let limit = self.limits.max_seq_len;
        for (entry, &drawn) in plan.entries.iter().zip(drawn) {
            let found = self.running.iter().position(|sequence| sequence.id == entry.id);
            let Some(index) = found else { continue };
            let finished = self.running[index].advance(entry, drawn, limit);
            self.file(index);
            let (sequence, over) = (&mut self.running[index], finished.is_some());
            tell(entry.id, &sequence.tokens[sequence.told..], finished);
            sequence.told = sequence.tokens.len();
            if let Some(more @ 1..) = sequence.used().checked_sub(sequence.paid) {
                sequence.paid += more;
                self.waiting.charge(&sequence.queue, more as f64);
            }
            if over {
                self.remove(entry.id);
            }
        }
    }

    fn release(&mut self, pages: Vec<u32>) {
        // The first page is needed first, so it is freed last.
        for page in pages.into_iter().rev() {
            self.pool.release(page);
        }
    }
}

impl Room {
    fn has_some(&self) -> bool {
        self.tokens > 0 && (!self.has_prompt || self.seconds.is_none_or(|seconds| seconds > 0.0))
    }
}

#[cfg(test)]
mod tests;
