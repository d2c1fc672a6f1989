//! One request on its way: its tokens, its pages, how far it has come.

use std::sync::Arc;

use bitnet_kernels::kv::PAGE;
use bitnet_kernels::logits::{LogitRow, Wanted};

use crate::block_pool::Chain;
use crate::draft::Drafting;
use crate::options::{Queue, RequestOptions};
use crate::request::{DraftStrategy, Request, Work};
use crate::sampler::{SampleError, Sampler, TokenLogprobs};
use crate::scheduler::{Entry, Finished};
use crate::wait_queue::Rank;

/// Tokens of an answer that a queue is charged in advance, at most.
const LIKELY_ANSWER: usize = 128;

/// A sequence's name as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The text is complete.
    Stop(Stop),
    /// `max_new_tokens` tokens were generated.
    Length,
    /// Prompt and answer fill the context.
    Context,
    /// The time for it was over.
    Deadline,
    /// Nobody wanted more.
    Cancelled,
}

/// What completed a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// This token, which ends texts.
    Token(u32),
    /// This text, one of those asked for.
    Text(String),
    /// It is whole by its grammar, and nothing may follow.
    Complete,
}

impl std::fmt::Display for FinishReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stop(Stop::Token(id)) => write!(f, "stop (token {id})"),
            Self::Stop(Stop::Text(text)) => write!(f, "stop (text {text:?})"),
            Self::Stop(Stop::Complete) => f.write_str("stop (complete)"),
            Self::Length => f.write_str("length"),
            Self::Context => f.write_str("context"),
            Self::Deadline => f.write_str("deadline"),
            Self::Cancelled => f.write_str("cancelled"),
        }
    }
}

/// A request and the state of its computation.
#[derive(Debug)]
pub struct Sequence {
    pub(crate) id: SeqId,
    pub(crate) queue: Queue,
    pub(crate) priority: i32,
    /// Its place among those that wait, and among those that run.
    pub(crate) rank: Rank,
    pub(crate) cache_salt: Option<Arc<str>>,
    pub(crate) retries_left: u32,
    /// What its queue was charged for it, in tokens.
    pub(crate) paid: usize,
    /// How many of `tokens` have been told to whoever asked.
    pub(crate) told: usize,
    pub(crate) prompt_len: usize,
    /// Prompt and answer.
    pub(crate) tokens: Vec<u32>,
    /// How likely those of them were that have been drawn and not told, if that is wanted.
    pub(crate) logprobs: Vec<TokenLogprobs>,
    /// How many of `tokens` have their keys and values in the cache.
    pub(crate) computed: usize,
    /// The pages of `tokens`, in order; none while it waits.
    pub(crate) pages: Vec<u32>,
    /// How many of them are filed, and what comes before the next one.
    pub(crate) filed: (usize, Chain),
    /// Tokens of the prompt that were in the cache when it began.
    pub(crate) cached: Option<usize>,
    pub(crate) task: Task,
}

/// [`Work`] with what changes on the way.
#[derive(Debug)]
pub(crate) enum Task {
    Generate {
        sampler: Box<Sampler>,
        max_new_tokens: usize,
        stop_ids: Vec<u32>,
        drafting: Option<Drafting>,
    },
    /// Rows of logits that are wanted: of tokens from `next` on.
    Rows { next: usize, kind: Rows },
}

/// What is wanted of rows of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// All logits.
    Logits,
    /// How likely the token was that follows.
    Score,
    /// The same, and that of so many of the likeliest tokens.
    Logprobs(usize),
}

impl Sequence {
    /// A sequence that has not begun, of a request that came so many microseconds after the first one.
    pub(crate) fn new(id: SeqId, request: Request, micros: i64) -> Self {
        let RequestOptions { queue, priority, cache_salt, max_retries, .. } = request.options;
        let task = match request.work {
            Work::Generate { sampling, max_new_tokens, stop_ids } => Task::Generate {
                drafting: (sampling.draft == DraftStrategy::Ngram).then(Drafting::new),
                sampler: Box::new(Sampler::new(sampling).with_ends(&stop_ids)),
                max_new_tokens,
                stop_ids,
            },
            Work::Score { from } => Task::Rows { next: from.saturating_sub(1), kind: Rows::Score },
            Work::Logprobs { from, top } => {
                Task::Rows { next: from.saturating_sub(1), kind: Rows::Logprobs(top) }
            }
            Work::Logits { from } => Task::Rows { next: from, kind: Rows::Logits },
        };
        Self {
            id,
            queue,
            priority,
            rank: Rank { micros, id },
            cache_salt,
            retries_left: max_retries,
            paid: 0,
            told: request.ids.len(),
            prompt_len: request.ids.len(),
            tokens: request.ids,
            logprobs: Vec::new(),
            computed: 0,
            pages: Vec::new(),
            filed: Default::default(),
            cached: None,
            task,
        }
    }

    /// Makes room for all tokens that it may get, so that none is made while it runs.
    pub(crate) fn reserve(&mut self, max_seq_len: usize) {
        let Task::Generate { max_new_tokens, .. } = self.task else { return };
        let room = max_seq_len.saturating_sub(self.tokens.len()).min(max_new_tokens);
        self.tokens.reserve_exact(room);
        self.pages.reserve_exact((self.tokens.len() + room).div_ceil(PAGE));
    }

    /// Tokens whose keys and values are wanted: all, but the last of a text to be scored predicts nothing.
    pub(crate) fn wanted(&self) -> usize {
        let leaves_last = |kind| matches!(kind, Rows::Score | Rows::Logprobs(_));
        let left = matches!(self.task, Task::Rows { kind, .. } if leaves_last(kind));
        self.tokens.len() - usize::from(left)
    }

    /// Tokens still to compute.
    pub(crate) fn pending(&self) -> usize {
        self.wanted() - self.computed
    }

    /// The most pages that may come from another sequence: of full pages those that leave a token to be computed, and all of
    /// whose logits are wanted.
    pub(crate) fn shareable(&self) -> usize {
        let most = self.wanted().saturating_sub(1);
        let tokens = match self.task {
            Task::Generate { .. } => most,
            Task::Rows { next, .. } => most.min(next),
        };
        tokens / PAGE
    }

    /// Tokens computed for it; those that had to be computed again count once.
    pub(crate) fn used(&self) -> usize {
        self.computed.saturating_sub(self.cached.unwrap_or(0))
    }

    /// Tokens that it will likely have computed when it is over.
    pub(crate) fn likely_use(&self) -> usize {
        let answer = match self.task {
            Task::Generate { max_new_tokens, .. } => max_new_tokens.min(LIKELY_ANSWER),
            Task::Rows { .. } => 0,
        };
        self.wanted() - self.cached.unwrap_or(0) + answer
    }

    /// Forgets its pages, which it returns, as if it had not begun.
    pub(crate) fn restart(&mut self) -> Vec<u32> {
        (self.computed, self.filed) = Default::default();
        std::mem::take(&mut self.pages)
    }

    /// Pages that all its tokens need.
    pub(crate) fn pages_needed(&self) -> usize {
        self.wanted().div_ceil(PAGE)
    }

    /// Whether it may come to need more pages than it has.
    pub(crate) fn may_grow(&self, max_seq_len: usize) -> bool {
        let most = match self.task {
            // The last token is drawn and not computed.
            Task::Generate { max_new_tokens, .. } => {
                (self.prompt_len.saturating_add(max_new_tokens)).min(max_seq_len) - 1
            }
            Task::Rows { .. } => self.wanted(),
        };
        most.div_ceil(PAGE) > self.pages.len()
    }

    /// Which of the next `count` tokens need logits, by their index in the sequence.
    pub(crate) fn outputs(&self, count: usize) -> std::ops::Range<usize> {
        let end = self.computed + count;
        match self.task {
            Task::Generate { .. } if end == self.tokens.len() => end - 1..end,
            Task::Generate { .. } => end..end,
            Task::Rows { next, .. } => next.clamp(self.computed, end)..end,
        }
    }

    /// Which logits matter of the row that is output number `output` of its entry; `spare` are lists to be used again.
    pub(crate) fn wanted_logits(
        &self,
        entry: &Entry,
        output: usize,
        spare: &mut Vec<Vec<u32>>,
    ) -> Wanted {
        match &self.task {
            Task::Generate { sampler, .. } => {
                // A row is drawn from only if the draft before it was right.
                sampler.wanted(&self.tokens, &entry.draft[..output], self.prompt_len, spare)
            }
            Task::Rows { .. } => Wanted::All,
        }
    }

    /// Tokens that a draft may have: a token more is drawn in any case.
    pub(crate) fn draftable(&self, max_seq_len: usize) -> usize {
        match self.task {
            Task::Generate { max_new_tokens, .. } => {
                let generated = self.tokens.len() - self.prompt_len;
                let room = max_seq_len.saturating_sub(self.tokens.len());
                room.min(max_new_tokens.saturating_sub(generated)).saturating_sub(1)
            }
            Task::Rows { .. } => 0,
        }
    }

    /// Draws tokens, appends them and returns how many: one from the first of the rows, and one from each further row as long
    /// as the draft was right.
    pub(crate) fn draw<'a>(
        &mut self,
        entry: &Entry,
        rows: impl Iterator<Item = LogitRow<'a>>,
        max_seq_len: usize,
    ) -> Result<usize, SampleError> {
        let mut drawn = 0;
        for row in rows {
            let Task::Generate { sampler, .. } = &mut self.task else {
                unreachable!("only generations draw tokens")
            };
            let token = sampler.draw(row, &self.tokens, self.prompt_len)?;
            self.logprobs.extend(sampler.logprobs(row, token));
            self.tokens.push(token);
            drawn += 1;
            if entry.draft.get(drawn - 1) != Some(&token) || self.is_over(max_seq_len).is_some() {
                break;
            }
        }
        Ok(drawn)
    }

    /// How the last token ends the sequence, if it does.
    fn is_over(&self, max_seq_len: usize) -> Option<FinishReason> {
        let Task::Generate { max_new_tokens, stop_ids, sampler, .. } = &self.task else {
            return None;
        };
        match self.tokens.last() {
            Some(token) if stop_ids.contains(token) => {
                Some(FinishReason::Stop(Stop::Token(*token)))
            }
            _ if sampler.is_complete() => Some(FinishReason::Stop(Stop::Complete)),
            _ if self.tokens.len() - self.prompt_len >= *max_new_tokens => {
                Some(FinishReason::Length)
            }
            _ if self.tokens.len() >= max_seq_len => Some(FinishReason::Context),
            _ => None,
        }
    }

    /// Books what was computed, and that `drawn` tokens were appended; says how the sequence ends if it does.
    pub(crate) fn advance(
        &mut self,
        entry: &Entry,
        drawn: usize,
        max_seq_len: usize,
    ) -> Option<Finished> {
        // Of a draft, the keys and values of those tokens stand that were drawn before the last.
        let accepted = drawn.saturating_sub(1);
        self.computed += entry.count + accepted;
        match &mut self.task {
            Task::Rows { next, .. } => {
                *next = (*next).max(entry.outputs.end);
                (self.pending() == 0).then_some(Finished::AllRows)
            }
            Task::Generate { .. } if drawn == 0 => None,
            Task::Generate { drafting, .. } => {
                if let Some(drafting) = drafting {
                    drafting.learn(entry.draft.len(), accepted);
                }
                self.is_over(max_seq_len).map(Finished::Generated)
            }
        }
    }
}
