//! From logits to a token: bias → penalties → constraint → temperature → top-k → top-p → min-p → draw.
//!
//! Pure over [`LogitRow`]. A sampler says beforehand which logits can matter ([`Sampler::wanted`]), and draws the same from
//! these as from all: candidates stay in the order of their ids, so a draw depends on the seed and their logits alone.
//! Filters look for a limit by selection, halving what is left each time; nothing sorts the vocabulary. Top-p is from
//! Holtzman et al. 2020 (arXiv:1904.09751), min-p from Nguyen et al. 2024 (arXiv:2407.01082), the repetition penalty from Keskar et al. 2019
//! (arXiv:1909.05858).

use std::cmp::Ordering;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use bitnet_kernels::logits::{LogitRow, Others, Wanted};

use crate::constraint::Constraint;
use crate::request::SamplingParams;

mod logprobs;

pub use logprobs::TokenLogprobs;
pub(crate) use logprobs::{log_likelihood, negative_log_likelihood};

/// Logits that no token can be drawn from.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// Not a number, or infinitely likely.
    #[error("the model's logit of token {id} is {value}")]
    NotFinite {
        /// The first such token.
        id: u32,
        /// NaN or infinity.
        value: f32,
    },
    /// Every token is excluded.
    #[error("the model gives no token a probability above zero")]
    Nothing,
    /// The grammar of the text gives none.
    #[error(
        "the grammar of the text allows no token here, or has become too complex to be followed"
    )]
    Grammar,
}

/// One sequence's way of drawing tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    /// Tokens that end the text, in ascending order.
    ends: Vec<u32>,
    rng: ChaCha8Rng,
    logits: Vec<f32>,
    candidates: Vec<Candidate>,
    order: Vec<Candidate>,
    /// Tokens to be counted.
    sorted: Vec<u32>,
}

/// A token, by its place in the row, with its logit, later its probability up to a common factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    weight: f32,
    place: u32,
}

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    pub fn new(params: SamplingParams) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(params.seed);
        let (ends, logits, candidates, order, sorted) = Default::default();
        Self { params, ends, rng, logits, candidates, order, sorted }
    }

    /// Draws none of `ends` before as many tokens as there have to be, nor before the text may end.
    pub fn with_ends(mut self, ends: &[u32]) -> Self {
        if self.params.min_tokens > 0 || self.params.constraint.is_some() {
            self.ends = ends.to_vec();
            self.ends.sort_unstable();
            self.ends.dedup();
        }
        self
    }

    /// The logits that can matter to [`Self::draw`] after `tokens` and `draft`, the first `prompt_len` of which are the prompt.
    /// A list of ids takes the memory of one of `spare`.
    pub fn wanted(
        &self,
        tokens: &[u32],
        draft: &[u32],
        prompt_len: usize,
        spare: &mut Vec<Vec<u32>>,
    ) -> Wanted {
        let params = &self.params;
        if params.logprobs.is_some() {
            return Wanted::All; // a probability is a part of all
        }
        if let Some(constraint) = &params.constraint {
            let Some(few) = constraint.few(&self.ends).filter(|_| draft.is_empty()) else {
                return Wanted::All; // what may come after a draft is not known yet
            };
            let mut always = spare.pop().unwrap_or_default();
            always.clear();
            always.extend(few);
            always.sort_unstable();
            always.dedup();
            return Wanted::Some { always, others: Others::Greatest(1) };
        }
        let others = if params.temperature == 0.0 {
            Others::Greatest(1)
        } else if params.top_k > 0 {
            Others::Greatest(params.top_k)
        } else if params.top_p == 1.0 && params.min_p > 0.0 {
            // A thousandth more, for what rounding may do to weights.
            let distance = 1e-3 - f64::from(params.min_p).ln();
            Others::Within(f64::from(params.temperature) * distance)
        } else {
            return Wanted::All; // top-p is a part of the probability of all
        };
        let mut always = spare.pop().unwrap_or_default();
        params.penalized(tokens, draft, prompt_len, &mut always);
        always.extend(params.logit_bias.iter().map(|(id, _)| id));
        always.extend(self.excluded((tokens.len() + draft.len()).saturating_sub(prompt_len)));
        always.sort_unstable();
        always.dedup();
        Wanted::Some { always, others }
    }

    /// Draws the token after `tokens`, the first `prompt_len` of which are the prompt.
    pub fn draw(
        &mut self,
        row: LogitRow<'_>,
        tokens: &[u32],
        prompt_len: usize,
    ) -> Result<u32, SampleError> {
        check(row)?;
        let generated = tokens.len().saturating_sub(prompt_len);
        let changes = self.params.changes_logits() || !self.excluded(generated).is_empty();
        let mut changed = std::mem::take(&mut self.logits);
        let logits = match changes {
            false => row.logits(),
            true => {
                changed.clear();
                changed.extend_from_slice(row.logits());
                self.change(row, &mut changed, tokens, prompt_len)?;
                &changed
            }
        };
        let place = match self.params.temperature == 0.0 {
            true if changes => greedy(logits),
            true => greatest(row),
            false => self.sample(logits),
        };
        self.logits = changed;
        let token = place.map(|place| row.id(place)).ok_or(SampleError::Nothing)?;
        let is_end = self.ends.binary_search(&token).is_ok();
        if let Some(constraint) = self.params.constraint.as_mut().filter(|_| !is_end) {
            constraint.advance(token);
        }
        Ok(token)
    }

    /// Whether the text is whole by its constraint, and nothing may follow.
    pub fn is_complete(&self) -> bool {
        self.params.constraint.as_ref().is_some_and(Constraint::is_complete)
    }

    /// How many tokens of a draft the constraint allows, from the first on.
    pub fn fitting(&mut self, draft: &[u32]) -> usize {
        let constraint = self.params.constraint.as_mut();
        constraint.map_or(draft.len(), |constraint| constraint.fitting(draft))
    }

    /// How likely `token` was by a row of all logits, if that is to be told.
    pub fn logprobs(&mut self, row: LogitRow<'_>, token: u32) -> Option<TokenLogprobs> {
        Some(log_likelihood(row.logits(), token, self.params.logprobs?, &mut self.candidates))
    }

    /// Tokens that must not come after so many generated ones.
    fn excluded(&self, generated: usize) -> &[u32] {
        if generated < self.params.min_tokens { &self.ends } else { &[] }
    }

    /// Changes `logits`, a copy of `row`'s, by bias, penalties and constraint.
    fn change(
        &mut self,
        row: LogitRow<'_>,
        logits: &mut [f32],
        tokens: &[u32],
        prompt_len: usize,
    ) -> Result<(), SampleError> {
        for &(id, bias) in &self.params.logit_bias {
            if let Some(place) = row.place(id) {
                logits[place] += bias;
            }
        }
        for &id in self.excluded(tokens.len().saturating_sub(prompt_len)) {
            if let Some(place) = row.place(id) {
                logits[place] = f32::NEG_INFINITY;
            }
        }
        let Self { params, sorted, ends, .. } = self;
        penalize(params, row, logits, tokens, prompt_len, sorted);
        match &params.constraint {
            Some(constraint) => constraint.apply(row, logits, ends),
            None => Ok(()),
        }
    }

    /// The place of the token drawn.
    fn sample(&mut self, logits: &[f32]) -> Option<usize> {
        let Self { params, rng, candidates, order, .. } = self;
        let max = max(logits);
        if max == f32::NEG_INFINITY {
            return None;
        }
        if params.top_k > 0 && params.top_k < logits.len() {
            collect_top_k(candidates, logits, params.top_k);
        } else {
            candidates.clear();
            let all = logits.iter().zip(0..);
            candidates.extend(all.map(|(&weight, place)| Candidate { weight, place }));
        }
        // A token whose weight is zero in f32 has less than 1e-38 of the most likely one's probability.
        for candidate in &mut *candidates {
            candidate.weight = ((candidate.weight - max) / params.temperature).exp();
        }
        if params.top_p < 1.0 {
            keep_top_p(candidates, order, params.top_p);
        }
        if params.min_p > 0.0 {
            candidates.retain(|c| c.weight >= params.min_p); // the most likely one's weight is 1
        }
        Some(pick(candidates, rng))
    }
}

impl SamplingParams {
    fn changes_logits(&self) -> bool {
        self.constraint.is_some()
            || !self.logit_bias.is_empty()
            || self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    /// Puts the tokens whose logits a penalty changes into `ids`.
    fn penalized(&self, tokens: &[u32], draft: &[u32], prompt_len: usize, ids: &mut Vec<u32>) {
        let len = tokens.len() + draft.len();
        let mut since = len;
        if self.repetition_penalty != 1.0 {
            since = len.saturating_sub(self.repeat_last_n);
        }
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            since = since.min(prompt_len);
        }
        ids.clear();
        ids.extend(tokens.iter().chain(draft).skip(since));
    }
}

/// Logits that are looked at together: what the compiler turns into a few vectors.
const CHUNK: usize = 64;

/// Refuses NaN and plus infinity.
fn check(row: LogitRow<'_>) -> Result<(), SampleError> {
    if let LogitRow::Peaked { peaks, .. } = row
        && !peaks.iter().any(|peak| peak.is_nan())
    {
        return Ok(());
    }
    let bad = |x: f32| !x.is_finite() && x != f32::NEG_INFINITY;
    for (first, chunk) in (0..).step_by(CHUNK).zip(row.logits().chunks(CHUNK)) {
        if chunk.iter().fold(false, |any, &x| any | bad(x)) {
            let at = chunk.iter().position(|&x| bad(x)).expect("the chunk has one");
            return Err(SampleError::NotFinite { id: row.id(first + at), value: chunk[at] });
        }
    }
    Ok(())
}

/// The largest of finite numbers.
fn max(logits: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; 16]; // one would be a chain of comparisons
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// The place of a row's largest logit, the first of equals.
fn greatest(row: LogitRow<'_>) -> Option<usize> {
    let LogitRow::Peaked { logits, peaks, width } = row else { return greedy(row.logits()) };
    let first = greedy(peaks)? * width; // of equal peaks the first, which has the first of equal logits
    let some = &logits[first..logits.len().min(first + width)];
    greedy(some).map(|place| first + place)
}

/// The place of the largest logit, the first of equals.
fn greedy(logits: &[f32]) -> Option<usize> {
    let max = max(logits);
    (max > f32::NEG_INFINITY).then(|| {
        let at = logits.iter().position(|&x| x == max);
        at.expect("the largest is one of them")
    })
}

/// The `k` candidates with the largest logits, of equals the first, in the order of their places.
fn collect_top_k(candidates: &mut Vec<Candidate>, logits: &[f32], k: usize) {
    candidates.clear();
    let mut floor = None; // the k-th largest so far, or less
    for (first, chunk) in (0..).step_by(CHUNK).zip(logits.chunks(CHUNK)) {
        let above = |&weight: &f32| floor.is_none_or(|floor| weight > floor);
        if !chunk.iter().fold(false, |any, x| any | above(x)) {
            continue;
        }
        let chunk = chunk.iter().zip(first..).filter(|(x, _)| above(x));
        candidates.extend(chunk.map(|(&weight, place)| Candidate { weight, place }));
        if candidates.len() >= 2 * k + CHUNK {
            floor = Some(keep_likeliest(candidates, k));
        }
    }
    if candidates.len() > k {
        keep_likeliest(candidates, k);
    }
    candidates.sort_unstable_by_key(|candidate| candidate.place);
}

/// Keeps `k` of more candidates, in any order; returns the least weight of these.
fn keep_likeliest(candidates: &mut Vec<Candidate>, k: usize) -> f32 {
    let (_, last, _) = candidates.select_nth_unstable_by(k - 1, by_weight);
    let last = last.weight;
    candidates.truncate(k);
    last
}

/// Changes `logits`, a copy of `row`'s. `sorted` is for counting.
fn penalize(
    params: &SamplingParams,
    row: LogitRow<'_>,
    logits: &mut [f32],
    tokens: &[u32],
    prompt_len: usize,
    sorted: &mut Vec<u32>,
) {
    if params.repetition_penalty != 1.0 {
        let recent = &tokens[tokens.len().saturating_sub(params.repeat_last_n)..];
        for (id, _) in counts(recent, sorted) {
            if let Some(logit) = row.place(id).map(|place| &mut logits[place]) {
                let penalty = params.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }
    if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
        for (id, count) in counts(&tokens[prompt_len.min(tokens.len())..], sorted) {
            if let Some(logit) = row.place(id).map(|place| &mut logits[place]) {
                *logit -= params.presence_penalty + params.frequency_penalty * count as f32;
            }
        }
    }
}

/// Each token once, with how often it occurs, by way of `sorted`.
fn counts(tokens: &[u32], sorted: &mut Vec<u32>) -> impl Iterator<Item = (u32, usize)> {
    sorted.clear();
    sorted.extend_from_slice(tokens);
    sorted.sort_unstable();
    sorted.chunk_by(|a, b| a == b).map(|same| (same[0], same.len()))
}

/// The likelier first, of equals the one that comes first in the row.
fn by_weight(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.place.cmp(&b.place))
}

fn keep_up_to(candidates: &mut Vec<Candidate>, last: Candidate) {
    candidates.retain(|c| by_weight(c, &last) != Ordering::Greater);
}

/// Keeps the fewest of the likeliest candidates that have `p` of all probability together.
fn keep_top_p(candidates: &mut Vec<Candidate>, order: &mut Vec<Candidate>, p: f32) {
    let mass = |part: &[Candidate]| part.iter().map(|c| f64::from(c.weight)).sum::<f64>();
    order.clone_from(candidates);
    let mut wanted = f64::from(p) * mass(order);
    // The last one to keep is always in `rest`: all before it have been taken off `wanted`.
    let mut rest = &mut order[..];
    while rest.len() > 1 {
        let half = rest.len() / 2;
        rest.select_nth_unstable_by(half - 1, by_weight);
        let (likely, unlikely) = rest.split_at_mut(half);
        let likely_mass = mass(likely);
        rest = if likely_mass >= wanted {
            likely
        } else {
            wanted -= likely_mass;
            unlikely
        };
    }
    let last = rest[0];
    keep_up_to(candidates, last);
}

fn pick(candidates: &[Candidate], rng: &mut ChaCha8Rng) -> usize {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64; // 53 random bits in [0, 1)
    let mut left = uniform * total;
    let mut picked = None;
    for candidate in candidates.iter().filter(|c| c.weight > 0.0) {
        picked = Some(candidate.place as usize);
        left -= f64::from(candidate.weight);
        if left < 0.0 {
            break;
        }
    }
    picked.expect("the most likely candidate has weight 1 and is never filtered out")
}

#[cfg(test)]
mod tests;
