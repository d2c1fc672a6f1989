//! Who runs in the next step. Pure bookkeeping over plain data.
//!
//! A prompt is a sequence with many tokens to compute, a running answer one with a single token; there is no other difference.
//! Sequences join and leave between steps (iteration-level scheduling: Yu et al. 2022, Orca). When pages run out, the sequence
//! that came last gives its pages back and computes its tokens again later, which gives the same answer: a token's arithmetic
//! does not depend on what else is in the batch.

use std::collections::VecDeque;
use std::time::Duration;

use bitnet_kernels::kv::PAGE;
use bitnet_kernels::logits::LogitRow;
use bitnet_model::batch::{Batch, Outputs};

use crate::block_pool::{BlockPool, Chain, PrefixStats};
use crate::config::Limits;
use crate::draft::StepCost;
use crate::request::Request;
use crate::sampler::SampleError;
use crate::sequence::{FinishReason, SeqId, Sequence, Task};

/// All sequences of an engine, and the pages of its cache.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    /// First come, first served; a sequence that had to give its pages back is at the front.
    waiting: VecDeque<Sequence>,
    /// In the order in which they came.
    running: Vec<Sequence>,
    next_id: u64,
    cost: StepCost,
}

/// One step: which sequences compute how many of their tokens.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of the batch; each sequence at most once.
    pub entries: Vec<Entry>,
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
        let pool = BlockPool::new(limits.pages, limits.eviction);
        let (waiting, running, cost) = (VecDeque::new(), Vec::new(), StepCost::default());
        Self { limits, pool, waiting, running, next_id: 0, cost }
    }

    /// Takes a request, which has been checked against the limits.
    pub fn add(&mut self, request: Request) -> SeqId {
        let id = SeqId(self.next_id);
        self.next_id += 1;
        let mut sequence = Sequence::new(id, request);
        sequence.reserve(self.limits.max_seq_len);
        self.waiting.push_back(sequence);
        id
    }

    /// Forgets a sequence, if it is there, and frees its pages.
    pub fn remove(&mut self, id: SeqId) {
        self.waiting.retain(|sequence| sequence.id != id);
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            let sequence = self.running.remove(index);
            self.release(sequence.pages);
        }
    }

    /// Forgets all sequences that have begun and frees all pages: what is in the cache cannot be trusted any more.
    pub fn remove_running(&mut self) -> Vec<SeqId> {
        self.pool = BlockPool::new(self.limits.pages, self.limits.eviction);
        self.running.drain(..).map(|sequence| sequence.id).collect()
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Pages that no sequence holds, those included that are kept for what is in them.
    pub fn free_pages(&self) -> usize {
        self.pool.available()
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
        plan.entries.clear();
        let (mut tokens, mut outputs) = (self.limits.max_batch_tokens, self.limits.max_outputs);
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].pending() == 1 && self.ensure_pages(index) {
                add_entry(&self.running[index], plan, &mut tokens, &mut outputs);
            }
            index += 1; // `ensure_pages` takes sequences from the end only
        }
        for sequence in self.running.iter().filter(|sequence| sequence.pending() > 1) {
            add_entry(sequence, plan, &mut tokens, &mut outputs);
        }
        while tokens > 0 && self.admit() {
            let newest = self.running.last().expect("one was admitted");
            add_entry(newest, plan, &mut tokens, &mut outputs);
        }
        if plan.entries.iter().all(|e| e.count == 1) {
            self.add_drafts(plan, tokens, outputs);
        }
        !plan.entries.is_empty()
    }

    /// Adds drafts to the answers of a plan, as far as the budgets and the pages go.
    fn add_drafts(&mut self, plan: &mut Plan, mut tokens: usize, mut outputs: usize) {
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
            entry.outputs.end += entry.draft.len();
            tokens -= entry.draft.len();
            outputs -= entry.draft.len();
        }
    }

    /// Books how long a step took.
    pub fn observe(&mut self, plan: &Plan, time: Duration) {
        if plan.entries.iter().all(|entry| entry.count == 1) {
            let drafted = plan.entries.iter().map(|entry| entry.draft.len()).sum();
            self.cost.observe(plan.entries.len(), drafted, time);
        }
    }

    /// Lets the first of those that wait run, if there is room for all its tokens.
    fn admit(&mut self) -> bool {
        let Some(first) = self.waiting.front() else { return false };
        if self.running.len() == self.limits.max_batch_size {
            return false;
        }
        let (found, chain) = self.find(first);
        // Those that are only kept can be taken as long as they are not wanted.
        let kept = found.iter().filter(|&&page| self.pool.is_kept(page)).count();
        if first.pages_needed() - found.len() > self.pool.available() - kept {
            return false;
        }
        let mut first = self.waiting.pop_front().expect("there is one");
        found.iter().for_each(|&page| self.pool.share(page));
        first.computed = found.len() * PAGE;
        first.filed = (found.len(), chain);
        first.cached.get_or_insert(first.computed);
        first.pages.extend(found);
        self.running.push(first);
        self.ensure_pages(self.running.len() - 1)
    }

    /// The pages of other sequences that begin as one does, as many as it may have, and what comes after them.
    fn find(&self, sequence: &Sequence) -> (Vec<u32>, Chain) {
        let (mut pages, mut chain) = (Vec::new(), Chain::default());
        if self.limits.prefix_cache {
            for tokens in sequence.tokens.chunks_exact(PAGE).take(sequence.shareable()) {
                let Some((page, next)) = self.pool.find(chain, tokens) else { break };
                pages.push(page);
                chain = next;
            }
        }
        (pages, chain)
    }

    /// Files the pages of a sequence that have become full, so that others find them.
    fn file(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        let (filed, chain) = &mut sequence.filed;
        while self.limits.prefix_cache && (*filed + 1) * PAGE <= sequence.computed {
            let tokens = &sequence.tokens[*filed * PAGE..][..PAGE];
            let page = &mut sequence.pages[*filed];
            (*page, *chain) = self.pool.file(*page, *chain, tokens);
            *filed += 1;
        }
    }

    /// Gives a running sequence the pages that its tokens need, taking them from sequences that came later. False if it had to
    /// give up its own.
    fn ensure_pages(&mut self, index: usize) -> bool {
        while self.running[index].pages.len() < self.running[index].pages_needed() {
            match self.pool.take() {
                Some(page) => self.running[index].pages.push(page),
                None => {
                    let preempted_itself = self.running.len() - 1 == index;
                    self.preempt_last();
                    if preempted_itself {
                        return false;
                    }
                }
            }
        }
        true
    }

    fn preempt_last(&mut self) {
        let mut sequence = self.running.pop().expect("the sequence that needs a page is running");
        let pages = sequence.restart();
        self.release(pages);
        self.waiting.push_front(sequence);
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
            let output = |(i, index)| (row + index - start, sequence.wanted_logits(entry, i));
            batch.outputs.extend(outputs.map(output));
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
            let (sequence, over) = (&self.running[index], finished.is_some());
            tell(entry.id, &sequence.tokens[sequence.tokens.len() - drawn..], finished);
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

/// Adds as many of a sequence's tokens to the plan as the budgets allow.
fn add_entry(sequence: &Sequence, plan: &mut Plan, tokens: &mut usize, outputs: &mut usize) {
    let mut count = sequence.pending().min(*tokens);
    let extra = sequence.outputs(count).len().saturating_sub(*outputs);
    count -= extra; // rows of logits are wanted from some token on, so leaving out tokens leaves out rows
    if count == 0 {
        return;
    }
    let rows = sequence.outputs(count);
    *tokens -= count;
    *outputs -= rows.len();
    plan.entries.push(Entry { id: sequence.id, count, draft: Vec::new(), outputs: rows });
}

#[cfg(test)]
mod tests;
