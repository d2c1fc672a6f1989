//! From logits to a token: penalties → temperature → top-k → top-p → min-p → draw.
//!
//! Pure over `&[f32]`. Candidates stay in the order of their ids, so a draw depends on the seed and the logits alone. Filters look
//! for a limit by selection, halving what is left each time; nothing sorts the vocabulary. Top-p is from Holtzman et al. 2020
//! (arXiv:1904.09751), min-p from Nguyen et al. 2024 (arXiv:2407.01082), the repetition penalty from Keskar et al. 2019
//! (arXiv:1909.05858).

use std::cmp::Ordering;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::request::SamplingParams;

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
}

/// One sequence's way of drawing tokens.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    logits: Vec<f32>,
    candidates: Vec<Candidate>,
    order: Vec<Candidate>,
}

/// A token with its logit, later its probability up to a common factor.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    weight: f32,
    id: u32,
}

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    pub fn new(params: SamplingParams) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(params.seed);
        Self { params, rng, logits: Vec::new(), candidates: Vec::new(), order: Vec::new() }
    }

    /// Draws the token after `prompt` and `answer` from its logits, `[vocab_size]`.
    pub fn draw(
        &mut self,
        logits: &[f32],
        tokens: &[u32],
        prompt_len: usize,
    ) -> Result<u32, SampleError> {
        check(logits)?;
        let mut penalized = std::mem::take(&mut self.logits);
        let logits = match self.params.has_penalties() {
            false => logits,
            true => {
                penalized.clear();
                penalized.extend_from_slice(logits);
                penalize(&self.params, &mut penalized, tokens, prompt_len);
                &penalized
            }
        };
        let token = match self.params.temperature == 0.0 {
            true => greedy(logits),
            false => self.sample(logits),
        };
        self.logits = penalized;
        token.ok_or(SampleError::Nothing)
    }

    fn sample(&mut self, logits: &[f32]) -> Option<u32> {
        let Self { params, rng, candidates, order, .. } = self;
        let max = max(logits);
        if max == f32::NEG_INFINITY {
            return None;
        }
        if params.top_k > 0 && params.top_k < logits.len() {
            collect_top_k(candidates, logits, params.top_k);
        } else {
            candidates.clear();
            candidates.extend(logits.iter().zip(0..).map(|(&weight, id)| Candidate { weight, id }));
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
    fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

/// Logits that are looked at together: what the compiler turns into a few vectors.
const CHUNK: usize = 64;

/// Refuses NaN and plus infinity.
fn check(logits: &[f32]) -> Result<(), SampleError> {
    let bad = |x: f32| !x.is_finite() && x != f32::NEG_INFINITY;
    for (first, chunk) in (0..).step_by(CHUNK).zip(logits.chunks(CHUNK)) {
        if chunk.iter().fold(false, |any, &x| any | bad(x)) {
            let at = chunk.iter().position(|&x| bad(x)).expect("the chunk has one");
            return Err(SampleError::NotFinite { id: first + at as u32, value: chunk[at] });
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

/// The id of the largest logit, the lowest of equals.
fn greedy(logits: &[f32]) -> Option<u32> {
    let max = max(logits);
    (max > f32::NEG_INFINITY).then(|| {
        let at = logits.iter().position(|&x| x == max);
        at.expect("the largest is one of them") as u32
    })
}

/// The `k` candidates with the largest logits, of equals those with the lowest ids, in the order of ids.
fn collect_top_k(candidates: &mut Vec<Candidate>, logits: &[f32], k: usize) {
    candidates.clear();
    let mut floor = None; // the k-th largest so far, or less
    for (first, chunk) in (0..).step_by(CHUNK).zip(logits.chunks(CHUNK)) {
        let above = |&weight: &f32| floor.is_none_or(|floor| weight > floor);
        if !chunk.iter().fold(false, |any, x| any | above(x)) {
            continue;
        }
        let chunk = chunk.iter().zip(first..).filter(|(x, _)| above(x));
        candidates.extend(chunk.map(|(&weight, id)| Candidate { weight, id }));
        if candidates.len() >= 2 * k + CHUNK {
            floor = Some(keep_likeliest(candidates, k));
        }
    }
    if candidates.len() > k {
        keep_likeliest(candidates, k);
    }
    candidates.sort_unstable_by_key(|candidate| candidate.id);
}

/// Keeps `k` of more candidates, in any order; returns the least weight of these.
fn keep_likeliest(candidates: &mut Vec<Candidate>, k: usize) -> f32 {
    let (_, last, _) = candidates.select_nth_unstable_by(k - 1, by_weight);
    let last = last.weight;
    candidates.truncate(k);
    last
}

fn penalize(params: &SamplingParams, logits: &mut [f32], tokens: &[u32], prompt_len: usize) {
    if params.repetition_penalty != 1.0 {
        let recent = &tokens[tokens.len().saturating_sub(params.repeat_last_n)..];
        for (id, _) in counts(recent) {
            if let Some(logit) = logits.get_mut(id as usize) {
                let penalty = params.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }
    if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
        for (id, count) in counts(&tokens[prompt_len.min(tokens.len())..]) {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit -= params.presence_penalty + params.frequency_penalty * count as f32;
            }
        }
    }
}

/// Each token once, with how often it occurs.
fn counts(tokens: &[u32]) -> Vec<(u32, usize)> {
    let mut tokens = tokens.to_vec();
    tokens.sort_unstable();
    tokens.chunk_by(|a, b| a == b).map(|same| (same[0], same.len())).collect()
}

/// The likelier first, of equals the lower id.
fn by_weight(a: &Candidate, b: &Candidate) -> Ordering {
    b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id))
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

fn pick(candidates: &[Candidate], rng: &mut ChaCha8Rng) -> u32 {
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64; // 53 random bits in [0, 1)
    let mut left = uniform * total;
    let mut picked = None;
    for candidate in candidates.iter().filter(|c| c.weight > 0.0) {
        picked = Some(candidate.id);
        left -= f64::from(candidate.weight);
        if left < 0.0 {
            break;
        }
    }
    picked.expect("the most likely candidate has weight 1 and is never filtered out")
}

#[cfg(test)]
mod tests;
