//! Drafts: tokens that may come next, computed in the same step as the token before them.
//!
//! While weights come from memory, a step with a few tokens takes little longer than a step with one. So the tokens that
//! followed the last time the text ended as it does now are tried (prompt lookup: Saxena 2023, "Prompt Lookup Decoding"), and as
//! many of them stand as the sampler draws itself. Every token is drawn from the logits, and by the random numbers, that it
//! would have been drawn from without a draft, so the answer is the same; only the number of steps is not.

use std::time::Duration;

/// The longest ending that is looked for, and the shortest.
const NGRAM: std::ops::RangeInclusive<usize> = 2..=4;
/// Tokens in a draft at most. Kernels take up to ten tokens at the cost of few.
const MAX_DRAFT: usize = 7;
/// Weight of the newest value in a running mean.
const NEWEST: f32 = 0.2;
/// Steps without drafts after which a sequence whose drafts did not pay tries again.
const RETRY: u32 = 32;

/// Up to `most` tokens that followed an earlier occurrence of the end of `tokens`, of the longest ending the latest one.
pub(crate) fn look_up(tokens: &[u32], most: usize) -> Vec<u32> {
    let follows = NGRAM.rev().find_map(|n| {
        let (before, ending) = tokens.split_at_checked(tokens.len().checked_sub(n)?)?;
        let windows = before.len().checked_sub(1)?; // an occurrence that ends before the last token
        (0..=windows).rev().find(|&i| tokens[i..i + n] == *ending).map(|i| i + n)
    });
    let Some(follows) = follows else { return Vec::new() };
    let mut draft: Vec<u32> = Vec::with_capacity(most);
    // Where the occurrence overlaps the end, the text repeats itself, and the draft is taken to go on repeating.
    for index in follows..follows + most {
        draft.push(match tokens.get(index) {
            Some(&token) => token,
            None => draft[index - tokens.len()],
        });
    }
    draft
}

/// What the drafts of a sequence were good for.
#[derive(Clone, Debug)]
pub(crate) struct Drafting {
    /// Share of drafted tokens that were accepted, a running mean.
    accepted: f32,
    /// Tokens that the next draft may have.
    len: usize,
    /// Steps since the last draft.
    since: u32,
}

impl Drafting {
    pub fn new() -> Self {
        Self { accepted: 0.5, len: 3, since: 0 }
    }

    /// A draft for a sequence, if drafts pay: when `price`, the cost of a token in a draft as a share of a whole step, is
    /// less than the chance that it stands. At most `most` tokens.
    pub fn propose(&mut self, tokens: &[u32], most: usize, price: f32) -> Vec<u32> {
        self.since += 1;
        if self.accepted <= price && self.since < RETRY {
            return Vec::new();
        }
        let draft = look_up(tokens, self.len.min(most));
        if !draft.is_empty() {
            self.since = 0;
        }
        draft
    }

    /// Books that `accepted` of `drafted` tokens stood.
    pub fn learn(&mut self, drafted: usize, accepted: usize) {
        if drafted == 0 {
            return;
        }
        self.accepted += NEWEST * (accepted as f32 / drafted as f32 - self.accepted);
        self.len = match accepted == drafted {
            true => (self.len + 2).min(MAX_DRAFT),
            false => (accepted + 1).clamp(2, MAX_DRAFT),
        };
    }
}

/// What steps cost, measured while running.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepCost {
    /// Sequences of the steps that `plain` is about.
    sequences: usize,
    /// Seconds of a step with one token of each sequence, a running mean. 0: unknown.
    plain: f32,
    /// Seconds that a drafted token adds.
    extra: f32,
}

impl StepCost {
    /// Books a step of `sequences` answers with `drafted` tokens besides; steps with parts of prompts do not count.
    pub fn observe(&mut self, sequences: usize, drafted: usize, time: Duration) {
        let time = time.as_secs_f32();
        if self.sequences != sequences {
            *self = Self { sequences, ..Self::default() };
        }
        if drafted == 0 {
            let newest = if self.plain == 0.0 { 1.0 } else { NEWEST };
            self.plain += newest * (time - self.plain);
        } else if self.plain > 0.0 {
            let extra = (time - self.plain).max(0.0) / drafted as f32;
            self.extra += NEWEST * (extra - self.extra);
        }
    }

    /// The cost of a drafted token as a share of what `sequences` tokens cost without; infinite while that is unknown.
    pub fn price(&self, sequences: usize) -> f32 {
        match self.plain > 0.0 && self.sequences == sequences {
            true => self.extra * sequences as f32 / self.plain,
            false => f32::INFINITY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(tokens: &[u32], expected: &[u32]) {
        assert_eq!(look_up(tokens, 3), expected);
    }

    #[test]
    fn what_followed_the_same_ending_is_proposed() {
        check(&[1, 2, 3, 4, 5, 9, 2, 3], &[4, 5, 9]);
    }

    #[test]
    fn the_longest_ending_decides_and_of_equals_the_latest() {
        check(&[1, 2, 3, 7, 7, 7, 2, 3, 8, 8, 8, 1, 2, 3], &[7, 7, 7]);
        check(&[2, 3, 7, 7, 7, 2, 3, 8, 8, 8, 2, 3], &[8, 8, 8]);
    }

    #[test]
    fn a_text_that_repeats_itself_goes_on_repeating() {
        check(&[5, 5, 5], &[5, 5, 5]);
        check(&[1, 2, 1, 2, 1], &[2, 1, 2]);
        assert_eq!(look_up(&[1, 2, 3, 1, 2, 3, 1, 2], 8), [3, 1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(look_up(&[1, 2, 1, 2, 1], 7), [2, 1, 2, 1, 2, 1, 2]);
    }

    #[test]
    fn nothing_is_proposed_for_an_ending_that_is_new() {
        check(&[], &[]);
        check(&[1], &[]);
        check(&[1, 2], &[]);
        check(&[1, 2, 3, 4, 5], &[]);
    }

    #[test]
    fn drafts_stop_when_they_do_not_stand_and_are_tried_again_later() {
        let mut drafting = Drafting::new();
        let tokens = [1, 2, 3, 1, 2];
        for _ in 0..20 {
            let draft = drafting.propose(&tokens, 9, 0.1);
            drafting.learn(draft.len(), 0);
        }
        let tries = (0..2 * RETRY).filter(|_| !drafting.propose(&tokens, 9, 0.1).is_empty());
        assert_eq!(tries.count(), 2);
    }

    #[test]
    fn drafts_that_stand_grow_to_their_limit() {
        let mut drafting = Drafting::new();
        for _ in 0..5 {
            drafting.learn(3, 3);
        }
        assert_eq!(drafting.propose(&[5; 9], 100, 0.5).len(), MAX_DRAFT);
        assert_eq!(drafting.propose(&[5; 9], 2, 0.5).len(), 2);
    }

    #[test]
    fn the_price_is_measured_and_unknown_before() {
        let mut cost = StepCost::default();
        assert_eq!(cost.price(1), f32::INFINITY);
        cost.observe(1, 0, Duration::from_millis(10));
        assert_eq!(cost.price(1), 0.0);
        for _ in 0..50 {
            cost.observe(1, 5, Duration::from_millis(15));
        }
        assert!((cost.price(1) - 0.1).abs() < 0.01, "{}", cost.price(1));
        assert_eq!(cost.price(2), f32::INFINITY);
    }
}
